"""``uld export``: a run as a checkpoint that another engine reads, with the subtraction in it."""

from dataclasses import replace
from typing import Annotated, Literal

import typer

from uld.cli.common import ModelOptions, Quiet, say, with_model

EPILOG = "Example: uld export runs/x exported\n\nvllm serve exported"


@with_model("model", "dtype", "device")
def export(
    runs: Annotated[list[str], typer.Argument(help="Run folder; of several, all of one target, all are unlearned.")],
    output: Annotated[str, typer.Argument(help="Folder to write; new or empty.")],
    engine: Annotated[Literal["vllm"], typer.Option("--for", help="The engine that is to read it.")] = "vllm",
    copy: Annotated[
        bool,
        typer.Option("--copy", help="Copy the target's weights, so that the folder can be moved; default: link them."),
    ] = False,
    quiet: Quiet = False,
    *,
    options: ModelOptions,
) -> None:
    """Write a checkpoint of the unlearned model: ``vllm serve`` runs it where uld is installed.

    The target's weight files are linked, the assistant's LoRA and how it is combined lie beside them.
    """
    from uld.cli.serve import exported
    from uld.serving import refuse_ordinary

    refuse_ordinary(runs)
    replace(options, model=runs[0]).check("RUN")
    from uld.serving.vllm.export import export as write

    folder = write(runs, output, copy=copy, **exported(options))
    if not quiet:
        say(f"{folder}: vllm serve {folder}")
