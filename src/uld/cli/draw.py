"""``uld draw``: the retain set that a training without ``--retain`` draws, as a file to look at and to give."""

from pathlib import Path
from typing import Annotated

import typer

from uld.cli.common import COMBINATION, ModelOptions, guarded, with_model
from uld.errors import ULDError

EPILOG = "Example: uld draw --model MODEL --forget book.txt --rows 256 --output retain.jsonl"


@guarded
@with_model("target", *COMBINATION)
def draw(
    output: Annotated[str, typer.Option(help="JSON-lines file to write.")],
    forget: Annotated[
        list[str], typer.Option(help="What is to be forgotten, as in uld train: what repeats it is dropped.")
    ],
    rows: Annotated[int, typer.Option(help="Rows to draw.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.", min=0, max=2**63 - 1)] = 0,
    max_length: Annotated[int, typer.Option(help="Tokens a row may have, within what the model takes.", min=2)] = 512,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    *,
    options: ModelOptions,
) -> None:
    """Draw a retain set from a model: questions and answers, or texts, that it writes itself.

    uld train does the same where it is given no --retain.
    """
    path = Path(output)
    if path.is_dir() or (path.exists() and not overwrite):
        raise ULDError(f"{path} exists already: choose another file (--output), or replace it with --overwrite")
    if taken := [one for one in path.parents if one.is_file()]:
        raise ULDError(f"{taken[0]} is a file: choose another place with --output")
    options.check()
    from uld.artifact import write_text
    from uld.data.documents import read_sources
    from uld.data.draw import draw as run
    from uld.data.prompt import PromptFormat

    records, _ = read_sources(forget)
    model, tokenizer = options.load()
    form = PromptFormat(tokenizer, options.prompt_template())
    drawn = run(model, form, records, rows, seed=seed, max_length=max_length)
    write_text(path, drawn.to_jsonl())
    dropped = ", ".join(f"{count} {reason}" for reason, count in drawn.facts["dropped"].items()) or "none"
    typer.echo(f"{path}: {len(drawn.records)} rows of {drawn.facts['samples']} samples; dropped: {dropped}")
