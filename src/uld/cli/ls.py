"""``uld ls``: what there is to choose from."""

from typing import Annotated

import typer

from uld.cli.common import guarded
from uld.errors import ULDError

KINDS = ("methods", "presets", "templates", "splits")


@guarded
def ls(kind: Annotated[str | None, typer.Argument(help=f"{', '.join(KINDS)}; all of them without.")] = None) -> None:
    """List methods, presets, prompt templates and TOFU's splits."""
    if kind is not None and kind not in KINDS:
        raise ULDError(f"there are no {kind!r} to list: choose one of {', '.join(KINDS)}")
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name in [kind] if kind else KINDS:
        columns, rows = _rows(name)
        table = Table(title=name, title_justify="left", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _rows(kind: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of one list."""
    if kind == "methods":
        from uld.methods.registry import all_methods

        rows = [(m.name, m.trains, m.paper, m.summary) for m in all_methods().values()]
        return ("name", "trains", "paper", "what it does"), rows
    if kind == "presets":
        from uld.config import preset_names, read_preset

        return ("name", "settings"), [
            (name, ", ".join(f"{key}={value}" for key, value in read_preset(name).items())) for name in preset_names()
        ]
    if kind == "templates":
        from uld.data.prompt import NAMED

        return ("name", "template"), [(name, repr(template)) for name, template in NAMED.items()]
    from uld.data.tofu import FORGET_SPLITS

    return ("forget", "retain"), list(FORGET_SPLITS.items())
