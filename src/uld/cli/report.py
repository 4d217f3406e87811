"""``uld report``: write a comparison's report again from its files."""

from typing import Annotated

import typer

from uld.cli.common import say

EPILOG = "Example: uld report compare/tofu\n\nuld report docs/results/tofu-4m --output report"


def report(
    folder: Annotated[str, typer.Argument(help="Output folder of uld compare, with cells/*.json.")],
    output: Annotated[str | None, typer.Option(help="Where to write; default: the folder itself.")] = None,
    no_answers: Annotated[
        bool, typer.Option("--no-answers", help="Leave out answers: they quote the benchmark.")
    ] = False,
) -> None:
    """Write tables.md, tables.csv, tables.tex and report.html of a comparison, from its files alone."""
    from uld.report.build import build

    for path in build(folder, output, quote=not no_answers):
        say(str(path))
