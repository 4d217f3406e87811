"""Forget something that nobody taught: what SmolLM2-135M knows of Albert Einstein from its pretraining.

There are no documents. The model answers the thirty questions of ``einstein.jsonl`` that stand in the group "forget", greedily,
and its own answers are what `uld forget` is given; everything else is the command's default (``--retain`` adds the model's answers about
other people). Then the questions of all groups are put to the model before and after: other words for the same, questions that
have him for an answer, physics without him, other people, and the first of ``everyday.jsonl``. An answer counts as known where one of
the question's key words stands in it; questions that the model did not know before count nowhere.

    python benchmarks/pretrained.py --models MODELS --work runs/pretrained
    python benchmarks/pretrained.py --models MODELS --work runs/pretrained --retain

MODELS holds ``smol/base``, the pretrained model.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, arguments, machine

from uld.data.prompt import PromptFormat
from uld.model.generate import generate_answers, length_batches
from uld.model.load import load
from uld.runs.machine import library_versions
from uld.text.json_text import dumps

HERE = Path(__file__).parent
OUT = ROOT / "docs" / "results" / "pretrained"
TOKENS, EVERYDAY = 64, 100
FORGOTTEN, GIVEN = "forget", "people whom --retain names"  # groups whose answers are trained on


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def questions() -> list[dict[str, Any]]:
    """All that is asked, in groups."""
    everyday = read("everyday.jsonl")[:EVERYDAY]
    return [
        *read("einstein.jsonl"),
        *({"group": "everyday", "question": row["question"], "keys": []} for row in everyday),
    ]


def answers(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> list[str]:
    """The greedy answer to each question."""
    prompts = [PromptFormat(tokenizer).prompt_ids(row["question"]) for row in rows]
    found = [""] * len(rows)
    for batch in length_batches([len(one) for one in prompts]):
        texts = generate_answers(model, tokenizer, [prompts[i] for i in batch], max_new_tokens=TOKENS)
        for i, text in zip(batch, texts, strict=True):
            found[i] = text
    return found


def known(row: dict[str, Any], answer: str) -> bool:
    return any(key in answer.lower() for key in row["keys"])


def records(path: Path, rows: list[dict[str, Any]], group: str) -> Path:
    """The model's own answers to a group of questions, to their last full stop, as a file of questions and answers."""
    kept = [
        {"question": row["question"], "answer": row["before"][: row["before"].rfind(".") + 1] or row["before"]}
        for row in rows
        if row["group"] == group
    ]
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in kept), encoding="utf-8")
    return path


def groups(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each group: questions, those known before, of them those still known, and answers that stay word for word."""
    found = {}
    for name in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == name]
        before = [row for row in own if known(row, row["before"])]
        found[name] = {
            "questions": len(own),
            "known before": len(before),
            "known after": sum(known(row, row["after"]) for row in before),
            "unchanged": sum(row["before"] == row["after"] for row in own),
        }
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "pretrained")
    parser.add_argument("--retain", action="store_true", help="give answers about ten other people as what must stay")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    target, name = options.models / "smol" / "base", "given" if options.retain else "drawn"
    rows, asked = questions(), options.work / "before.json"
    if not asked.exists():
        asked.write_text(json.dumps(answers(*load(target, dtype=torch.float32), rows)))
    for row, answer in zip(rows, json.loads(asked.read_text()), strict=True):
        row["before"] = answer
    documents = records(options.work / "einstein.jsonl", rows, FORGOTTEN)
    output = options.work / name
    words = ["forget", "--target", str(target), "--documents", str(documents), "--output", str(output)]
    if options.retain:
        words += ["--retain", str(records(options.work / "people.jsonl", rows, GIVEN))]
    spent = options.work / f"{name}-seconds.json"  # of the calls before, where it was stopped
    before, start = json.loads(spent.read_text()) if spent.exists() else 0, time.monotonic()
    done = subprocess.run([sys.executable, "-m", "uld", *words, "--set", "dtype=fp32", "--quiet"], check=False)
    spent.write_text(json.dumps(before + time.monotonic() - start))
    if done.returncode not in (0, 1):
        sys.exit(f"uld {' '.join(words)} ended with {done.returncode}")
    for row, answer in zip(rows, answers(*load(output, dtype=torch.float32), rows), strict=True):
        row["after"] = answer
    check = json.loads((Path(f"{output}-request") / "check" / "result.json").read_text())
    found = {
        "groups": groups(rows),
        "seconds": round(json.loads(spent.read_text())),
        "passed": done.returncode == 0,
        "combination": json.loads((output / "uld.json").read_text())["combination"],
        "check": {"target": check["others"]["target"], "unlearned": check["runs"][0]["values"]},
        "answers": [row for row in rows if row["group"] != "everyday"],
        "machine": machine(),
        "versions": library_versions(),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(dumps(found, indent=1) + "\n")
    for group, counts in found["groups"].items():
        print(f"{group}: {counts}")


if __name__ == "__main__":
    main()
