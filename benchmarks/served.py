"""Does forgetting survive the engine? ROUGE-L, re-entry and losses through HTTP beside those of `uld eval tofu`.

The first questions of forget10 and of its retain set. Losses are those of the true answers, from `echo` and `logprobs`,
where an engine serves them (vLLM). Writes ``docs/results/serving/same.json`` and the table of ``docs/serving.md``.

    python benchmarks/served.py --run RUN --data DATA --vllm-python build/vllm-env/bin/python
"""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import uld as command
from server import ENGINES, NAME, Server, into_page, parser_of, serving, write
from transformers import AutoTokenizer

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.evaluation.metrics import rouge_recall
from uld.evaluation.task_log import TofuLog
from uld.evaluation.tofu_log import read_log
from uld.evaluation.tofu_reading import read_log_answers
from uld.evaluation.tofu_rows import task_rows

SETS, TOKENS, CLOSE, AT_ONCE = ("forget", "retain"), 200, 1e-3, 8


def served(server: Server, form: PromptFormat, row: dict[str, Any]) -> dict[str, Any]:
    """What a server says to a question, and the loss of the true answer, nats a token; None where it gives none."""
    chat = {"model": NAME, "messages": [{"role": "user", "content": row["question"]}], "max_tokens": TOKENS}
    answer = server.ask("/v1/chat/completions", chat)
    answer.raise_for_status()
    text = answer.json()["choices"][0]["message"]["content"].strip()
    one = form.encode(Record.qa(row["question"], row["answer"], "TOFU"), max_length=2**31)
    asked = {"model": NAME, "prompt": list(one.ids), "max_tokens": 1, "echo": True, "logprobs": 0}
    scored = server.ask("/v1/completions", asked)
    loss = None
    if scored.status_code == 200:
        given = scored.json()["choices"][0]["logprobs"]["token_logprobs"][: len(one.ids)]
        learnt = [value for value, learn in zip(given, one.learn, strict=True) if learn]
        loss = -sum(learnt) / len(learnt)
    else:
        assert scored.status_code == 400 and server.engine == "transformers", scored.text
    return {"text": text, "rougeL": rouge_recall(text, row["answer"])[1], "loss": loss}


def numbers(log: TofuLog, losses: dict[str, list[float]] | None) -> dict[str, float | None]:
    """What is compared: means over the rows."""
    reading = read_log_answers(log)
    found: dict[str, float | None] = {"forget re-entry": reading.re_entry if reading else None}
    for name in SETS:
        rouge = log[name].rougeL or []
        found[f"{name} ROUGE-L"] = sum(rouge) / len(rouge)
        own = None if losses is None else losses[name]
        found[f"{name} loss, nats a token"] = None if own is None else sum(own) / len(own)
    return found


def through(server: Server, form: PromptFormat, log: TofuLog, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The numbers of a server, and how far its rows are from those of the evaluation."""
    tasks, losses, apart, texts = dict(log), {}, 0.0, 0
    for name in SETS:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(lambda row: served(server, form, row), rows[name]))
        own = log[name]
        assert own.generated is not None
        texts += sum(one["text"] == before[1] for one, before in zip(found, own.generated, strict=True))
        generated = [(a, one["text"], c) for one, (a, _, c) in zip(found, own.generated, strict=True)]
        tasks[name] = replace(own, generated=generated, rougeL=[one["rougeL"] for one in found], unknown_words=None)
        if all(one["loss"] is not None for one in found):
            losses[name] = [one["loss"] for one in found]
            pairs = zip(losses[name], own.avg_loss, strict=True)
            apart = max(apart, *(abs(a - b) for a, b in pairs))
    return {
        "numbers": numbers(TofuLog(tasks, log.source, None), losses or None),
        "answers equal": texts,
        "largest difference of a row's loss": apart if losses else None,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--questions", type=int, default=40, help="First rows of each set.")
    options = parser.parse_args()
    form = PromptFormat(AutoTokenizer.from_pretrained(options.run))
    data = options.data / "tofu"
    rows = {name: task_rows(name, "forget10", data)[: options.questions] for name in SETS}
    failed = []
    with tempfile.TemporaryDirectory() as work:
        words = ["eval", "tofu", "--model", str(options.run), "--split", "forget10", "--data", str(data), "--quiet"]
        words += ["--limit", str(options.questions), "--max-new-tokens", str(TOKENS), "--dtype", "fp32"]
        command(*words, "--output", f"{work}/eval", threads=1)
        log = read_log(f"{work}/eval")
        own = numbers(log, {name: log[name].avg_loss for name in SETS})
        found = {}
        for engine in options.engine or ENGINES:
            room = ["--max-tokens", "512"]
            with serving(options.run, engine, options, Path(work), *room) as server:
                found[engine] = through(server, form, log, rows)
            for name, value in found[engine]["numbers"].items():
                if value is not None and (own[name] is None or abs(value - own[name]) > CLOSE):
                    failed.append(f"{engine}: {name} is {value}, and uld eval tofu says {own[name]}")
    call = f"served.py --run RUN --questions {options.questions}"
    whole = write("same", call, {"questions": options.questions, "uld eval tofu": own, "engines": found})
    engines = [one for one in ENGINES if one in whole["engines"]]

    def cell(value: float | None) -> str:
        return "not served" if value is None else f"{value:.4f}"

    table = [
        [name, cell(own[name]), *(cell(whole["engines"][one]["numbers"][name]) for one in engines)] for name in own
    ]
    into_page("same", ["", "`uld eval tofu`", *engines], table)
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
