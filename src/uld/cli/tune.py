"""``uld tune``: choose how a finished run is combined."""

from dataclasses import replace
from typing import Annotated

import typer

from uld.cli.common import ModelOptions, Quiet, numbers, refuse_absent, say, with_model
from uld.errors import ULDError

EPILOG = (
    "Example: uld tune runs/x\n\nuld tune runs/x --aim budget --budget 0.02\n\n"
    "uld tune runs/x --forget probes.jsonl --retain retain.jsonl"
)


@with_model("model", "rule", "min_tokens", "rank_tokens", "outside")
def tune(
    run: Annotated[str, typer.Argument(help="Run folder; its uld.json gets what is chosen.")],
    weight: Annotated[
        str | None,
        typer.Option(help="α to try, separated by commas; default: 20 (steady), else 0.25, 0.5, … 3 and the run's."),
    ] = None,
    margin: Annotated[
        str | None, typer.Option(help="Margins to try, nats; default: 0, 0.5, … 2/3 log V (steady), else the run's.")
    ] = None,
    floor: Annotated[
        str | None,
        typer.Option(
            help="Floors to try, 0–1; default: the target's own surprise, halved while trained words are likelier "
            "than wrong ones (steady), else the run's."
        ),
    ] = None,
    filter: Annotated[str | None, typer.Option(help="τ to try, separated by commas; default: the run's.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Share of the retain answers' probability that may be lost; of several, separated by commas, the "
            "first that any setting keeps; for its smaller margins read may lose the last, up to 0.1. Default: 0.01; "
            "read: 0.01,0.1."
        ),
    ] = None,
    aim: Annotated[
        str | None,
        typer.Option(
            help="steady (default for the rule suppress): the largest margin at which no less is forgotten than at "
            "any other, over a floor taken from how the target finds wrong answers, at a large α that hardly matters; "
            "read (that of uld forget): of this margin and smaller ones the largest at which as few key words of "
            "trained answers come back in answers as at any; "
            "indistinct: smallest α at which right answers are no likelier than wrong ones; budget: largest α within "
            "the budget."
        ),
    ] = None,
    forget: Annotated[
        str | None, typer.Option(help='JSON lines: {"question", "answer", "wrong_answers": [...]}, not trained on.')
    ] = None,
    retain: Annotated[str | None, typer.Option(help="Retain records, not trained on, as for uld train.")] = None,
    trained: Annotated[
        list[str] | None,
        typer.Option(
            help="For --aim read: questions and texts that were trained on, whose answers are read (repeat); default: "
            "the questions of --forget in the words that were trained on."
        ),
    ] = None,
    ordinary: Annotated[
        list[str] | None,
        typer.Option(help="For --aim read: more answers or texts whose common words give nothing away (repeat)."),
    ] = None,
    quiet: Quiet = False,
    *,
    options: ModelOptions,
) -> None:
    """Choose margin, floor and α without a retain-only model: on paraphrases and retain rows that were not trained on.

    A run on TOFU brings them along; for a run on files name them with --forget and --retain. Writes the choice to
    uld.json, and tune.json and tune.png that explain it.
    """
    from uld.data.documents import read_sources
    from uld.runs.hub import is_hub_id
    from uld.runs.manifest import is_run

    if not is_run(run) and is_hub_id(run):
        raise ULDError(
            f"there is no folder {run}, and the choice is written into the run's folder: fetch a run of the Hub first "
            f"(hf download {run} --local-dir FOLDER)"
        )
    if not is_run(run):
        raise ULDError(f"{run} is not a finished run: name the folder of one")
    for flag, some in (("--trained", trained), ("--ordinary", ordinary)):
        if some is not None and aim != "read":
            raise ULDError(f"{flag} is for --aim read, which looks for key words: leave it out")
    if (forget is None) != (retain is None):
        raise ULDError("give both --forget and --retain, or neither")
    refuse_absent([forget, retain, *(trained or []), *(ordinary or [])])
    from uld.evaluation.choosing import AIMS, STEADY
    from uld.evaluation.held_out import file_probes, tofu_probes
    from uld.evaluation.tuning import Grid
    from uld.evaluation.tuning import tune as choose

    if aim is not None and aim not in AIMS:
        raise ULDError(f"--aim must be one of {', '.join(AIMS)}, not {aim!r}")
    given = {"weights": weight, "margins": margin, "floors": floor, "filters": filter}
    grid = Grid(**{name: numbers(text, f"--{name[:-1]}") or None for name, text in given.items()})
    if forget is not None and retain is not None:
        probes, kept = file_probes(forget, retain)
    else:
        probes, kept = tofu_probes(run)
    options = replace(options, model=run)
    template = options.prompt_template()
    model, tokenizer = options.load()
    budgets = numbers(budget, "--budget") or None
    how = {"grid": grid, "budget": budgets, "aim": aim, "template": template, "progress": not quiet}
    files = {"trained": trained, "ordinary": ordinary}
    how |= {name: read_sources(some)[0] for name, some in files.items() if some is not None}
    choice = choose(run, model, tokenizer, probes, kept, **how)  # type: ignore[arg-type]
    point = choice.point
    say("| α | margin | floor | τ | advantage (nats/token) | retain probability kept |\n|---|---|---|---|---|---|")
    steady = choice.aim in STEADY
    tried = [*choice.curve, *choice.floors[1:], *choice.read] if steady else choice.points[1:]
    for one in [choice.points[0], *tried]:
        cells = [f"{one.weight:g}", f"{one.margin:.3g}", f"{one.floor:.3g}", f"{one.filter:g}", f"{one.advantage:+.3f}"]
        say(f"| {' | '.join([*cells, f'{one.kept:.2%}'])} |{' ←' if one == point else ''}")
    setting = f"α = {point.weight:g}"
    if steady:
        number = len(choice.points) - 1
        setting += f", margin {point.margin:.3g}, floor {point.floor:.3g}, of {number} settings (tune.json)"
    say(f"{setting}: {choice.reason} ({choice.probes} questions, {choice.retain} retain rows)")
