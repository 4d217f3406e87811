"""Which fields of a request go to vLLM: what steers the choice of tokens does not, unless the server says so.

The combination stands behind the head, so no field takes it away. But a bias, a grammar or a ban on tokens chooses
*among* what is left: it lets a client ask which of the answers that it names the model still finds likelier, and ban
what the model says instead of a forgotten answer.
"""

from typing import Annotated, Any

from pydantic import Field, ValidationError

from uld.serving.fields import ChatRequest, TextRequest, changes_nothing, refusal
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
Count = Annotated[int, Field(ge=1, le=128)]
Most = Annotated[int, Field(ge=0, le=20)]


class VllmChat(ChatRequest):
    """What ``/v1/chat/completions`` takes."""

    n: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Most | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_k: int | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    ignore_eos: bool | None = None


class VllmText(TextRequest):
    """What ``/v1/completions`` takes: also several prompts, and prompts of tokens."""

    prompt: str | list[str] | list[int] | list[list[int]]  # type: ignore[assignment]
    n: Count | None = None
    logprobs: Most | None = None
    prompt_logprobs: Most | None = None
    echo: bool | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_k: int | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    ignore_eos: bool | None = None


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
    kind = KINDS[path]
    asked = {key: value for key, value in body.items() if value is not None and not changes_nothing(key, value)}
    for key in sorted(asked):
        if key in _LOGPROBS and not logprobs:
            message = f"{key}: this server withholds log-probabilities"
            raise Refused(400, message, code="unsupported", param=key)
        if key in STEERING and not steering:
            message = f"{key}: this server lets no request steer which tokens are chosen (uld serve --steering lets it)"
            raise Refused(400, message, code="unsupported", param=key)
    looked_at = {key: value for key, value in asked.items() if key not in STEERING}
    if isinstance(messages := looked_at.get("messages"), list):
        looked_at["messages"] = [
            {k: v for k, v in one.items() if v is not None} if isinstance(one, dict) else one for one in messages
        ]
    try:
        given = kind.model_validate(looked_at)
    except ValidationError as error:
        raise refusal(error, kind) from error
    if given.model not in (None, name):
        message = f"there is no model {given.model!r} here: this server has {name!r} alone"
        raise Refused(404, message, code="model_not_found", param="model")
    if isinstance(given, ChatRequest):
        if given.messages[-1].role != "user":
            raise Refused(400, "messages: the last has to be the user's", code="invalid_value", param="messages")
        asked["messages"] = [one.turn for one in given.messages]
    if not samples and given.temperature is None and (given.top_p or 1) == 1:
        asked["temperature"] = 0.0
    return asked | {"model": name}
