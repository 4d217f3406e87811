"""``uld forget``: the whole job, from documents to a checked run."""

from typing import Annotated, Any

import typer

from uld.cli.common import Quiet, hide_loading, refuse_absent, say
from uld.errors import ULDError, guess

EPILOG = (
    "Example: uld forget --target MODEL --documents request/ --output runs/mara\n\n"
    "uld forget --target MODEL --documents a.txt --documents b.jsonl --retain kept.jsonl --output runs/x --plan"
)
ASK, SHAPE = "Questions and other words", "Training"


def _option(text: str, *names: str, panel: str | None = None, **limits: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **limits)


def forget(
    target: Annotated[str, _option("Model that must forget: folder or Hub id.")],
    documents: Annotated[
        list[str],
        _option(
            "What it must forget: a file or a folder of texts, or of questions with answers, as for uld train (repeat)."
        ),
    ],
    output: Annotated[str, _option("Run folder to make. What is made on the way lies beside it, in OUTPUT-request.")],
    retain: Annotated[
        list[str] | None,
        _option("What must stay, in the same forms (repeat); ordinary talk is drawn as well (--draw)."),
    ] = None,
    plan: Annotated[bool, _option("Only say how long it would take and what memory it needs.", "--plan")] = False,
    retain_model: Annotated[
        str | None, _option("A model that never saw the documents, to stand beside the result.")
    ] = None,
    thresholds: Annotated[str | None, _option("Thresholds of the check; default: those of uld check.")] = None,
    local: Annotated[
        str | None,
        _option("Model on this machine that asks and rephrases (the target can); default: rules, English.", panel=ASK),
    ] = None,
    model: Annotated[
        str | None, _option("An endpoint's model that does: it sees the documents.", "--model", "-m", panel=ASK)
    ] = None,
    api_base: Annotated[str | None, _option("The OpenAI-compatible endpoint: its URL up to /v1.", panel=ASK)] = None,
    api_key_env: Annotated[
        str, _option("Environment variable with the key; none: the endpoint needs no key.", panel=ASK)
    ] = "OPENAI_API_KEY",
    questions: Annotated[int, _option("Questions about each chunk of a text.", panel=ASK, min=1, max=10**4)] = 4,
    draw: Annotated[
        int | None,
        _option(
            "Retain rows to draw from the target; default: what --retain lacks of as many as there are to forget, and "
            "always 128.",
            min=0,
            max=10**7,
        ),
    ] = None,
    set: Annotated[
        list[str] | None,
        _option("A setting of uld train as NAME=VALUE, such as epochs=20 (repeat).", "--set", panel=SHAPE),
    ] = None,
    seed: Annotated[int, _option("Seed of everything random.", min=0, max=2**32 - 1)] = 0,
    quiet: Quiet = False,
) -> None:
    """Make a model forget documents, and check that it did: one command from a folder to a report page.

    It asks about texts, rewords, draws what must stay, trains, chooses margin, floor and α on held-out rows, and
    checks. A step that is a command of its own prints that command. If it is interrupted, give the same command
    again. Exit code 0: the check is passed; 1: it is not; 2: something could not be done.
    """
    from uld.request.settings import Request, Source

    refuse_absent([*documents, *(retain or [])], target=target, local=local, retain_model=retain_model)
    request = Request(
        target=target,
        documents=tuple(documents),
        output=output,
        retain=tuple(retain or ()),
        source=Source(local, model, api_base, api_key_env),
        questions=questions,
        draw=draw,
        retain_model=retain_model,
        thresholds=thresholds,
        seed=seed,
        settings=_settings(set or []),
    )
    from uld.request.plan import plan as planned
    from uld.request.run import carry_out, refuse_unusable

    if plan:
        refuse_unusable(request)
        say(str(planned(request)))
        return
    hide_loading()
    found = carry_out(request, tell=(lambda _: None) if quiet else say, progress=not quiet)
    say(found.check.table())
    say(f"run: {found.run}   report: {found.report}")
    if not found.passed:
        raise typer.Exit(1)


def _settings(given: list[str]) -> dict[str, Any]:
    """Settings of a training from NAME=VALUE: texts as they stand, other values as in a YAML file.

    Raises:
        ULDError: one is no such pair, or is no setting.
    """
    from uld.request.settings import is_text, known_settings
    from uld.text.yaml_text import YamlError, parse

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not value.strip():
            raise ULDError(f"--set {text}: expected NAME=VALUE, such as epochs=20")
        if name not in known_settings():
            hint = guess(name, known_settings())
            raise ULDError(f"--set {text}: {name} is not a setting of uld train that can be chosen here{hint}")
        if is_text(name):
            found[name] = value.strip()
            continue
        try:
            found[name] = parse(f"value: {value}")[0]["value"]
        except YamlError as error:
            raise ULDError(f"--set {text}: the value cannot be read: give a number, a word, true or false") from error
        if found[name] is None:
            raise ULDError(f"--set {text}: {name} has no value there: give one, or leave it out")
    return found
