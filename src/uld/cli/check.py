"""``uld check``: did a run forget your documents, and does the rest still work? A gate with an exit code."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from uld.cli.common import (
    COMBINATION,
    AsJson,
    ModelOptions,
    Quiet,
    evaluation_folder,
    refuse_absent,
    resumable,
    say,
    show_result,
    with_model,
)
from uld.training.settings import is_first_process

EPILOG = (
    "Example: uld check runs/x --forget mine.jsonl --retain keep.jsonl\n\n"
    "uld check runs/* --forget mine.jsonl --retain keep.jsonl --thresholds gate.yaml --junit check.xml"
)


@with_model("model")
def check(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Run folders, or models made of --target.")],
    forget: Annotated[
        list[str],
        typer.Option(help="What must be gone: questions with answers, or texts (repeat)."),
    ],
    retain: Annotated[list[str], typer.Option(help="What must still be there (repeat).")],
    held_out: Annotated[
        list[str] | None, typer.Option(help="What must be gone, in wordings that were not trained on (repeat).")
    ] = None,
    ordinary: Annotated[
        list[str] | None,
        typer.Option(help="More answers or texts: words that are common in them do not count as key words (repeat)."),
    ] = None,
    retain_model: Annotated[
        str | None, typer.Option(help="A model that never saw the documents, to stand beside.")
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(help="YAML file with your own limits; default: those of the package.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder for rows and reports; default: in the run, or eval/ for several.")
    ] = None,
    as_json: AsJson = False,
    junit: Annotated[str | None, typer.Option(help="Also write JUnit XML into this file.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=10**6, help="Most tokens of an answer.")] = 128,
    limit: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="Most questions of each set, spread evenly over it.")
    ] = None,
    quiet: Quiet = False,
    *,
    options: ModelOptions,
) -> None:
    """Did a run forget your documents, and does the rest still work? A gate: exit code 0 pass, 1 fail, 2 not run.

    Asks your own questions before and after unlearning, writes report.html, summary.md, junit.xml and result.json, and
    holds the numbers against thresholds. A check that was stopped continues where it was when the same command is given
    again.
    """
    read = {"--forget": forget, "--retain": retain, "--held-out": held_out or (), "--ordinary": ordinary or ()}
    read |= {"--thresholds": [thresholds]}
    refuse_absent([*forget, *retain, *(held_out or []), *(ordinary or [])])
    for run in runs:
        replace(options, model=run).check("RUN")
    from uld.checking.asked import Asked
    from uld.checking.questions import Questions
    from uld.checking.report import refuse_junit, write_junit
    from uld.checking.run import carry_out, default_folder, origin_of, refuse_combined
    from uld.evaluation.pipe import Candidate
    from uld.runs.places import refuse_sources

    origin = origin_of(runs, options.target, options.date)
    refuse_combined(runs, {name: getattr(options, name) for name in COMBINATION})
    questions = Questions.read(forget, retain, held_out, limit, ordinary)
    chosen = replace(options, model=runs[0])
    named = chosen.changed | {"limit": limit}
    folder = evaluation_folder(chosen, "check", output or str(default_folder(runs, forget, named)))
    if output is not None:
        refuse_sources(output, read)
    if junit is not None:
        refuse_sources(junit, read, by="--junit")
        refuse_junit(Path(junit))
    chosen = replace(chosen, date=origin.date)
    before = chosen.beside(origin.target, "--target", "tokenizer")
    beside = None if retain_model is None else chosen.beside(retain_model, "--retain-model")
    with resumable(folder):
        result = carry_out(
            Asked(questions, max_new_tokens),
            [replace(chosen, model=run, target=origin.target_of(run)).candidate() for run in runs],
            Candidate(origin.target, lambda: before.load(revision=origin.revision), options.template),
            None if beside is None else beside.candidate(),
            thresholds=thresholds,
            folder=folder,
            progress=not quiet,
            tell=lambda line: None if quiet else say(line, err=True),
        )
    show_result(result, None, as_json)
    if junit is not None and is_first_process():
        write_junit(result, Path(junit))
    if not as_json and is_first_process():
        say(f"Report: {folder / 'report.html'}")
    if not result.passed:
        raise typer.Exit(1)
