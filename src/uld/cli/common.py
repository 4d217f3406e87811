"""What all commands share: errors as one sentence, and the options that choose and change a model."""

import functools
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from uld.errors import ULDError

_MODEL = "Model"

Model = Annotated[
    str, typer.Option("--model", "-m", help="Run folder, model folder or Hub id.", rich_help_panel=_MODEL)
]
Target = Annotated[
    str | None, typer.Option(help="Where the run's target is now, if not where it was.", rich_help_panel=_MODEL)
]
Rule = Annotated[
    str | None, typer.Option(help="Override the run's rule: suppress, subtract, reference.", rich_help_panel=_MODEL)
]
Weight = Annotated[float | None, typer.Option(help="Override the run's α.", rich_help_panel=_MODEL)]
Filter = Annotated[float | None, typer.Option(help="Override the run's τ.", rich_help_panel=_MODEL)]
MinTokens = Annotated[float | None, typer.Option(help="Override the filter's least share.", rich_help_panel=_MODEL)]
Outside = Annotated[
    str | None,
    typer.Option(
        help="Override: keep or mask. A masked token has probability 0, so an answer that holds one has an infinite "
        "loss (1e999 in logs).",
        rich_help_panel=_MODEL,
    ),
]
Dtype = Annotated[str, typer.Option(help="auto (as stored), bf16, fp16 or fp32.", rich_help_panel=_MODEL)]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, mps …; default: the best there is.", rich_help_panel=_MODEL)
]
Tokenizer = Annotated[
    str | None, typer.Option(help="Folder or Hub id of the tokenizer; default: the model's.", rich_help_panel=_MODEL)
]
Template = Annotated[
    str | None,
    typer.Option(help="Prompt template, by name or inline; default: the chat template.", rich_help_panel=_MODEL),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.", rich_help_panel=_MODEL)
]


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print a user's error as one sentence and end with exit code 2."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        for library in ("TRANSFORMERS", "HF_HUB"):
            os.environ.setdefault(f"{library}_VERBOSITY", "error")
        if not sys.warnoptions:  # what libraries have to say to programmers is of no use to a user
            warnings.simplefilter("ignore")
        try:
            return command(*args, **kwargs)
        except ULDError as error:
            print(f"uld: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("uld: interrupted", file=sys.stderr)
            raise typer.Exit(2) from None

    run.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    return run


def is_first_process() -> bool:
    """Whether this is the process that writes and prints; under ``torchrun`` there are several."""
    return os.environ.get("RANK", "0") == "0"


def numbers(text: str | None, flag: str) -> list[float]:
    """Numbers separated by commas; none where the flag was not given.

    Raises:
        ULDError: something else stands there.
    """
    if text is None:
        return []
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ULDError(f"{flag} must be a number, or several separated by commas, not {text!r}") from error


def load_model(
    model: str,
    *,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """Load a run or a model for a command, on the best device.

    Args:
        model: Run folder, model folder or Hub id.
        dtype: As typed: auto, bf16, fp16 or fp32.
        device: As torch names it; None takes a GPU where there is one.
        trust_remote_code: Run code that comes with the checkpoint.
        options: For `uld.modeling.load`; those that are None count as not given.

    Returns:
        Model in evaluation mode and tokenizer.

    Raises:
        ULDError: an unknown dtype or device, or what `uld.modeling.load` raises.
    """
    names = {"auto": "auto", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    if dtype not in names:
        raise ULDError(f"--dtype must be one of {', '.join(names)}, not {dtype!r}")
    _refuse_mistyped(model)
    device = _usable(device)
    import transformers

    from uld.modeling import load

    transformers.utils.logging.disable_progress_bar()
    given = {name: value for name, value in options.items() if value is not None}
    if trust_remote_code:
        given["trust_remote_code"] = True
    loaded, tokenizer = load(model, dtype=names[dtype], **given)
    try:
        return loaded.to(device), tokenizer  # type: ignore[arg-type]
    except RuntimeError as error:
        raise ULDError(f"cannot use --device {device}: {str(error).splitlines()[0]}") from error


def _usable(device: str | None) -> str:
    """The device that was asked for, or the best there is."""
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ULDError(f"--device must be cpu, cuda, cuda:1, mps or the like, not {device!r}") from error
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ULDError(f"cannot use --device {device}: {str(error).splitlines()[0]}") from error
    return device


def _refuse_mistyped(model: str) -> None:
    """Tell at once that a folder does not exist, rather than ask the Hub for a model of that name."""
    if not model:
        raise ULDError("name a run or a model with --model")
    path = Path(model)
    is_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) and not model.startswith(".")
    if not path.exists() and (not is_hub_id or (path.parent != Path() and path.parent.is_dir())):
        raise ULDError(f"there is no run or model in {model}: --model takes a folder or a Hub id")
    if path.is_file():
        raise ULDError(f"{model} is a file: --model takes a folder or a Hub id")
