"""Membership attacks, before and after forgetting: forget10 on tofu-4m, and *Alice* on the books' models.

On TOFU forget10's answers are told from wrong answers to the same questions; of the books, passages of *Alice* from the held-out
ends of *Oz* and *Pride and Prejudice* (two authors and three books: compare with the model that had not memorised *Alice*).

    python benchmarks/attacks.py tofu-4m --data DATA --models MODELS --run RUN --work runs/attacks
    python benchmarks/attacks.py books --books runs/books --work runs/attacks-books
"""

import argparse
import json
from pathlib import Path
from typing import Any

from books import KEPT, RULES
from common import ROOT, arguments, machine, uld

OUT = ROOT / "docs" / "results" / "attacks"
BEFORE = ["--weight", "1.5", "--margin", "0", "--floor", "0"]
PASSAGE = 600  # characters at least, to the end of the paragraph
PLAIN = "ULD, α 1.5 without margin and floor"


def tofu(options: argparse.Namespace) -> tuple[dict[str, list[dict[str, str]]], dict[str, tuple[Any, ...]]]:
    """Members and others of TOFU, and the models: the second has seen no member."""
    rows = [json.loads(line) for line in (options.data / "tofu/forget10_perturbed.json").read_text().splitlines()]
    sides = {"members": [row["answer"] for row in rows], "others": [row["perturbed_answer"][0] for row in rows]}
    records = {
        name: [{"question": row["question"], "answer": answer} for row, answer in zip(rows, answers, strict=True)]
        for name, answers in sides.items()
    }
    return records, {
        "target": (options.models / "tofu-4m-full",),
        "retain-only model": (options.models / "tofu-4m-retain90",),
        "ULD": (options.run,),
        PLAIN: (options.run, *BEFORE),
    }


def books(options: argparse.Namespace) -> tuple[dict[str, list[dict[str, str]]], dict[str, tuple[Any, ...]]]:
    """The same of the books, whose models and texts `books.py` left in its folder."""
    texts = options.books / "texts"
    kept = [passage for name in KEPT for passage in passages(texts / f"{name}_held_out.txt")]
    sides = {"members": passages(texts / "alice.txt"), "others": kept}
    return {name: [{"text": text} for text in found] for name, found in sides.items()}, {
        "target": (options.books / "target",),
        "before memorising": (options.books / "before",),
        "ULD": (options.books / "uld", *next(iter(RULES.values())).split()),
        PLAIN: (options.books / "uld", *BEFORE),
    }


def passages(path: Path) -> list[str]:
    found, passage = [], ""
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        passage += paragraph + "\n\n"
        if len(passage) >= PASSAGE:
            found.append(passage.strip())
            passage = ""
    return found


ABOUT = {
    "tofu-4m": [
        "`python benchmarks/attacks.py tofu-4m --run RUN`, RUN as in `uld train --preset tofu-4m --split forget10` and",
        "`uld tune RUN --aim steady`: forget10's answers (members) against wrong answers to the same questions.",
    ],
    "books": [
        "`python benchmarks/attacks.py books --books WORK`, WORK as `benchmarks/books.py` leaves it: passages of *Alice* (members)",
        "against passages of the held-out ends of *Oz* and *Pride and Prejudice*, which differ in kind as well.",
    ],
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("on", choices=ABOUT)
    parser.add_argument(
        "--run", type=Path, help="a ULD run on forget10 with the preset tofu-4m, tuned with --aim steady"
    )
    parser.add_argument("--books", type=Path, default=ROOT / "runs" / "books", help="--work of books.py")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "attacks", help="kept between calls")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    records, models = (tofu if options.on == "tofu-4m" else books)(options)
    for name, rows in records.items():
        (options.work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    only = list(models)[1]
    found = {}
    for name, (model, *rule) in models.items():
        folder = options.work / name.replace(" ", "-")
        files = ["--members", str(options.work / "members.jsonl"), "--non-members", str(options.work / "others.jsonl")]
        places = ["--retain-model", str(models[only][0]), "--output", str(folder), "--quiet"]
        uld("eval", "attacks", "--model", str(model), *rule, *files, *places)
        found[name] = json.loads((folder / "result.json").read_text())
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{options.on}.json").write_text(json.dumps({"models": found, "machine": machine()}, indent=1) + "\n")
    lines = ["# Membership attacks", "", "AUC, and PrivLeak (%) in brackets against the second model of a table."]
    for name in ABOUT:
        if (path := OUT / f"{name}.json").exists():
            lines += ["", f"## {name}", "", *ABOUT[name], "", *table(json.loads(path.read_text())["models"])]
    (OUT / "README.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    attacks = list(found["target"]["attacks"])
    lines = ["| | " + " | ".join(attacks) + " |", "|---" + "|---:" * len(attacks) + "|"]
    for name, one in found.items():
        cells = [f"{one['attacks'][a]['auc']:.3f} ({one['attacks'][a]['privleak']:.1f})" for a in attacks]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
