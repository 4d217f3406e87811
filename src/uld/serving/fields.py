"""Which fields of a request are served: everything else is refused, so that nothing is ignored and nothing weakened.

The combination of target and assistant is the server's; there is no field for it. What this engine cannot do and vLLM
can is refused in a sentence that says so, unless it asks for what is done anyway (``n`` of 1).
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uld.serving.refusals import Refused

_ANYWAY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (),
    "prompt_logprobs": (),
    "echo": (False,),
    "suffix": (),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "response_format": ({"type": "text"},),
    "store": (False,),
}
"""Known fields that this engine does not serve, each with the values that change nothing."""
_ELSEWHERE = "this server's engine cannot do that, and vLLM can (uld serve --engine vllm)"

Stop = Annotated[str, Field(min_length=1, max_length=256)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    @property
    def turn(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = True


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None


class ChatRequest(_Request):
    """What ``/v1/chat/completions`` takes."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation as a chat template takes it."""
        return [one.turn for one in self.messages]


class TextRequest(_Request):
    """What ``/v1/completions`` takes."""

    prompt: Annotated[str, Field(min_length=1)]


_Kind = TypeVar("_Kind", bound=_Request)


def checked(
    body: dict[str, Any], kind: type[_Request], name: str, *, logprobs: bool = True, samples: bool = False
) -> dict[str, Any]:
    """A request with nothing in it but what is served.

    Args:
        body: As it came.
        kind: What the route takes.
        name: The served model's.
        logprobs: Whether the server would give log-probabilities where the engine can.
        samples: Whether the model's own generation config asks for sampling.

    Returns:
        Its fields by name, those that are not given left out.

    Raises:
        Refused: what is no text, an unknown field, one that the engine does not serve, a wrong value, or another model.
    """
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeError as error:
        message = "the request holds half of a letter (a surrogate alone), which is no text"
        raise Refused(400, message, code="invalid_value") from error
    asked = {key: value for key, value in body.items() if not changes_nothing(key, value)}
    for key in sorted(asked.keys() & _ANYWAY.keys()):
        if "logprobs" in key and not logprobs:
            raise Refused(400, f"{key}: this server withholds log-probabilities", code="unsupported", param=key)
        raise Refused(400, f"{key}: {_ELSEWHERE}", code="unsupported", param=key)
    if kind is TextRequest and isinstance(one := asked.get("prompt"), list) and len(one) == 1:
        asked["prompt"] = one[0]
    given = understood(asked, kind, name)
    served = given.model_dump(exclude_none=True, exclude={"stream_options", "user", "seed", "messages"})
    if given.seed is not None and is_sampled(served, by_default=samples):
        raise Refused(400, f"seed of a sampled answer: {_ELSEWHERE}", code="unsupported", param="seed")
    if given.stream_options is not None and not given.stream_options.include_usage and not given.stream:
        message = 'stream_options are for a stream: say "stream": true with them, or leave them out'
        raise Refused(400, message, code="invalid_value", param="stream_options")
    if isinstance(given, ChatRequest):
        served["messages"] = given.turns
    return served | {"model": name}


def is_sampled(given: Mapping[str, Any], *, by_default: bool) -> bool:
    """Whether an answer is drawn, and not the likeliest token at every place.

    Args:
        given: The request's fields.
        by_default: Whether the model's own generation config asks for it.
    """
    heat = given.get("temperature")
    return heat > 0 if heat is not None else by_default or (given.get("top_p") or 1) < 1


def understood(asked: dict[str, Any], kind: type[_Kind], name: str) -> _Kind:
    """A request, looked at field by field.

    Args:
        asked: Its fields.
        kind: What the route takes.
        name: The served model's.

    Raises:
        Refused: an unknown field, a wrong value, a conversation that does not end with the user, or another model.
    """
    if isinstance(messages := asked.get("messages"), list):
        asked = asked | {"messages": [_without_none(one) for one in messages]}
    try:
        given = kind.model_validate(asked)
    except ValidationError as error:
        raise _refusal(error, kind) from error
    if given.model not in (None, name):
        message = f"there is no model {given.model!r} here: this server has {name!r} alone"
        raise Refused(404, message, code="model_not_found", param="model")
    if isinstance(given, ChatRequest) and given.messages[-1].role != "user":
        raise Refused(400, "messages: the last has to be the user's", code="invalid_value", param="messages")
    return given


def changes_nothing(key: str, value: Any) -> bool:
    """Whether a field asks for what is done anyway."""
    same = (value == one and type(value) is type(one) for one in _ANYWAY.get(key, ()))
    return key in _ANYWAY and (value is None or any(same))


def _without_none(message: Any) -> Any:
    """A message as clients send an answer back: fields of it that hold nothing are left out."""
    return {k: v for k, v in message.items() if v is not None} if isinstance(message, dict) else message


def _refusal(error: ValidationError, kind: type[_Request]) -> Refused:
    """What is wrong with a request, from what pydantic says."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    unknown = [str(one["loc"][-1]) for one in faults if one["type"] == "extra_forbidden" and len(one["loc"]) == 1]
    if unknown:
        message = f"unknown field {unknown[0]!r}: this server takes {', '.join(kind.model_fields)}"
        return Refused(400, message, code="unknown_field", param=unknown[0])
    fault = faults[0]
    place = ".".join(str(part) for part in fault["loc"] if not str(part).startswith(("constrained", "list[", "str")))
    if place == "prompt":
        message = f"prompt must be one text, which is not empty; of several prompts or of tokens, {_ELSEWHERE}"
        return Refused(400, message, param="prompt")
    words = fault["msg"][:1].lower() + fault["msg"][1:]
    return Refused(400, f"{place}: {words}", code="invalid_value", param=place.partition(".")[0])
