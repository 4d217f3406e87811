"""``uld eval knowundo``: what must be forgotten about people, and what may stay."""

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

EPILOG = "Example: uld eval knowundo --model runs/x --data knowundo_privacy"


@with_model()
def knowundo(
    data: Annotated[str, typer.Option(help="Folder with unlearn_val.json and retention_val.json.")],
    part: Annotated[str, typer.Option(help="val (what the paper evaluates on) or train.")] = "val",
    generate: Annotated[bool, typer.Option(help="Generate answers (ROUGE needs them).")] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=10**6, help="Most tokens of a generated answer.")] = 128,
    limit: Annotated[int | None, typer.Option(min=1, max=10**9, help="First questions of each set only.")] = None,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    options: ModelOptions,
) -> None:
    """KnowUnDo: unlearn success and retention success on fictional people's data, with per-sample logs.

    An evaluation that was stopped continues where it was when the same command is given again.
    """
    options.check()
    from uld.data.knowundo import load_knowundo

    sets = load_knowundo(data, part)
    named = {"max_new_tokens": None if max_new_tokens == 128 else max_new_tokens}
    folder = evaluation_folder(options, f"knowundo-{part}", output, named)
    model, tokenizer = options.load()
    from uld.evaluation.knowundo import evaluate, summarise

    with resumable(folder):
        found = evaluate(
            model,
            tokenizer,
            sets,
            folder,
            template=options.prompt_template(),
            generate=generate,
            max_new_tokens=max_new_tokens,
            limit=limit,
            progress=not quiet,
        )
    show_result(summarise(found), folder, as_json)
