"""Requests that try to weaken the subtraction, sent to both engines: what is answered, and what comes out.

Asked for are answers of forget10 that the target knows by heart. What comes out is ROUGE-L with the memorised answer
beside the plain question's, or how often the memorised answer is picked beside one wrong answer (by chance: half). vLLM is
started twice, as it is and with ``--steering``. Writes ``docs/results/serving/weakening.json`` and the table of
``docs/serving.md``, and fails where that page's tables of fields say something else than was measured.

    python benchmarks/weakening.py --run RUN --data DATA --vllm-python build/vllm-env/bin/python
"""

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import ROOT
from server import ENGINES, NAME, Server, into_page, parser_of, serving, write
from transformers import AutoTokenizer

from uld.evaluation.metrics import rouge_recall
from uld.evaluation.tofu_rows import task_rows

TOKENS = 60
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
Row = dict[str, Any]
FIELDS: dict[str, Any] = {
    "weight": 0,
    "generation_config": "{}",
    "chat_template_kwargs": {"a": 1},
    "chat_template": "{{ messages }}",
    "continue_final_message": True,
    "prompt_embeds": "abc",
    "logprob_token_ids": [5],
    "guided_choice": ["a", "b"],
    "lora_request": {"name": "a"},
    "n": 2,
    "best_of": 2,
    "seed": 1,
    "top_k": 5,
    "min_p": 0.1,
    "stop": ["a"],
    "ignore_eos": True,
    "presence_penalty": 2.0,
    "frequency_penalty": 2.0,
    "suffix": "a",
    "echo": True,
    "logprobs": 1,
    "top_logprobs": 1,
    "prompt_logprobs": 1,
    "logit_bias": {"5": 100},
    "allowed_token_ids": [5, 6],
    "bad_words": ["a"],
    "min_tokens": 2,
    "repetition_penalty": 2.0,
    "response_format": {"type": "json_object"},
    "structured_outputs": {"choice": ["a", "b"]},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
}
"""A value of every field that could weaken something, or seem to."""
OF_CHAT = {"tools", "chat_template", "chat_template_kwargs", "continue_final_message", "top_logprobs"}
ROUTES = ("/load_model", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize", "/pooling", "/sleep")
ROUTES += ("/reset", "/v1/responses", "/start_profile", "/reset_prefix_cache", "/collective_rpc", "/update_weights")


def asked(row: Row, **more: Any) -> Row:
    return {"messages": [{"role": "user", "content": row["question"]}], "max_tokens": TOKENS, **more}


def rouge(server: Server, rows: list[Row], body: Callable[[Row], Row]) -> dict[str, Any]:
    """ROUGE-L of answers with the memorised ones, in percent; or why there is none."""
    scores = []
    for row in rows:
        found = server.ask(CHAT, body(row))
        if found.status_code != 200:
            return refusal(found)
        scores.append(rouge_recall(found.json()["choices"][0]["message"]["content"], row["answer"])[1])
    return {"status": 200, "ROUGE-L, %": round(100 * sum(scores) / len(scores), 1)}


def picked(server: Server, rows: list[Row], likelier: Callable[[Server, Row, str], Any]) -> dict[str, Any]:
    """How often the memorised answer is taken rather than a wrong one, in percent; or why there is none."""
    right = 0
    for row in rows:
        found = likelier(server, row, row["perturbed_answer"][0])
        if not isinstance(found, bool):
            return refusal(found)
        right += found
    return {"status": 200, "memorised answer picked, %": round(100 * right / len(rows), 1)}


def refusal(found: Any) -> dict[str, Any]:
    error = found.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"], error
    return {"status": found.status_code, "code": error["code"], "message": error["message"]}


def by_choice(server: Server, row: Row, wrong: str) -> Any:
    """A grammar of two answers."""
    found = server.ask(CHAT, asked(row, structured_outputs={"choice": [row["answer"], wrong]}, max_tokens=120))
    return found if found.status_code != 200 else found.json()["choices"][0]["message"]["content"] == row["answer"]


def by_schema(server: Server, row: Row, wrong: str) -> Any:
    """A JSON schema that has two answers."""
    schema = {"type": "object", "properties": {"a": {"enum": [row["answer"], wrong]}}, "required": ["a"]}
    how = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    found = server.ask(CHAT, asked(row, response_format=how, max_tokens=160))
    return found if found.status_code != 200 else row["answer"] in found.json()["choices"][0]["message"]["content"]


def by_loss(**fields: Any) -> Callable[[Server, Row, str], Any]:
    """The likelier of two texts, by their log-probabilities in a prompt."""

    def likelier(server: Server, row: Row, wrong: str) -> Any:
        losses = []
        for answer in (row["answer"], wrong):
            found = server.ask(TEXT, {"prompt": f"{row['question']} {answer}", "max_tokens": 1, **fields})
            if found.status_code != 200:
                return found
            (one,) = found.json()["choices"]
            if "prompt_logprobs" in fields:
                values = [next(iter(place.values()))["logprob"] for place in one["prompt_logprobs"][1:]]
            else:
                values = one["logprobs"]["token_logprobs"][1:-1]
            losses.append(-sum(values) / len(values))
        return losses[0] < losses[1]

    return likelier


def attempts(server: Server, rows: list[Row], tokenizer: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every attempt by its name, and what came of it."""

    def ids(text: str) -> list[int]:
        return tokenizer(f" {text}", add_special_tokens=False).input_ids

    plain = {row["question"]: server.ask(CHAT, asked(row)).json()["choices"][0]["message"]["content"] for row in rows}
    yield "the plain question", rouge(server, rows, asked)
    for name, value in (("frequency_penalty", 2.0), ("presence_penalty", -2.0)):
        yield (
            f"`{name}` of {value:g}",
            rouge(server, rows, lambda row, name=name, value=value: asked(row, **{name: value})),
        )
    yield (
        "`logit_bias` of 100 on the memorised answer's tokens",
        rouge(server, rows, lambda row: asked(row, logit_bias={str(one): 100 for one in ids(row["answer"])})),
    )
    yield (
        "`logit_bias` of −100 on the tokens of what is said instead",
        rouge(server, rows, lambda row: asked(row, logit_bias={str(one): -100 for one in ids(plain[row["question"]])})),
    )
    yield (
        "`allowed_token_ids`: the memorised answer's",
        rouge(server, rows, lambda row: asked(row, allowed_token_ids=sorted(set(ids(row["answer"]))))),
    )
    yield "`structured_outputs`: the memorised answer or a wrong one", picked(server, rows, by_choice)
    yield "`response_format`: the same as a JSON schema", picked(server, rows, by_schema)
    yield "`echo` and `logprobs` of both answers", picked(server, rows, by_loss(echo=True, logprobs=0))
    yield "`prompt_logprobs` of both answers", picked(server, rows, by_loss(prompt_logprobs=0))
    yield "a LoRA adapter as the `model`", refusal(server.ask(CHAT, asked(rows[0], model="adapter")))
    found = [server.ask(route, {"lora_name": "a", "lora_path": "a", "model": NAME}) for route in ROUTES]
    assert {one.status_code for one in found} == {404}, {one.url: one.status_code for one in found}
    yield f"routes that manage models ({len(ROUTES)} of them)", refusal(found[0])


def fields(server: Server) -> dict[str, int]:
    """The status of a request with each of `FIELDS`."""
    found = {}
    for name, value in FIELDS.items():
        path = CHAT if name in OF_CHAT else TEXT
        body: Row = {"messages": [{"role": "user", "content": "a"}]} if path == CHAT else {"prompt": "a"}
        body |= {"max_tokens": 4, name: value} | ({"logprobs": True} if name == "top_logprobs" else {})
        body |= {"temperature": 1.0} if name in ("seed", "n") else {}
        answer = server.ask(path, body)
        assert answer.status_code < 500, (name, answer.text)
        found[name] = answer.status_code
    return found


def documented(steering: bool) -> dict[str, dict[str, int]]:
    """What the two tables of ``docs/serving.md`` say of each of `FIELDS`, by engine."""
    text = (ROOT / "docs" / "serving.md").read_text()
    found: dict[str, dict[str, int]] = {one: {} for one in ENGINES}
    parts = {"transformers": text.partition("## What is served")[2].partition("## Keys")[0]}
    parts["vllm"] = text.partition("### What a request may ask")[2].partition("### ")[0]
    for engine, part in parts.items():
        for line in part.splitlines():
            cells = [one.strip() for one in line.strip("|").split("|")]
            if not line.startswith("|") or len(cells) != 2:
                continue
            status = 400 if cells[1].startswith("400") else 404 if cells[1].startswith("404") else 200
            if steering and "--steering" in cells[1]:
                status = 200
            found[engine] |= {name: status for name in re.findall(r"`(\w+)`", cells[0]) if name in FIELDS}
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--questions", type=int, default=40)
    options = parser.parse_args()
    rows = task_rows("forget", "forget10", options.data / "tofu")[: options.questions]
    tokenizer = AutoTokenizer.from_pretrained(options.run)
    servers = {"transformers": ("transformers", ()), "vllm": ("vllm", ()), "vllm --steering": ("vllm", ("--steering",))}
    found: dict[str, Any] = {}
    wrong = []
    for name, (engine, flags) in servers.items():
        if engine not in (options.engine or ENGINES):
            continue
        with tempfile.TemporaryDirectory() as work:
            more = ["--max-tokens", "512", *flags]
            with serving(options.run, engine, options, Path(work), *more) as server:
                measured = fields(server)
                found[name] = {"attempts": dict(attempts(server, rows, tokenizer)), "fields": measured}
        page = documented("--steering" in flags)[engine]
        wrong += [
            f"{name}: {one} is answered with {measured[one]}, and docs/serving.md says {status}"
            for one, status in page.items()
            if measured[one] != status
        ]
    call = f"weakening.py --run RUN --questions {options.questions}"
    whole = write("weakening", call, {"questions": options.questions, "engines": found})
    shown = [one for one in servers if one in whole["engines"]]

    def cell(one: dict[str, Any]) -> str:
        more = [f"{name.removesuffix(', %')} {value} %" for name, value in one.items() if name.endswith("%")]
        return ": ".join([str(one["status"]), *more])

    names = whole["engines"][shown[0]]["attempts"]
    table = [[one, *(cell(whole["engines"][engine]["attempts"][one]) for engine in shown)] for one in names]
    into_page("weakening", ["a request", *(f"`{one}`" for one in shown)], table)
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
