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
from uld.errors import ULDError, flag
from uld.training.settings import is_first_process

_BEYOND = "Beyond TOFU's own numbers"
_SEVERAL = "; several, separated by commas, make a grid that is scored in one pass."

app = typer.Typer(no_args_is_help=True, help="Measure what a model forgot and what it still knows.")


@app.command(
    "tofu",
    epilog="Example: uld eval tofu --model runs/x --split forget10 --data tofu --retain-model RETAIN   ·   "
    "uld eval tofu --from-log A --retain-log B --target-log C --json   ·   "
    "uld eval tofu --from-summary S.json --target-summary T.json --retain-summary R.json --json",
)
@with_model()
def tofu(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Run folder, model folder or Hub id.")] = None,
    split: Annotated[str, typer.Option(help="forget01, forget05 or forget10.")] = "forget10",
    data: Annotated[str | None, typer.Option(help="Folder of TOFU; without it the Hub's locuslab/TOFU.")] = None,
    retain_model: Annotated[
        str | None, typer.Option(help="Retain-only model, for forget quality, Priv and the perplexity of answers.")
    ] = None,
    retain_log: Annotated[
        str | None,
        typer.Option(help="Its log instead, in either format; with answers in it, for re-entry beyond them also."),
    ] = None,
    target_log: Annotated[str | None, typer.Option(help="Log of the target before unlearning, for Utility.")] = None,
    from_log: Annotated[str | None, typer.Option(help="Recompute everything from this log; no model is run.")] = None,
    from_summary: Annotated[
        str | None,
        typer.Option(help="Mem, Priv, Utility and Agg from this TOFU_SUMMARY.json of open-unlearning, of this model …"),
    ] = None,
    target_summary: Annotated[str | None, typer.Option(help="… that of the target before unlearning …")] = None,
    retain_summary: Annotated[str | None, typer.Option(help="… and that of the retain-only model.")] = None,
    output: Output = None,
    as_json: AsJson = False,
    generate: Annotated[bool, typer.Option(help="Generate answers (ROUGE needs them).")] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=10**6, help="Most tokens of a generated answer.")] = 200,
    limit: Annotated[int | None, typer.Option(min=1, max=10**9, help="First rows of each task set only.")] = None,
    non_members: Annotated[
        list[str] | None,
        typer.Option(
            help="Questions and answers that no model was trained on, for membership attacks and Priv; as many as "
            "there are forget rows count, and rows of full are left out.",
            rich_help_panel=_BEYOND,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, max=10**6, help="Answers to sample for each forget question, for leak@k.", rich_help_panel=_BEYOND
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="Seed of the samples.", rich_help_panel=_BEYOND)] = 0,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Model for the perplexity of answers; default: the retain-only model.", rich_help_panel=_BEYOND
        ),
    ] = None,
    fluency_model: Annotated[
        str | None,
        typer.Option(
            help="Text classifier that says which answers are no gibberish; default: what reads like no answer is "
            "counted by rule.",
            rich_help_panel=_BEYOND,
        ),
    ] = None,
    fluency_label: Annotated[
        str, typer.Option(help="What it calls an answer that is fine.", rich_help_panel=_BEYOND)
    ] = "clean",
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
    """TOFU: forget quality, model utility and all their parts, what people read, and the field's scores, with logs.

    An evaluation that was stopped continues where it was when the same command is given again. Under torchrun the
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
    further: dict[str, Any] = {"--non-members": non_members, "--samples": samples, "--base-model": base_model}
    further |= {"--fluency-model": fluency_model}
    asked = [name for name, value in further.items() if value]
    summaries = {"--from-summary": from_summary, "--target-summary": target_summary, "--retain-summary": retain_summary}
    if any(one is not None for one in summaries.values()):
        others: dict[str, Any] = {
            "--model": model,
            "--from-log": from_log,
            "--retain-model": retain_model,
            "--retain-log": retain_log,
        }
        others |= {"--target-log": target_log, "--output": output} | further
        changed = any(value is not None for one in grid for value in one.values())
        _summaries(summaries, others, options != ModelOptions() or changed, as_json)
        return
    if (model is None) == (from_log is None):
        raise ULDError("give either --model (to run one) or --from-log (to recompute from a log)")
    if retain_model is not None and retain_log is not None:
        raise ULDError("give either --retain-model or --retain-log, not both")
    if from_log is not None and (retain_model is not None or any(v is not None for one in grid for v in one.values())):
        raise ULDError("--from-log runs no model: compare with --retain-log, and leave out what changes a model")
    if from_log is not None and asked:
        raise ULDError(f"--from-log runs no model: leave out {' and '.join(asked)}, or evaluate with --model")
    if asked and len(grid) > 1:
        raise ULDError(f"a grid of settings is scored without {' and '.join(asked)}: give one setting")
    if asked and asked != ["--non-members"] and not generate:
        raise ULDError(f"{' and '.join(asked)} need generated answers: leave out --no-generate")
    check_split(split)
    logs = {}
    for path in (retain_log, target_log):
        if path is not None:
            logs[path] = read_log(path)
            ours, theirs = _split_of(from_log) if from_log is not None else split, _split_of(path)
            if None not in (ours, theirs) and ours != theirs:
                raise ULDError(f"{path} was made on {theirs}, not on {ours}: evaluate both models on the same split")
    retained, before = (logs[path] if path is not None else None for path in (retain_log, target_log))
    folder = None
    if from_log is not None:
        log = read_log(from_log)
    else:
        assert model is not None
        chosen = replace(options, model=model, **changes)
        named = {"max_new_tokens": None if max_new_tokens == 200 else max_new_tokens}
        folder = evaluation_folder(chosen, f"tofu-{split}", output, named)
        settings: dict[str, Any] = {
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
            retained = _retain_only(other, split, folder, settings)[0] if other is not None else retained
            _grid(chosen, split, folder / "grid", settings, grid, retained, as_json)
            return
        base = chosen.beside(base_model, "--base-model") if base_model is not None else None
        if non_members:
            settings["non_members"] = _non_members(non_members, split, data)
        classifier = _classifier(fluency_model, fluency_label, chosen) if fluency_model is not None else None
        log = _run(chosen, split, folder, settings | {"generate": generate, "samples": samples, "seed": seed})
        if other is not None:
            retained, found = _retain_only(other, split, folder, settings, log if base is None else None)
            log = found if base is None else log
        log = _further(log, split, folder, settings, base, classifier)
    if not is_first_process():
        return
    result = aggregate(log, retained, before)
    show_result(result, folder, as_json)


def _summaries(summaries: dict[str, str | None], others: dict[str, Any], changed: bool, as_json: bool) -> None:
    """The four scores from the summaries of three models; no model is run, and nothing is written.

    Raises:
        ULDError: one of the three is missing, or something else was asked for beside them.
    """
    from uld.evaluation.open_unlearning import scores_from_summaries

    paths = [path for path in summaries.values() if path is not None]
    if len(paths) < len(summaries):
        missing = [name for name, path in summaries.items() if path is None]
        raise ULDError(f"the scores need the summaries of three models: {' and '.join(missing)} missing")
    if wrong := [name for name, value in others.items() if value is not None]:
        raise ULDError(f"--from-summary runs no model and reads no log: leave out {' and '.join(wrong)}")
    if changed:
        raise ULDError("--from-summary runs no model: leave out what chooses or changes one")
    show_result(scores_from_summaries(*paths), None, as_json)


def _run(options: ModelOptions, split: str, folder: Path, settings: dict[str, Any]) -> Any:
    """Load a model and evaluate it; say how to go on when it is interrupted."""
    loaded, tokenizer = options.load()
    from uld.evaluation.tofu import evaluate

    with resumable(folder):
        return evaluate(loaded, tokenizer, split, folder, **settings)


def _retain_only(
    options: ModelOptions, split: str, folder: Path, settings: dict[str, Any], log: Any = None
) -> tuple[Any, Any]:
    """Score a retain-only model, asked as the model that it is compared with unless its own run says otherwise.

    Returns:
        Its log; and that of the other model, whose answers it has judged.
    """
    own = {"template": options.prompt_template() or settings["template"], "generate": False, "tasks": ["forget"]}
    place = folder / f"retain-{slug(options.model)}"
    loaded, tokenizer = options.load()
    from uld.evaluation.tofu import evaluate, judged

    with resumable(folder):
        retained = evaluate(loaded, tokenizer, split, place, **settings | own)
        if log is not None:
            how = {name: settings[name] for name in ("data", "progress")}
            log = judged(log, loaded, tokenizer, split, folder, template=own["template"], **how)
    return retained, log


def _further(
    log: Any, split: str, folder: Path, settings: dict[str, Any], base: ModelOptions | None, classifier: Any
) -> Any:
    """A log with what a base model and a classifier say of its answers."""
    from uld.evaluation.tofu import judged
    from uld.evaluation.tofu_answers import classify

    how = {name: settings[name] for name in ("data", "progress")}
    with resumable(folder):
        if base is not None:
            log = judged(log, *base.load(), split, folder, template=base.prompt_template(), **how)
        if classifier is not None:
            log = classify(log, folder, classifier, progress=settings["progress"])
    return log


def _classifier(place: str, label: str, options: ModelOptions) -> Any:
    """The text classifier, on the device of the model."""
    device = options.beside(place, "--fluency-model").check("--fluency-model")
    from uld.evaluation.tofu_answers import Classifier

    return Classifier(place, label, device)


def _non_members(sources: list[str], split: str, data: str | None) -> Any:
    from uld.data.documents import read_sources
    from uld.evaluation.tofu import unseen_rows

    return unseen_rows(read_sources(sources)[0], split, data)


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
    from uld.model.unlearned import ULDForCausalLM
    from uld.text.json_text import dumps

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
    from uld.runs.rows import CLAIM

    path = Path(log)
    try:
        return json.loads(((path if path.is_dir() else path.parent) / CLAIM).read_text(encoding="utf-8"))["split"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
