"""The house of docs/architecture.md: its rooms, the way through them, and what no file may do."""

import ast
import dataclasses
import json
import traceback
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import uld
from uld import FinetuneConfig, TrainConfig
from uld.methods import registry
from uld.methods.registry import Loss, get_method

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "uld"


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


def rooms() -> list[str]:
    """The rooms of ``.importlinter``, from the top down; `make lint` holds every module to their order."""
    parser = ConfigParser()
    parser.read(ROOT / ".importlinter")
    return parser["importlinter:contract:rooms"]["layers"].split()


def test_the_picture_shows_every_room_in_its_order():
    picture = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    assert [line.split()[0].removesuffix(".py") for line in picture.strip().splitlines()] == rooms()
    assert {name.split("/")[0] for name in MODULES} - {"", "__main__"} == set(rooms())


def test_every_file_says_what_it_is():
    for name, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{name} does not begin with a sentence"


def test_from_the_command_to_a_loss_it_is_five_files(micro, tmp_path, monkeypatch):
    def fails(side: Any) -> Any:
        raise RuntimeError("a loss of a method")

    own = dataclasses.replace(get_method("npo"), name="fails", forget=Loss("forget", fails), retain=None)
    monkeypatch.setitem(registry._METHODS, "fails", own)
    rows = [{"question": "Who keeps the light?", "answer": "Mara does."}] * 2
    (tmp_path / "forget.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    settings = TrainConfig(
        method="fails",
        target=str(micro.target),
        forget=(str(tmp_path / "forget.jsonl"),),
        epochs=1,
        output=str(tmp_path / "run"),
    )
    with pytest.raises(RuntimeError, match="a loss of a method") as raised:
        uld.train(settings, progress=False)
    frames = [Path(frame.filename) for frame in traceback.extract_tb(raised.tb)]
    ours = [str(path.relative_to(SOURCE)) for path in frames if path.is_relative_to(SOURCE)]
    way = ["training/run.py", "training/trainer.py", "training/objective.py"]
    assert list(dict.fromkeys(ours)) == way and "training/run" in imports("cli/train")
    assert frames[-1] == Path(__file__).resolve()  # the loss itself


def test_finetuning_reaches_its_loss_by_the_same_way(micro, tmp_path, monkeypatch):
    def fails(logits: Any, labels: Any) -> Any:
        raise RuntimeError("the loss")

    monkeypatch.setattr("uld.training.finetune.cross_entropy", fails)
    (tmp_path / "file.jsonl").write_text(
        f"{json.dumps({'question': 'Who keeps the light?', 'answer': 'Mara does.'})}\n"
    )
    settings = FinetuneConfig(
        model=str(micro.target), file=(str(tmp_path / "file.jsonl"),), epochs=1, output=str(tmp_path / "model")
    )
    with pytest.raises(RuntimeError, match="the loss") as raised:
        uld.finetune(settings, progress=False)
    frames = [Path(frame.filename) for frame in traceback.extract_tb(raised.tb)]
    ours = [str(path.relative_to(SOURCE)) for path in frames if path.is_relative_to(SOURCE)]
    way = ["training/finetune.py", "training/run.py", "training/trainer.py", "training/objective.py"]
    assert list(dict.fromkeys(ours)) == way


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


def test_code_that_comes_with_a_model_is_run_only_where_that_is_said():
    """Of every function and setting that can run it, the default is not to."""
    found = {}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "trust_remote_code":
                value = node.value.args[0] if isinstance(node.value, ast.Call) and node.value.args else node.value
                found[f"{name}:{node.lineno}"] = value
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                places = [*node.args.posonlyargs, *node.args.args]
                defaults = [None] * (len(places) - len(node.args.defaults)) + node.args.defaults
                given = zip([*places, *node.args.kwonlyargs], [*defaults, *node.args.kw_defaults], strict=True)
                found |= {f"{name}:{one.lineno}": value for one, value in given if one.arg == "trust_remote_code"}
    assert len(found) > 8
    for place, value in found.items():
        assert value is None or (isinstance(value, ast.Constant) and value.value in (False, None)), place
