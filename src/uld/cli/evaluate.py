"""``uld eval``: benchmarks, one subcommand each."""

import itertools
from dataclasses import replace
from typing import Annotated, Any

import typer

from uld.cli.benchmark import run
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
    with_model,
)
from uld.errors import ULDError, flag
from uld.runs import values
from uld.training.settings import is_first_process

_BEYOND = "Beyond TOFU's own numbers"
_SEVERAL = "; several, separated by commas, make a grid that is scored in one pass."

app = typer.Typer(no_args_is_help=True, help="Measure what a model forgot and what it still knows.")


@app.command(
    "tofu",
    epilog="Example: uld eval tofu --model runs/x --split forget10 --data tofu --retain-model RETAIN\n\n"
    "uld eval tofu --from-log A --retain-log B --target-log C --json\n\n"
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
    seed: Annotated[
        int, typer.Option(**values.bounds(values.Seed), help="Seed of the samples.", rich_help_panel=_BEYOND)
    ] = 0,
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
    if from_log is not None:
        _from_log(from_log, split, retain_log, target_log, as_json)
        return
    assert model is not None
    chosen = replace(options, model=model, **changes)
    settings: dict[str, Any] = {"split": split, "data": data, "max_new_tokens": max_new_tokens, "limit": limit}
    settings |= {"retain_log": retain_log, "target_log": target_log}
    if len(grid) > 1:
        _grid(chosen, retain_model, output, settings, grid, as_json, quiet)
        return
    if fluency_model is not None:
        chosen.beside(fluency_model, "--fluency-model")
        settings |= {"fluency_model": fluency_model, "fluency_label": fluency_label}
    settings |= {"generate": generate, "non_members": non_members, "samples": samples, "seed": seed}
    settings |= {"retain_model": retain_model, "base_model": base_model}
    run("tofu", options=chosen, output=output, as_json=as_json, quiet=quiet, **settings)


def _from_log(log: str, split: str, retain_log: str | None, target_log: str | None, as_json: bool) -> None:
    """All numbers from logs alone."""
    from uld.data.tofu import check_split
    from uld.evaluation.tofu import log_on, split_of
    from uld.evaluation.tofu_log import read_log
    from uld.evaluation.tofu_result import aggregate

    check_split(split)
    retained, before = (log_on(other, split_of(log)) for other in (retain_log, target_log))
    show_result(aggregate(read_log(log), retained, before), None, as_json)


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


def _grid(
    options: ModelOptions,
    retain_model: str | None,
    output: str | None,
    settings: dict[str, Any],
    grid: list[dict[str, Any]],
    as_json: bool,
    quiet: bool,
) -> None:
    """Score many settings in one pass; nothing is generated. Of several processes the first does it all."""
    options.check()
    from uld.evaluation.pipe import run as evaluate
    from uld.evaluation.tofu import Tofu

    tofu, template = Tofu(**settings), options.prompt_template()
    folder, retained = evaluation_folder(options, tofu.name, output, tofu.changed), tofu.retained
    if retain_model is not None:
        beside = tofu.others["retain_model"]
        other = options.beside(retain_model, "--retain-model", *beside.shared).candidate()
        place = beside.place(folder, retain_model)
        with resumable(folder):
            found = evaluate(tofu.retain_only, other.subject(template), place, progress=not quiet)
        retained = tofu.retain_only.log_of(found)
    if not is_first_process():
        return
    loaded, tokenizer = options.load()
    from uld.evaluation.grid import evaluate_grid, table
    from uld.model.unlearned import ULDForCausalLM
    from uld.text.json_text import dumps

    if not isinstance(loaded, ULDForCausalLM):
        raise ULDError(f"{options.model} has no assistant: only a run with one has settings to vary")
    how = {"data": tofu.data, "template": template, "limit": tofu.limit, "retain_log": retained}
    combinations = [loaded.combination.override(**one) for one in grid]
    rows = evaluate_grid(loaded, tokenizer, tofu.split, folder / "grid", combinations, progress=not quiet, **how)
    say(dumps([row.to_dict() for row in rows], indent=2) if as_json else table(rows))
    if not as_json:
        say(f"Logs, table and plot: {folder / 'grid'}")
