"""``uld eval harness`` and ``uld lm-eval``: EleutherAI's lm-eval on an unlearned model, from either side."""

import logging
import sys
from typing import Annotated

import typer

from uld.cli.common import (
    AsJson,
    ModelOptions,
    Output,
    Quiet,
    evaluation_folder,
    resumable,
    show_result,
    with_model,
)
from uld.errors import ULDError
from uld.runs.values import Length, bounds

EPILOG = "Example: uld eval harness --model runs/x --tasks boolq,hellaswag,wikitext --limit 200"
FORWARDED = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
FORWARDED_EPILOG = "Example: uld lm-eval --model uld --model_args pretrained=runs/x --tasks boolq"


@with_model("template")
def harness(
    tasks: Annotated[str, typer.Option(help="Tasks, groups or tags of lm-eval, separated by commas.")],
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, max=10**9, help="Examples in a prompt; default: as the task says, else none.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=10**9, help="First documents of each task only.")] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask in the tokenizer's chat template.")
    ] = False,
    include_path: Annotated[
        list[str] | None, typer.Option(help="Folder with task files (YAML) of your own (repeat).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=10**9, help="Rows of a batch.")] = 8,
    max_length: Annotated[
        int | None, typer.Option(**bounds(Length), help="Tokens read at once; default: what the model can.")
    ] = None,
    before: Annotated[
        bool | None,
        typer.Option("--before/--no-before", help="Also run the run's target; default: where there is one."),
    ] = None,
    output: Output = None,
    log_samples: Annotated[bool, typer.Option("--log-samples", help="Also write every prompt and answer.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    options: ModelOptions,
) -> None:
    """General ability: tasks of EleutherAI's lm-eval, before and after unlearning, with standard errors.

    An evaluation that was stopped continues after its last finished task when the same command is given again.
    """
    changed = {"shots": num_fewshot, "limit": limit, "max_length": max_length, "chat": apply_chat_template or None}
    folder = evaluation_folder(options, "harness", output, changed)
    options.check()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from uld.evaluation.harness import evaluate
    from uld.evaluation.harness_tasks import load_tasks
    from uld.evaluation.pipe import write_result
    from uld.model.unlearned import ULDForCausalLM

    loaded = load_tasks([name.strip() for name in tasks.split(",") if name.strip()], include_path or ())
    model, tokenizer = options.load()
    unlearned = isinstance(model, ULDForCausalLM)
    if before and not unlearned:
        raise ULDError(f"{options.model} holds no target beside it, so there is no --before: evaluate both, one by one")
    with resumable(folder):
        result = evaluate(
            model,
            tokenizer,
            loaded,
            folder,
            before=model.target if unlearned and before is not False else None,
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=apply_chat_template,
            batch_size=batch_size,
            max_length=max_length,
            log_samples=log_samples,
            progress=not quiet,
        )
    write_result(result, folder)
    show_result(result, folder, as_json)


def lm_eval(context: typer.Context) -> None:
    """EleutherAI's lm_eval command, which here knows the model uld; everything that follows is lm-eval's own."""
    from uld.evaluation import lm_eval_model

    assert lm_eval_model  # its import registers the model
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *context.args]
    try:
        cli_evaluate()
    except (ValueError, KeyError, OSError) as error:  # an unknown task or model, data that is out of reach
        raise ULDError(f"lm-eval: {' '.join(str(error).split())}") from error
