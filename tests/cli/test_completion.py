"""Shell completion: scripts of three shells, what they ask for, and that nothing heavy is imported for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from uld.cli.boundary import COMPLETE, NAME
from uld.cli.main import app

SHELLS = {"bash": ".bash_completions/uld.sh", "zsh": ".zfunc/_uld", "fish": ".config/fish/completions/uld.fish"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def detected(monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, f"/bin/{shell}"))


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_each_shell_is_shown_and_installed(
    shell: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detected(monkeypatch, shell)
    shown = CliRunner().invoke(app, ["--show-completion"])
    assert shown.exit_code == 0 and f"{COMPLETE}=complete_{shell}" in shown.output and NAME in shown.output
    installed = CliRunner().invoke(app, ["--install-completion"])
    assert installed.exit_code == 0 and str(home / SHELLS[shell]) in installed.output
    assert (home / SHELLS[shell]).read_text().strip() == shown.output.strip()


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_an_unknown_shell_is_one_sentence(option: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detected(monkeypatch, "tcsh")
    done = CliRunner().invoke(app, [option])
    assert (done.exit_code, done.stdout) == (2, "") and not list(home.iterdir())
    assert done.stderr == f"uld: {option} knows bash, zsh, fish, and you use tcsh: call it in one of these\n"


def test_what_follows_is_completed_without_anything_heavy() -> None:
    """In one process of its own, as a shell calls it; each question ends with `SystemExit`."""
    asked = {
        ("bash", "uld gene"): "generate",
        ("bash", "uld eval to"): "tofu",
        ("bash", "uld train --learn"): "--learning-rate",
        ("zsh", "uld pus"): "push",
        ("fish", "uld tune --bud"): "--budget",
    }
    code = (
        "import os, sys\nfrom uld.cli.main import main\n"
        f"for shell, words in {list(asked)!r}:\n"
        "    os.environ.update(_ULD_COMPLETE=f'complete_{shell}', COMP_WORDS=words, _TYPER_COMPLETE_ARGS=words)\n"
        "    os.environ.update(COMP_CWORD=str(len(words.split()) - 1), _TYPER_COMPLETE_FISH_ACTION='get-args')\n"
        "    print('ASKED', flush=True)\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code, end.code\n"
        "print('HEAVY', [n for n in ('torch', 'transformers', 'numpy', 'huggingface_hub') if n in sys.modules])"
    )
    environment = {name: value for name, value in os.environ.items() if name != COMPLETE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    answers = done.stdout.partition("HEAVY ")[0].split("ASKED\n")[1:]
    assert len(answers) == len(asked)
    for answer, expected in zip(answers, asked.values(), strict=True):
        assert expected in answer
    assert answers[0] == "generate\n" and done.stdout.endswith("HEAVY []\n")
