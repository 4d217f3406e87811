"""``uld eval muse``: verbatim memorization, knowledge memorization, privacy leakage and utility."""

from pathlib import Path
from typing import Annotated

import typer

from uld.cli.common import ModelOptions, evaluation_folder, guarded, resumable, show_result, slug, with_model
from uld.settings import is_first_process

EPILOG = "Example: uld eval muse --model runs/x --corpus news --retain-model muse-bench/MUSE-News_retrain"


@guarded
@with_model("template")
def muse(
    corpus: Annotated[str | None, typer.Option(help="news or books, from the Hub.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder laid out like MUSE's; parts may be missing.")] = None,
    retain_model: Annotated[str | None, typer.Option(help="Retain-only model, for PrivLeak.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples before a question; default: all (MUSE: 10).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First rows of each part only.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder for the log; default: in the run, or eval/.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    *,
    options: ModelOptions,
) -> None:
    """MUSE: does the model still say the texts, know what they say, show that it saw them, and know the rest.

    An evaluation that was stopped goes on where it was when the same command is given again.
    """
    options.check()
    other = None
    if retain_model is not None:
        shared = {name: getattr(options, name) for name in ("dtype", "device", "trust_remote_code")}
        other = ModelOptions(model=retain_model, **shared)
        other.check("--retain-model")
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
    if is_first_process():
        show_result(summarise(found, parts, retain), folder, as_json)
