"""Every command ends in one way: exit codes, one sentence, no traceback; what is printed is harmless."""

import contextlib
import io
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import uld.cli.generate as generating
from uld.cli.boundary import Boundary
from uld.cli.main import app
from uld.errors import ULDError

ROOT: Any = typer.main.get_command(app)


def commands(group: Any = ROOT, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


EVERY = dict(commands())
NAMES = [" ".join(words) for words in EVERY]
OWN = [name for name in NAMES if name != "lm-eval"]  # what follows it is lm-eval's


class Stream(io.TextIOWrapper):
    """A stream over bytes that may be a terminal, closed at the other end, or full."""

    def __init__(self, *, terminal: bool = False, error: OSError | None = None) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self.terminal = terminal
        self.error = error

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]


@dataclass
class Done:
    """A command that has ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def uld(*words: object) -> Done:
    """Run a command with nothing on standard input; the commands are built once, which `CliRunner` does each time."""
    out, err, stdin = Stream(), Stream(), sys.stdin
    sys.stdin = io.StringIO("")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = ROOT.main(list(map(str, words)), standalone_mode=False)
    finally:
        sys.stdin = stdin
    return Done(code, out.text, err.text)


def one_sentence(done: Any, code: int = 2) -> str:
    assert done.exit_code == code, done.output
    assert done.stderr.startswith("uld: ") and done.stderr.count("\n") == 1 and done.stdout == "", done.output
    return done.stderr


def test_there_are_as_many_commands_as_the_guides_name():
    assert {"train", "finetune", "augment", "compare", "report", "tune", "generate", "chat", "draw", "ls"} < set(NAMES)
    assert len(NAMES) >= 19 and isinstance(ROOT, Boundary)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_ends_a_command_is_told(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for error, code, said in (
        (ULDError("the file is\nempty\x1b[2J"), 2, "uld: the file is\\nempty\\x1b[2J\n"),
        (KeyboardInterrupt(), 2, "uld: interrupted\n"),
        (MemoryError(), 2, "uld: there is not enough memory: "),
        (PermissionError(13, "Permission denied", "/a/b"), 2, "uld: /a/b: permission denied\n"),
        (OSError(28, "No space left on device"), 2, "uld: no space left on device\n"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (typer.Exit(1), 1, ""),
        (SystemExit(3), 3, ""),
        (SystemExit("gone"), 2, "uld: gone\n"),
        (SystemExit(None), 0, ""),
        (ZeroDivisionError("a secret"), 70, "uld: this is a fault of uld (ZeroDivisionError"),
        (AssertionError(), 70, "uld: this is a fault of uld (AssertionError"),
    ):

        def fail(error: BaseException = error, **_: Any) -> None:
            raise error

        command = EVERY[tuple(name.split())]
        monkeypatch.setattr(type(command), "invoke", lambda self, context, fail=fail: fail())
        required = [word for one in command.params if one.required for word in _given(one)]
        required += ["--quiet"] * any("--quiet" in one.opts for one in command.params)  # or the help is shown
        done = uld(*name.split(), *required)
        assert done.exit_code == code, (error, done.output)
        assert done.stderr.startswith(said) and done.stderr.count("\n") == bool(said), done.output
        assert "Traceback" not in done.output
    assert len(list(tmp_path.iterdir())) == 2  # one report for each bug


def _given(parameter: Any) -> list[str]:
    flag = [one for one in parameter.opts if one.startswith("--")]
    return [*flag, "1"]


@pytest.mark.parametrize("name", OWN)
def test_an_unknown_option_is_one_sentence(name: str):
    said = one_sentence(uld(*name.split(), "--frobnicate\x1b[2J"))
    assert "no such option" in said.lower() and f"(uld {name} --help says more)" in said and "\x1b" not in said


@pytest.mark.parametrize("name", NAMES)
def test_no_arguments_are_help_or_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch):
    if name in ("ls", "doctor", "demo", "lm-eval"):
        pytest.skip("it needs no arguments")
    done = uld(*name.split())
    if done.stdout:
        assert done.exit_code == 2 and "Usage: uld" in done.stdout and done.stderr == ""
    else:
        one_sentence(done)


@pytest.mark.parametrize("words", ["frobnicate", "eval frobnicate", "trian --output x", "eval tofu --limit 0", "tune"])
def test_wrong_usage_is_one_sentence(words: str):
    one_sentence(uld(*words.split()))


FILES = {
    "train": "--target m --forget {} --output o",
    "forget": "--target m --documents {} --output o",
    "check": "{} --forget {} --retain {}",
    "explain": "{} hello",
    "playground": "{}",
    "serve": "{}",
    "export": "{} out",
    "push": "{} org/name --yes",
    "finetune": "--model {} --data-files x --output o",
    "augment": "{} --rules",
    "eval tofu": "--model {}",
    "eval copyright": "--model m --text {}",
    "eval attacks": "--model m --members {} --non-members {}",
    "eval harness": "--tasks boolq --model {}",
    "eval knowundo": "--model m --data {}",
    "eval muse": "--model {} --data x",
    "compare": "{} --output o",
    "report": "{}",
    "tune": "{}",
    "generate": "--model {} hello",
    "chat": "--model {}",
    "draw": "--model {} --forget f --output o",
}


@pytest.mark.parametrize("name", [name for name in OWN if name not in ("ls", "demo", "doctor")])
@pytest.mark.parametrize("path", ["./no/such/file", "a" * 300, "x/" * 3000, "\x1b]0;x\x07", "./\u202ehidden"])
def test_a_file_that_cannot_be_is_one_sentence(name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("{}", path) for word in FILES[name].split()]
    said = one_sentence(uld(*name.split(), *words))
    assert said.rstrip("\n").isprintable() and len(said) < 7000
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_utf8_is_refused_where_it_cannot_be_written(task, tmp_path: Path):
    odd = os.fsdecode(b"ru\xe9n")
    for words in (
        (*task.flags(tmp_path / odd), "--epochs", "1"),
        (*task.flags(tmp_path / "x"), f"--output={tmp_path / odd}"),
        ("--target", tmp_path / odd, "--forget", task.forget, "--output", tmp_path / "x"),
    ):
        assert "ru\\xe9n: the name is not UTF-8: rename it" in one_sentence(uld("train", *words))
    assert not list(tmp_path.iterdir())


def test_a_file_whose_name_is_not_utf8_is_refused_before_anything_is_written(task, tmp_path: Path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    odd.write_text(task.forget.read_text())
    flags = [word if word != str(task.forget) else odd for word in task.flags(tmp_path / "run", epochs=1)]
    for words in (["augment", odd, "--rules", "--output", tmp_path / "out"], ["train", *flags, "-q"]):
        done = uld(*words)
        assert done.exit_code == 2 and done.stderr.count("\n") == 1
        assert "the name is not UTF-8" in done.stderr and "rename it" in done.stderr
    assert list(tmp_path.iterdir()) == [odd]


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch):
    """Runs a command on given streams: its exit code."""

    def run(words: list[str], out: Any, err: Any) -> int:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return ROOT.main(words, standalone_mode=False)

    return run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (OSError(28, "No space left on device"), 2, "uld: cannot write to standard output: no space left on device\n"),
    ],
)
@pytest.mark.parametrize("words", [["ls"], ["ls", "methods"], ["--version"]])
def test_output_that_goes_nowhere(streams, error: OSError, code: int, said: str, words: list[str]):
    err = Stream()
    assert streams(words, Stream(error=error), err) == code and err.text == said


def test_comments_that_go_nowhere_stop_nothing(streams):
    out = Stream()
    assert streams(["ls", "splits"], out, Stream(error=OSError(28, "No space left on device"))) == 0
    assert out.text.startswith("forget01")
    assert streams(["ls", "nothing"], out, Stream(error=BrokenPipeError(32, "Broken pipe"))) == 2


def test_closed_streams(streams, monkeypatch: pytest.MonkeyPatch):
    err = Stream()
    assert streams(["ls"], None, err) == 2
    assert err.text == "uld: standard output is closed: send it somewhere, as in > /dev/null\n"
    out = Stream()
    assert streams(["ls", "splits"], out, None) == 0 and out.text
    monkeypatch.setattr(sys, "stdin", None)
    err = Stream()
    assert streams(["generate"], Stream(), err) == 2 and err.text.startswith("uld: nothing to answer")


HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\r\x9b31m"


@pytest.mark.parametrize("words", [["generate", "-m", "m", "q"], ["generate", "-m", "m", "--compare", "q"]])
def test_an_answer_is_shown_on_a_terminal_and_piped_as_it_is(streams, monkeypatch, words: list[str]):
    class Talker:
        model = type("Model", (), {"target": None})()
        before = None
        form = type("Form", (), {"prompt_ids": staticmethod(lambda text: [1])})()

        def __init__(self, *_: Any) -> None:
            pass

        def check_length(self, ids: list[int]) -> None:
            pass

        def answer(self, model: Any, ids: list[int], **_: Any) -> str:
            return HOSTILE

        def stream(self, ids: list[int]) -> str:
            for letter in HOSTILE:  # as a streamer prints: piece by piece
                print(letter, end="", flush=True)
            print()
            return HOSTILE

    monkeypatch.setattr(generating, "_Talker", Talker)
    terminal, pipe = Stream(terminal=True), Stream()
    assert streams(words, terminal, Stream()) == streams(words, pipe, Stream()) == 0
    assert HOSTILE in pipe.text
    assert "\\x1b]0;owned\\x07\\x1b[2J\\u202egnp.exe\\x0d\\x9b31m" in terminal.text
    assert all(line.isprintable() for line in terminal.text.split("\n"))


def test_help_keeps_its_colours_on_a_terminal(streams, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Stream(terminal=True)
    assert streams(["tune", "--help"], out, Stream()) == 0 and "\x1b[" in out.text and "\\x1b" not in out.text


@pytest.mark.parametrize("name", OWN)
def test_help_fills_its_lines_and_shows_an_example_a_line(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    said = uld(*name.split(), "--help").stdout.split("\n")
    boxes = [number for number, line in enumerate(said) if line[:1] in "╭╰" and line]
    about, examples = said[: boxes[0]], said[boxes[-1] + 1 :]
    for line, after in itertools.pairwise(about):
        if line.strip() and after.strip():
            assert len(line.rstrip()) + len(after.split()[0]) + 1 > 78, f"broken too early: {line}"
    assert "`" not in "".join(about)
    assert "·" not in "".join(examples)
    for line in examples:
        assert " uld " not in line or line.split()[:1] == ["uld"] or line.split()[:2] == ["Example:", "uld"], line


@pytest.mark.parametrize("columns", ["0", "1", "7", "-3", "many", "400"])
def test_a_terminal_of_any_width(monkeypatch: pytest.MonkeyPatch, columns: str):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "dumb")
    for words in (["--help"], ["train", "--help"], ["ls"]):
        assert uld(*words).exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_with_its_code_and_cleans_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int):
    def wait(self: Any, context: Any) -> None:
        try:
            (tmp_path / "half").touch()
            signal.raise_signal(number)
        finally:
            (tmp_path / "half").unlink()

    before = signal.signal(number, signal.SIG_DFL)
    try:
        monkeypatch.setattr(type(EVERY["ls",]), "invoke", wait)
        said = one_sentence(uld("ls"), 128 + number)
        assert said == f"uld: ended by {signal.Signals(number).name}\n" and not list(tmp_path.iterdir())
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # as nohup does
        assert uld("ls", "splits").exit_code == 0 and signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_signal_is_not_lost_where_python_drops_exceptions(monkeypatch: pytest.MonkeyPatch):
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.01)

    def run(self: Any, context: Any) -> None:
        Dying()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            time.sleep(0.01)

    hook, before = sys.unraisablehook, signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        monkeypatch.setattr(type(EVERY["ls",]), "invoke", run)
        assert one_sentence(uld("ls"), 128 + signal.SIGTERM) == "uld: ended by SIGTERM\n"
        assert sys.unraisablehook is hook
    finally:
        signal.signal(signal.SIGTERM, before)


def test_warnings_and_logs_pass_the_screen(streams, monkeypatch: pytest.MonkeyPatch):
    import logging

    def warn(self: Any, context: Any) -> None:
        logging.getLogger("uld.test").warning("%s is odd", "\rname\x1b[2J")

    monkeypatch.setattr(type(EVERY["ls",]), "invoke", warn)
    handler = logging.StreamHandler
    monkeypatch.setattr(logging.getLogger("uld"), "handlers", [])
    err = Stream(terminal=True)

    class Now(handler):  # type: ignore[misc, valid-type]
        @property
        def stream(self) -> Any:
            return sys.stderr

        @stream.setter
        def stream(self, value: Any) -> None:
            pass

    monkeypatch.setattr(logging.getLogger("uld"), "handlers", [Now()])
    monkeypatch.setattr(logging.getLogger("uld"), "propagate", False)
    assert streams(["ls"], Stream(), err) == 0
    assert err.text == "\\x0dname\\x1b[2J is odd\n"
