"""``uld tune``: choose α for a finished run."""

from dataclasses import replace
from typing import Annotated

import typer

from uld.cli.common import ModelOptions, numbers, say, with_model
from uld.errors import ULDError

EPILOG = (
    "Example: uld tune runs/x   ·   uld tune runs/x --aim budget --budget 0.02   ·   "
    "uld tune runs/x --forget probes.jsonl --retain retain.jsonl"
)


@with_model("model", "rule", "min_tokens", "outside")
def tune(
    run: Annotated[str, typer.Argument(help="Run folder; its uld.json gets the chosen α.")],
    weight: Annotated[str | None, typer.Option(help="α to try, separated by commas; default: 0.25, 0.5, … 3.")] = None,
    filter: Annotated[str | None, typer.Option(help="τ to try, separated by commas; default: the run's.")] = None,
    budget: Annotated[float, typer.Option(help="Share of the retain answers' probability that may be lost.")] = 0.01,
    aim: Annotated[
        str,
        typer.Option(
            help="indistinct: smallest α at which right answers are no likelier than wrong ones; "
            "budget: largest α within the budget."
        ),
    ] = "indistinct",
    forget: Annotated[
        str | None, typer.Option(help='JSON lines: {"question", "answer", "wrong_answers": [...]}, not trained on.')
    ] = None,
    retain: Annotated[str | None, typer.Option(help="Retain records, not trained on, as for uld train.")] = None,
    *,
    options: ModelOptions,
) -> None:
    """Choose α without a retain-only model: on paraphrases and retain rows that were not trained on.

    A run on TOFU brings them along; for a run on files name them with --forget and --retain. Writes the choice to
    uld.json, and tune.json and tune.png that explain it.
    """
    from uld.artifact import is_run
    from uld.tuning import AIMS, WEIGHTS, file_probes, tofu_probes
    from uld.tuning import tune as choose

    if not is_run(run):
        raise ULDError(f"{run} is not a finished run: name the folder of one")
    if (forget is None) != (retain is None):
        raise ULDError("give both --forget and --retain, or neither")
    if aim not in AIMS:
        raise ULDError(f"--aim must be one of {', '.join(AIMS)}, not {aim!r}")
    weights, filters = numbers(weight, "--weight") or list(WEIGHTS), numbers(filter, "--filter")
    if forget is not None and retain is not None:
        probes, kept = file_probes(forget, retain)
    else:
        probes, kept = tofu_probes(run)
    options = replace(options, model=run)
    template = options.prompt_template()
    model, tokenizer = options.load()
    given = {"weights": weights, "filters": filters, "budget": budget, "aim": aim, "template": template}
    choice = choose(run, model, tokenizer, probes, kept, **given)  # type: ignore[arg-type]
    say("| α | τ | advantage (nats/token) | retain probability kept |\n|---|---|---|---|")
    for point in choice.points:
        chosen = " ←" if point == choice.point else ""
        say(f"| {point.weight:g} | {point.filter:g} | {point.advantage:+.3f} | {point.kept:.2%} |{chosen}")
    say(f"α = {choice.point.weight:g}: {choice.reason} ({choice.probes} questions, {choice.retain} retain rows)")
