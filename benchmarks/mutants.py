"""Change one line of the code at a time and see whether a test fails.

Lines of ``model``, ``methods``, ``training`` and ``evaluation`` are drawn at random (``--seed``). In a copy of the source one
comparison, sign, constant, negation, ``and`` or ``or`` of the line is turned into another. The test file of the module runs
first, then the rest of its room, then ``tests/cli``, ``compare`` and ``demo``, until a test fails; all of these must pass
without a change. What is finished is kept in the
output and not done again.

    python benchmarks/mutants.py --number 120 --output docs/results/mutants.json
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("model", "methods", "training", "evaluation")
LIMIT = 900  # seconds of one call of pytest; a mutant that never ends is caught
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
    """All expressions below a node that decide something: no annotations, no texts."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params"):
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
    chance = random.Random(seed)
    mutants = []
    for file, line in chance.sample(sorted(lines), number):
        node, other = chance.choice(lines[file, line])
        text = (ROOT / "src" / file).read_text().splitlines()[line - 1]
        start, end = (len(text.encode()[:column].decode()) for column in (node.col_offset, node.end_col_offset or 0))
        mutants.append({"file": file, "line": line, "was": text.strip(), "is": f"{text[:start]}{other}{text[end:]}"})
    return mutants


def tests_of(file: str) -> list[list[str]]:
    """What is run for a module, one call after the other."""
    room, name = Path(file).parts[1], Path(file).stem
    own = ROOT / "tests" / room / f"test_{name}.py"
    calls = [[str(own)]] if own.exists() else []
    return [*calls, [f"tests/{room}"], ["tests/cli", "tests/compare", "tests/demo"]]


def caught(mutant: dict[str, Any], workers: int) -> str | None:
    """The first test that fails, or None."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        path = source / mutant["file"]
        lines = path.read_text().splitlines(keepends=True)
        lines[mutant["line"] - 1] = mutant["is"] + "\n"
        path.write_text("".join(lines))
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        for call in tests_of(mutant["file"]):
            words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", str(workers), *call]
            try:
                done = subprocess.run(
                    words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
                )
            except subprocess.TimeoutExpired:
                return f"{call[0]}: longer than {LIMIT} s"
            if done.returncode in (1, 2):  # a test failed, or the tests could not be read
                failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
                return (failed or [f"{call[0]}: exit code {done.returncode}"])[0].replace(str(ROOT), "")
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes of pytest")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "mutants.json")
    options = parser.parse_args()
    known = json.loads(options.output.read_text())["mutants"] if options.output.exists() else []
    done = {(one["file"], one["is"]): one for one in known}
    for mutant in draw(options.number, options.seed):
        key = (mutant["file"], mutant["is"])
        if key not in done:
            done[key] = mutant | {"caught": caught(mutant, options.workers)}
            print(mutant["file"], mutant["line"], mutant["is"].strip(), "→", done[key]["caught"], flush=True)
            mutants = list(done.values())
            share = sum(one["caught"] is not None for one in mutants) / len(mutants)
            report = {"seed": options.seed, "asked": options.number, "share": round(share, 3), "mutants": mutants}
            options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
