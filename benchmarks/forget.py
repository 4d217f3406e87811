"""`uld forget` on SmolLM2-135M: six short documents about an invented person, and the first pages of a book.

The pretrained model first learns the documents (``examples/person``), or the first pages of *Alice* (``chapter``), of *Pride and
Prejudice* (``pride``) or of *The Wizard of Oz* (``oz``), among everyday questions
and answers (``everyday.jsonl``), so that it knows them and still talks about other things; then one command forgets them. What is kept: the plan, the seconds of every step, the check's numbers and whether it is passed,
and for each question that the target knew how many key words its answer has and how many came back. ``--again`` chooses the
settings and checks once more, of a job that is finished, without training; ``--recount`` only reads the check again.

    python benchmarks/forget.py person --data DATA --models MODELS --work runs/forget
    python benchmarks/forget.py chapter --data DATA --models MODELS --work runs/forget
    python benchmarks/forget.py pride --data DATA --models MODELS --work runs/forget
    python benchmarks/forget.py oz --data DATA --models MODELS --work runs/forget

MODELS holds ``smol/base``, the pretrained model.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import ROOT, arguments, machine, uld

from uld.checking.asked import Asked
from uld.checking.questions import Questions
from uld.data.words import said_of
from uld.request import material
from uld.runs.machine import library_versions
from uld.runs.rows import RowFile
from uld.text.json_text import dumps

OUT = ROOT / "docs" / "results" / "forget"
LEARNING = "--lora-rank 32 --lora-alpha 64 --learning-rate 1e-3 --batch-size 4 --max-length 256 --dtype fp32"
EPOCHS = {"person": 12, "chapter": 20, "pride": 20, "oz": 20}
BOOKS = {"chapter": "alice_in_wonderland.txt", "pride": "pride_and_prejudice.txt", "oz": "wizard_of_oz.txt"}
EVERYDAY = 60
CHAPTER = 6000  # characters of a book, to the end of a paragraph


def documents(name: str, data: Path, work: Path) -> Path:
    if name == "person":
        return ROOT / "examples" / "person"
    path = work / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    book = (data / "public_domain_text" / BOOKS[name]).read_text(encoding="utf-8")
    path.write_text(book[: book.index("\n\n", CHAPTER)], encoding="utf-8")
    return path


def carried_out(name: str, target: Path, source: Path, work: Path) -> dict[str, Any]:
    """Run the command as a user does; its lines, its seconds and its exit code."""
    output = work / name
    words = ["forget", "--target", str(target), "--documents", str(source), "--output", str(output)]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "uld", *words, "--set", "dtype=fp32"], stdout=subprocess.PIPE, text=True, check=False
    )
    seconds = time.monotonic() - start
    if done.returncode not in (0, 1):
        sys.exit(f"uld {' '.join(words)} ended with {done.returncode}")
    steps = re.findall(
        r"^(\d+)\. ([^:(\n]+?)(?: \(.*? left\))?(?:: .*)?\n {3}(.*) \((\d+) s\)$", done.stdout, re.MULTILINE
    )
    return {
        "seconds": round(seconds),
        "plan": done.stdout.split("\n1. ")[0].splitlines(),
        "steps": [{"name": step, "result": result, "seconds": int(took)} for _, step, result, took in steps],
        **outcome(name, work),
    }


def outcome(name: str, work: Path) -> dict[str, Any]:
    """What came of a job that is finished."""
    request = work / f"{name}-request"
    check = json.loads((request / "check" / "result.json").read_text())
    check["places"] = {one: Path(place).name for one, place in check["places"].items()}
    return {
        "passed": all(one["passed"] for one in check["runs"]),
        "check": check,
        "combination": json.loads((work / name / "uld.json").read_text())["combination"],
        "tuning": tuning(json.loads((work / name / "tune.json").read_text())),
        "came_back": came_back(request),
    }


def tuning(found: dict[str, Any]) -> dict[str, Any]:
    """Why the settings were chosen, and what was read at each margin."""
    read = [{key: one[key] for key in ("margin", "kept", "re_entry")} for one in found["read"]]
    return {"reason": found["reason"], "budget": found["budget"], "read": read}


def again(name: str, target: Path, source: Path, work: Path, before: dict[str, Any]) -> dict[str, Any]:
    """Choose and check once more; what was not done again keeps its seconds."""
    request = work / f"{name}-request"
    for path in (work / name / "tune.json", request / "known.json"):
        path.unlink(missing_ok=True)
    shutil.rmtree(request / "check", ignore_errors=True)
    found = carried_out(name, target, source, work)
    took = {one["name"]: one for one in found["steps"]}
    steps = [took.get(one["name"], one) for one in before["steps"]]
    return before | found | {"plan": before["plan"], "seconds": before["seconds"], "steps": steps}


def came_back(request: Path) -> dict[str, Any]:
    """Of what was to be forgotten and the target knew: whether it is a passage, its key words, and those that are said."""
    asked = Asked(Questions.read(**material.asked(request)))
    folder = request / "check"
    (run,) = folder.glob("run-*")
    before: Any = {name: _rows(folder / "target", name) for name in asked.questions.sets}
    items, now, keys = asked.questions.sets["forget"], _rows(run, "forget"), asked.keys["forget"]
    known = [
        {
            "passage": items[i].passage,
            "key_words": len(keys[i]),
            "said": len(said_of(now[i]["generated"], keys[i])),
        }
        for i in asked.counted(before)["forget"]
    ]
    cut = [i for i, item in enumerate(items) if item.passage]
    phrases = {i: frozenset(key for key in keys[i] if " " in key) for i in cut}
    others = [bool(said_of(now[j]["generated"], phrases[i])) for i in cut for j in cut if i != j]
    return {
        "by_chance": {"answers_to_other_passages": len(others), "with_a_phrase": sum(others)},
        "passages": sum(one.passage for one in items),
        "questions": sum(not one.passage for one in items),
        "known": known,
    }


def _rows(folder: Path, task: str) -> list[dict[str, Any]]:
    return [row for _, row in sorted(RowFile.read(folder, task).items())]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("name", choices=EPOCHS)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "forget")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--recount", action="store_true")
    options = parser.parse_args()
    if options.recount:
        write(options, known(options) | outcome(options.name, options.work))
        return
    source = documents(options.name, options.data, options.work)
    target = options.work / f"{options.name}-target"
    if not (target / "finetune.json").exists():
        talk = options.work / "everyday.jsonl"
        rows = Path(__file__).with_name("everyday.jsonl").read_text(encoding="utf-8").splitlines()
        talk.parent.mkdir(parents=True, exist_ok=True)
        talk.write_text("\n".join(rows[:EVERYDAY]) + "\n", encoding="utf-8")
        words = ["--model", str(options.models / "smol" / "base"), "--file", str(source), "--file", str(talk)]
        words += ["--output", str(target), *(["--resume"] if (target / "finetune.yaml").exists() else [])]
        uld("finetune", *words, *LEARNING.split(), "--epochs", str(EPOCHS[options.name]), "--quiet")
    if options.again:
        found = again(options.name, target, source, options.work, known(options))
    else:
        found = carried_out(options.name, target, source, options.work)
    write(options, found | {"machine": machine(), "versions": library_versions()})


def known(options: argparse.Namespace) -> dict[str, Any]:
    """What was written of the job before."""
    return json.loads((OUT / f"{options.name}.json").read_text())  # type: ignore[no-any-return]


def write(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Write what was found, without any place of the machine."""
    OUT.mkdir(parents=True, exist_ok=True)
    text = dumps(found, indent=1) + "\n"
    for folder in (options.work, ROOT, options.data, options.models):  # whose places are nobody's business
        text = text.replace(f"{folder}/", "")
    (OUT / f"{options.name}.json").write_text(text)


if __name__ == "__main__":
    main()
