"""``uld draw``: the retain set that a training without ``--retain`` draws, as a file to look at and to give."""

from pathlib import Path
from typing import Annotated

import typer

from uld.cli.common import COMBINATION, ModelOptions, Quiet, refuse_absent, say, with_model
from uld.runs.values import Length, Rows, bounds

EPILOG = "Example: uld draw --model MODEL --forget book.txt --rows 256 --output retain.jsonl"


@with_model("target", *COMBINATION)
def draw(
    output: Annotated[str, typer.Option(help="JSON-lines file to write.")],
    forget: Annotated[
        list[str], typer.Option(help="What is to be forgotten, as in uld train: what repeats it is dropped.")
    ],
    rows: Annotated[int, typer.Option(help="Rows to draw.", **bounds(Rows))] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.", min=0, max=2**63 - 1)] = 0,
    max_length: Annotated[
        int, typer.Option(help="Tokens a row may have, within what the model takes.", **bounds(Length))
    ] = 512,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    quiet: Quiet = False,
    *,
    options: ModelOptions,
) -> None:
    """Draw a retain set from a model: questions and answers, or texts, that it writes itself.

    uld train does the same where it is given no --retain.
    """
    path = Path(output)
    refuse_absent(forget)
    from uld.runs.files import claimed_file
    from uld.runs.places import refuse_sources
    from uld.training.draw import draw_rows

    refuse_sources(path, {"--forget": forget})
    with claimed_file(path, overwrite=overwrite) as write:
        options.check()
        from uld.data.documents import read_sources
        from uld.data.prompt import PromptFormat

        records, _ = read_sources(forget)
        model, tokenizer = options.load()
        form = PromptFormat(tokenizer, options.prompt_template())
        drawn = draw_rows(model, form, records, rows, seed=seed, max_length=max_length, progress=not quiet)
        write(drawn.to_jsonl())
    dropped = ", ".join(f"{count} {reason}" for reason, count in drawn.facts["dropped"].items()) or "none"
    say(f"{path}: {len(drawn.records)} rows of {drawn.facts['samples']} samples; dropped: {dropped}")
