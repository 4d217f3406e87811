"""``uld eval muse``: verbatim memorization, knowledge memorization, privacy leakage and utility."""

from typing import Annotated

import typer

from uld.cli.benchmark import evaluates

EPILOG = "Example: uld eval muse --model runs/x --corpus news --retain-model muse-bench/MUSE-News_retrain"


@evaluates("muse", "template")
def muse(
    corpus: Annotated[str | None, typer.Option(help="news or books, from the Hub.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder laid out like MUSE's; parts may be missing.")] = None,
    retain_model: Annotated[str | None, typer.Option(help="Retain-only model, for PrivLeak.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, max=10**9, help="Examples before a question; default: all (MUSE: 10).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=10**9, help="First rows of each part only.")] = None,
) -> None:
    """MUSE: does the model still say the texts, know what they say, show that it saw them, and know the rest.

    An evaluation that was stopped continues where it was when the same command is given again.
    """
