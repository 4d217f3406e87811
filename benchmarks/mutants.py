"""Change one line of the code at a time and see whether a test fails.

Lines of ``model``, ``methods``, ``training`` and ``evaluation`` are drawn at random (``--seed``): by a hash of file, line
and seed, so that a later change of the code moves only the draw of the lines that it touches. In a copy of the source one
comparison, sign, constant, negation, ``and`` or ``or`` of the line is turned into another. Then tests run until one fails:
those of the room that name the module, its own test file before all, the rest of the room, ``tests/cli``, ``compare`` and
``demo``, and those of the documentation, whose tables come from the code. Before the first mutant all of these run without
a change, and must pass. What is finished is kept in the output and not done again.

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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import pytest

os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
sys.dont_write_bytecode = True  # a mutant is of its source's size, and may be of its second
ROOT = Path(__file__).resolve().parents[1]
IMPORTS = ("torch", "transformers", "transformers.trainer", "peft", "accelerate", "datasets", "pydantic", "typer")
ROOMS = ("model", "methods", "training", "evaluation")
ABOVE = ("tests/cli", "tests/compare", "tests/demo", "tests/test_docs.py")
LIMIT = 900  # seconds that some tests may take; a mutant that never ends is caught
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
    """All expressions below a node that decide something: no annotations, no texts, nothing that decorates."""
    for name, value in ast.iter_fields(node):
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
        mutants.append({"file": file, "line": line, "was": text.strip(), "is": f"{text[:start]}{other}{text[end:]}"})
    return mutants


def tests_of(file: str) -> list[list[str]]:
    """What is run for a module, one call after the other: what names it in its room, the room, and the rooms above."""
    room, name = Path(file).parts[1], Path(file).stem
    own = ROOT / "tests" / room / f"test_{name}.py"
    module = re.compile(rf"\buld\.{room}\.{name}\b|\bfrom uld\.{room} import .*\b{name}\b")
    naming = [path for path in sorted((ROOT / "tests" / room).glob("test_*.py")) if module.search(path.read_text())]
    first = dict.fromkeys([own, *naming] if own.exists() else naming)
    return [*([[str(path) for path in first]] if first else []), [f"tests/{room}"], list(ABOVE)]


def failure(source: Path, tests: list[str]) -> str | None:
    """The first of some tests that fails with a source, or None."""
    with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
        process = multiprocessing.get_context("fork").Process(target=_test, args=(source, tests, log.name))
        process.start()
        process.join(LIMIT)
        if process.is_alive():
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
            return f"{tests[0]}: longer than {LIMIT} s"
        if process.exitcode in (0, 5):  # all passed, or none is run by default
            return None
        failed = [line.strip() for line in log if line.startswith(("FAILED", "ERROR"))]
    return (failed or [f"{tests[0]}: exit code {process.exitcode}"])[0].replace(str(ROOT), "")


def _test(source: Path, tests: list[str], log: str) -> None:
    """Run tests with a source, in a process that has all imports done but ours."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream)
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(source)
    sys.path.insert(0, str(source))
    sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))


def caught(mutant: dict[str, Any]) -> dict[str, Any]:
    """A mutant with the first test that fails under ``caught``, or None."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        path = source / mutant["file"]
        lines = path.read_text().splitlines(keepends=True)
        lines[mutant["line"] - 1] = mutant["is"] + "\n"
        path.write_text("".join(lines))
        found = (failure(source, tests) for tests in tests_of(mutant["file"]))
        return mutant | {"caught": next((one for one in found if one), None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "mutants.json")
    options = parser.parse_args()
    known = json.loads(options.output.read_text())["mutants"] if options.output.exists() else []
    done = {(one["file"], one["is"]) for one in known}
    left = [one for one in draw(options.number, options.seed) if (one["file"], one["is"]) not in done]
    for name in IMPORTS if left else ():
        importlib.import_module(name)
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool:
        unchanged = [*([f"tests/{room}"] for room in ROOMS), list(ABOVE)] if left else []
        for failed in pool.map(partial(failure, ROOT / "src"), unchanged):
            if failed:
                sys.exit(f"without a change a test fails, so none can tell a mutant: mend it first ({failed})")
        for one in as_completed([pool.submit(caught, mutant) for mutant in left]):
            known.append(one.result())
            print(*(known[-1][name] for name in ("file", "line", "is", "caught")), flush=True)
            share = sum(one["caught"] is not None for one in known) / len(known)
            report = {"seed": options.seed, "asked": options.number, "share": round(share, 3), "mutants": known}
            options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
