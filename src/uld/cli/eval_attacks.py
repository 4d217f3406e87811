"""``uld eval attacks``: membership-inference attacks."""

from typing import Annotated

import typer

from uld.cli.benchmark import evaluates
from uld.runs.values import Length, bounds

EPILOG = (
    "Example: uld eval attacks --model runs/x --members forget.jsonl --non-members holdout.jsonl --retain-model RETAIN"
)


@evaluates("attacks")
def attacks(
    members: Annotated[list[str], typer.Option(help="What the target was trained on, as for uld train (repeat).")],
    non_members: Annotated[list[str], typer.Option(help="Texts of the same kind that it never saw (repeat).")],
    reference_model: Annotated[
        str | None, typer.Option(help="Model that was trained on neither set, for the reference attack.")
    ] = None,
    retain_model: Annotated[str | None, typer.Option(help="Retain-only model, for PrivLeak.")] = None,
    gradnorm: Annotated[bool, typer.Option("--gradnorm", help="Also run GradNorm: a backward pass a text.")] = False,
    max_length: Annotated[
        int | None,
        typer.Option(**bounds(Length), help="Tokens that count of a text; default: as many as the model takes."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=10**9, help="First texts of each set only.")] = None,
) -> None:
    """Can an attacker tell what the model was trained on? AUC and true positives at 1 % false ones, six attacks.

    An evaluation that was stopped continues where it was when the same command is given again.
    """
