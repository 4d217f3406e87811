"""``uld eval``: benchmarks, one subcommand each."""

import itertools
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from uld.cli.common import (
    Device,
    Dtype,
    MinTokens,
    Outside,
    Rule,
    Target,
    Template,
    Tokenizer,
    TrustRemoteCode,
    guarded,
    is_first_process,
    load_model,
    numbers,
)
from uld.errors import ULDError

_SEVERAL = "; several, separated by commas, make a grid that is scored in one pass."

app = typer.Typer(no_args_is_help=True, help="Measure what a model forgot and what it still knows.")


@app.command(
    "tofu",
    epilog="Example: uld eval tofu --model runs/x --split forget10 --data tofu --retain-model RETAIN   ·   "
    "uld eval tofu --from-log A --retain-log B --json",
)
@guarded
def tofu(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Run folder, model folder or Hub id.")] = None,
    split: Annotated[str, typer.Option(help="forget01, forget05 or forget10.")] = "forget10",
    data: Annotated[str | None, typer.Option(help="Folder of TOFU; without it the Hub's locuslab/TOFU.")] = None,
    retain_model: Annotated[str | None, typer.Option(help="Retain-only model, for forget quality.")] = None,
    retain_log: Annotated[str | None, typer.Option(help="Its log instead, in either format.")] = None,
    from_log: Annotated[str | None, typer.Option(help="Recompute everything from this log; no model is run.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder for the log [default: in the run, or eval/].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    generate: Annotated[bool, typer.Option(help="Generate answers (ROUGE needs them).")] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a generated answer.")] = 200,
    limit: Annotated[int | None, typer.Option(min=1, help="First rows of each task set only.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    target: Target = None,
    rule: Rule = None,
    weight: Annotated[str | None, typer.Option(help="Override the run's α" + _SEVERAL, rich_help_panel="Model")] = None,
    filter: Annotated[str | None, typer.Option(help="Override the run's τ" + _SEVERAL, rich_help_panel="Model")] = None,
    min_tokens: MinTokens = None,
    outside: Outside = None,
    dtype: Dtype = "auto",
    device: Device = None,
    tokenizer: Tokenizer = None,
    template: Template = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """TOFU: forget quality, model utility and all their parts, with per-sample logs.

    An evaluation that was stopped goes on where it was when the same command is given again. Under torchrun the
    processes share the rows.
    """
    from uld.data.tofu import check_split
    from uld.evaluation.tofu_log import read_log
    from uld.evaluation.tofu_result import aggregate

    weights, filters = numbers(weight, "--weight") or [None], numbers(filter, "--filter") or [None]
    rules, outsides = ((text.split(",") if text else [None]) for text in (rule, outside))
    grid = [
        {"rule": r, "weight": w, "filter": f, "min_tokens": min_tokens, "outside": o}
        for r, w, f, o in itertools.product(rules, weights, filters, outsides)
    ]
    changes = grid[0] if len(grid) == 1 else dict.fromkeys(grid[0])
    if (model is None) == (from_log is None):
        raise ULDError("give either --model (to run one) or --from-log (to recompute from a log)")
    if retain_model is not None and retain_log is not None:
        raise ULDError("give either --retain-model or --retain-log, not both")
    if from_log is not None and (retain_model is not None or any(v is not None for one in grid for v in one.values())):
        raise ULDError("--from-log runs no model: compare with --retain-log, and leave out what changes a model")
    check_split(split)
    retained = read_log(retain_log) if retain_log is not None else None
    folder = None
    if from_log is not None:
        log = read_log(from_log)
    else:
        assert model is not None
        named = changes | {"dtype": None if dtype == "auto" else dtype, "template": template}
        named["max_new_tokens"] = None if max_new_tokens == 200 else max_new_tokens
        folder = Path(output) if output else _folder(model, split, named)
        loading: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
        settings = {
            "data": data,
            "template": template,
            "max_new_tokens": max_new_tokens,
            "limit": limit,
            "progress": not quiet,
        }
        own = {"target": target, "tokenizer": tokenizer, **changes}
        compared = {"generate": False, "tasks": ["forget"]}
        retain_folder = folder / f"retain-{_slug(retain_model or '')}"
        if len(grid) > 1:
            if retain_model is not None:
                retained = _run(retain_model, split, retain_folder, loading, settings | compared)
            _grid(model, split, folder / "grid", loading | own, settings, grid, retained, as_json)
            return
        log = _run(model, split, folder, loading | own, settings | {"generate": generate})
        if retain_model is not None:
            retained = _run(retain_model, split, retain_folder, loading, settings | compared)
    if not is_first_process():
        return
    result = aggregate(log, retained)
    if folder is not None:
        from uld.artifact import write_text

        write_text(folder / "result.json", json.dumps(result.to_dict(), indent=2) + "\n")
    typer.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.table())
    if folder is not None and not as_json:
        typer.echo(f"Logs and results: {folder}")


def _run(model: str, split: str, folder: Path, loading: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Load a model and evaluate it; say how to go on when it is interrupted."""
    loaded, tokenizer = load_model(model, **loading)
    from uld.evaluation.tofu import evaluate

    try:
        return evaluate(loaded, tokenizer, split, folder, **settings)
    except KeyboardInterrupt:
        raise ULDError(f"interrupted: {folder} holds what is done, and the same command goes on from there") from None


def _grid(
    model: str,
    split: str,
    folder: Path,
    loading: dict[str, Any],
    settings: dict[str, Any],
    grid: list[dict[str, Any]],
    retained: Any,
    as_json: bool,
) -> None:
    """Score many settings in one pass; nothing is generated."""
    loaded, tokenizer = load_model(model, **loading)
    from uld.evaluation.grid import evaluate_grid, table
    from uld.evaluation.rows import dumps
    from uld.modeling import ULDForCausalLM

    if not isinstance(loaded, ULDForCausalLM):
        raise ULDError(f"{model} is an ordinary model: only a run has settings to vary")
    settings = {name: settings[name] for name in ("data", "template", "limit")}
    combinations = [loaded.combination.override(**one) for one in grid]
    rows = evaluate_grid(loaded, tokenizer, split, folder, combinations, retain_log=retained, **settings)
    typer.echo(dumps([row.to_dict() for row in rows], indent=2) if as_json else table(rows))
    if not as_json:
        typer.echo(f"Logs, table and plot: {folder}")


def _folder(model: str, split: str, changes: dict[str, Any]) -> Path:
    """Where the log goes: inside a run; beside the user for an ordinary model. What was changed is part of the name."""
    from uld.artifact import is_run

    changed = "".join(f"-{name}-{value}" for name, value in changes.items() if value is not None)
    name = _slug(f"tofu-{split}{changed}")
    return Path(model) / "eval" / name if is_run(model) else Path("eval") / _slug(model) / name


def _slug(text: str) -> str:
    """A text as a file name."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_.")[-150:] or "model"
