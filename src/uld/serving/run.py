"""``serve``: from a loaded model to a server that runs until it is asked to end."""

import logging
import socket
from typing import Any

import uvicorn

from uld.errors import ULDError
from uld.model.context import readable_tokens
from uld.serving.app import Prompter, build
from uld.serving.engine import Batched, Engine, OneByOne
from uld.serving.metrics import Metrics
from uld.serving.settings import ServeSettings

logger = logging.getLogger(__name__)

_MOST_TOKENS = 2048  # of a request, where nobody says


def serve(
    model: Any, tokenizer: Any, settings: ServeSettings, taken: socket.socket, template: str | None = None
) -> None:
    """Serve a model until a signal ends it.

    Args:
        model: The unlearned model, or any causal LM, in evaluation mode. The combination in force stays so.
        tokenizer: Its tokenizer.
        settings: Limits, keys, names.
        taken: A listening socket (`uld.serving.settings.bind`).
        template: Prompt template; see `uld.data.prompt.PromptFormat`.

    Raises:
        ULDError: the model or its tokenizer cannot be served.
    """
    metrics = Metrics()
    prompter = Prompter(tokenizer, template)
    engine = make_engine(model, tokenizer, settings, metrics)
    try:
        app = build(model, prompter, engine, settings, metrics)
        how = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=round(settings.drain),
        )
        host, port = taken.getsockname()[:2]
        who = "who has a key" if settings.keys else "who can reach it"
        logger.info("%s answers everybody %s at http://%s:%d/v1", settings.name, who, host, port)
        uvicorn.Server(how).run(sockets=[taken])
    finally:
        engine.stop()
        taken.close()


def make_engine(model: Any, tokenizer: Any, settings: ServeSettings, metrics: Metrics) -> Engine:
    """What writes the answers.

    Raises:
        ULDError: a limit that the model has no room for, or shared batches that find something else than ``generate``.
    """
    most = readable_tokens(model, tokenizer)
    if settings.max_tokens is not None and settings.max_tokens > most:
        raise ULDError(f"--max-tokens {settings.max_tokens:,}: the model reads no more than {most:,}")
    tokens = settings.max_tokens or min(most, _MOST_TOKENS)
    if not settings.batching:
        return OneByOne(model, tokens, metrics)
    try:
        engine = Batched(model, tokens, metrics, settings.max_requests)
    except ULDError as error:
        raise ULDError(f"{error} (--no-batching answers one request after the other, without it)") from error
    if engine.left_out:
        logger.warning(
            "the model's generation_config.json asks for %s, which shared batches do not do (--no-batching does)",
            ", ".join(engine.left_out),
        )
    return engine
