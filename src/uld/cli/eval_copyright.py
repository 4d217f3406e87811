"""``uld eval copyright``: how much of a book a model still says, and how well it reads what is kept."""

import os
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
    with_model,
)
from uld.errors import ULDError

EPILOG = "Example: uld eval copyright --model runs/x --text book.txt --kept other.txt --kept facts.jsonl"


@with_model()
def copyright(
    text: Annotated[str, typer.Option(help="The book: a text file, or another document.")],
    kept: Annotated[
        list[str] | None,
        typer.Option(help="What the model should still read well: a document, or JSON lines; its perplexity (repeat)."),
    ] = None,
    chunks: Annotated[
        int, typer.Option(min=1, max=10**9, help="Most chunks; of a longer book they are spread over it.")
    ] = 400,
    chunk_tokens: Annotated[
        int, typer.Option(min=2, max=10**9, help="Tokens of a chunk: --max-length of the training.")
    ] = 512,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, max=10**9, help="First tokens of a chunk, which the model is given.")
    ] = 200,
    request: Annotated[
        str | None, typer.Option(help="What stands before them; default: the paper's words; empty for nothing.")
    ] = None,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    options: ModelOptions,
) -> None:
    """How much of a book a model still says: BLEU, ROUGE-L, memorization, and the perplexity of what is kept.

    An evaluation that was stopped continues where it was when the same command is given again.
    """
    if missing := [path for path in (text, *(kept or ())) if not os.path.exists(path)]:
        raise ULDError(f"{missing[0]}: there is no such file")
    settings = {"chunks": chunks, "chunk_tokens": chunk_tokens, "prompt_tokens": prompt_tokens}
    usual = {"chunks": 400, "chunk_tokens": 512, "prompt_tokens": 200}
    changed = {name: value for name, value in settings.items() if value != usual[name]}
    folder = evaluation_folder(options, f"copyright-{Path(text).stem}", output, changed)
    template = options.prompt_template()
    model, tokenizer = options.load()
    from uld.evaluation.copyright import REQUEST, evaluate

    how = {"request": REQUEST if request is None else request, "template": template, "progress": not quiet}
    with resumable(folder):
        result = evaluate(model, tokenizer, text, folder, **settings, **how, kept=kept or ())
    show_result(result, folder, as_json)
