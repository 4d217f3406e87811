"""The one way out of every command: what it prints, what it says of an exception, and its exit code.

`Boundary` is the class of the ``uld`` command itself, so that all commands, and the reading of their options, are
inside it. `uld.text.faults` says what an exception means, `uld.text.terminal` what may be printed.
"""

import functools
import inspect
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from uld.errors import ULDError
from uld.text.faults import UNREAD, WRONG, Outcome, report, told, without_secrets
from uld.text.terminal import OutputError, discard, one_line, screens, visible
from uld.training.settings import is_first_process

NAME = "uld"
COMPLETE = "_ULD_COMPLETE"  # the variable in which the script of a shell says what it wants to be completed
_COMPLETION = ("--install-completion", "--show-completion")
_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_SOON = 0.05  # seconds
_Usage: Any = typer.BadParameter.__mro__[1]  # what typer raises of a command line that it cannot read


class _Ended(SystemExit):
    """A signal has ended the command."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


MAY_BE_EMPTY = ("request", "prompts")
"""Parameters that hold words for a model; every other text is a place, a name or a list of them."""
MAY_BE_INFINITE = ("weight",)
"""Parameters that may be inf; `uld.model.combine.Combination` says with which rule."""


class Boundary(TyperGroup):
    """The group of all commands."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Put the check of every value before every command, and have its help fill the lines of any terminal."""
        super().__init__(*args, **kwargs)
        _check_values(self)
        _fill_help(self)

    def main(self, args: Sequence[str] | None = None, *_: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command and end with its exit code.

        Args:
            args: Words of the command line; None takes the process's own.
            standalone_mode: False gives the exit code back instead of ending with it.
            extra: What typer also takes, and is not needed here: the command's name is always ``uld``.
        """
        for library in ("TRANSFORMERS", "HF_HUB"):
            os.environ.setdefault(f"{library}_VERBOSITY", "error")
        if not sys.warnoptions:  # what libraries have to say to programmers is of no use to a user
            warnings.simplefilter("ignore")
        if COMPLETE in os.environ:  # a shell asks what may follow; nothing runs
            self._main_shell_completion({}, NAME, COMPLETE)
        closed = sys.stdout is None
        with screens(), _ended_by_signals():
            code = _said(self._outcome(list(sys.argv[1:] if args is None else args), closed))
        if standalone_mode:
            sys.exit(code)
        return code

    def _outcome(self, words: list[str], closed: bool) -> Outcome:
        """Run a command; whatever ends it is an outcome."""
        try:
            if closed:
                raise ULDError("standard output is closed: send it somewhere, as in > /dev/null")
            _refuse_undecodable(words)
            _refuse_unknown_shell(words)
            with self.make_context(NAME, words) as context:
                self.invoke(context)
            sys.stdout.flush()
        except typer.Exit as error:
            return Outcome(error.exit_code, "")
        except _Usage as error:
            return Outcome(WRONG, _usage(error))
        except _Ended as error:
            code = int(error.code or 0)
            if not is_first_process():  # torchrun ends the others when one has said what is wrong
                return Outcome(code, "")
            return Outcome(code, f"ended by {signal.Signals(code - 128).name}")
        except SystemExit as error:  # a library's own command line; or rich, which found that nobody reads the help
            if isinstance(error.__context__, BrokenPipeError):
                return Outcome(UNREAD, "")
            return Outcome(WRONG, error.code) if isinstance(error.code, str) else Outcome(error.code or 0, "")
        except BaseException as error:
            return told(error) or report(error)
        return Outcome(0, "")


def _fill_help(command: Any) -> None:
    """Make each paragraph of a command's help one line, without marks of code: typer keeps the source's line breaks."""
    for one in getattr(command, "commands", {}).values():
        _fill_help(one)
    paragraphs = inspect.cleandoc(command.help or "").replace("``", "").split("\n\n")
    command.help = "\n\n".join(" ".join(text.split()) for text in paragraphs)


def _check_values(command: Any) -> None:
    """Have a command, or all commands of a group, refuse values that say nothing before it begins."""
    for one in getattr(command, "commands", {}).values():
        _check_values(one)
    run = command.callback
    if run is not None and not hasattr(command, "commands"):

        @functools.wraps(run)
        def checked(**given: Any) -> Any:
            for parameter in command.params:
                _refuse_unusable(parameter, given.get(parameter.name))
            return run(**given)

        command.callback = checked


def _refuse_unusable(parameter: Any, value: Any) -> None:
    """Refuse a text that says nothing and a number that is none, whatever the option.

    A shell gives an empty text for a variable that is not set, and an empty place is the folder that one works in.

    Raises:
        ULDError: names the flag.
    """
    if value == parameter.default:  # not given; `ModelOptions.check` asks for a model
        return
    name = parameter.name.upper() if parameter.param_type_name == "argument" else max(parameter.opts, key=len)
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, str) and not one.strip() and parameter.name not in MAY_BE_EMPTY:
            raise ULDError(f"{name} is empty: give it a value, or leave it out (is it a variable that is not set?)")
        if one == math.inf and parameter.name in MAY_BE_INFINITE:
            continue
        if isinstance(one, float) and not math.isfinite(one):
            raise ULDError(f"{name} must be a finite number, not {one}")


def _said(outcome: Outcome) -> int:
    """Print what is to be said, as one line, and give the exit code."""
    try:
        sys.stdout.flush()
    except OutputError as error:
        discard(sys.stdout)
        if outcome.code == 0:
            outcome = told(error) or outcome
    if outcome.sentence:
        print(f"{NAME}: {one_line(without_secrets(outcome.sentence))}", file=sys.stderr)
    sys.stderr.flush()
    return outcome.code


def _usage(error: Any) -> str:
    """What is wrong with a command line; nothing where typer has shown the help instead."""
    text = " ".join(error.format_message().split()).rstrip(".")
    if not text:
        return ""
    command = error.ctx.command_path if error.ctx is not None else NAME
    return f"{text[0].lower()}{text[1:]} ({command} --help says more)"


def _refuse_undecodable(words: Sequence[str]) -> None:
    """Refuse names that are not UTF-8 where they are not those of files to read: libraries cannot write or load there.

    Raises:
        ULDError: there is one.
    """
    for before, word in zip(["", *words], words, strict=False):
        flag, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if value.isascii() or not equals or value == value.encode("utf-8", "ignore").decode():
            continue
        if os.path.isfile(value) or not (flag.startswith("-") or os.path.isdir(value)):
            continue  # a file is opened by its bytes; of what is no name, the command knows what it is
        what = f"{flag} {visible(value)}" if flag.startswith("-") else visible(value)
        if (taken := sys.getfilesystemencoding()) != "utf-8":
            raise ULDError(f"{what}: Python takes names for {taken} here: set LC_ALL=C.UTF-8, and not PYTHONUTF8=0")
        raise ULDError(f"{what}: the name is not UTF-8: rename it, or take another folder")


def _refuse_unknown_shell(words: Sequence[str]) -> None:
    """Refuse completion where it cannot be told for which shell.

    Raises:
        ULDError: no shell is above this process, or one that has none.
    """
    if not words or words[0] not in _COMPLETION or len(words) > 1:
        return
    import shellingham

    try:
        shell = shellingham.detect_shell()[0]
    except (shellingham.ShellDetectionFailure, OSError) as error:
        raise ULDError(f"{words[0]} cannot tell which shell you use: call it in {', '.join(_SHELLS[:3])}") from error
    if shell not in _SHELLS:
        raise ULDError(f"{words[0]} knows {', '.join(_SHELLS[:3])}, and you use {shell}: call it in one of these")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let what asks a process to end also clean up behind it; a second signal ends it at once."""
    before = {}

    def end(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise _Ended(number)

    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_asked_again, hook, end)
    try:
        for number in _ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:  # not one that is ignored, as under nohup
                before[number] = signal.signal(number, end)
    except ValueError:  # not in the main thread: signals are somebody else's
        pass
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _asked_again(hook: Any, end: Any, lost: Any) -> None:
    """Ask a process to end once more where Python dropped the first: in ``__del__`` and the like it ignores exceptions.

    Args:
        hook: For every other exception.
        end: What handles the signals of `_ENDING`.
        lost: As `sys.unraisablehook` has it.
    """
    if isinstance(lost.exc_value, _Ended):
        number = int(lost.exc_value.code or 0) - 128
        signal.signal(number, end)
    elif isinstance(lost.exc_value, KeyboardInterrupt):
        number = signal.SIGINT
    else:
        hook(lost)
        return
    again = threading.Timer(_SOON, os.kill, (os.getpid(), number))  # behind what cannot raise
    again.daemon = True
    again.start()
