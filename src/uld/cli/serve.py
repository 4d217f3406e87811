"""``uld serve``: an unlearned model behind the API of OpenAI, with the subtraction in it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer

from uld.cli.common import COMBINATION, ModelOptions, with_model
from uld.errors import ULDError, flag

EPILOG = "Example: uld serve runs/x --api-keys keys.txt\n\ncurl http://127.0.0.1:8000/v1/models"
_LIMITS: dict[str, Any] = {"rich_help_panel": "Limits"}
_VLLM: dict[str, Any] = {"rich_help_panel": "vLLM"}


@with_model("model")
def serve(
    runs: Annotated[
        list[str],
        typer.Argument(help="Run folder; of several, all of one target, all are unlearned. Or a folder of uld export."),
    ],
    engine: Annotated[
        Literal["auto", "transformers", "vllm"],
        typer.Option(
            help="transformers: its own server; vllm: vLLM; auto: vLLM where it is installed, else the other."
        ),
    ] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes one that is free.")] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name for clients; default: the run folder's.")] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(help="File of API keys, one a line, that only you can read; default: $ULD_API_KEY, if set."),
    ] = None,
    logprobs: Annotated[
        bool, typer.Option("--logprobs/--no-logprobs", help="Give log-probabilities (where the engine can).")
    ] = True,
    batching: Annotated[
        bool,
        typer.Option("--batching/--no-batching", help="Answer requests together, or one after the other."),
    ] = True,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Log prompts and answers as well.")] = False,
    max_requests: Annotated[
        int, typer.Option(min=1, max=1024, help="Requests answered at the same time.", **_LIMITS)
    ] = 16,
    max_queue: Annotated[
        int, typer.Option(min=0, max=10**6, help="Requests that may wait; others get 429.", **_LIMITS)
    ] = 64,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=2, max=10**7, help="Tokens of prompt and answer; default: the model's, up to 2,048.", **_LIMITS
        ),
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, max=10**9, help="Bytes of a request.", **_LIMITS)] = 2**20,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=10**6, help="Seconds a request may take, waiting included.", **_LIMITS)
    ] = 300.0,
    drain: Annotated[
        float, typer.Option(min=0, max=10**6, help="Seconds that requests get to end after SIGTERM.", **_LIMITS)
    ] = 30.0,
    export_to: Annotated[
        str | None, typer.Option(help="Keep vLLM's checkpoint in this folder; default: a temporary one.", **_VLLM)
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, max=1024, help="GPUs that share the weights.", **_VLLM)] = 1,
    steering: Annotated[
        bool,
        typer.Option(
            "--steering", help="Let requests bias or constrain which tokens are chosen (docs/serving.md).", **_VLLM
        ),
    ] = False,
    vllm_args: Annotated[str, typer.Option(help="Further flags of vllm serve, in one text.", **_VLLM)] = "",
    *,
    options: ModelOptions,
) -> None:
    """Serve the unlearned model over the API of OpenAI. How it is combined is fixed here: no request can change it.

    Ends with SIGTERM or Ctrl-C, when the requests at hand are answered.
    """
    from uld.serving import chosen, is_exported, refuse_ordinary
    from uld.serving.settings import ServeSettings, bind, read_keys, served_name

    by = chosen(engine, batching=batching)
    own = {"--export-to": export_to, "--tensor-parallel": tensor_parallel > 1, "--steering": steering}
    own["--vllm-args"] = vllm_args
    if by != "vllm" and (given := next((flag for flag, value in own.items() if value), None)):
        raise ULDError(f"{given} is for --engine vllm, and the engine here is {by}")
    if by == "vllm" and options.device is not None:
        raise ULDError("--device: vLLM uses the device that it was built for; leave it out")
    keys = read_keys(api_keys)
    ready = next((run for run in runs if is_exported(run)), None)
    if ready is None:
        refuse_ordinary(runs)
    else:
        _refuse_beside(ready, runs, by, options, export_to)
    options = replace(options, model=runs[0])
    options.check("RUN")
    taken = bind(host, port)
    try:
        settings = ServeSettings(
            name=served_name(runs, name),
            keys=keys,
            batching=batching,
            logprobs=logprobs,
            log_prompts=log_prompts,
            max_requests=max_requests,
            max_queue=max_queue,
            max_tokens=max_tokens,
            max_body=max_body,
            timeout=timeout,
            drain=drain,
        )
        if by == "vllm":
            from uld.serving.vllm.export import export
            from uld.serving.vllm.run import VllmSettings
            from uld.serving.vllm.run import serve as run_vllm

            how = VllmSettings(
                dtype=options.dtype, tensor_parallel=tensor_parallel, steering=steering, arguments=vllm_args
            )
            with _logged(), TemporaryDirectory(prefix="uld-vllm-") as temporary:
                place = export_to or Path(temporary, "model")
                folder = Path(ready) if ready else export(runs, place, **exported(options))
                run_vllm(folder, settings, how, taken)
            return
        model, tokenizer = options.load(runs if len(runs) > 1 else ())
        from uld.serving.run import serve as run

        with _logged():
            run(model, tokenizer, settings, taken, options.prompt_template())
    finally:
        taken.close()


def exported(options: ModelOptions) -> dict[str, Any]:
    """The options of an export, by name (`uld.serving.vllm.export.export`)."""
    names = ("target", "tokenizer", "template", "date", "trust_remote_code", *COMBINATION)
    return {name: getattr(options, name) for name in names}


def _refuse_beside(folder: str, runs: list[str], by: str, options: ModelOptions, export_to: str | None) -> None:
    """Refuse what does not go with a checkpoint that is exported already.

    Raises:
        ULDError: names it.
    """
    if by != "vllm":
        raise ULDError(f"{folder} is a checkpoint for vLLM, and the engine here is {by}: give the run folder instead")
    if len(runs) > 1:
        raise ULDError(f"{folder} is exported already, and is served alone: export all runs together instead")
    asked = {flag(name): value for name, value in exported(options).items()} | {"--export-to": export_to}
    if given := next((name for name, value in asked.items() if value not in (None, "") and value is not False), None):
        raise ULDError(f"{given}: {folder} is exported already, with all that in it; export the run again with it")


@contextmanager
def _logged() -> Iterator[None]:
    """Write a line a request to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    levels = {"uld": logging.INFO, "uvicorn.error": logging.WARNING}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).setLevel(level)
