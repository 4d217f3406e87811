"""``uld eval knowundo``: what must be forgotten about people, and what may stay."""

from typing import Annotated

import typer

from uld.cli.benchmark import evaluates

EPILOG = "Example: uld eval knowundo --model runs/x --data knowundo_privacy"


@evaluates("knowundo")
def knowundo(
    data: Annotated[str, typer.Option(help="Folder with unlearn_val.json and retention_val.json.")],
    part: Annotated[str, typer.Option(help="val (what the paper evaluates on) or train.")] = "val",
    generate: Annotated[bool, typer.Option(help="Generate answers (ROUGE needs them).")] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=10**6, help="Most tokens of a generated answer.")] = 128,
    limit: Annotated[int | None, typer.Option(min=1, max=10**9, help="First questions of each set only.")] = None,
) -> None:
    """KnowUnDo: unlearn success and retention success on fictional people's data, with per-sample logs.

    An evaluation that was stopped continues where it was when the same command is given again.
    """
