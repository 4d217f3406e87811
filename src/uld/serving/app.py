"""transformers' own server object around a model that is loaded, with the routes and fields that are served.

Its handlers format prompts' answers and streams; what loads, unloads or lists other models, and every route that is not
named here, is taken out.
"""

import json
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import jinja2
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from transformers import GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import CBWorkerDeadError, GenerationState, Modality

from uld.data.prompt import PromptFormat
from uld.errors import DataError, ULDError
from uld.serving.engine import Engine
from uld.serving.fields import ChatRequest, TextRequest, checked, is_sampled
from uld.serving.gate import ROUTES, Gate, Keys, no_key
from uld.serving.metrics import Metrics
from uld.serving.refusals import Refused
from uld.serving.settings import ServeSettings

_COLDEST = 1e-6  # of temperatures above 0: colder, and logits overflow; transformers' batches stop there as well


class Prompter:
    """The tokenizer as transformers' handlers take it: prompts are those that training and evaluation use.

    They look for a template of answers in ``tokenizer`` and ``response_template``, to parse reasoning and tool calls
    out of what was written. There is none here: tools are refused, and a text comes as it was written.
    """

    response_template = None

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        """Take a tokenizer.

        Args:
            tokenizer: The run's.
            template: See `PromptFormat`.

        Raises:
            ULDError: the tokenizer cannot write text as it comes.
        """
        self._tokenizer = tokenizer
        self.form = PromptFormat(tokenizer, template)
        if getattr(tokenizer, "_tokenizer", None) is None:
            raise ULDError(
                f"a {type(tokenizer).__name__} cannot be served: save a tokenizer.json beside the model (a fast "
                "tokenizer), or name one with --tokenizer"
            )

    @property
    def fast(self) -> Any:
        """The tokenizer of the library tokenizers."""
        return self._tokenizer._tokenizer

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        """Tokens of a text that is to be continued."""
        return {"input_ids": self.form.text_ids(text), "text": text}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> dict[str, Any]:
        """Tokens of a conversation that is to be answered."""
        turns = [(one["role"], one["content"]) for one in messages]
        return {"input_ids": self.form.prompt_ids(turns), "text": turns[-1][1]}

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Text of tokens."""
        return self._tokenizer.decode(*args, **kwargs)


class Served(ModelManager):
    """The one model that there is."""

    def __init__(self, name: str, model: Any, processor: Prompter) -> None:
        """Hold it; nothing is ever loaded or let go of."""
        self.force_model = name
        # Handlers ask for these two alone. From a family's name they would take a template to parse answers by.
        told = SimpleNamespace(
            generation_config=model.generation_config, config=SimpleNamespace(model_type="unlearned")
        )
        self._held = told, processor
        self._listed = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "uld"}

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """A name is a name."""
        return model_id

    def load_model_and_processor(self, *_: Any, **__: Any) -> Any:
        """What handlers need of the model, and its tokenizer."""
        return self._held

    def list_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        """What ``/v1/models`` lists."""
        return [self._listed]

    get_gen_models = list_models  # type: ignore[assignment]  # its name up to transformers 5.23

    @staticmethod
    def get_model_modality(model: Any, processor: Any = None) -> Modality:
        """Text."""
        return Modality.LLM

    def shutdown(self) -> None:
        """Nothing: whoever made the model holds it."""


class State(GenerationState):
    """Hands every request to the one engine."""

    def __init__(self, engine: Engine) -> None:
        """Take it."""
        super().__init__()
        self.engine = engine

    def use_continuous_batching(self, model: Any, modality: Modality) -> bool:
        """Tokens as lists, whichever engine it is."""
        return True

    def get_manager(self, model_id: str, use_cb: bool = False) -> Engine:
        """The engine."""
        return self.engine

    def is_cb_alive(self) -> bool:
        """Whether it can answer."""
        return self.engine.alive


class _Checked:
    """What both handlers do before transformers' own: look at every field, and settle how tokens are drawn."""

    kind: type[Any]
    settings: ServeSettings
    model_manager: Any

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Response:
        """Answer a request.

        Raises:
            Refused: it asks for what is not served.
        """
        model, prompter = self.model_manager.load_model_and_processor()
        samples = bool(model.generation_config.do_sample)
        given = checked(body, self.kind, self.settings.name, logprobs=self.settings.logprobs, samples=samples)
        if self.kind is ChatRequest and prompter.form.assumed:
            raise Refused(
                400,
                f"{self.settings.name} has no chat template: ask /v1/completions (or start uld serve with --template)",
                code="no_chat_template",
            )
        try:
            response = await super().handle_request(given, request_id)  # type: ignore[misc]
        except (DataError, jinja2.TemplateError) as error:
            raise Refused(400, f"messages: {error}", param="messages") from error
        if isinstance(response, StreamingResponse):
            usage = (body.get("stream_options") or {}).get("include_usage", True)
            response.body_iterator = _ended(response.body_iterator, usage)
        return response

    def _build_generation_config(self, body: dict[str, Any], own: Any, use_cb: bool = False) -> GenerationConfig:
        """How tokens are drawn: as the request says, else as the model's own config says, else greedily.

        Of a sampled answer every number is named: ``generate`` would put its own in place of one that is not.
        """
        made = GenerationConfig.from_dict(own.to_dict())
        if is_sampled(body, by_default=bool(own.do_sample)):
            heat = max(body.get("temperature") or own.temperature or 1.0, _COLDEST)
            share = body.get("top_p") or own.top_p or 1.0
            made.update(do_sample=True, temperature=heat, top_k=own.top_k or 0, top_p=share)
        else:
            made.update(do_sample=False, temperature=None, top_k=None, top_p=None)
        made.update(max_length=None, max_new_tokens=body.get("max_completion_tokens") or body.get("max_tokens"))
        made.stop_strings = body.get("stop")
        return made


class Chat(_Checked, ChatCompletionHandler):  # type: ignore[misc]
    """``/v1/chat/completions``."""

    kind = ChatRequest


class Text(_Checked, CompletionHandler):  # type: ignore[misc]
    """``/v1/completions``."""

    kind = TextRequest


async def _ended(stream: Any, usage: bool) -> AsyncIterator[Any]:
    """A stream with the line that clients wait for at its end, and with or without the count of tokens before it."""
    try:
        async for piece in stream:
            yield piece if usage else "".join(map(_without_usage, piece.split("\n\n")))
        yield "data: [DONE]\n\n"
    finally:
        await stream.aclose()


def _without_usage(event: str) -> str:
    """An event of a stream, with no count of tokens in it."""
    if not event:
        return ""
    held = json.loads(event.removeprefix("data: "))
    held.pop("usage", None)
    return f"data: {json.dumps(held)}\n\n"


def build(model: Any, prompter: Prompter, engine: Engine, settings: ServeSettings, metrics: Metrics) -> Any:
    """The ASGI app.

    Args:
        model: Loaded; what is served.
        prompter: Its tokenizer.
        engine: What writes its answers.
        settings: Limits, keys, names.
        metrics: What ``/metrics`` shows.
    """
    served, state = Served(settings.name, model, prompter), State(engine)
    chat, text = Chat(served, state), Text(served, state)
    chat.settings = text.settings = settings
    nothing: Any = None
    app = build_server(
        served,
        chat,
        completion_handler=text,
        response_handler=nothing,
        transcription_handler=nothing,
        systemone_handler=nothing,
        generation_state=state,
    )
    app.router.routes[:] = [one for one in app.router.routes if _is_served(one)]

    async def numbers(_: Request) -> Response:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    app.add_route("/metrics", numbers)
    for kind, told in _TOLD.items():
        app.add_exception_handler(kind, told)
    return AuthenticationMiddleware(Gate(app, settings, metrics), backend=Keys(settings.keys), on_error=no_key)


def _is_served(route: Any) -> bool:
    return ROUTES.get(getattr(route, "path", "")) in (getattr(route, "methods", None) or ())


def _refused(_: Request, error: Any) -> JSONResponse:
    return error.response


def _http(_: Request, error: Any) -> JSONResponse:
    words = {404: "there is no such route here", 405: "this route does not take this method"}
    return Refused(error.status_code, words.get(error.status_code, str(error.detail))).response


def _unread(_: Request, error: Any) -> JSONResponse:
    return Refused(400, "the body is not a JSON object (with Content-Type: application/json)").response


def _dead(_: Request, error: Any) -> JSONResponse:
    return Refused(503, "the engine has ended, and nothing can be answered until the server is started again").response


_TOLD: dict[Any, Any] = {
    Refused: _refused,
    HTTPException: _http,
    RequestValidationError: _unread,
    CBWorkerDeadError: _dead,
}
