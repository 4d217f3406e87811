"""``uld eval attacks``: membership-inference attacks."""

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
    resumable,
    show_result,
    slug,
    with_model,
)

EPILOG = (
    "Example: uld eval attacks --model runs/x --members forget.jsonl --non-members holdout.jsonl --retain-model RETAIN"
)


@with_model()
def attacks(
    members: Annotated[list[str], typer.Option(help="What the target was trained on, as for uld train (repeat).")],
    non_members: Annotated[list[str], typer.Option(help="Texts of the same kind that it never saw (repeat).")],
    reference_model: Annotated[
        str | None, typer.Option(help="Model that was trained on neither set, for the reference attack.")
    ] = None,
    retain_model: Annotated[str | None, typer.Option(help="Retain-only model, for PrivLeak.")] = None,
    gradnorm: Annotated[bool, typer.Option("--gradnorm", help="Also run GradNorm: a backward pass a text.")] = False,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, max=10**9, help="Tokens that count of a text; default: as many as the model takes."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=10**9, help="First texts of each set only.")] = None,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    options: ModelOptions,
) -> None:
    """Can an attacker tell what the model was trained on? AUC and true positives at 1 % false ones, six attacks.

    An evaluation that was stopped continues where it was when the same command is given again.
    """
    options.check()
    named = {"reference-model": reference_model, "retain-model": retain_model}
    others = {flag: options.beside(model, f"--{flag}") for flag, model in named.items() if model is not None}
    from uld.data.documents import read_sources

    known, unknown = (read_sources(files)[0][:limit] for files in (members, non_members))
    name = "-".join(["attacks", *(Path(files[0]).stem for files in (members, non_members))])
    folder = evaluation_folder(options, name, output, {"limit": limit, "max_length": max_length})
    template = options.prompt_template()

    def scored(chosen: ModelOptions, place: Path, gradnorm: bool) -> Any:
        model, tokenizer = chosen.load()
        from uld.evaluation.attacks import score_sets

        how = {"template": chosen.prompt_template() or template, "max_length": max_length, "progress": not quiet}
        with resumable(folder):
            return score_sets(model, tokenizer, known, unknown, place, gradnorm=gradnorm, **how)

    found = scored(replace(options, template=template), folder, gradnorm)
    reference, retain = (
        scored(others[flag], folder / f"{flag}-{slug(others[flag].model)}", gradnorm and flag == "retain-model")
        if flag in others
        else None
        for flag in ("reference-model", "retain-model")
    )
    from uld.evaluation.attacks import attack_result

    show_result(attack_result(found, reference, retain), folder, as_json)
