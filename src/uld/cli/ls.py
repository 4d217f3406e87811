"""``uld ls``: what there is to choose from, and the runs below a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uld.cli.common import say
from uld.errors import ULDError

if TYPE_CHECKING:
    from uld.methods.registry import Method

KINDS = ("methods", "presets", "grids", "templates", "splits")
RUNS = "runs"
_WIDTHS = {"run": 20, "method": 8, "target": 12, "data": 14, "check": 6, "date": 10}
"""Letters of each column of the runs that a terminal of 80 has room for, without the blanks between them."""
EPILOG = "Example: uld ls methods\n\nuld ls runs/\n\nuld ls runs --json"


def ls(
    kind: Annotated[
        str | None, typer.Argument(help=f"{', '.join(KINDS)}; all of these without. Or {RUNS}, or a folder of runs.")
    ] = None,
    folder: Annotated[
        str | None, typer.Argument(help="Where to look for runs, with everything below; default: runs/, or here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The runs as JSON, with whole names and places.")] = False,
) -> None:
    """List methods, presets, grids of uld compare, prompt templates and TOFU's splits; or the runs below a folder.

    A method's line: name, what is trained, what it needs, its options (--option) with defaults, paper, summary.
    A run's line: folder, method, target, forget files with their rows, what uld check found, date. What is unfinished
    or damaged is named below.
    """
    if kind == RUNS:
        _list_runs(folder or (RUNS if Path(RUNS).is_dir() else "."), as_json)  # where the guides put them
        return
    if kind is not None and kind not in KINDS and folder is None and Path(kind).is_dir():
        _list_runs(kind, as_json)
        return
    if kind is not None and kind not in KINDS:
        raise ULDError(f"there are no {kind!r} to list: choose one of {', '.join((*KINDS, RUNS))}")
    if folder is not None or as_json:
        raise ULDError(f"FOLDER and --json are for uld ls {RUNS}: leave them out")
    for number, name in enumerate([kind] if kind else KINDS):
        rows = _rows(name)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        if kind is None:
            say(("\n" if number else "") + name)
        for row in rows:
            # Never wrapped: a line is a row, also for other programs.
            say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _list_runs(folder: str, as_json: bool) -> None:
    """A line for each run, and a sentence for each that cannot be read."""
    from uld.runs.listing import runs_below
    from uld.text.json_text import dumps

    found = runs_below(folder)
    if as_json:
        say(dumps([one.to_dict() for one in found], indent=2))
        return
    rows = [one.to_dict() for one in found if one.problem is None]
    if rows:
        say("  ".join(name.ljust(width) for name, width in _WIDTHS.items()).rstrip())
    for row in rows:
        shown = row | {"run": _below(row["run"], folder), "target": Path(row["target"] or "").name}
        say("  ".join(_cut(shown[name] or "–", width) for name, width in _WIDTHS.items()).rstrip())
    for one in found:
        if one.problem is not None:
            about = one.problem if one.run in one.problem else f"{one.run}: {one.problem}"
            say(about)
    if not found:
        say(f"there is no run in {folder}")


def _below(run: str | None, folder: str) -> str:
    place = Path(run or "").relative_to(folder)
    return str(place) if place != Path() else run or ""


def _cut(text: str, width: int) -> str:
    """A text as wide as its column; of a longer one the end is shown, which tells runs apart."""
    return text.ljust(width) if len(text) <= width else f"…{text[1 - width :]}"


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
