"""``uld eval``: benchmarks, one subcommand each."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from uld.cli.common import (
    AsJson,
    ModelOptions,
    Output,
    Quiet,
    evaluation_folder,
    numbers,
    resumable,
    say,
    show_result,
    slug,
    with_model,
)
from uld.errors import ULDError
from uld.settings import flag, is_first_process

_SEVERAL = "; several, separated by commas, make a grid that is scored in one pass."

app = typer.Typer(no_args_is_help=True, help="Measure what a model forgot and what it still knows.")


@app.command(
    "tofu",
    epilog="Example: uld eval tofu --model runs/x --split forget10 --data tofu --retain-model RETAIN   ·   "
    "uld eval tofu --from-log A --retain-log B --json",
)
@with_model()
def tofu(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Run folder, model folder or Hub id.")] = None,
    split: Annotated[str, typer.Option(help="forget01, forget05 or forget10.")] = "forget10",
    data: Annotated[str | None, typer.Option(help="Folder of TOFU; without it the Hub's locuslab/TOFU.")] = None,
    retain_model: Annotated[str | None, typer.Option(help="Retain-only model, for forget quality.")] = None,
    retain_log: Annotated[str | None, typer.Option(help="Its log instead, in either format.")] = None,
    from_log: Annotated[str | None, typer.Option(help="Recompute everything from this log; no model is run.")] = None,
    output: Output = None,
    as_json: AsJson = False,
    generate: Annotated[bool, typer.Option(help="Generate answers (ROUGE needs them).")] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=10**6, help="Most tokens of a generated answer.")] = 200,
    limit: Annotated[int | None, typer.Option(min=1, max=10**9, help="First rows of each task set only.")] = None,
    quiet: Quiet = False,
    weight: Annotated[str | None, typer.Option(help="Override the run's α" + _SEVERAL, rich_help_panel="Model")] = None,
    margin: Annotated[
        str | None, typer.Option(help="Override the run's margin, nats (suppress)" + _SEVERAL, rich_help_panel="Model")
    ] = None,
    floor: Annotated[
        str | None, typer.Option(help="Override the run's floor φ, 0–1 (suppress)" + _SEVERAL, rich_help_panel="Model")
    ] = None,
    filter: Annotated[str | None, typer.Option(help="Override the run's τ" + _SEVERAL, rich_help_panel="Model")] = None,
    *,
    options: ModelOptions,
) -> None:
    """TOFU: forget quality, model utility and all their parts, with per-sample logs.

    An evaluation that was stopped goes on where it was when the same command is given again. Under torchrun the
    processes share the rows.
    """
    from uld.data.tofu import check_split
    from uld.evaluation.tofu_log import read_log
    from uld.evaluation.tofu_result import aggregate

    varied: dict[str, list[Any]] = {
        **{
            name: text.split(",") if text else [None]
            for name, text in (("rule", options.rule), ("outside", options.outside))
        },
        **{
            name: numbers(text, flag(name)) or [None]
            for name, text in (("weight", weight), ("margin", margin), ("floor", floor), ("filter", filter))
        },
    }
    grid = [
        dict(zip(varied, chosen, strict=True), min_tokens=options.min_tokens, rank_tokens=options.rank_tokens)
        for chosen in itertools.product(*varied.values())
    ]
    changes = grid[0] if len(grid) == 1 else dict.fromkeys(grid[0])
    if (model is None) == (from_log is None):
        raise ULDError("give either --model (to run one) or --from-log (to recompute from a log)")
    if retain_model is not None and retain_log is not None:
        raise ULDError("give either --retain-model or --retain-log, not both")
    if from_log is not None and (retain_model is not None or any(v is not None for one in grid for v in one.values())):
        raise ULDError("--from-log runs no model: compare with --retain-log, and leave out what changes a model")
    check_split(split)
    retained = None
    if retain_log is not None:
        retained = read_log(retain_log)
        ours, theirs = _split_of(from_log) if from_log is not None else split, _split_of(retain_log)
        if None not in (ours, theirs) and ours != theirs:
            raise ULDError(f"{retain_log} was made on {theirs}, not on {ours}: evaluate both models on the same split")
    folder = None
    if from_log is not None:
        log = read_log(from_log)
    else:
        assert model is not None
        chosen = replace(options, model=model, **changes)
        named = {"max_new_tokens": None if max_new_tokens == 200 else max_new_tokens}
        folder = evaluation_folder(chosen, f"tofu-{split}", output, named)
        settings = {
            "data": data,
            "template": chosen.prompt_template(),
            "max_new_tokens": max_new_tokens,
            "limit": limit,
            "progress": not quiet,
        }

        other = None
        if retain_model is not None:
            other = chosen.beside(retain_model, "--retain-model", "template")
        if len(grid) > 1:
            retained = _retain_only(other, split, folder, settings) if other is not None else retained
            _grid(chosen, split, folder / "grid", settings, grid, retained, as_json)
            return
        log = _run(chosen, split, folder, settings | {"generate": generate})
        retained = _retain_only(other, split, folder, settings) if other is not None else retained
    if not is_first_process():
        return
    result = aggregate(log, retained)
    show_result(result, folder, as_json)


def _run(options: ModelOptions, split: str, folder: Path, settings: dict[str, Any]) -> Any:
    """Load a model and evaluate it; say how to go on when it is interrupted."""
    loaded, tokenizer = options.load()
    from uld.evaluation.tofu import evaluate

    with resumable(folder):
        return evaluate(loaded, tokenizer, split, folder, **settings)


def _retain_only(options: ModelOptions, split: str, folder: Path, settings: dict[str, Any]) -> Any:
    """Score a retain-only model, asked as the model that it is compared with unless its own run says otherwise."""
    own = {"template": options.prompt_template() or settings["template"], "generate": False, "tasks": ["forget"]}
    return _run(options, split, folder / f"retain-{slug(options.model)}", settings | own)


def _grid(
    options: ModelOptions,
    split: str,
    folder: Path,
    settings: dict[str, Any],
    grid: list[dict[str, Any]],
    retained: Any,
    as_json: bool,
) -> None:
    """Score many settings in one pass; nothing is generated. Of several processes the first does it all."""
    if not is_first_process():
        return
    loaded, tokenizer = options.load()
    from uld.evaluation.grid import evaluate_grid, table
    from uld.evaluation.rows import dumps
    from uld.modeling import ULDForCausalLM

    if not isinstance(loaded, ULDForCausalLM):
        raise ULDError(f"{options.model} has no assistant: only a run with one has settings to vary")
    settings = {name: settings[name] for name in ("data", "template", "limit")}
    combinations = [loaded.combination.override(**one) for one in grid]
    rows = evaluate_grid(loaded, tokenizer, split, folder, combinations, retain_log=retained, **settings)
    say(dumps([row.to_dict() for row in rows], indent=2) if as_json else table(rows))
    if not as_json:
        say(f"Logs, table and plot: {folder}")


def _split_of(log: str) -> str | None:
    """The split that a log of ours was made on; other logs do not say."""
    from uld.evaluation.rows import SETTINGS

    path = Path(log)
    try:
        return json.loads(((path if path.is_dir() else path.parent) / SETTINGS).read_text(encoding="utf-8"))["split"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
