"""Change one line of the code at a time and see whether a test fails.

Lines of ``model``, ``methods``, ``training`` and ``evaluation`` are drawn at random (``--seed``): by a hash of file, line
and seed, so that a later change of the code moves only the draw of the lines that it touches. In a copy of the source one
comparison, sign, constant, negation, ``and`` or ``or`` of the line is turned into another.

First all tests of these rooms, ``tests/cli``, ``compare`` and ``demo``, and those of the documentation, whose tables come
from the code, run in a copy that only notes which test comes to which of the drawn places. They must pass. Then each
mutant meets the tests that come to its place, those of its module before all, until one fails; a place that no test comes
to is not tried. What is computed at import, and so comes before any test, meets all tests: those of the room that name the
module, the rest of the room, and the others. What is finished is kept and not done again: mutants in the output, the
places of each room's tests in ``build/mutants.json`` as long as neither source nor tests change.

    python benchmarks/mutants.py --number 120 --jobs 2 --output docs/results/mutants.json
"""

import argparse
import ast
import copy
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
sys.dont_write_bytecode = True  # a mutant is of its source's size, and may be of its second
ROOT = Path(__file__).resolve().parents[1]
IMPORTS = ("torch", "transformers", "transformers.trainer", "peft", "accelerate", "datasets", "pydantic", "typer")
ROOMS = ("model", "methods", "training", "evaluation")
ABOVE = ("tests/cli", "tests/compare", "tests/demo", "tests/test_docs.py")
GROUPS = (*([f"tests/{room}"] for room in ROOMS), list(ABOVE))
LIMIT = 900  # seconds that some tests may take; a mutant that never ends is caught
REACHED = ROOT / "build" / "mutants.json"
NOTES = """
import mmap, os
with open({now!r}, "r+b") as _file:
    _now = mmap.mmap(_file.fileno(), 8)
_log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_seen = set()


def begin(number):
    _now[:] = number.to_bytes(8, "little")


def now():
    return int.from_bytes(_now[:], "little")


def at(place):
    if (place, now()) not in _seen:
        _seen.add((place, now()))
        try:
            os.write(_log, f"{{place}} {{now()}}\\n".encode())
        except OSError:  # a test of a full disk
            pass
"""
"""A module that a noting source imports: every process of a test run notes which test it was in at a place."""
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
SWAPS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.And: ast.Or, ast.Or: ast.And},
}


def mutated(node: ast.AST) -> ast.AST | None:
    """Another expression in the place of one; None where there is none to be had."""
    node = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        node = node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        node.value = node.value + 1
    else:
        return None
    return node


def expressions(node: ast.AST) -> Iterator[ast.expr]:
    """All expressions below a node that decide something: no annotations, no texts, nothing that decorates.

    Nor whether a ``zip`` is strict, which only guards what cannot be.
    """
    for name, value in ast.iter_fields(node):
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue
        if name in ("annotation", "returns", "type_params", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.expr):
                yield child
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield from expressions(child)


def candidates(path: Path) -> list[tuple[ast.expr, str]]:
    """Expressions of a file that lie on one line, with what may stand in their place."""
    found = []
    for node in expressions(ast.parse(path.read_text())):
        if node.lineno == node.end_lineno and (other := mutated(node)) is not None:
            found.append((node, f"({ast.unparse(other)})"))
    return found


def draw(number: int, seed: int) -> list[dict[str, Any]]:
    """So many mutants on lines of their own."""
    lines: dict[tuple[str, int], list[tuple[ast.expr, str]]] = {}
    for room in ROOMS:
        for path in sorted((ROOT / "src" / "uld" / room).rglob("*.py")):
            for node, other in candidates(path):
                lines.setdefault((str(path.relative_to(ROOT / "src")), node.lineno), []).append((node, other))
    texts = {file: (ROOT / "src" / file).read_text().splitlines() for file, _ in lines}

    def place(at: tuple[str, int]) -> str:
        file, line = at
        again = texts[file][: line - 1].count(texts[file][line - 1])  # the same line may stand there twice
        return hashlib.sha256(f"{seed} {file} {again} {texts[file][line - 1]}".encode()).hexdigest()

    mutants = []
    for file, line in sorted(lines, key=place)[:number]:
        node, other = random.Random(place((file, line))).choice(lines[file, line])
        text = texts[file][line - 1]
        start, end = (len(text.encode()[:column].decode()) for column in (node.col_offset, node.end_col_offset or 0))
        one = {"file": file, "line": line, "was": text.strip(), "is": f"{text[:start]}{other}{text[end:]}"}
        noting = f"{text[:start]}(__import__('uld_notes').at({len(mutants)}) or ({text[start:end]})){text[end:]}"
        mutants.append(one | {"noting": noting if in_a_function(file, node) else None})
    return mutants


def in_a_function(file: str, node: ast.expr) -> bool:
    """Whether an expression is computed when a function is called, and not at import."""
    tree = ast.parse((ROOT / "src" / file).read_text())
    bodies = [
        one.body if isinstance(one.body, list) else [one.body] for one in ast.walk(tree) if isinstance(one, FUNCTION)
    ]
    patterns = [one.pattern for one in ast.walk(tree) if isinstance(one, ast.match_case)]  # where nothing can be called
    place = (node.lineno, node.col_offset, node.end_col_offset)

    def holds(some: list[Any]) -> bool:
        every = (one for part in some for one in ast.walk(part) if isinstance(one, ast.expr))
        return any((one.lineno, one.col_offset, one.end_col_offset) == place for one in every)

    return any(holds(body) for body in bodies) and not holds(patterns)


def tests_of(file: str) -> list[list[str]]:
    """What is run for a module, one call after the other: what names it in its room, the room, and the rooms above."""
    room, name = Path(file).parts[1], Path(file).stem
    own = ROOT / "tests" / room / f"test_{name}.py"
    module = re.compile(rf"\buld\.{room}\.{name}\b|\bfrom uld\.{room} import .*\b{name}\b")
    naming = [path for path in sorted((ROOT / "tests" / room).glob("test_*.py")) if module.search(path.read_text())]
    first = dict.fromkeys([own, *naming] if own.exists() else naming)
    return [*([[str(path) for path in first]] if first else []), [f"tests/{room}"], list(ABOVE)]


def failure(source: Path, tests: list[str], patience: float, notes: Path | None = None) -> str | None:
    """The first of some tests that fails with a source, or None.

    Args:
        source: A copy of ``src``.
        tests: Files, folders or tests.
        patience: How many times as long as usual a test may take, on a busy machine.
        notes: Where to write which test came to which place; for a source that notes it.
    """
    with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
        process = multiprocessing.get_context("fork").Process(
            target=_test, args=(source, tests, log.name, patience, notes)
        )
        process.start()
        process.join(LIMIT * patience)
        if process.is_alive():
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
            return f"{tests[0]}: longer than {LIMIT} s"
        if process.exitcode in (0, 5):  # all passed, or none is run by default
            return None
        failed = [line.strip() for line in log if line.startswith(("FAILED", "ERROR"))]
    return (failed or [f"{tests[0]}: exit code {process.exitcode}"])[0].replace(str(ROOT), "")


def _test(source: Path, tests: list[str], log: str, patience: float, notes: Path | None) -> None:
    """Run tests with a source, in a process that has all imports done but ours."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream)
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(source)
    sys.path.insert(0, str(source))
    plugins = [] if notes is None else [Notes(source, notes)]
    sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-o", f"timeout={300 * patience}", *tests], plugins))


class Notes:
    """A plugin that says which test is running, and afterwards which tests came to a place and how long each takes.

    A fixture of several tests comes to a place for all that ask for it.
    """

    def __init__(self, source: Path, path: Path) -> None:
        """Take a source that notes, and where to write what was found."""
        self.path, self.log = path, source / "notes.log"
        self.module: Any = importlib.import_module("uld_notes")
        self.names: list[tuple[str, str]] = [("", "")]
        self.seconds: dict[str, float] = {}
        self.users: dict[str, list[str]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        """Say which test it is, and take its time."""
        start = time.monotonic()
        for name in item.fixturenames:
            self.users.setdefault(name, []).append(item.nodeid)
        self.begin("test", item.nodeid)
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = round(time.monotonic() - start, 3)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        """Say which fixture it is, where it serves several tests."""
        before = self.module.now()
        if fixturedef.scope != "function":
            self.begin("fixture", fixturedef.argname)
        try:
            return (yield)
        finally:
            self.module.begin(before)

    def begin(self, kind: str, name: str) -> None:
        """What comes now is this."""
        self.names.append((kind, name))
        self.module.begin(len(self.names) - 1)

    def pytest_sessionfinish(self) -> None:
        """Write the tests of each place."""
        reached: dict[str, set[str]] = {}
        for line in self.log.read_text().splitlines():
            place, number = line.split()
            kind, name = self.names[int(number)]
            reached.setdefault(place, set()).update(self.users.get(name, []) if kind == "fixture" else [name])
        found = {place: sorted(tests) for place, tests in reached.items()}
        write_whole(self.path, {"seconds": self.seconds, "reached": found})


def reached(mutants: list[dict[str, Any]], patience: float) -> list[dict[str, Any]]:
    """The mutants, each with the tests that come to its place, its own file's first, then the quickest."""
    digest = hashlib.sha256(repr([(one["file"], one["is"]) for one in mutants]).encode())
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]):
        digest.update(path.read_bytes())
    known = json.loads(REACHED.read_text()) if REACHED.exists() else {}
    if known.get("of") != digest.hexdigest():
        known = {"of": digest.hexdigest(), "groups": {}}
    for tests in GROUPS:
        if tests[0] in known["groups"]:
            continue
        with copied(mutants, "noting") as source:
            (source / "uld_notes.py").write_text(NOTES.format(now=str(source / "now"), log=str(source / "notes.log")))
            (source / "now").write_bytes(bytes(8))
            if failed := failure(source, tests, patience, source / "found.json"):
                sys.exit(f"without a change a test fails, so none can tell a mutant: mend it first ({failed})")
            known["groups"][tests[0]] = json.loads((source / "found.json").read_text())
        write_whole(REACHED, known)
        print(*tests, "passed without a change", flush=True)
    groups = known["groups"].values()
    seconds = {test: one for group in groups for test, one in group["seconds"].items()}
    for number, mutant in enumerate(mutants):
        own = f"/{Path(mutant['file']).parts[1]}/test_{Path(mutant['file']).stem}.py::"
        tests = [test for group in groups for test in group["reached"].get(str(number), [])]
        if "" in tests:  # a function that is called at import
            mutant["noting"] = None
        mutant["tests"] = sorted(set(tests) - {""}, key=lambda test: (own not in test, seconds.get(test, 0), test))
    return mutants


@contextmanager
def copied(mutants: list[dict[str, Any]], name: str) -> Iterator[Path]:
    """A copy of the source with what each of some mutants has under a name in the place of its line."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        for mutant in mutants:
            if mutant[name] is not None:
                path = source / mutant["file"]
                lines = path.read_text().splitlines(keepends=True)
                lines[mutant["line"] - 1] = mutant[name] + "\n"
                path.write_text("".join(lines))
        yield source


def caught(mutant: dict[str, Any], patience: float) -> dict[str, Any]:
    """A mutant with the first test that fails under ``caught``, or None."""
    with copied([mutant], "is") as source:
        at_import = mutant["noting"] is None
        calls = tests_of(mutant["file"]) if at_import else [mutant["tests"]] if mutant["tests"] else []
        found = (failure(source, tests, patience) for tests in calls)
        about = {name: mutant[name] for name in ("file", "line", "was", "is")}
        return about | {
            "tests": None if at_import else len(mutant["tests"]),
            "caught": next((one for one in found if one), None),
        }


def write_whole(path: Path, value: Any) -> None:
    """Write JSON, or leave what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(value, indent=1) + "\n")
    path.with_suffix(".part").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--patience", type=float, default=1, help="times as long as usual a test may take")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "mutants.json")
    options = parser.parse_args()
    known = json.loads(options.output.read_text())["mutants"] if options.output.exists() else []
    done = {(one["file"], one["is"]) for one in known}
    drawn = draw(options.number, options.seed)
    left = [one for one in drawn if (one["file"], one["is"]) not in done]
    for name in IMPORTS if left else ():
        importlib.import_module(name)
    if left:
        reached(drawn, options.patience)
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool:
        for one in as_completed([pool.submit(caught, mutant, options.patience) for mutant in left]):
            known.append(one.result())
            print(*(known[-1][name] for name in ("file", "line", "is", "tests", "caught")), flush=True)
            share = sum(one["caught"] is not None for one in known) / len(known)
            report = {"seed": options.seed, "asked": options.number, "share": round(share, 3), "mutants": known}
            write_whole(options.output, report)


if __name__ == "__main__":
    main()
