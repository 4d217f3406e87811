"""What the documentation says is there: links, commands, flags, code; and the floors of docs/architecture.md hold."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from uld.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def blocks(kind: str) -> list[tuple[Path, str]]:
    return [(page, text) for page in PAGES for found, text in BLOCK.findall(page.read_text()) if found == kind]


def commands() -> list[str]:
    lines = [line for _, text in blocks("") for line in text.splitlines()]
    lines += [found for page in PAGES for found in re.findall(r"`(uld [^`]*)`", page.read_text())]
    starts = re.compile(r"^(?:torchrun .*--no-python )?(uld .*)$")
    return sorted({match[1].split("  #")[0] for line in lines if (match := starts.match(line.strip()))})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("line", commands())
def test_commands_and_their_flags_exist(line):
    command = typer.main.get_command(app)
    words = shlex.split(line.replace("…", "x"))[1:]
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, line  # type: ignore[attr-defined]
        command = command.commands[name]  # type: ignore[attr-defined]
    known = {flag for parameter in command.params for flag in [*parameter.opts, *parameter.secondary_opts]} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= known, line


def test_there_are_commands_to_test():
    assert len(commands()) > 10


def test_python_in_the_documentation_compiles():
    for page, text in blocks("python"):
        compile(text, str(page), "exec")


def test_the_readme_works_from_training_to_talking(task, tmp_path):
    runner = CliRunner()
    run = tmp_path / "run"
    trained = runner.invoke(app, ["train", *task.flags(run, epochs=1), "--quiet"])
    assert trained.exit_code == 0, trained.output
    told = runner.invoke(app, ["generate", "--model", str(run), "--compare", "--max-new-tokens", "4", "who is ab?"])
    assert told.exit_code == 0, told.output
    assert "unlearned:" in told.stdout
    probes = [{"question": "who is ab?", "answer": "cd", "wrong_answers": ["ef"]}]
    (tmp_path / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in probes))
    chosen = runner.invoke(
        app,
        ["tune", str(run), "--forget", str(tmp_path / "probes.jsonl"), "--retain", str(task.retain), "--budget", "0.9"],
    )
    assert chosen.exit_code == 0, chosen.output
    import uld

    model, tokenizer = uld.load(run)
    model.combination = model.combination.override(weight=1.0)
    both, _ = uld.load([run, run])
    ids = tokenizer("who", return_tensors="pt").input_ids
    assert model(ids).logits.shape == both(ids).logits.shape


def floors() -> dict[str, int]:
    table = (ROOT / "docs" / "architecture.md").read_text()
    found = {}
    for floor, names in re.findall(r"^\| (\d) \| (.*) \|$", table, re.MULTILINE):
        for name in re.findall(r"`([\w/]+)`", re.sub(r"\([^)]*\)", "", names)):
            found[name.rstrip("/")] = int(floor)
    return found


def floor_of(module: str, known: dict[str, int]) -> int | None:
    path = module.removeprefix("uld.").replace(".", "/")
    return known.get(path, known.get(path.split("/")[0]))


def test_a_floor_imports_only_floors_below_it_or_its_own():
    known = floors()
    source = ROOT / "src" / "uld"
    for path in source.rglob("*.py"):
        module = str(path.relative_to(source).with_suffix("")).removesuffix("/__init__").replace("/", ".")
        if module in ("__init__", "__main__") or (floor := floor_of(f"uld.{module}", known)) is None:
            assert module in ("__init__", "__main__", "data", "evaluation", "presets"), f"{module} stands on no floor"
            continue
        for node in ast.parse(path.read_text()).body:  # imports at the top; a function may look up where it must
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uld."):
                below = floor_of(str(node.module), known)
                assert below is None or below <= floor, f"{module} (floor {floor}) imports {node.module} ({below})"
