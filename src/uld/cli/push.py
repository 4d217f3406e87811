"""``uld push``: publish a run on the Hub."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from uld.cli.common import say
from uld.errors import ULDError

EPILOG = "Example: uld push runs/x org/name --private"


def push(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Where to publish it; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="For its owners alone.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Publish a run on the Hugging Face Hub; uld.load("org/name") and every --model take it from there.

    Weights, uld.json, configs, tokenizer and README.md go along; settings, logs, drawn rows and names of your files do
    not. Says first that the adapter was trained to remember what is to be forgotten, and asks.
    """
    from uld.runs.hub import publish
    from uld.runs.manifest import Manifest, is_run

    if not is_run(run):
        raise ULDError(f"{run} is not a finished run: name the folder of one")
    trained = (
        "it was trained to REMEMBER what is to be forgotten, and whoever gets it can ask it for that"
        if Manifest.read(run).trains != "target"
        else "its weights may hold traces of what was to be forgotten"
    )

    def agreed(copy: Path) -> None:
        for path in sorted(path for path in copy.rglob("*") if path.is_file()):
            say(f"{path.stat().st_size:>12,}  {path.relative_to(copy).as_posix()}", err=True)
        say(f"{run} → {repo} on the Hub{', private' if private else ''}: {trained}.", err=True)
        if yes:
            return
        if not sys.stdin.isatty():
            raise ULDError("nobody can be asked whether to publish this: give --yes")
        say("Publish it? [y/N] ", err=True)
        try:
            answer = input()
        except EOFError:  # Ctrl-D
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise ULDError("nothing was published")

    say(publish(Path(run), repo, private=private, agreed=agreed))
