"""Which fields of a request go to vLLM: what steers the choice of tokens does not, unless the server says so.

The combination stands behind the head, so no field takes it away. But a bias, a grammar or a ban on tokens chooses
*among* what is left: it lets a client ask which of the answers that it names the model still finds likelier, and ban
what the model says instead of a forgotten answer.
"""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from uld.serving.fields import ChatRequest, TextRequest, changes_nothing, understood
from uld.serving.refusals import Refused

STEERING = {
    "logit_bias",
    "response_format",
    "structured_outputs",
    "tools",
    "tool_choice",
    "bad_words",
    "allowed_token_ids",
    "min_tokens",
    "repetition_penalty",
}
"""Fields that change which tokens may be chosen, or how likely those of the client's choice are."""
_LOGPROBS = {"logprobs", "top_logprobs", "prompt_logprobs", "echo"}

Penalty = Annotated[float, Field(ge=-2, le=2)]
Most = Annotated[int, Field(ge=0, le=20)]


class _Further(BaseModel):
    """What both routes take beside the fields of every engine."""

    n: Annotated[int, Field(ge=1, le=128)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_k: int | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    ignore_eos: bool | None = None


class VllmChat(ChatRequest, _Further):
    """What ``/v1/chat/completions`` takes."""

    logprobs: bool | None = None
    top_logprobs: Most | None = None


class VllmText(TextRequest, _Further):
    """What ``/v1/completions`` takes: also several prompts, and prompts of tokens."""

    prompt: str | list[str] | list[int] | list[list[int]]  # type: ignore[assignment]
    logprobs: Most | None = None
    prompt_logprobs: Most | None = None
    echo: bool | None = None


KINDS: dict[str, type[ChatRequest] | type[TextRequest]] = {
    "/v1/chat/completions": VllmChat,
    "/v1/completions": VllmText,
}


def for_vllm(
    body: dict[str, Any], path: str, name: str, *, logprobs: bool, steering: bool, samples: bool
) -> dict[str, Any]:
    """A request as vLLM gets it.

    Args:
        body: As it came.
        path: Of the route.
        name: The served model's.
        logprobs: Whether log-probabilities are given.
        steering: Whether a request may have one of `STEERING`.
        samples: Whether answers are sampled where the request does not say.

    Raises:
        Refused: a field that is not served, a wrong value, or another model.
    """
    asked = {key: value for key, value in body.items() if value is not None and not changes_nothing(key, value)}
    for key in sorted(asked):
        if key in _LOGPROBS and not logprobs:
            message = f"{key}: this server withholds log-probabilities"
            raise Refused(400, message, code="unsupported", param=key)
        if key in STEERING and not steering:
            message = f"{key}: this server lets no request steer which tokens are chosen (uld serve --steering lets it)"
            raise Refused(400, message, code="unsupported", param=key)
    given = understood({key: value for key, value in asked.items() if key not in STEERING}, KINDS[path], name)
    if isinstance(given, ChatRequest):
        asked["messages"] = given.turns
    if not samples and given.temperature is None and (given.top_p or 1) == 1:
        asked["temperature"] = 0.0
    return asked | {"model": name}
