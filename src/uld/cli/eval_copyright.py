"""``uld eval copyright``: how much of a book a model still says, and how well it reads what is kept."""

from typing import Annotated

import typer

from uld.cli.benchmark import evaluates

EPILOG = "Example: uld eval copyright --model runs/x --text book.txt --kept other.txt --kept facts.jsonl"


@evaluates("copyright")
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
) -> None:
    """How much of a book a model still says: BLEU, ROUGE-L, memorization, and the perplexity of what is kept.

    An evaluation that was stopped continues where it was when the same command is given again.
    """
