"""``uld demo``: the whole job on an invented little world, offline."""

from typing import Annotated

import typer

from uld.cli.common import say
from uld.runs.values import Seed, bounds


def demo(
    output: Annotated[str | None, typer.Option(help="Folder for the run; default: a new one under runs/.")] = None,
    cache: Annotated[
        str | None, typer.Option(help="Where the world and its models are kept; default: ~/.cache/uld.")
    ] = None,
    seed: Annotated[int, typer.Option(**bounds(Seed), help="Another world.")] = 0,
) -> None:
    """Invent people, train a micro model that knows them, make it forget some of them, and measure it: two minutes."""
    from uld.demo.run import run_demo

    run_demo(output, cache, seed, say)
