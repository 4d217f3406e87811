"""``uld compare``: a grid of methods, splits, seeds and ablations, and its report."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from uld.cli.common import say
from uld.errors import ULDError

_HELPER = "ULD_COMPARE_HELPER"  # set for the processes that --jobs starts
EPILOG = (
    "Example: uld compare grid.yaml --output compare/mine --jobs 2\n\nuld compare tofu-4m --target MODEL "
    "--retain-only forget01=R99 --retain-only forget05=R95 --retain-only forget10=R90 --data TOFU --output compare/tofu"
)


def compare(
    grid: Annotated[str, typer.Argument(help="YAML file of the grid, or a preset (uld ls grids).")],
    output: Annotated[str, typer.Option(help="Folder of the grid; finished cells in it are not computed again.")],
    target: Annotated[str | None, typer.Option(help="Model to unlearn from; wins over the grid's.")] = None,
    retain_only: Annotated[
        list[str] | None, typer.Option(help="SPLIT=MODEL: the model that never saw the split (repeat for several).")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder of TOFU; without it the Hub's locuslab/TOFU.")] = None,
    augmented: Annotated[str | None, typer.Option(help="Folder with TOFU's paraphrases and wrong answers.")] = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=1024, help="Processes side by side; each takes its share of the cores.")
    ] = 1,
    replace: Annotated[bool, typer.Option("--replace", help="Replace results of other settings or inputs.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and what is left; compute nothing.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say how long what is left takes, measured on first steps; do no more.")
    ] = False,
    hours: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=100000, help="Refuse to begin if what is left takes longer; measured as in --plan."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line for each cell.")] = False,
) -> None:
    """Train and evaluate every cell of a grid and write its tables, figures and report.

    Every cell is kept under the digest of its inputs: a second call computes what is missing, also after a kill.
    Several calls on one folder, on several machines, share the work.
    """
    changes = {"target": target, "data": data, "augmented": augmented, "retain_only": _pairs(retain_only)}
    from uld.compare.grid import read_grid

    read = read_grid(grid, changes)
    from uld.compare.work import grid_plan, overview, run_grid

    if dry_run:
        say(overview(read, output))
        return
    if plan or hours is not None:
        found = grid_plan(read, output, replace=replace)
        say(str(found))
        if hours is not None:
            found.refuse_longer(hours, jobs)
        if plan:
            return
    helpers = []
    if jobs > 1:
        share = str(max(1, (os.cpu_count() or 1) // jobs))
        os.environ["OMP_NUM_THREADS"] = share
        import torch

        torch.set_num_threads(int(share))
        again = [sys.executable, "-m", "uld", "compare", grid, "--output", output]
        again += [f"--{name}={value}" for name, value in changes.items() if isinstance(value, str)]
        again += [f"--retain-only={pair}" for pair in retain_only or []]
        again += ["--replace"] * replace + ["--quiet"] * quiet
        helpers = [subprocess.Popen(again, env=os.environ | {_HELPER: "1"}) for _ in range(jobs - 1)]
    try:
        failed = run_grid(read, output, replace=replace, progress=None if quiet else _tell)
        for helper in helpers:
            helper.wait()
    except KeyboardInterrupt:  # the terminal has told the helpers, too
        for helper in helpers:
            helper.wait()
        raise ULDError(f"interrupted: {output} holds what is done, and the same command continues from there") from None
    except BaseException:
        for helper in helpers:
            helper.terminate()
        for helper in helpers:
            helper.wait()
        raise
    if os.environ.get(_HELPER):
        return
    from uld.report.build import build

    build(Path(output), Path(output))
    say(f"Report: {Path(output) / 'report.html'}")
    if failed:
        raise ULDError(f"{len(failed)} cells failed, the first is {failed[0]}: {output}/cells says why")


def _pairs(given: list[str] | None) -> dict[str, str]:
    """``SPLIT=MODEL`` as a mapping.

    Raises:
        ULDError: something else.
    """
    pairs = {}
    for text in given or []:
        split, equals, model = text.partition("=")
        if not equals or not model:
            raise ULDError(f"--retain-only must be SPLIT=MODEL, not {text!r}")
        pairs[split] = model
    return pairs


def _tell(progress: Any) -> None:
    """One line for a finished cell."""
    outcome = f"failed: {progress.error}" if progress.error else f"{progress.seconds / 60:.1f} min"
    left = f", about {progress.left / 60:.0f} min left" if progress.left else ""
    say(f"[{progress.done}/{progress.total}] {progress.name}: {outcome}{left}")
