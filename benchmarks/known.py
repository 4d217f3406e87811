"""How well `--known` of `uld augment` tells what a model knows from what it never saw, at every threshold.

Two models of the same rows: one has learnt forget10 of TOFU, the other all but that. Both are asked forget10's questions, in the
words that were learnt and in the paraphrases that TOFU gives. What is counted is the share of questions that are kept.

    python benchmarks/known.py --data DATA --models MODELS

MODELS holds ``tofu-4m-full`` and ``tofu-4m-retain90``; with ``--pretrained SMOL`` also the models ``target`` and ``retain90`` of
that folder, which were made of SmolLM2-135M with TOFU-60.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import ROOT, arguments, machine

import uld
from uld.augment.known import LEAST, Known
from uld.data.prompt import spread
from uld.runs.machine import library_versions
from uld.text.json_text import dumps

OUT = ROOT / "docs" / "results" / "known"
THRESHOLDS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
WORDS = {"as learnt": ("question", "answer"), "in other words": ("paraphrased_question", "paraphrased_answer")}
SIDES = ("known", "never seen")
MARKS = ("<!-- tables: written by benchmarks/known.py -->", "<!-- end of tables -->")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--pretrained", type=Path, help="folder with the models of SmolLM2-135M")
    parser.add_argument("--limit", type=int, default=100, help="questions, spread evenly")
    options = parser.parse_args()
    pairs = {"tofu-4m": (options.models / "tofu-4m-full", options.models / "tofu-4m-retain90", "tofu")}
    if options.pretrained:
        pairs["SmolLM2-135M"] = (options.pretrained / "target", options.pretrained / "retain90", "tofu60")
    path = OUT / "results.json"
    found = json.loads(path.read_text())["probabilities"] if path.exists() else {}
    for name, (*models, data) in pairs.items():
        lines = (options.data / data / "forget10_perturbed.json").read_text().splitlines()
        rows = spread([json.loads(line) for line in lines], options.limit)
        found[name] = {side: asked(model, rows) for side, model in zip(SIDES, models, strict=True)}
    OUT.mkdir(parents=True, exist_ok=True)
    about = {"machine": machine(), "versions": library_versions()}
    path.write_text(dumps({"probabilities": found} | about, indent=1) + "\n")
    text = "\n\n".join(line for name, sides in found.items() for line in (f"## {name}", table(sides), apart(sides)))
    page = OUT / "README.md"
    before, rest = (page.read_text() if page.exists() else "\n".join(MARKS)).split(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
    print(text)


def asked(model: Path, rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The probabilities of a model's answers, by wording."""
    judge = Known(str(model), lambda: uld.load(model, dtype=torch.float32))
    return {
        name: [round(judge.probability(row[question], row[answer]), 6) for row in rows]
        for name, (question, answer) in WORDS.items()
    }


def table(sides: dict[str, dict[str, list[float]]]) -> str:
    """Shares that are kept, a row a threshold."""
    heads = [f"{side}, {words}" for side in SIDES for words in WORDS]
    rows = [f"| kept from (%) | {' | '.join(heads)} |", "|---:" * (1 + len(heads)) + "|"]
    for threshold in THRESHOLDS:
        kept = [share(sides[side][words], threshold) for side in SIDES for words in WORDS]
        mark = "**" if threshold == LEAST else ""
        rows.append(f"| {mark}{threshold:g}{mark} | {' | '.join(f'{100 * one:.0f}' for one in kept)} |")
    return "\n".join(rows)


def apart(sides: dict[str, dict[str, list[float]]]) -> str:
    """How well the two models are told apart, whatever the threshold."""
    areas = []
    for words in WORDS:
        known, never = (sides[side][words] for side in SIDES)
        above = sum((one > other) + (one == other) / 2 for one in known for other in never)
        areas.append(f"{above / len(known) / len(never):.3f} ({words})")
    return f"{len(known)} questions. Area under the curve: {', '.join(areas)}."


def share(values: Sequence[float], threshold: float) -> float:
    return sum(value >= threshold for value in values) / len(values)


if __name__ == "__main__":
    main()
