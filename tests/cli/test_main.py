"""What every command has in common: quick help, versions, lists, the doctor, and errors as one sentence."""

import dataclasses
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import uld
from uld.cli import doctor
from uld.cli.common import ModelOptions
from uld.cli.main import app
from uld.errors import ULDError
from uld.runs.manifest import Manifest
from uld.training.config import TrainConfig, preset_names, read_preset

HEAVY = ("torch", "transformers", "peft", "datasets", "scipy", "numpy")


def uld_command(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_help_imports_nothing_heavy():
    lines = ["--help", "--version", "train --help", "eval tofu --help", "chat --help", "tune --help"]
    code = (
        "import sys\nfrom uld.cli.main import main\n"
        f"for line in {lines!r}:\n    sys.argv = ['uld', *line.split()]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code, end.code\n"
        f"    print('HEAVY', line, [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("HEAVY")]
    assert said == [f"HEAVY {line} []" for line in lines]


MISTYPED = [
    "forget --target model --documents no.txt --output out",
    "forget --target model --documents x.txt --retain no.txt --output out",
    "forget --target ./no --documents x.txt --output out",
    "forget --target model --documents x.txt --local ./no --output out",
    "forget --target model --documents x.txt --retain-model ./no --output out",
    "train --target model --forget no.txt --output out",
    "train --target model --forget x.txt --retain no.txt --output out",
    "train --target ./no --forget x.txt --output out",
    "finetune --model model --file no.txt --output out",
    "finetune --model ./no --file x.txt --output out",
    "check model --forget no.txt --retain x.txt",
    "check model --forget x.txt --retain no.txt",
    "check model --forget x.txt --retain x.txt --held-out no.txt",
    "check model --forget x.txt --retain x.txt --ordinary no.txt",
    "check ./no --forget x.txt --retain x.txt",
    "tune ./no",
    "tune run --forget no.txt --retain x.txt",
    "tune run --forget x.txt --retain no.txt",
    "tune run --forget x.txt --retain x.txt --aim read --ordinary no.txt",
    "draw --model model --forget no.txt --output out",
]
"""Commands with one path that is not there."""


@pytest.fixture(scope="module")
def said_of_mistyped(tmp_path_factory) -> dict[str, tuple[Any, str, list[str]]]:
    """What comes of each in one process, the quickest of which is slow to start: exit code, message, imports so far."""
    folder = tmp_path_factory.mktemp("mistyped")
    (folder / "x.txt").write_text("Mara keeps bees.\n")
    for name in ("model", "run"):
        (folder / name).mkdir()
    (folder / "run" / "uld.json").touch()
    code = (
        "import contextlib, io, json, sys\nfrom uld.cli.main import main\n"
        f"for line in {MISTYPED!r}:\n"
        "    sys.argv[1:], err = line.split(), io.StringIO()\n"
        "    try:\n        with contextlib.redirect_stderr(err):\n            main()\n"
        "    except SystemExit as end:\n"
        f"        heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "        print(json.dumps([line, [end.code, err.getvalue(), heavy]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["model", "run", "x.txt"]
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("line", MISTYPED)
def test_a_path_that_is_not_there_is_told_of_before_anything_large_is_imported(said_of_mistyped, line):
    code, said, heavy = said_of_mistyped[line]
    assert (code, heavy) == (2, [])
    words = (
        r"no\.txt: there is no such file|there is no [a-z ]+ in \./no: \S+ takes a folder|\./no is not a finished run"
    )
    assert re.search(words, said)


def test_help_names_every_command():
    done = uld_command("--help")
    assert done.exit_code == 0
    command: Any = typer.main.get_command(app)
    assert len(command.commands) >= 14
    for name, one in command.commands.items():
        assert re.search(rf"\b{name} +{re.escape(str(one.get_short_help_str(30)).split()[0])}", done.output), name


def test_version_is_the_distributions():
    assert uld_command("--version").output.strip() == uld.__version__ == importlib.metadata.version("uld-llm")


def test_ls_lists_every_kind():
    everything = uld_command("ls")
    assert everything.exit_code == 0
    for kind in ("methods", "presets", "templates", "splits"):
        alone = uld_command("ls", kind)
        assert alone.exit_code == 0
        assert f"{kind}\n{alone.output}" in everything.output
    assert "https://arxiv.org/abs/2406.08607" in uld_command("ls", "methods").output
    presets = dict(line.split(maxsplit=1) for line in uld_command("ls", "presets").output.splitlines())
    assert list(presets) == preset_names()
    for name, settings in presets.items():
        assert all(f"{key}={value}" in settings for key, value in read_preset(name).items())
    assert "[INST] {question} [/INST] {answer}" in uld_command("ls", "templates").output
    assert uld_command("ls", "splits").output.split()[0] == "forget01"


def test_ls_of_an_unknown_kind():
    done = uld_command("ls", "models")
    assert (done.exit_code, done.stdout) == (2, "")
    assert (
        done.stderr
        == "uld: there are no 'models' to list: choose one of methods, presets, grids, templates, splits, runs\n"
    )


def test_presets_hold_settings_that_exist():
    for name in preset_names():
        assert set(read_preset(name)) <= set(TrainConfig.__dataclass_fields__)


def test_doctor_tells_versions_machine_and_what_is_missing(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    done = uld_command("doctor")
    assert done.exit_code == 0 and done.stderr == ""
    lines = dict(line.split(maxsplit=1) for line in done.output.splitlines())
    for package in ("torch", "transformers", "peft", "uld-llm"):
        assert lines[package] == importlib.metadata.version(package)
    assert {"python", "dtype", "cpu", "memory", "disk"} <= lines.keys()
    assert re.fullmatch(r"[\d.]+ of [\d.]+ GiB free", lines["memory"])
    assert lines["tensorboard"] == "present"
    assert lines["bitsandbytes"].endswith("4-bit and 8-bit targets: pip install -e '.[quant]' in the folder of uld")
    assert "pytest" not in lines  # what only an extra asks for is no part of it
    extras = set(importlib.metadata.metadata("uld-llm").get_all("Provides-Extra")) - {"dev"}
    assert {extra for extra, _ in doctor.EXTRAS.values()} == extras


def test_doctor_finds_a_package_that_does_not_fit(monkeypatch):
    real = doctor.version

    def version(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return "4.50.0" if name == "transformers" else real(name)

    monkeypatch.setattr(doctor, "version", version)
    done = uld_command("doctor")
    assert done.exit_code == 2
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["transformers"].startswith("4.50.0, but uld needs ")
    assert lines["peft"].startswith("missing, but uld needs ")
    assert done.stderr == "uld: transformers, peft must be mended: pip install -U -e . in the folder of uld\n"


@pytest.mark.parametrize(
    "arguments", ["frobnicate", "generate --frobnicate", "eval tofu --limit 0", "eval tofu --limit x"]
)
def test_wrong_usage_ends_with_code_2(arguments):
    done = uld_command(*arguments.split())
    assert done.exit_code == 2 and "Traceback" not in done.output


def model_options(*command: str) -> dict[str, tuple[list[str], str, object, object]]:
    """Flags, help, default and panel of a command's options by name."""
    found: Any = typer.main.get_command(app)
    for name in command:
        found = found.commands[name]
    options = [one for one in found.params if one.opts[0].startswith("-")]
    return {one.name: (one.opts, one.help, one.default, getattr(one, "rich_help_panel", None)) for one in options}


def test_every_command_has_the_same_model_options():
    shared = [field.name for field in dataclasses.fields(ModelOptions)]
    full = {name: option for name, option in model_options("generate").items() if name in shared}
    assert list(full) == shared and {panel for *_, panel in full.values()} == {"Model"}
    assert full == {name: option for name, option in model_options("chat").items() if name in shared}
    own = {"model", "weight", "margin", "floor", "filter"}  # what eval and tune mean by these is another thing
    for command, lacking in ((("eval", "tofu"), set()), (("tune",), {"rule", "min_tokens", "rank_tokens", "outside"})):
        options = model_options(*command)
        assert {name: options[name] for name in shared if name not in own | lacking} == {
            name: option for name, option in full.items() if name not in own | lacking
        }
        assert not lacking & options.keys()


def test_help_shows_the_defaults_that_it_names():
    for command, default in (
        ("eval tofu", "default: in the run, or eval/"),
        ("tune", "20 (steady), else 0.25, 0.5, … 3 and the run's."),
        ("train", f"(default: {TrainConfig().epochs})"),
    ):
        shown = " ".join(uld_command(*command.split(), "--help").output.replace("│", " ").split())
        assert default in shown  # rich takes what stands in brackets for markup and drops it


@pytest.mark.parametrize("path", ["runs here/x", "/no/such/folder", "../nothing", "~/nothing", "a/b/c", "./x"])
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(monkeypatch, path):
    monkeypatch.setattr("uld.model.load.load", None)
    with pytest.raises(ULDError, match=f"there is no run or model in {re.escape(path)}: --model takes"):
        ModelOptions(model=path).load()


def test_a_name_beside_real_folders_is_a_mistyped_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(ULDError, match="there is no run or model in runs/x"):
        ModelOptions(model="runs/x").load()
    with pytest.raises(ULDError, match=r"model\.bin is a file"):
        ModelOptions(model="model.bin").load()
    monkeypatch.setattr("uld.model.load.load", lambda path, **_: (_ for _ in ()).throw(ULDError(f"asked for {path}")))
    for name in ("gpt2", "org/name"):
        with pytest.raises(ULDError, match=f"asked for {name}"):
            ModelOptions(model=name).load()


def test_dtype_and_device_are_checked_before_anything_is_loaded(micro, monkeypatch):
    monkeypatch.setattr("uld.model.load.load", None)
    with pytest.raises(ULDError, match="--dtype must be one of auto, bf16, fp16, fp32, not 'fp8'"):
        ModelOptions(model=str(micro.run), dtype="fp8").load()
    with pytest.raises(ULDError, match=r"--device must be cpu, cuda, .* not 'gpu'"):
        ModelOptions(model=str(micro.run), device="gpu").load()
    with pytest.raises(ULDError, match="cannot use --device cuda:77: "):
        ModelOptions(model=str(micro.run), device="cuda:77").load()


@pytest.mark.parametrize("name", ["target", "tokenizer"])
def test_a_mistyped_place_is_named_by_its_flag(micro, tmp_path, monkeypatch, name):
    monkeypatch.setattr("uld.model.load.load", None)
    (tmp_path / "file").write_text("")
    for place, sentence in (
        ("/no/such/folder", f"there is no {name} in /no/such/folder: --{name} takes a folder or a Hub id"),
        ("", f"there is no {name} in '': --{name} takes"),
        (str(tmp_path / "file"), f"file is a file: --{name} takes a folder or a Hub id"),
    ):
        with pytest.raises(ULDError, match=sentence):
            ModelOptions(model=str(micro.run), **{name: place}).load()


def test_a_run_is_asked_with_the_template_that_it_was_trained_with(micro, tmp_path):
    run = Path(shutil.copytree(micro.run, tmp_path / "run"))
    assert ModelOptions(model=str(run)).prompt_template() is None
    Manifest.read(run).model_copy(update={"template": "llama2"}).write(run)
    assert ModelOptions(model=str(run)).prompt_template() == "llama2"
    assert ModelOptions(model=str(run), template="plain").prompt_template() == "plain"
    Manifest.read(run).model_copy(update={"template": None}).write(run)
    assert ModelOptions(model=str(run)).prompt_template() is None
    assert ModelOptions(model=str(micro.target)).prompt_template() is None
    assert ModelOptions(model="org/name").prompt_template() is None


def test_dtype_is_what_was_asked_for(micro):
    import torch

    for name, dtype in {"auto": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}.items():
        model, _ = ModelOptions(model=str(micro.target), dtype=name, device="cpu").load()
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize(
    "command",
    [
        "train --target TARGET --forget FORGET --retain RETAIN --output NAME",
        "finetune --model TARGET --file FORGET --output NAME",
        "augment FORGET --rules --output NAME",
        "draw --model TARGET --forget FORGET --output NAME",
        "draw --model TARGET --forget FORGET --output NAME/x.jsonl",
        "eval tofu --model TARGET --data DATA --output NAME",
        "tune NAME",
        "report NAME",
    ],
)
def test_a_name_that_no_file_can_have_is_one_sentence(command, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"TARGET": task.target, "FORGET": task.forget, "RETAIN": task.retain, "NAME": "n" * 300, "DATA": tmp_path}
    for name, place in places.items():
        command = command.replace(name, str(place))
    done = uld_command(*command.split())
    assert done.exit_code == 2, done.output
    said = ("File name too long", "the name is too long", "is not a finished run")
    assert done.stderr.count("\n") == 1 and any(words in done.stderr for words in said)
    assert list(tmp_path.iterdir()) == []
