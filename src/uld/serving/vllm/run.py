"""vLLM's server around an exported checkpoint, in this process, behind uld's own gate.

vLLM's routes, handlers and engine are its own. Before them stand the keys and limits of every server of uld
(`uld.serving.gate`), and `uld.serving.vllm.front`, which lets through what is served.
"""

import asyncio
import json
import logging
import os
import shlex
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import ValidationError
from starlette.middleware.authentication import AuthenticationMiddleware
from vllm.entrypoints.launchers.api_server.app_state import init_app_state  # type: ignore[import-not-found]
from vllm.entrypoints.launchers.api_server.entry import (  # type: ignore[import-not-found]
    build_async_engine_client,
)
from vllm.entrypoints.launchers.app import build_app  # type: ignore[import-not-found]
from vllm.entrypoints.launchers.cli_args import (  # type: ignore[import-not-found]
    make_arg_parser,
    validate_parsed_serve_args,
)
from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]

from uld.errors import ULDError
from uld.errors import words as words_of
from uld.model.device import DTYPES
from uld.serving.gate import Gate, Keys, no_key
from uld.serving.metrics import Metrics
from uld.serving.settings import ServeSettings
from uld.serving.vllm import FAULTS, fault
from uld.serving.vllm.front import Front

logger = logging.getLogger(__name__)

_MOST_TOKENS = 2048  # of a request, where nobody says


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """What is said to vLLM beside `ServeSettings`.

    Attributes:
        dtype: One of `uld.model.device.DTYPES`; auto is that of the weights, also fp32, which vLLM itself would round.
        tensor_parallel: Processes that share the weights, one a GPU.
        steering: Whether requests may steer which tokens are chosen (`uld.serving.vllm.fields.STEERING`).
        arguments: Further flags of ``vllm serve``, as in a shell.
    """

    dtype: str = "auto"
    tensor_parallel: int = 1
    steering: bool = False
    arguments: str = ""


def serve(folder: Path, settings: ServeSettings, vllm: VllmSettings, taken: socket.socket) -> None:
    """Serve a checkpoint until a signal ends it.

    Args:
        folder: From `uld.serving.vllm.export.export`.
        settings: Limits, keys, names.
        vllm: The engine's.
        taken: A listening socket (`uld.serving.settings.bind`).

    Raises:
        ULDError: vLLM does not start.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    args = arguments(folder, settings, vllm)
    generation = folder / "generation_config.json"
    samples = (
        bool(json.loads(generation.read_text(encoding="utf-8")).get("do_sample")) if generation.exists() else False
    )
    asyncio.run(_serve(args, settings, vllm, samples, taken))


def arguments(folder: Path, settings: ServeSettings, vllm: VllmSettings) -> Any:
    """The flags of ``vllm serve``, read by vLLM's own parser.

    Raises:
        ULDError: a limit that the model has no room for, or a flag that vLLM does not take.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    most = config.get("max_position_embeddings") or _MOST_TOKENS
    if settings.max_tokens is not None and settings.max_tokens > most:
        raise ULDError(f"--max-tokens {settings.max_tokens:,}: the model reads no more than {most:,}")
    words = [str(folder), "--served-model-name", settings.name, "--dtype", _dtype(config, vllm.dtype)]
    words += ["--max-model-len", str(settings.max_tokens or min(most, _MOST_TOKENS))]
    words += ["--max-num-seqs", str(settings.max_requests), "--tensor-parallel-size", str(vllm.tensor_parallel)]
    words += ["--disable-fastapi-docs", *shlex.split(vllm.arguments)]
    parser = make_arg_parser(FlexibleArgumentParser(exit_on_error=False))
    try:
        args = parser.parse_args(words)
        args.model = args.model_tag or args.model
        validate_parsed_serve_args(args)
    except SystemExit as error:
        raise ULDError("--vllm-args: vLLM does not take these flags (its own words are above)") from error
    except Exception as error:  # whatever its parser raises
        raise ULDError(f"--vllm-args: {error}") from error
    return args


def _dtype(config: dict[str, Any], asked: str) -> str:
    """A dtype by vLLM's name."""
    stored = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return stored if asked == "auto" and stored in DTYPES.values() else DTYPES[asked]


@asynccontextmanager
async def _started(args: Any) -> AsyncIterator[Any]:
    """The engine, which runs in processes of its own.

    Raises:
        ULDError: why it does not start, in uld's words or in vLLM's.
    """
    with tempfile.TemporaryDirectory(prefix="uld-vllm-") as folder:
        os.environ[FAULTS] = str(place := Path(folder, "faults"))
        try:
            engine = await (starting := build_async_engine_client(args)).__aenter__()
        except Exception as error:  # whatever it is, the engine does not run
            own, said = fault(place) or (isinstance(error, ULDError), _said(error))
            raise ULDError(said if own else f"vLLM does not start: {said}") from error
        finally:
            del os.environ[FAULTS]
    try:
        yield engine
    finally:
        await starting.__aexit__(None, None, None)


def _said(error: Exception) -> str:
    """What an exception of vLLM says; a config's is a list of faults."""
    if isinstance(error, ValidationError):
        return " ".join(error.errors()[0]["msg"].removeprefix("Value error, ").split())
    return words_of(error)


async def _serve(args: Any, settings: ServeSettings, vllm: VllmSettings, samples: bool, taken: socket.socket) -> None:
    """Start the engine, and answer until a signal comes."""
    async with _started(args) as engine:
        tasks = await engine.get_supported_tasks()
        app = build_app(args, tasks, engine.model_config)
        await init_app_state(engine, app.state, args, tasks)
        for one in app.state.openai_serving_models.base_model_paths:
            one.model_path = settings.name  # clients are told it, and a path is not theirs to know
        front = Front(app, settings, steering=vllm.steering, samples=samples)
        gate = Gate(front, settings, Metrics())
        how = uvicorn.Config(
            AuthenticationMiddleware(gate, backend=Keys(settings.keys), on_error=no_key),
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=round(settings.drain),
        )
        app.state.server = uvicorn.Server(how)
        host, port = taken.getsockname()[:2]
        who = "who has a key" if settings.keys else "who can reach it"
        logger.info("%s answers everybody %s at http://%s:%d/v1", settings.name, who, host, port)
        await app.state.server.serve(sockets=[taken])
