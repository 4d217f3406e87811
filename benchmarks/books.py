"""A book must go: *Alice* forgotten, *Oz*, *Pride and Prejudice* and TOFU kept; the paper's Table 3 at our size.

What is finished is kept in ``--work`` and not done again.

    python benchmarks/books.py --data DATA --models MODELS --work runs/books
"""

import json
from pathlib import Path
from typing import Any

from common import ROOT, arguments, machine, uld

OUT = ROOT / "docs" / "results" / "books"
KEPT = {"oz": "wizard_of_oz", "pride": "pride_and_prejudice"}
HELD_OUT = 0.1  # of a kept book: its end, which no training sees
EVALUATED = 400  # TOFU rows whose perplexity is measured; no unlearning sees them
RETAINED = 400  # TOFU rows of the retain set
CHUNK = 480  # tokens of a chunk, which has to fit the model's 512 positions behind the request
RETAIN = ("oz", "pride", "tofu")  # of both books as much as the forget set has, or ("-wide") all but what is held out
KEPT_FILES = ("oz_held_out.txt", "pride_held_out.txt", "tofu_evaluated.jsonl")
COPIES = {
    "before": {"oz": 2, "pride": 1, "tofu": 1},
    "reading": {"alice": 20, "oz": 1, "pride": 1, "tofu": 1},
    "target": {"alice": 30, "oz": 1, "tofu": 1},
}
"""How often a model learns each text, in one epoch; each goes on from the one above, the first from tofu-4m-full."""
FINETUNING = ["--learning-rate", "1e-3", "--warmup", "50", "--schedule", "cosine", "--floor", "0.05", "--beta2", "0.95"]
FINETUNING += ["--epochs", "1", "--batch-size", "16", "--max-length", "512", "--learn", "all"]
UNLEARNING = ["--batch-size", "8", "--max-length", "512"]
METHODS = {
    "uld": "--epochs 14 --num-layers 3 --learning-rate 4e-3 --retain-weight 2 --uniform-on all",
    "uld-wide": "--epochs 14 --num-layers 3 --learning-rate 4e-3 --retain-weight 6.5 --uniform-on all",
    "npo+kl": "--epochs 5 --learning-rate 3e-4",
    "npo+gd": "--epochs 5 --learning-rate 3e-4",
    "ga+kl": "--epochs 5 --learning-rate 3e-5",
}
"""Settings of a method. ULD's are those of the preset tofu-4m, and then with the paper's β and more to retain. The
others' epochs are the paper's for its book, and their learning rates those that the rule of docs/compare.md chose on
TOFU for the same architecture."""
RULES = {
    "α = 20, margin 5.5, floor 4.8e-4": "--weight 20 --margin 5.5 --floor 4.8e-4",
    "the same at ⅔ α": "--weight 13.33 --margin 5.5 --floor 4.8e-4",
    "the same at 1.5 α": "--weight 30 --margin 5.5 --floor 4.8e-4",
    "margin 4 instead": "--weight 20 --margin 4 --floor 4.8e-4",
    "margin 3 instead": "--weight 20 --margin 3 --floor 4.8e-4",
    "α = 1.5, no margin or floor": "--weight 1.5",
    "α = 1, no margin or floor": "--weight 1",
    "α = 0.5, no margin or floor": "--weight 0.5",
}
"""How the same ULD run is combined. The first is what `uld tune` had picked for TOFU's forget10 (the preset tofu-4m), so
nothing about it was chosen on a book; the last is the paper's α for its book."""
LABELS = {
    "uld": "ULD",
    "uld-wide": "ULD, β = 6.5, all retained",
    "npo+kl": "NPO+KL",
    "npo+gd": "NPO+GD",
    "ga+kl": "GA+KL",
}


def write_lines(path: Path, records: list[dict[str, str]]) -> None:
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
    long = len(learnt["alice"][0]["text"]) // 2
    retain = {name: [{"text": learnt[name][0]["text"][:long]}] for name in KEPT}
    retain["tofu"] = learnt["tofu"][EVALUATED : EVALUATED + RETAINED]
    for name, records in retain.items():
        write_lines(texts / f"{name}_retain.jsonl", records)
        write_lines(texts / f"{name}_wide.jsonl", learnt[name] if name in KEPT else records)
    write_lines(texts / "alice.jsonl", learnt["alice"])
    write_lines(texts / "tofu_evaluated.jsonl", learnt["tofu"][:EVALUATED])
    for model, copies in COPIES.items():
        write_lines(texts / f"{model}.jsonl", [one for name, count in copies.items() for one in learnt[name] * count])


def finetune(name: str, start: Path, work: Path, dtype: str) -> Path:
    made = work / name
    if not (made / "finetune.json").exists():
        begun = ["--resume"] if (made / "finetune.yaml").exists() else []
        files = ["--model", str(start), "--file", str(work / "texts" / f"{name}.jsonl"), "--output", str(made)]
        uld("finetune", *files, *FINETUNING, "--dtype", dtype, *begun, "--quiet")
    return made


def unlearn(method: str, target: Path, work: Path, dtype: str) -> Path:
    made, name, wide = work / method, method.removesuffix("-wide"), method.endswith("-wide")
    if not (made / "uld.json").exists():
        begun = ["--resume"] if (made / "train.yaml").exists() else []
        retain = [work / "texts" / f"{kept}_{'wide' if wide else 'retain'}.jsonl" for kept in RETAIN]
        files = ["--target", str(target), "--forget", str(work / "texts" / "alice.jsonl"), "--output", str(made)]
        files += [word for path in retain for word in ("--retain", str(path))]
        how = [*UNLEARNING, *METHODS[method].split(), *(("--dtype", dtype) if name == "uld" else ())]
        uld("train", *files, "--method", name, *how, *begun, "--quiet")
    return made


def evaluated(name: str, model: Path, work: Path, *options: str) -> dict[str, Any]:
    folder, texts = work / "eval" / name, work / "texts"
    kept = [word for path in KEPT_FILES for word in ("--kept", str(texts / path))]
    place = ["--text", str(texts / "alice.txt"), "--chunk-tokens", str(CHUNK), "--output", str(folder)]
    uld("eval", "copyright", "--model", str(model), *options, *place, *kept, "--quiet")
    result = json.loads((folder / "result.json").read_text())
    return result | {"kept": {Path(path).stem: value["token"] for path, value in result["kept"].items()}}


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    heads = ["model", "BLEU", "ROUGE-L (%)", "longest run", "mean run", "exact memorization", "extraction strength"]
    heads += [f"PPL {name}" for name in ("*Alice*", "*Oz*", "*Pride*", "TOFU retain")]
    rows = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for name, one in results.items():
        cells = [f"{one['bleu']:.2f}", f"{100 * one['rouge_l']:.2f}", f"{one['longest_run']}", f"{one['mean_run']:.1f}"]
        cells += [f"{one['exact_memorization']:.3f}", f"{one['extraction_strength']:.3f}", f"{one['perplexity']:.4g}"]
        cells += [f"{one['kept'][Path(path).stem]:.4g}" for path in KEPT_FILES]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "books", help="kept between calls")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="rows of the table")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the target's and ULD's trainings")
    options = parser.parse_args()
    write_texts(options.data, options.work)
    place = (options.work, options.dtype)
    before = finetune("before", options.models / "tofu-4m-full", *place)
    target = finetune("target", finetune("reading", before, *place), *place)
    results = {"target": evaluated("target", target, options.work)}
    results["before memorising"] = evaluated("before-memorising", before, options.work)
    for method in options.methods:
        label = LABELS[method]
        run = unlearn(method, target, *place)
        ways = RULES if method.startswith("uld") else {"": ""}
        for number, (way, words) in enumerate(ways.items()):
            name = f"{method}-{number}"
            results[f"{label}, {way}".removesuffix(", ")] = evaluated(name, run, options.work, *words.split())
            write(results, "" if options.dtype == "bf16" else f"-{options.dtype}")


def write(results: dict[str, dict[str, Any]], suffix: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"results{suffix}.json").write_text(json.dumps({"models": results, "machine": machine()}, indent=1) + "\n")
    lines = ["# A book must go", "", "Written by `python benchmarks/books.py`: the paper's Table 3 at our size.", ""]
    lines += [
        *table(results),
        "",
        *(f"- {name}: `uld train {' '.join(words)}`" for name, words in settings() if name in results),
        "",
    ]
    (OUT / f"table{suffix}.md").write_text("\n".join(lines))
    print("\n".join(lines))


def settings() -> list[tuple[str, list[str]]]:
    return [
        (LABELS[method], ["--method", method.removesuffix("-wide"), *UNLEARNING, *METHODS[method].split()])
        for method in METHODS
    ]


if __name__ == "__main__":
    main()
