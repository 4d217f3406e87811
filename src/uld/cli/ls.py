"""``uld ls``: what there is to choose from."""

from typing import TYPE_CHECKING, Annotated

import typer

from uld.cli.common import say
from uld.errors import ULDError

if TYPE_CHECKING:
    from uld.methods.registry import Method

KINDS = ("methods", "presets", "grids", "templates", "splits")


def ls(kind: Annotated[str | None, typer.Argument(help=f"{', '.join(KINDS)}; all of them without.")] = None) -> None:
    """List methods, presets, grids of uld compare, prompt templates and TOFU's splits.

    A method's line: name, what is trained, what it needs, its options (--option) with defaults, paper, summary.
    """
    if kind is not None and kind not in KINDS:
        raise ULDError(f"there are no {kind!r} to list: choose one of {', '.join(KINDS)}")
    for number, name in enumerate([kind] if kind else KINDS):
        rows = _rows(name)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        if kind is None:
            say(("\n" if number else "") + name)
        for row in rows:
            # Never wrapped: a line is a row, also for other programs.
            say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _method(method: "Method") -> tuple[str, ...]:
    """Name, what is trained, what it needs, options with defaults, paper and summary; – where there is nothing."""
    options = " ".join(f"{name}={value:g}" for name, value in method.options.items())
    return method.name, method.trains, "; ".join(method.needs) or "–", options or "–", method.paper, method.summary


def _rows(kind: str) -> list[tuple[str, ...]]:
    """Rows of one list, the name first."""
    if kind == "methods":
        from uld.methods.registry import all_methods

        return [_method(one) for one in all_methods().values()]
    if kind == "presets":
        from uld.training.config import preset_names, read_preset

        return [
            (name, ", ".join(f"{key}={value}" for key, value in read_preset(name).items())) for name in preset_names()
        ]
    if kind == "grids":
        from uld.compare.grid import describe_preset, grid_presets

        return [(name, describe_preset(name)) for name in grid_presets()]
    if kind == "templates":
        from uld.data.prompt import NAMED

        return [(name, repr(template)) for name, template in NAMED.items()]
    from uld.data.tofu import FORGET_SPLITS

    return [(forget, f"retains {retain}") for forget, retain in FORGET_SPLITS.items()]
