"""What all commands share: errors as one sentence, and the options that choose and change a model."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
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
Outside = Annotated[str | None, typer.Option(help="Override: keep or mask.", rich_help_panel=_MODEL)]
Dtype = Annotated[str, typer.Option(help="auto (as stored), bf16, fp16 or fp32.", rich_help_panel=_MODEL)]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, mps …; default: the best there is.", rich_help_panel=_MODEL)
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
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
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


def load_model(
    model: str,
    *,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    **overrides: Any,
) -> tuple[Any, Any]:
    """Load a run or a model for a command, on the best device.

    Raises:
        ULDError: an unknown dtype or device, or what `uld.modeling.load` raises.
    """
    names = {"auto": "auto", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    if dtype not in names:
        raise ULDError(f"--dtype must be one of {', '.join(names)}, not {dtype!r}")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    from uld.modeling import load

    if trust_remote_code:
        overrides["trust_remote_code"] = True
    loaded, tokenizer = load(model, dtype=names[dtype], **overrides)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return loaded.to(device), tokenizer  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise ULDError(f"cannot use --device {device}: {str(error).splitlines()[0]}") from error
