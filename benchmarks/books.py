"""A book must go: *Alice* forgotten, *Oz*, *Pride and Prejudice* and TOFU kept; the paper's Table 3 at our size.

What is finished is kept in ``--work`` and not done again.

    python benchmarks/books.py --data DATA --models MODELS --work runs/books
"""

import json
from pathlib import Path

from common import ROOT, arguments, uld

OUT = ROOT / "docs" / "results" / "books"
KEPT = {"oz": "wizard_of_oz", "pride": "pride_and_prejudice"}
HELD_OUT = 0.1  # of a kept book: its end, which no training sees
EVALUATED = 400  # TOFU rows whose perplexity is measured; no unlearning sees them
RETAINED = 1600  # TOFU rows of the retain set
COPIES = {
    "before": {"oz": 2, "pride": 1, "tofu": 1},
    "target": {"alice": 20, "oz": 1, "pride": 1, "tofu": 1},
}
"""How often a model learns each text, in one epoch; the target goes on from the model before memorising."""
FINETUNING = ["--learning-rate", "1e-3", "--warmup", "50", "--schedule", "cosine", "--floor", "0.05", "--beta2", "0.95"]
FINETUNING += ["--epochs", "1", "--batch-size", "16", "--max-length", "512", "--learn", "all", "--dtype", "bf16"]


def lines(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_texts(data: Path, work: Path) -> None:
    """The books, cut into what is learnt and what is held out, and TOFU's rows, as files of ``work/texts``."""
    texts = work / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    books = data / "public_domain_text"
    learnt = {"alice": [{"text": (books / "alice_in_wonderland.txt").read_text(encoding="utf-8")}]}
    (texts / "alice.txt").write_text(learnt["alice"][0]["text"], encoding="utf-8")
    for name, file in KEPT.items():
        text = (books / f"{file}.txt").read_text(encoding="utf-8")
        cut = text.index("\n\n", int(len(text) * (1 - HELD_OUT)))
        (texts / f"{name}.txt").write_text(text[:cut], encoding="utf-8")
        (texts / f"{name}_held_out.txt").write_text(text[cut:], encoding="utf-8")
        learnt[name] = [{"text": text[:cut]}]
    learnt["tofu"] = [json.loads(line) for line in (data / "tofu" / "full.json").read_text().splitlines()]
    lines(texts / "tofu_evaluated.jsonl", learnt["tofu"][:EVALUATED])
    lines(texts / "tofu_retain.jsonl", learnt["tofu"][EVALUATED : EVALUATED + RETAINED])
    for model, copies in COPIES.items():
        lines(texts / f"{model}.jsonl", [one for name, count in copies.items() for one in learnt[name] * count])


def finetune(name: str, start: Path, work: Path) -> Path:
    made = work / name
    if not (made / "finetune.json").exists():
        begun = ["--resume"] if (made / "finetune.yaml").exists() else []
        files = ["--model", str(start), "--file", str(work / "texts" / f"{name}.jsonl"), "--output", str(made)]
        uld("finetune", *files, *FINETUNING, *begun, "--quiet")
    return made


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "books", help="kept between calls")
    options = parser.parse_args()
    write_texts(options.data, options.work)
    before = finetune("before", options.models / "tofu-4m-full", options.work)
    finetune("target", before, options.work)


if __name__ == "__main__":
    main()
