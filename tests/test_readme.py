"""The README's commands and code, run as they stand there on a tiny model, and the examples."""

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import uld
from uld.cli.main import app
from uld.demo.world import write_world
from uld.runs.manifest import Manifest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
NEEDED = {"train", "generate", "chat", "explain", "eval", "tune", "compare"}


def block(heading: str, kind: str = "") -> str:
    """The first block of code of a kind below a heading."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)[0]


def told(line: list[str], said: str = "") -> str:
    done = CliRunner().invoke(app, line, input=said)
    assert done.exit_code == 0, f"{line}: {done.output}"
    return done.stdout


@pytest.fixture(scope="module")
def home(task, tmp_path_factory):
    """A folder in which the README's commands have been given, in their order."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    world = write_world(folder / "world", people=10, evaluated=1)
    places = {"MODEL": str(task.target), "RETAIN": str(task.target), "TOFU": str(world.folder)}
    places["forget10=RETAIN"] = f"forget10={task.target}"
    grid = {"tables": ["table2"], "methods": ["uld", "npo+kl"], "splits": ["forget10"], "seeds": [0]}
    (folder / "grid.yaml").write_text(json.dumps({"cells": [grid]}))  # JSON is YAML
    outputs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in block("Use it").splitlines():
            words = [places.get(word, word) for word in shlex.split(line)]
            assert words[0] == "uld"
            # Every α loses more than 1 % of what a random model knows of the held-out answers.
            short = {"train": ["--quiet"], "generate": ["--max-new-tokens", "8"], "chat": ["--max-new-tokens", "4"]}
            short |= {"eval": ["--quiet", "--max-new-tokens", "4"], "tune": ["--budget", "0.95"]}
            short |= {"compare": ["--dry-run"], "explain": ["--max-new-tokens", "4"]}
            outputs[words[1]] = told([*words[1:], *short[words[1]]], said="hello\n/weight 1\n/quit\n")
    return folder, outputs


def test_the_commands_do_what_the_readme_says(home):
    folder, outputs = home
    assert set(outputs) == NEEDED
    assert "target:" in outputs["generate"] and "unlearned:" in outputs["generate"]
    assert "nats taken from" in outputs["explain"]
    assert "| F.Q. |" in outputs["eval"] and "M.U." in outputs["eval"]
    assert (folder / "runs/x/eval/tofu-forget10-max_new_tokens-4/eval_log_aggregated.json").is_file()
    chosen = re.findall(r"^α = (inf|[\d.]+)", outputs["tune"], re.MULTILINE)
    assert [float(one) for one in chosen] == [Manifest.read(folder / "runs/x").combination.weight]


def test_a_run_holds_what_the_readme_lists(home):
    listed = re.findall(r"^  ([\w./]+?)/?  ", block("What comes out"), re.MULTILINE)
    assert {"uld.json", "adapter", "train.yaml", "metrics.jsonl"} <= set(listed)
    present = {path.name for path in (home[0] / "runs/x").iterdir()}
    assert set(listed) | {"config.json", "generation_config.json"} <= present
    known = set(listed) | {"config.json", "generation_config.json", "eval", "tune.json", "tune.png"}
    assert all(name.startswith("tokenizer") or name.endswith(".jinja") for name in present - known)
    assert not [path for path in (home[0] / "runs/x").rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_the_python_of_the_readme_runs(home, monkeypatch, capsys):
    monkeypatch.chdir(home[0])
    shutil.copytree("runs/x", "runs/y", dirs_exist_ok=True)
    names: dict = {}
    exec(compile(block("Use it", "python"), "README.md", "exec"), names)
    assert type(names["model"]).__name__ == "ULDForCausalLM" and names["model"].combination.margin == 3.0
    assert len(names["both"].assistants) == 2
    assert "generated_text" in capsys.readouterr().out


def test_a_run_that_was_used_can_be_replaced(home, monkeypatch):
    monkeypatch.chdir(home[0])
    shutil.copytree("runs/x", "runs/used", dirs_exist_ok=True)
    assert Path("runs/used/eval").is_dir() and Path("runs/used/tune.png").is_file()
    target = Manifest.read("runs/used").target
    files = ["--forget", "examples/forget.jsonl", "--retain", "examples/retain.jsonl"]
    told(["train", "--target", target, *files, "--output", "runs/used", "--epochs", "1", "--overwrite", "-q"])
    assert not Path("runs/used/eval").exists() and not Path("runs/used/tune.png").exists()


def test_what_the_guide_forgets_and_what_it_keeps_fit_together(home, monkeypatch):
    monkeypatch.chdir(home[0])
    files = ["--documents", "examples/request", "--retain", "examples/retain.jsonl"]
    said = told(["forget", "--target", Manifest.read("runs/x").target, *files, "--output", "runs/mara", "--plan"])
    assert "train the assistant" in said and not Path("runs/mara").exists()


def test_the_settings_of_the_examples_train(home, monkeypatch):
    monkeypatch.chdir(home[0])
    target = Manifest.read("runs/x").target
    told(["train", "--config", "examples/settings.yaml", "--target", target, "--output", "runs/file", "-q"])
    assert (
        Manifest.read("runs/file").num_layers
        == yaml.safe_load(Path("examples/settings.yaml").read_text())["num_layers"]
    )


def test_the_example_in_python_shows_every_margin(home, monkeypatch, capsys):
    monkeypatch.chdir(home[0])
    monkeypatch.setattr("sys.argv", ["in_python.py", "runs/x", "Who?"])
    runpy.run_path("examples/in_python.py", run_name="__main__")
    assert re.findall(r"^(target|unlearned|margin = [\d.]+): \[", capsys.readouterr().out, re.MULTILINE) == [
        "target",
        "unlearned",
        "margin = 3.0",
        "margin = 1.0",
    ]


def test_a_method_of_ones_own_trains(home, monkeypatch):
    monkeypatch.chdir(home[0])
    monkeypatch.setattr("sys.argv", ["own_method.py", Manifest.read("runs/x").target, "runs/entropy"])
    from uld.methods import registry

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_METHODS", dict(registry._METHODS))  # other tests do not see it
        runpy.run_path("examples/own_method.py", run_name="__main__")
    manifest = Manifest.read("runs/entropy")
    assert manifest.method == "uld-entropy" and -4 < manifest.training["entropy_loss"] < 0
    model: Any = uld.load("runs/entropy")[0]
    assert model.combination.rule == "suppress"


def test_the_table_of_tuned_runs_is_that_of_the_results():
    rows = re.findall(r"^\| (forget\d\d) \| (.*) \|$", README, re.MULTILINE)
    assert [split for split, _ in rows] == ["forget10", "forget05", "forget01"]
    for split, cells in rows:
        files = sorted((ROOT / "docs" / "results" / "tofu-4m-steady").glob(f"{split}-seed*.json"))
        runs = [run for run in (json.loads(path.read_text()) for path in files) if not run["seen"]]
        picked = [run["settings"]["picked"]["result"] for run in runs]
        beside = [run["settings"][name]["result"]["forget_quality"] for run in runs for name in ("α × 0.67", "α × 1.5")]
        shown = [
            ", ".join(f"{one['forget_quality']:.2f}" for one in picked),
            f"{min(beside):.2f}",
            ", ".join(f"{one['model_utility']:.3f}" for one in picked),
            ", ".join(f"{100 * one['retain_rouge_l']:.1f}" for one in picked),
            ", ".join(f"{100 * one['forget_rouge_l']:.1f}" for one in picked),
            ", ".join(f"{100 * one['reading']['re_entry']:.0f}" for one in picked),
        ]
        assert cells.split(" | ") == shown
