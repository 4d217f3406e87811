"""``uld tune``: choose α for a finished run."""

from typing import Annotated, Any

import typer

from uld.cli.common import Device, Dtype, Target, TrustRemoteCode, guarded, load_model, numbers
from uld.errors import ULDError

EPILOG = (
    "Example: uld tune runs/x   ·   uld tune runs/x --aim budget --budget 0.02   ·   "
    "uld tune runs/x --forget probes.jsonl --retain retain.jsonl"
)


@guarded
def tune(
    run: Annotated[str, typer.Argument(help="Run folder; its uld.json gets the chosen α.")],
    weight: Annotated[str | None, typer.Option(help="α to try, separated by commas [default: 0.25, 0.5, … 3].")] = None,
    filter: Annotated[str | None, typer.Option(help="τ to try, separated by commas [default: the run's].")] = None,
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
    retain: Annotated[str | None, typer.Option(help="JSON lines of retain records, not trained on.")] = None,
    target: Target = None,
    dtype: Dtype = "auto",
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Choose α without a retain-only model: on paraphrases and retain rows that were not trained on.

    A run on TOFU brings them along; for a run on files name them with --forget and --retain. Writes the choice to
    uld.json, and tune.json and tune.png that explain it.
    """
    from uld.tuning import AIMS, WEIGHTS, file_probes, tofu_probes
    from uld.tuning import tune as choose

    if (forget is None) != (retain is None):
        raise ULDError("give both --forget and --retain, or neither")
    if aim not in AIMS:
        raise ULDError(f"--aim must be one of {', '.join(AIMS)}, not {aim!r}")
    weights, filters = numbers(weight, "--weight") or list(WEIGHTS), numbers(filter, "--filter")
    if forget is not None and retain is not None:
        probes, kept = file_probes(forget, retain)
    else:
        probes, kept = tofu_probes(run)
    place: dict[str, Any] = {"target": target} if target else {}
    model, tokenizer = load_model(run, dtype=dtype, device=device, trust_remote_code=trust_remote_code, **place)
    choice = choose(run, model, tokenizer, probes, kept, weights=weights, filters=filters, budget=budget, aim=aim)  # type: ignore[arg-type]
    typer.echo("| α | τ | advantage (nats/token) | retain probability kept |\n|---|---|---|---|")
    for point in choice.points:
        chosen = " ←" if point == choice.point else ""
        typer.echo(f"| {point.weight:g} | {point.filter:g} | {point.advantage:+.3f} | {point.kept:.2%} |{chosen}")
    typer.echo(f"α = {choice.point.weight:g}: {choice.reason} ({choice.probes} questions, {choice.retain} retain rows)")
