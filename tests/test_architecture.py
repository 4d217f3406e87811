"""The house of docs/architecture.md: a module imports only modules of lower floors, and nothing imports the roof."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "uld"
STOREYS = ("demo", "cli")  # packages whose modules stand on one floor
FLOOR_ROW = re.compile(r"^\| (\d+) \| `([\w/]+)` \|", re.MULTILINE)


def name_of(path: Path) -> str:
    """``evaluation/rows`` for its file; a package is its ``__init__``, the root ``""``."""
    name = str(path.relative_to(SOURCE).with_suffix("")).removesuffix("__init__").removesuffix("/")
    return name


MODULES = {name_of(path): path for path in SOURCE.rglob("*.py")}


@cache
def imports(name: str) -> frozenset[str]:
    """Modules of ours that a module imports, anywhere in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relative to itself"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole.removeprefix("uld.").replace(".", "/") in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    ours = (one.partition(".")[2].replace(".", "/") for one in found if one.split(".")[0] == "uld")
    return frozenset(one for one in ours if MODULES[one].read_text().count("\n") > 1)  # not a package's bare docstring


@cache
def floors() -> dict[str, int]:
    rows = FLOOR_ROW.findall((ROOT / "docs" / "architecture.md").read_text())
    return {name: int(floor) for floor, name in rows}


def place(name: str) -> str:
    """What the table calls a module: its own name, or its package's where that is one storey."""
    top = name.split("/")[0]
    return top if top in STOREYS else name


def test_every_module_stands_on_one_floor_and_every_floor_is_built():
    # the public face and empty packages
    bare = {"", "__main__", "augment", "data", "evaluation", "methods", "report", "compare"}
    assert {place(name) for name in MODULES} - bare == set(floors())
    assert all(MODULES[name].read_text().count("\n") == 1 for name in bare - {"", "__main__"})


def test_a_module_imports_only_lower_floors():
    for name in MODULES.keys() - {"", "__main__"}:
        for other in imports(name):
            same_storey = place(name) == place(other) and place(name) in STOREYS
            version = place(name) == "cli" and other == ""  # the command says which version it is
            if not same_storey and not version:
                assert floors()[place(other)] < floors()[place(name)], f"{name} imports {other}"


def test_imports_have_no_cycle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for other in imports(name):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())
    assert done == set(MODULES)


def test_nothing_but_the_command_itself_imports_the_command_line():
    for name in MODULES:
        reached = [other for other in imports(name) if other.split("/")[0] == "cli"]
        assert not reached or name == "__main__" or name.startswith("cli/"), f"{name} imports {reached}"


def test_only_the_command_line_prints():
    for name, path in MODULES.items():
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        printed = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not printed or name.startswith("cli/"), f"{name} prints in line {printed[0].lineno}"
