"""``uld playground``: a page on which a target and its unlearned models answer side by side."""

from dataclasses import replace
from typing import Annotated

import typer

from uld.cli.common import ModelOptions, refuse_without_assistant, say, with_model
from uld.cli.generate import MaxNewTokens
from uld.errors import ULDError

EPILOG = "Example: uld playground runs/x\n\nuld playground runs/x runs/y --port 7861"


@with_model("model")
def playground(
    runs: Annotated[list[str], typer.Argument(help="Run folders of one target; the page switches between them.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines see what the target says.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7860,
    max_new_tokens: MaxNewTokens = 200,
    *,
    options: ModelOptions,
) -> None:
    """Open a page: target and unlearned model answer side by side, and every token shows how much was taken from it.

    α, margin and floor move on the answer that is shown; a file of questions comes back as a table. Whoever sees the
    page sees the target's answers.
    """
    for run in runs:
        refuse_without_assistant(run)
    if len(set(runs)) < len(runs):
        raise ULDError("a run is named twice: name each once")
    from uld.playground.page import Playground, check

    check(host, port)
    first = replace(options, model=runs[0])
    model, tokenizer = first.load(runs)
    page = Playground.of(model, tokenizer, runs, first.template, max_new_tokens=max_new_tokens)
    with page.opened(host, port) as address:
        say(f"{address} – whoever sees this page sees the target's answers; Ctrl-C ends it", err=True)
        page.wait()
