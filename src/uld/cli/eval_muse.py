"""``uld eval muse``: verbatim memorization, knowledge memorization, privacy leakage and utility."""

from pathlib import Path
from typing import Annotated

import typer

from uld.cli.common import (
    AsJson,
    ModelOptions,
    Output,
    Quiet,
    evaluation_folder,
    resumable,
    show_result,
    slug,
    with_model,
)

EPILOG = "Example: uld eval muse --model runs/x --corpus news --retain-model muse-bench/MUSE-News_retrain"


@with_model("template")
def muse(
    corpus: Annotated[str | None, typer.Option(help="news or books, from the Hub.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder laid out like MUSE's; parts may be missing.")] = None,
    retain_model: Annotated[str | None, typer.Option(help="Retain-only model, for PrivLeak.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, max=10**9, help="Examples before a question; default: all (MUSE: 10).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=10**9, help="First rows of each part only.")] = None,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    options: ModelOptions,
) -> None:
    """MUSE: does the model still say the texts, know what they say, show that it saw them, and know the rest.

    An evaluation that was stopped continues where it was when the same command is given again.
    """
    options.check()
    other = options.beside(retain_model, "--retain-model") if retain_model is not None else None
    from uld.data.muse import load_muse

    parts = load_muse(corpus, data)
    folder = evaluation_folder(options, f"muse-{corpus or Path(str(data)).name}", output, {"shots": shots})
    model, tokenizer = options.load()
    from uld.evaluation.muse import NEEDED, evaluate, summarise

    retain = None
    with resumable(folder):
        found = evaluate(model, tokenizer, parts, folder, shots=shots, limit=limit, progress=not quiet)
        if other is not None and all(part in parts for part in NEEDED["privleak"]):
            model, tokenizer = other.load()
            place = folder / f"retain-{slug(other.model)}"
            retain = evaluate(model, tokenizer, parts, place, metrics=["privleak"], limit=limit, progress=not quiet)
    show_result(summarise(found, parts, retain), folder, as_json)
