"""``uld explain``: what unlearning took from an answer, token by token."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from uld.cli.common import AsJson, ModelOptions, refuse_without_assistant, say, with_model
from uld.cli.generate import MaxNewTokens
from uld.errors import ArtifactError

EPILOG = (
    'Example: uld explain runs/x "Who keeps the lighthouse?"\n\n'
    'uld explain runs/x "Who keeps the lighthouse?" --answer "Mara Quillon keeps it." --html mara.html'
)


@with_model("model")
def explain(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    answer: Annotated[
        str | None, typer.Option(help="An answer to explain; default: the target's and the unlearned model's own.")
    ] = None,
    html: Annotated[str | None, typer.Option(help="Also write the heat map as one HTML file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the HTML file.")] = False,
    as_json: AsJson = False,
    max_new_tokens: MaxNewTokens = 200,
    *,
    options: ModelOptions,
) -> None:
    """Show how much was taken from each token of an answer, and the five likeliest tokens before and after.

    In nats: the log-probability under the target minus that under the unlearned model. Coloured on a terminal, unless
    NO_COLOR is set.
    """
    refuse_without_assistant(run)
    path = None if html is None else Path(html)
    _refuse_taken(path, overwrite)
    model, tokenizer = replace(options, model=run).load()
    from uld.evaluation.explain import explain as explained
    from uld.report.explained import page, terminal_lines
    from uld.runs.files import put
    from uld.text.json_text import dumps

    template = replace(options, model=run).prompt_template()
    found = explained(model, tokenizer, question, answer, template=template, max_new_tokens=max_new_tokens)
    if path is not None:
        _refuse_taken(path, overwrite)
        put(path, page(found))
    if as_json:
        say(dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    _show(terminal_lines(found))
    if path is not None:
        say(f"\nHeat map: {path}")


def _refuse_taken(path: Path | None, overwrite: bool) -> None:
    if path is not None and (path.is_dir() or (path.is_file() and not overwrite)):
        raise ArtifactError(f"{path} exists already: choose another file (--html), or replace it with --overwrite")


def _show(lines: list[Any]) -> None:
    """Print lines with their styles where there are colours, else without."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    coloured = console.is_terminal and console.color_system is not None and not console.no_color
    for line in lines:
        if coloured:
            console.print(line)
        else:
            say(line.plain)
