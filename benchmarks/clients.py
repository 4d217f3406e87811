"""Clients that nobody here wrote, against `uld serve` on both engines: do they get what the model in this process says?

Writes ``docs/results/serving/clients.json`` and the table of ``docs/serving.md``. Clients that are not installed are
left out: ``pip install litellm langchain-openai locust`` beside ``.[dev]``; curl is a program.

    python benchmarks/clients.py --run RUN --data DATA --vllm-python build/vllm-env/bin/python
"""

import asyncio
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server import ENGINES, KEY, NAME, Model, Server, into_page, parser_of, serving, write

from uld.evaluation.tofu_rows import task_rows

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # nothing is fetched
TOKENS, CLOSE = 40, 1e-3
CHECKS: list[tuple[str, str, Callable[[Server, "Known"], str]]] = []


@dataclass(frozen=True)
class Known:
    """Questions, and what the model in this process says."""

    own: Model
    run: Path
    rows: list[dict[str, Any]]
    answers: list[str]

    def check(self, number: int, text: str | None) -> None:
        """An answer has to be that of its question."""
        assert (text or "").strip() == self.answers[number], f"{text!r} instead of {self.answers[number]!r}"

    def asked(self, number: int) -> list[dict[str, str]]:
        """A conversation with the question."""
        return [{"role": "user", "content": self.rows[number]["question"]}]


def check(client: str, asked: str) -> Callable[[Callable[[Server, Known], str]], Callable[[Server, Known], str]]:
    """Register a check: it says what was found, and fails with an AssertionError."""

    def register(one: Callable[[Server, Known], str]) -> Callable[[Server, Known], str]:
        CHECKS.append((client, asked, one))
        return one

    return register


def refused(call: Callable[[], Any], kind: type[Exception], words: str) -> str:
    """What a client is told when it is refused; it has to be an exception of its own."""
    try:
        found = call()
    except kind as error:
        assert words in str(error), f"{type(error).__name__}: {error}"
        return f"`{type(error).__name__}`: {words}"
    raise AssertionError(f"answered: {found}")


def openai_client(server: Server, key: str = KEY) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


@check("openai", "models, chat")
def chat(server: Server, known: Known) -> str:
    client = openai_client(server)
    assert [one.id for one in client.models.list()] == [NAME]
    for number in range(len(known.rows)):
        found = client.chat.completions.create(model=NAME, messages=known.asked(number), max_completion_tokens=TOKENS)
        known.check(number, found.choices[0].message.content)
        assert found.usage.completion_tokens > 0
    return f"{len(known.rows)} of {len(known.rows)} answers equal"


@check("openai", "chat, streamed; 16 clients at a time")
def streamed(server: Server, known: Known) -> str:
    import openai

    async def one(client: Any, number: int) -> None:
        stream = await client.chat.completions.create(
            model=NAME, messages=known.asked(number), max_tokens=TOKENS, stream=True
        )
        text = [piece.choices[0].delta.content or "" async for piece in stream if piece.choices]
        known.check(number, "".join(text))

    async def all_of_them() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            await asyncio.gather(*(one(client, number % len(known.rows)) for number in range(16)))

    asyncio.run(all_of_them())
    return "16 of 16 answers equal"


@check("openai", "completions, whole and streamed, with `stop`")
def completions(server: Server, known: Known) -> str:
    client = openai_client(server)
    for row in known.rows[:4]:
        prompt = row["question"]
        (wanted,) = known.own.continued([known.own.tokenizer(prompt).input_ids], TOKENS)
        found = client.completions.create(model=NAME, prompt=prompt, max_tokens=TOKENS).choices[0]
        assert found.text.strip() == wanted, f"{found.text!r} instead of {wanted!r}"
        pieces = client.completions.create(model=NAME, prompt=prompt, max_tokens=TOKENS, stream=True)
        assert "".join(one.choices[0].text for one in pieces if one.choices).strip() == wanted
        stopped = client.completions.create(model=NAME, prompt=prompt, max_tokens=TOKENS, stop=[" the"]).choices[0]
        assert stopped.text.strip() == wanted.partition(" the")[0].strip(), stopped.text
    return "4 of 4 answers equal"


@check("openai", "log-probabilities")
def log_probabilities(server: Server, known: Known) -> str:
    import openai

    client = openai_client(server)
    how: dict[str, Any] = {"model": NAME, "max_tokens": TOKENS, "logprobs": True, "top_logprobs": 3}
    if server.engine == "transformers":
        call = lambda: client.chat.completions.create(messages=known.asked(0), **how)  # noqa: E731
        return refused(call, openai.BadRequestError, "this server's engine cannot do that, and vLLM can")
    worst = 0.0
    for number in range(4):
        shown = client.chat.completions.create(messages=known.asked(number), **how).choices[0].logprobs.content
        prompt = known.own.form.prompt_ids(known.rows[number]["question"])
        ids = known.own.model.generate(torch_of(prompt), do_sample=False, max_new_tokens=TOKENS)[0, len(prompt) :]
        wanted = known.own.scored(prompt, ids.tolist())
        assert abs(len(shown) - len(wanted)) <= 1  # with or without the token that ends the answer
        worst = max(worst, *(abs(one.logprob - own) for one, own in zip(shown, wanted, strict=False)))
    assert worst <= CLOSE, worst
    return f"equal to {CLOSE:g}"


def torch_of(ids: list[int]) -> Any:
    import torch

    return torch.tensor([ids])


@check("openai", "errors: key, model, field, length")
def errors(server: Server, known: Known) -> str:
    import openai

    client, how = openai_client(server), {"messages": known.asked(0), "max_tokens": 4}
    create = client.chat.completions.create
    found = [
        refused(openai_client(server, "another").models.list, openai.AuthenticationError, "wants an API key"),
        refused(lambda: create(model="target", **how), openai.NotFoundError, "there is no model 'target' here"),
        refused(
            lambda: create(model=NAME, extra_body={"weight": 0}, **how),
            openai.BadRequestError,
            "unknown field 'weight'",
        ),
    ]
    long = [{"role": "user", "content": "and " * 2000}]
    try:
        create(model=NAME, messages=long, max_tokens=4)
        raise AssertionError("answered")
    except openai.BadRequestError as error:
        assert error.body and error.body.get("message"), error.body  # type: ignore[union-attr]
        found.append(f"`BadRequestError`: {error.body.get('code') or 'too long'}")  # type: ignore[union-attr]
    return "; ".join(found)


@check("curl", "chat, stream, a wrong key, broken JSON")
def curl(server: Server, known: Known) -> str:
    def ask(body: str, *more: str, key: str = KEY) -> tuple[str, str]:
        head = ["-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {key}"]
        words = ["curl", "-sS", "-w", "\n%{http_code}", f"{server.url}/v1/chat/completions", *head, "-d", body, *more]
        text, _, status = subprocess.run(words, capture_output=True, text=True, check=True).stdout.rpartition("\n")
        return text, status

    body = {"messages": known.asked(1), "max_tokens": TOKENS}
    text, status = ask(json.dumps(body))
    assert status == "200", text
    known.check(1, json.loads(text)["choices"][0]["message"]["content"])
    text, status = ask(json.dumps(body | {"stream": True}), "-N")
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", events[-1]
    pieces = [json.loads(one)["choices"] for one in events[:-1]]
    known.check(1, "".join(one[0]["delta"].get("content") or "" for one in pieces if one))
    statuses = [ask(json.dumps(body), key="another"), ask("{")]
    assert [one for _, one in statuses] == ["401", "400"], statuses
    assert all(json.loads(one)["error"]["message"] for one, _ in statuses)
    return "answers equal; 401, 400"


class Tasks:
    """Two tasks of lm-eval over a file: which of an answer and wrong ones is likelier, and writing."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        """Write their files."""
        data = folder / "rows.jsonl"
        lines = [{"question": one["question"], "choices": [one["answer"], *one["perturbed_answer"]]} for one in rows]
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        own = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        own |= {"doc_to_text": "{{question}}"}
        choice = own | {"task": "served_choice", "output_type": "multiple_choice", "doc_to_choice": "choices"}
        choice |= {"doc_to_target": 0, "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
        written = own | {"task": "served_writing", "output_type": "generate_until", "doc_to_target": "{{choices[0]}}"}
        written |= {"metric_list": [{"metric": "exact_match"}]}
        written["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": TOKENS, "do_sample": False}
        for one in (choice, written):
            (folder / f"{one['task']}.yaml").write_text(json.dumps(one))  # JSON is YAML
        self.folder = folder

    def run(self, model: str, how: dict[str, Any], task: str, **more: Any) -> tuple[dict[str, Any], list[Any]]:
        """Numbers of a model on a task, and what it said."""
        import lm_eval
        from lm_eval.tasks import TaskManager

        import uld.evaluation.lm_eval_model  # noqa: F401  (registers the name)

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        manager = TaskManager(include_path=str(self.folder), include_defaults=False)
        found: Any = lm_eval.simple_evaluate(
            model=model, model_args=how, tasks=[task], task_manager=manager, bootstrap_iters=0, **more
        )
        numbers = {name: one for name, one in found["results"][task].items() if isinstance(one, float)}
        return numbers, [one["filtered_resps"] for one in found["samples"][task]]


def harness(server: Server, known: Known, task: str, *, chat: bool = False, **how: Any) -> str:
    """lm-eval through the server, beside lm-eval in this process."""
    path, more = ("chat/completions", {"apply_chat_template": True}) if chat else ("completions", {})
    os.environ["OPENAI_API_KEY"] = KEY
    with tempfile.TemporaryDirectory() as folder:
        tasks = Tasks(Path(folder), known.rows)
        own, said = tasks.run("uld", {"pretrained": str(known.run), "dtype": "fp32", "device": "cpu"}, task, **more)
        served = {"model": NAME, "base_url": f"{server.url}/v1/{path}", "max_retries": 1, "max_length": 512}
        served |= {} if chat else {"tokenizer": str(known.run)}
        found, told = tasks.run(f"local-{'chat-' if chat else ''}completions", served | how, task, **more)
    assert own.keys() == found.keys() and all(abs(own[one] - found[one]) <= CLOSE for one in own), (own, found)
    if task == "served_choice":
        pairs = [(a[0], b[0]) for one, two in zip(said, told, strict=True) for a, b in zip(one, two, strict=True)]
        worst = max(abs(float(a) - float(b)) for a, b in pairs)
        assert worst <= CLOSE, worst
        return f"{len(pairs)} log-likelihoods and {', '.join(sorted(_plain(own)))} equal to {CLOSE:g}"
    assert [one[0].strip() for one in said] == [one[0].strip() for one in told], (said, told)
    return f"{len(said)} of {len(said)} answers equal"


def _plain(numbers: dict[str, float]) -> set[str]:
    return {name.partition(",")[0] for name in numbers if "stderr" not in name}


@check("lm-eval `local-completions`", "log-likelihoods (multiple choice)")
def harness_choice(server: Server, known: Known) -> str:
    if server.engine == "vllm":
        return harness(server, known, "served_choice")
    import requests

    try:
        harness(server, known, "served_choice")
    except requests.HTTPError as error:
        words = error.response.json()["error"]["message"]
        assert error.response.status_code == 400 and "and vLLM can" in words, words
        return f"400: {words}"
    raise AssertionError("answered")


@check("lm-eval `local-completions`", "writing")
def harness_writing(server: Server, known: Known) -> str:
    if server.engine == "vllm":
        return harness(server, known, "served_writing")
    return harness(server, known, "served_writing", tokenized_requests=False) + " (`tokenized_requests=False`)"


@check("lm-eval `local-chat-completions`", "writing, `--apply_chat_template`")
def harness_chat(server: Server, known: Known) -> str:
    return harness(server, known, "served_writing", chat=True, eos_string=known.own.tokenizer.eos_token)


@check("litellm", "chat, stream, completion, errors, log-probabilities")
def with_litellm(server: Server, known: Known) -> str:
    import litellm

    litellm.suppress_debug_info = True
    how: dict[str, Any] = {"api_base": f"{server.url}/v1", "max_tokens": TOKENS, "temperature": 0, "max_retries": 0}
    for number in range(4):
        asked = {"model": f"openai/{NAME}", "messages": known.asked(number), "api_key": KEY, **how}
        known.check(number, litellm.completion(**asked).choices[0].message.content)
        pieces = litellm.completion(**asked, stream=True)
        known.check(number, "".join(one.choices[0].delta.content or "" for one in pieces))
    asked = {"model": f"openai/{NAME}", "messages": known.asked(0), **how}
    found = ["8 of 8 answers equal"]
    prompt = known.rows[0]["question"]
    (wanted,) = known.own.continued([known.own.tokenizer(prompt).input_ids], TOKENS)
    text = litellm.text_completion(model=f"text-completion-openai/{NAME}", prompt=prompt, api_key=KEY, **how)
    assert text.choices[0].text.strip() == wanted, text
    found.append(refused(lambda: litellm.completion(**asked, api_key="other"), litellm.AuthenticationError, "API key"))
    if server.engine == "vllm":
        shown = litellm.completion(**asked, api_key=KEY, logprobs=True).choices[0].logprobs
        assert shown.content, shown
        return "; ".join([*found, "log-probabilities given"])
    call = lambda: litellm.completion(**asked, api_key=KEY, logprobs=True)  # noqa: E731
    return "; ".join([*found, refused(call, litellm.BadRequestError, "and vLLM can")])


@check("LangChain `ChatOpenAI`", "invoke, stream, batch, errors, log-probabilities")
def with_langchain(server: Server, known: Known) -> str:
    import openai
    from langchain_openai import ChatOpenAI

    how: dict[str, Any] = {"model": NAME, "base_url": f"{server.url}/v1", "temperature": 0, "max_retries": 0}
    how |= {"max_tokens": TOKENS, "tiktoken_model_name": None}
    asked = [one["question"] for one in known.rows[:4]]
    talk = ChatOpenAI(api_key=KEY, **how)
    known.check(0, talk.invoke(asked[0]).content)
    known.check(1, "".join(str(one.content) for one in talk.stream(asked[1])))
    for number, one in enumerate(talk.batch(asked)):
        known.check(number, one.content)
    other = ChatOpenAI(api_key="another", **how)
    found = ["6 of 6 answers equal", refused(lambda: other.invoke("a"), openai.AuthenticationError, "API key")]
    shown = talk.bind(logprobs=True)
    if server.engine == "vllm":
        assert shown.invoke(asked[0]).response_metadata["logprobs"]["content"]
        return "; ".join([*found, "log-probabilities given"])
    return "; ".join([*found, refused(lambda: shown.invoke(asked[0]), openai.BadRequestError, "and vLLM can")])


LOCUST = """
import json
from locust import FastHttpUser, between, task
ASKED = json.load(open({asked!r}))
class Client(FastHttpUser):
    wait_time = between(0.1, 0.5)
    def on_start(self):
        self.number = 0
    @task
    def ask(self):
        self.number += 1
        body, wanted = ASKED[self.number % len(ASKED)]
        headers = {{"Authorization": "Bearer {key}"}}
        with self.client.post("/v1/chat/completions", json=body, headers=headers, catch_response=True) as answer:
            if answer.status_code == 429:
                answer.success()
            elif answer.status_code != 200:
                answer.failure(f"{{answer.status_code}}")
            elif answer.json()["choices"][0]["message"]["content"].strip() != wanted:
                answer.failure("another answer")
"""


@check("locust", "20 users for 20 seconds")
def with_locust(server: Server, known: Known) -> str:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        asked = [
            ({"messages": known.asked(number), "max_tokens": TOKENS}, known.answers[number])
            for number in range(len(known.rows))
        ]
        (place / "asked.json").write_text(json.dumps(asked))
        (place / "clients.py").write_text(LOCUST.format(asked=str(place / "asked.json"), key=KEY))
        words = ["-m", "locust", "-f", str(place / "clients.py"), "--headless", "-u", "20", "-r", "10", "-t", "20s"]
        words += ["--host", server.url, "--stop-timeout", "60", "--json", "--loglevel", "WARNING"]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)
    (found,) = json.loads(done.stdout)
    assert found["num_requests"] and not found["num_failures"], done.stdout[-2000:] + done.stderr[-2000:]
    return f"{found['num_requests']} requests, none failed"


NEEDS = {"openai": "openai", "litellm": "litellm", "LangChain `ChatOpenAI`": "langchain_openai", "locust": "locust"}


def there(client: str) -> bool:
    if client == "curl":
        return shutil.which("curl") is not None
    return importlib.util.find_spec(NEEDS.get(client, "lm_eval")) is not None


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--questions", type=int, default=8, help="Of forget10 and of its retain set together.")
    parser.add_argument("--only", help="Checks of clients whose name holds this.")
    options = parser.parse_args()
    rows = [
        task_rows(task, "forget10", options.data / "tofu")[: options.questions // 2] for task in ("forget", "retain")
    ]
    own, rows = Model.load(options.run), [*rows[0], *rows[1]]
    known = Known(own, options.run, rows, own.answers([one["question"] for one in rows], TOKENS))
    found: dict[str, dict[str, str]] = {}
    failed = 0
    for engine in options.engine or ENGINES:
        found[engine] = {}
        with tempfile.TemporaryDirectory() as work, serving(options.run, engine, options, Path(work)) as server:
            for client, asked, one in CHECKS:
                if not there(client) or (options.only and options.only not in client):
                    continue
                try:
                    said = one(server, known)
                except Exception as error:  # whatever a client raises is what is looked for
                    failed += 1
                    traceback.print_exc()
                    said = f"**failed**: {type(error).__name__}"
                found[engine][f"{client}: {asked}"] = said
                print(f"{engine} · {client} · {asked} · {said}", flush=True)
            assert "Traceback" not in server.log.read_text(), server.log.read_text()[-3000:]
    if options.only:
        sys.exit(bool(failed))
    whole = write("clients", "clients.py --run RUN", {"questions": len(rows), "tokens": TOKENS, "engines": found})
    engines = [one for one in ENGINES if one in whole["engines"]]
    table = [
        [client, asked, *(whole["engines"][one].get(f"{client}: {asked}", "–") for one in engines)]
        for client, asked, _ in CHECKS
    ]
    into_page("clients", ["client", "asked", *engines], table)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
