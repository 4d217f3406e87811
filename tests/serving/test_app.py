"""What clients get: the answers of `generate`, in OpenAI's form, and one sentence for everything else."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import GenerationConfig

from uld.data.prompt import PromptFormat

QUESTION = "who is abc?"


def written(model, ids, tokens):
    """What `generate` writes greedily."""
    how = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    return model.generate(torch.tensor([ids]), generation_config=how)[0, len(ids) :].tolist()


def chat(client, content=QUESTION, **fields):
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 6, "temperature": 0, **fields}
    return client.post("/v1/chat/completions", json=body)


def text(client, prompt="abc", **fields):
    return client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 6, "temperature": 0, **fields})


def pieces(response):
    """The events of a stream; the line behind the last is checked."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def refused(response, status, match):
    """An error in OpenAI's form."""
    assert response.status_code == status
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} == set(error)
    assert match in error["message"]
    return error


def test_a_chat_is_answered_as_generate_does(client, unlearned, letters):
    ids = PromptFormat(letters).prompt_ids(QUESTION)
    tokens = written(unlearned, ids, 6)
    answer = chat(client)
    assert answer.status_code == 200
    found = answer.json()
    assert found["choices"][0]["message"]["content"] == letters.decode(tokens, skip_special_tokens=True)
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 6, "total_tokens": len(ids) + 6}
    assert found["model"] == "forgetful"
    streamed = pieces(chat(client, stream=True, stream_options={"include_usage": True}))
    parts = [one["choices"][0]["delta"].get("content", "") for one in streamed]
    assert "".join(parts) == found["choices"][0]["message"]["content"]
    assert streamed[-1]["usage"] == found["usage"]


def test_a_stream_counts_its_tokens_unless_it_is_asked_not_to(client):
    for ask in (chat, text):
        counted = pieces(ask(client, stream=True))
        assert counted[-1]["usage"]["completion_tokens"] == 6
        plain = pieces(ask(client, stream=True, stream_options={"include_usage": False}))
        assert not any("usage" in one for one in plain)
        assert [one["choices"] for one in plain] == [one["choices"] for one in counted]
        error = refused(ask(client, stream_options={"include_usage": False}), 400, "stream_options are for a stream")
        assert error["param"] == "stream_options"


def test_a_text_is_continued_up_to_a_stop(client, unlearned, letters):
    whole = letters.decode(written(unlearned, letters("abc").input_ids, 40), skip_special_tokens=True)
    assert text(client, max_tokens=40).json()["choices"][0]["text"] == whole
    stop = whole[3:5]
    cut = whole[: whole.index(stop)]
    one = text(client, max_tokens=40, stop=[stop, "zzzz"]).json()
    assert (one["choices"][0]["text"], one["choices"][0]["finish_reason"]) == (cut, "stop")
    assert one["usage"]["completion_tokens"] < 40
    streamed = pieces(text(client, max_tokens=40, stop=stop, stream=True))
    assert "".join(one["choices"][0]["text"] for one in streamed) == cut


@pytest.fixture(scope="module")
def qwen(make_target):
    """A target that a method has trained, of a family whose answers transformers' server parses."""
    made = make_target("qwen2")
    made.generation_config.eos_token_id = None
    return made


@pytest.fixture(scope="module")
def sampling(make_target):
    """A target whose own generation config asks for sampling."""
    made = make_target("llama", num_layers=2)
    made.generation_config.update(do_sample=True, eos_token_id=None)
    return made


@pytest.mark.parametrize("batching", [True, False])
@pytest.mark.parametrize("whose", ["family's", "tokenizer's"])
def test_an_answer_comes_as_it_was_written_whatever_template_could_parse_it(
    make_client, unlearned, qwen, letters, batching, whose
):
    from transformers.cli.serving.utils import _RESPONSE_TEMPLATE_FALLBACKS, get_response_template

    model, tokenizer = qwen, letters
    if whose == "tokenizer's":
        model, tokenizer = unlearned, copy.deepcopy(letters)
        tokenizer.response_template = next(iter(_RESPONSE_TEMPLATE_FALLBACKS.values()))
    assert get_response_template(tokenizer, model) is not None
    client = make_client(tokenizer=tokenizer, model=model, batching=batching)
    tokens = written(model, PromptFormat(letters).prompt_ids(QUESTION), 30)
    whole = letters.decode(tokens, skip_special_tokens=True)
    stop = whole[3:5]
    for fields, wanted in (({}, whole), ({"stop": stop}, whole[: whole.index(stop)])):
        answer = chat(client, max_tokens=30, **fields).json()["choices"][0]["message"]
        assert answer == {"role": "assistant", "content": wanted}
        streamed = pieces(chat(client, max_tokens=30, stream=True, **fields))
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in streamed) == wanted


def test_no_end_is_put_behind_a_text_that_is_to_be_continued(make_client, unlearned, letters):
    from tokenizers.processors import TemplateProcessing

    closing = copy.deepcopy(letters)
    closing._tokenizer.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    assert closing("abc").input_ids[-1] == 2
    answer = text(make_client(tokenizer=closing)).json()
    assert answer["usage"]["prompt_tokens"] == 3
    tokens = written(unlearned, letters("abc").input_ids, 6)
    assert answer["choices"][0]["text"] == letters.decode(tokens, skip_special_tokens=True)


def test_answers_of_shared_batches_do_not_mix(batched, unlearned, letters):
    prompts = ["abc", "who is def?", "a", "who is abc the first of all?", "xyz xyz xyz", "b: c"]
    tokens = [written(unlearned, letters(one).input_ids, 10) for one in prompts]
    wanted = [letters.decode(one, skip_special_tokens=True) for one in tokens]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda one: text(batched, one, max_tokens=10).json(), prompts))
    assert [one["choices"][0]["text"] for one in found] == wanted
    assert len({one["id"] for one in found}) == len(prompts)


@pytest.mark.parametrize("batching", [True, False])
def test_an_answer_that_fails_ends_and_hurts_no_other(make_client, unlearned, letters, monkeypatch, batching):
    prompts = ["abc", "who is def?", "a", "xyz xyz xyz"]
    tokens = {one: written(unlearned, letters(one).input_ids, 10) for one in prompts}
    first = tokens["abc"][0]
    failing = [one for one in prompts if first in tokens[one]]
    assert 0 < len(failing) < len(prompts)
    from uld.serving.answers import Decoder

    client, real = make_client(batching=batching, timeout=30), Decoder.step

    def step(self, token):
        if token == first:
            raise ValueError("this token has no text")
        return real(self, token)

    monkeypatch.setattr(Decoder, "step", step)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: text(client, one, max_tokens=10), prompts))
    for prompt, answer in zip(prompts, found, strict=True):
        if prompt in failing:
            assert answer.status_code == 500
        else:
            said = letters.decode(tokens[prompt], skip_special_tokens=True)
            assert answer.json()["choices"][0]["text"] == said
    streamed = text(client, "abc", stream=True)
    assert "this token has no text" in streamed.text


def test_each_request_has_its_own_temperature(batched):
    greedy = text(batched, max_tokens=40).json()["choices"][0]["text"]
    with ThreadPoolExecutor(4) as pool:
        heats = [2.0, 0, 2.0, 0]
        found = list(pool.map(lambda heat: text(batched, temperature=heat, max_tokens=40).json(), heats))
    texts = [one["choices"][0]["text"] for one in found]
    assert texts[1] == texts[3] == greedy
    assert texts[0] != texts[2]
    narrow = text(batched, temperature=2.0, top_p=1e-6, max_tokens=40).json()["choices"][0]["text"]
    assert narrow == greedy


def test_a_clients_own_request_id_is_not_taken(batched):
    ids = {text(batched, max_tokens=1).json()["id"] for _ in range(2)}
    body = {"prompt": "abc", "max_tokens": 1}
    named = batched.post("/v1/completions", json=body, headers={"x-request-id": "mine"})
    assert named.json()["id"] not in {*ids, "mine"}


@pytest.mark.parametrize(
    ("fields", "status", "match"),
    [
        ({"weight": 0}, 400, "unknown field 'weight': this server takes model, max_tokens"),
        ({"generation_config": "{}"}, 400, "unknown field 'generation_config'"),
        ({"chat_template_kwargs": {}}, 400, "unknown field 'chat_template_kwargs'"),
        ({"logit_bias": {"5": 100}}, 400, "logit_bias: this server's engine cannot do that, and vLLM can"),
        ({"n": 2}, 400, "n: this server's engine cannot do that, and vLLM can (uld serve --engine vllm)"),
        ({"logprobs": True}, 400, "logprobs: this server's engine cannot"),
        ({"logprobs": 0}, 400, "logprobs: this server's engine cannot"),
        ({"prompt_logprobs": 1}, 400, "prompt_logprobs: this server's engine cannot"),
        ({"echo": True}, 400, "echo: this server's engine cannot"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format: this server's engine cannot"),
        ({"seed": 1, "temperature": 1}, 400, "seed of a sampled answer: this server's engine cannot"),
        ({"model": "target"}, 404, "there is no model 'target' here: this server has 'forgetful' alone"),
        ({"temperature": 3}, 400, "temperature: input should be less than or equal to 2"),
        ({"temperature": "0"}, 400, "temperature: input should be a valid number"),
        ({"max_tokens": 0}, 400, "max_tokens: input should be greater than or equal to 1"),
        ({"max_tokens": 1000}, 400, "and an answer of up to 1000, and this server takes 96 in all"),
        ({"stop": [""]}, 400, "stop"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_served_is_refused(batched, fields, status, match):
    refused(chat(batched, **fields), status, match)
    refused(text(batched, **fields), status, match)


def test_what_changes_nothing_is_no_reason_to_refuse(batched):
    same = {"n": 1, "logprobs": False, "echo": False, "presence_penalty": 0, "logit_bias": None, "seed": 5}
    assert text(batched, **same, user="me").json()["choices"] == text(batched).json()["choices"]


@pytest.mark.parametrize(
    ("samples", "fields", "status"),
    [
        (False, {"top_p": 0.5}, 400),
        (False, {"top_p": 1}, 200),
        (False, {"top_p": 0.5, "temperature": 0}, 200),
        (True, {}, 400),
        (True, {"temperature": 0}, 200),
    ],
)
def test_a_seed_of_a_sampled_answer_is_refused_whoever_asked_for_sampling(
    make_client, unlearned, sampling, samples, fields, status
):
    client = make_client(model=sampling if samples else unlearned, batching=False)
    answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 2, "seed": 1, **fields})
    assert answer.status_code == status
    if status == 400:
        assert refused(answer, 400, "seed of a sampled answer: this server's engine cannot")["param"] == "seed"


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "messages: list should have at least 1 item"),
        ([{"role": "tool", "content": "a"}], "messages.0.role: input should be 'system', 'developer', 'user' or"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "messages.0.content"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "messages: the last has to be"),
        ([{"role": "user", "content": "\ud800"}], "the request holds half of a letter"),
        ([{"role": "user"}], "messages.0.content: field required"),
        ("abc", "messages: input should be a valid list"),
    ],
)
def test_messages_that_are_none_are_refused(batched, messages, match):
    body = {"messages": messages, "max_tokens": 2}
    kind = {"content-type": "application/json"}
    refused(batched.post("/v1/chat/completions", content=json.dumps(body), headers=kind), 400, match)


def test_a_prompt_that_is_longer_than_a_request_may_be(batched):
    error = refused(text(batched, "abc" * 40), 400, "the prompt has 120 tokens, and this server takes 96 in all")
    assert error["code"] == "context_length_exceeded"
    assert len(text(batched, "a" * 90, max_tokens=None).json()["choices"][0]["text"]) > 0


def test_prompts_that_are_no_single_text(batched):
    assert text(batched, ["abc"]).json()["choices"] == text(batched, "abc").json()["choices"]
    for prompt in (["a", "b"], [1, 2], "", None):
        refused(text(batched, prompt), 400, "prompt must be one text")


def test_a_body_that_is_no_json_object(batched):
    for body in ("{", "[1]", "null"):
        answer = batched.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        refused(answer, 400, "the body is not a JSON object")


def test_routes_that_manage_models_are_off(batched):
    for path in ("/load_model", "/reset", "/v1/responses", "/v1/systemone", "/v1/audio/transcriptions"):
        refused(batched.post(path, json={"model": "x"}), 404, "there is no such route")
    for path in ("/docs", "/openapi.json", "/"):
        refused(batched.get(path), 404, "there is no such route")
    refused(batched.get("/v1/completions"), 405, "does not take this method")
    assert [one["id"] for one in batched.get("/v1/models").json()["data"]] == ["forgetful"]


def test_a_model_without_a_chat_template(make_client, letters):
    plain = copy.deepcopy(letters)
    plain.chat_template = None
    client = make_client(tokenizer=plain)
    error = refused(chat(client), 400, "forgetful has no chat template: ask /v1/completions")
    assert error["code"] == "no_chat_template"
    assert text(client).status_code == 200


def test_log_probabilities_that_are_withheld(make_client):
    client = make_client(logprobs=False)
    refused(chat(client, logprobs=True), 400, "logprobs: this server withholds log-probabilities")


def test_metrics_and_health(batched):
    before = batched.get("/metrics").text
    text(batched, max_tokens=3)
    after = batched.get("/metrics").text

    def value(page, name):
        return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))

    assert value(after, "uld_answer_tokens_total") - value(before, "uld_answer_tokens_total") == 3
    assert 'uld_requests_total{route="/v1/completions",status="200"}' in after
    assert value(after, "uld_requests_in_flight") == 0
    assert batched.get("/health").json() == {"status": "ok"}


def test_however_cold_an_answer_is_drawn_it_is_the_greedy_one(client):
    cold = chat(client, temperature=1e-42, max_tokens=4)
    assert cold.status_code == 200, cold.text
    assert cold.json()["choices"][0]["message"] == chat(client, max_tokens=4).json()["choices"][0]["message"]


def test_an_answer_that_a_stop_ends_with_its_last_token_was_not_cut_off(client):
    whole = chat(client).json()["choices"][0]
    said = whole["message"]["content"]
    assert whole["finish_reason"] == "length" and said
    asked = {"stop": said}  # complete with the last token that has a text
    for fields in ({}, {"stream": True}):
        answer = chat(client, **asked, **fields)
        (*_, last) = (
            [one["choices"][0] for one in pieces(answer) if one.get("choices")] if fields else answer.json()["choices"]
        )
        assert last["finish_reason"] == "stop"
    assert answer.status_code == 200 and chat(client, **asked).json()["choices"][0]["message"]["content"] == ""
