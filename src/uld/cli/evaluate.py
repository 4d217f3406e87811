"""``uld eval``: benchmarks, one subcommand each."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from uld.cli.common import (
    Device,
    Dtype,
    Filter,
    MinTokens,
    Outside,
    Rule,
    Target,
    Template,
    TrustRemoteCode,
    Weight,
    guarded,
    load_model,
)
from uld.errors import ULDError

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
    weight: Weight = None,
    filter: Filter = None,
    min_tokens: MinTokens = None,
    outside: Outside = None,
    dtype: Dtype = "auto",
    device: Device = None,
    template: Template = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """TOFU: forget quality, model utility and all their parts, with per-sample logs; resumes where it was stopped."""
    from uld.evaluation.tofu_log import read_log
    from uld.evaluation.tofu_result import aggregate

    if (model is None) == (from_log is None):
        raise ULDError("give either --model (to run one) or --from-log (to recompute from a log)")
    if retain_model is not None and retain_log is not None:
        raise ULDError("give either --retain-model or --retain-log, not both")
    retained = read_log(retain_log) if retain_log is not None else None
    folder = None
    if from_log is not None:
        log = read_log(from_log)
    else:
        from uld.evaluation.tofu import evaluate

        changes: dict[str, Any] = {
            "rule": rule,
            "weight": weight,
            "filter": filter,
            "min_tokens": min_tokens,
            "outside": outside,
        }
        loading: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
        settings: dict[str, Any] = {
            "data": data,
            "template": template,
            "max_new_tokens": max_new_tokens,
            "limit": limit,
            "progress": not quiet,
        }
        place: dict[str, Any] = {"target": target} if target else {}
        assert model is not None
        loaded, tokenizer = load_model(model, **loading, **changes, **place)
        folder = Path(output) if output else _folder(model, split, changes)
        log = evaluate(loaded, tokenizer, split, folder, generate=generate, **settings)
        if retain_model is not None:
            del loaded
            other, tokenizer = load_model(retain_model, **loading)
            where = folder / "retain-model"
            retained = evaluate(other, tokenizer, split, where, tasks=["forget"], generate=False, **settings)
    result = aggregate(log, retained)
    if folder is not None:
        from uld.artifact import write_text

        write_text(folder / "result.json", json.dumps(result.to_dict(), indent=2) + "\n")
    typer.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.table())
    if folder is not None and not as_json:
        typer.echo(f"Logs and results: {folder}")


def _folder(model: str, split: str, changes: dict[str, Any]) -> Path:
    """Where the log goes: inside a run; beside the user for an ordinary model. Overrides are part of the name."""
    from uld.artifact import is_run

    changed = "".join(f"-{name}-{value}" for name, value in changes.items() if value is not None)
    name = f"tofu-{split}{changed}"
    if is_run(model):
        return Path(model) / "eval" / name
    return Path("eval") / re.sub(r"[^\w.-]+", "_", model).strip("_.") / name
