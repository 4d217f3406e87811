"""What of a request gets through to vLLM, and what its client is told of the rest."""

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from uld.serving.refusals import Refused
from uld.serving.settings import ServeSettings
from uld.serving.vllm.front import Front

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
ASKED = {"prompt": "who is it?", "max_tokens": 5}


def through(body: Any, path: str = TEXT, *, method: str = "POST", **changes: Any) -> Any:
    """What vLLM gets of a request: None where it is not reached."""
    front = {"steering": False, "samples": False} | {
        name: changes.pop(name) for name in list(changes) if name[0] == "s"
    }
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        text = (await receive())["body"]
        assert (b"content-length", b"%d" % len(text)) in scope["headers"] or scope["path"] not in (TEXT, CHAT)
        got.append(json.loads(text or b"null"))

    async def receive() -> Any:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        return {"type": "http.request", "body": text, "more_body": False}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "path": path, "method": method, "headers": [(b"content-length", b"1")]}
    settings = ServeSettings(name="forgetful", **changes)
    asyncio.run(Front(app, settings, **front)(scope, receive, send))
    return got[0]


def refusal(body: Any, path: str = TEXT, **changes: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        through(body, path, **changes)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    "field",
    [
        {"logit_bias": {"5": 100}},
        {"logit_bias": {"5": -100}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"structured_outputs": {"choice": ["a", "b"]}},
        {"bad_words": ["nobody"]},
        {"allowed_token_ids": [1, 2]},
        {"min_tokens": 5},
        {"repetition_penalty": 1e6},
    ],
    ids=str,
)
def test_a_request_steers_no_token_unless_the_server_lets_it(field: dict[str, Any]):
    (name,) = field
    found = refusal(ASKED | field)
    assert (found.status, found.param) == (400, name) and "--steering" in found.message
    assert through(ASKED | field, steering=True)[name] == field[name]


@pytest.mark.parametrize("field", [{"logprobs": 1}, {"echo": True}, {"prompt_logprobs": 0}], ids=str)
def test_log_probabilities_are_withheld_where_the_server_says_so(field: dict[str, Any]):
    assert refusal(ASKED | field, logprobs=False).message.endswith("this server withholds log-probabilities")
    assert through(ASKED | field).items() >= field.items()


@pytest.mark.parametrize(
    "field",
    [
        {"weight": 0},
        {"chat_template": "{{ messages }}"},
        {"prompt_embeds": "abc"},
        {"logprob_token_ids": [5]},
        {"guided_choice": ["a"]},
        {"use_beam_search": True},
        {"kv_transfer_params": {}},
        {"vllm_xargs": {"x": 1}},
    ],
    ids=str,
)
def test_unknown_fields_are_refused(field: dict[str, Any]):
    assert refusal(ASKED | field, steering=True).code == "unknown_field"


def test_answers_are_greedy_unless_somebody_says_otherwise():
    assert through(ASKED)["temperature"] == 0
    assert through(ASKED | {"temperature": 0.7})["temperature"] == 0.7
    assert "temperature" not in through(ASKED | {"top_p": 0.5})
    assert "temperature" not in through(ASKED, samples=True)


def test_a_conversation_ends_with_the_user():
    talk = [{"role": "user", "content": [{"type": "text", "text": "who?"}], "name": None}]
    found = through({"messages": talk, "n": 2, "logprobs": True, "top_logprobs": 5}, CHAT)
    assert found["messages"] == [{"role": "user", "content": "who?"}] and found["model"] == "forgetful"
    begun = [*talk, {"role": "assistant", "content": "It is"}]
    assert "the last has to be the user's" in refusal({"messages": begun}, CHAT).message


def test_there_is_one_model():
    assert refusal(ASKED | {"model": "adapter"}).status == 404
    assert through(ASKED | {"model": "forgetful"})["model"] == "forgetful"


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/tokenize", "/pooling", "/sleep", "/invocations", "/docs"])
def test_other_routes_are_not_there(path: str):
    assert refusal({}, path).status == 404


def test_a_route_takes_its_own_method_alone():
    assert refusal(ASKED, method="GET").status == 405


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'{"prompt": "\\ud800"}', b'{"prompt": "a", "top_p": NaN}'])
def test_what_is_no_request_is_refused(body: bytes):
    assert refusal(body).status == 400


def test_prompts_of_tokens_and_several_prompts_get_through():
    for prompt in (["a", "b"], [5, 6], [[5], [6]]):
        assert through({"prompt": prompt})["prompt"] == prompt
