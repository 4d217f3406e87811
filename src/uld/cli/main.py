"""The ``uld`` command: collects the subcommands; heavy imports happen inside them."""

from typing import Annotated

import typer

import uld
from uld.cli import (
    augment,
    check,
    compare,
    demo,
    doctor,
    draw,
    eval_attacks,
    eval_copyright,
    eval_harness,
    eval_knowundo,
    eval_muse,
    evaluate,
    explain,
    export,
    finetune,
    forget,
    generate,
    ls,
    playground,
    push,
    report,
    serve,
    tune,
)
from uld.cli import train as training
from uld.cli.boundary import Boundary
from uld.cli.common import say

app = typer.Typer(
    cls=Boundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make a language model unlearn chosen documents without touching its weights.",
    epilog="Start with: uld demo",
)
app.command("forget", epilog=forget.EPILOG, no_args_is_help=True)(forget.forget)
app.command("train", epilog=training.EPILOG, no_args_is_help=True)(training.train)
app.command("finetune", epilog=finetune.EPILOG, no_args_is_help=True)(finetune.finetune)
evaluate.app.command("copyright", epilog=eval_copyright.EPILOG)(eval_copyright.copyright)
evaluate.app.command("attacks", epilog=eval_attacks.EPILOG)(eval_attacks.attacks)
evaluate.app.command("harness", epilog=eval_harness.EPILOG)(eval_harness.harness)
evaluate.app.command("knowundo", epilog=eval_knowundo.EPILOG)(eval_knowundo.knowundo)
evaluate.app.command("muse", epilog=eval_muse.EPILOG)(eval_muse.muse)
app.command("augment", epilog=augment.EPILOG, no_args_is_help=True)(augment.augment)
app.add_typer(evaluate.app, name="eval")
app.command("check", epilog=check.EPILOG, no_args_is_help=True)(check.check)
app.command("compare", epilog=compare.EPILOG)(compare.compare)
app.command("report", epilog=report.EPILOG)(report.report)
app.command("tune", epilog=tune.EPILOG)(tune.tune)
app.command("generate", epilog='Example: uld generate --model runs/x "Who is …?"')(generate.generate)
app.command("chat")(generate.chat)
app.command("explain", epilog=explain.EPILOG)(explain.explain)
app.command("playground", epilog=playground.EPILOG)(playground.playground)
app.command("serve", epilog=serve.EPILOG, no_args_is_help=True)(serve.serve)
app.command("export", epilog=export.EPILOG, no_args_is_help=True)(export.export)
app.command("draw", epilog=draw.EPILOG)(draw.draw)
app.command("ls", epilog=ls.EPILOG)(ls.ls)
app.command("push", epilog=push.EPILOG, no_args_is_help=True)(push.push)
app.command("demo")(demo.demo)
app.command("lm-eval", context_settings=eval_harness.FORWARDED, epilog=eval_harness.FORWARDED_EPILOG)(
    eval_harness.lm_eval
)
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        say(uld.__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Make a language model unlearn chosen documents without touching its weights."""


def main() -> None:
    """Entry point of the ``uld`` command."""
    app()
