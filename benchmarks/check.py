"""What `uld check` says of tofu-4m's models, of which it is known what they know.

python benchmarks/check.py --data DATA --models MODELS --run RUN --other OTHER --work runs/check
"""

import json
import shutil
from pathlib import Path
from typing import Any

from common import ROOT, arguments, machine

import uld
from uld.checking.result import TITLES, number
from uld.runs.manifest import CombinationSettings, Manifest

OUT = ROOT / "docs" / "results" / "check"
COLUMNS = {
    "ROUGE-L (%)": "forget_rouge",
    "re-entry (%)": "forget_re_entry",
    "extraction (%)": "forget_extraction",
    "in other words: re-entry (%)": "held_out_re_entry",
    "kept ROUGE-L (%)": "retain_rouge",
    "as before (%)": "retain_same",
    "KL (nats)": "retain_kl",
}
HEAD = """# What the gate says of tofu-4m's models

Written by `python benchmarks/check.py --run RUN --other OTHER`, RUN as in `uld train --preset tofu-4m --split forget10` and
`uld tune RUN --aim steady`, OTHER the same on forget01. Asked are {questions} of forget10's questions that forget01 does not hold, the same
in TOFU's other words, and {questions} questions of its retain set, each set spread evenly; the thresholds are [the default ones](../../check.md#thresholds),
written down before. Numbers with intervals: `results.json`.

The target and the run with α = 0 know it all, and OTHER forgot other authors. With α = 20 and neither margin nor floor a run also
loses what is to be kept. All of these have to fail, and the retain-only model has to pass."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a ULD run on forget10, tuned with --aim steady")
    parser.add_argument("--other", type=Path, required=True, help="the same on forget01: it forgets other authors")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "check", help="kept between calls")
    parser.add_argument("--questions", type=int, default=40, help="of each set")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    files = questions(options.data / "tofu", options.work, options.questions)
    target, retain_only = (str(options.models / name) for name in ("tofu-4m-full", "tofu-4m-retain90"))
    strong = {"weight": 20.0, "margin": 0.0, "floor": 0.0}
    runs = {
        "retain-only model": (Path(retain_only), {}),
        "target": (Path(target), {}),
        "α = 0": (options.run, {"weight": 0.0}),
        "other authors": (options.other, {}),
        "tuned": (options.run, {}),
        "without margin and floor, α = 20": (options.run, strong),
    }
    places = [place(name, *one, options.work) for name, one in runs.items()]
    found: dict[str, Any] = {}
    lines = HEAD.format(questions=options.questions).splitlines()
    for name, beside in (("without a retain-only model", None), ("beside the retain-only model", retain_only)):
        how = {"retain_model": beside, "output": options.work / "check", "max_new_tokens": 64}
        result = uld.check(places, target=target, **files, **how)
        found[name] = result.to_dict()
        lines += ["", f"## The default thresholds {name}", "", f"| | {' | '.join(COLUMNS)} | gate | beyond its limit |"]
        lines += ["|---" + "|---:" * len(COLUMNS) + "|---|---|"]
        rows = [(label, one, None) for label, one in result.others.items()] if beside else []
        rows += [(label, run.values, run) for label, run in zip(runs, result.runs, strict=True)]
        for label, values, run in rows:
            cells = [number(one, values[one].value).removesuffix(" %") for one in COLUMNS.values()]
            gate = "" if run is None else "passed" if run.passed else "failed"
            failed = [] if run is None else [f"`{one.name}`" for one in run.verdicts if not one.passed]
            lines.append(f"| {label} | {' | '.join(cells)} | {gate} | {', '.join(failed)} |")
        counts = ", ".join(
            f"{one.counted} of {one.questions} ({TITLES[name].lower()})" for name, one in result.asked.items()
        )
    lines += ["", f"Questions that count: {counts}."]
    OUT.mkdir(parents=True, exist_ok=True)
    kept = {name: {key: one[key] for key in ("runs", "others", "asked")} for name, one in found.items()}
    text = json.dumps(kept | {"machine": machine()}, indent=1).replace(str(options.work), "runs/check")
    (OUT / "results.json").write_text(text.replace(str(options.models), "models") + "\n")
    (OUT / "README.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def questions(tofu: Path, work: Path, count: int) -> dict[str, str]:
    """Three files: forget10's questions without those of forget01, the same in other words, and retain questions."""

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tofu / f"{name}.json").read_text().splitlines()]

    asked = rows("forget10_perturbed")[:360]
    sets = {
        "forget": [(row["question"], row["answer"]) for row in asked],
        "held_out": [(row["paraphrased_question"], row["paraphrased_answer"]) for row in asked],
        "retain": [(row["question"], row["answer"]) for row in rows("retain_perturbed")],
    }
    files = {}
    for name, pairs in sets.items():
        some = [pairs[i * len(pairs) // count] for i in range(count)]
        path = work / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in some))
        files[name] = str(path)
    return files


def place(name: str, model: Path, changes: dict[str, float], work: Path) -> str:
    """A model as it is; of a run a copy with other settings."""
    if not (model / "uld.json").exists():
        return str(model)
    folder = work / f"run-{'-'.join(name.split())}"
    if not folder.exists():
        shutil.copytree(model, folder, ignore=shutil.ignore_patterns("eval", "tune.*"))
        manifest = Manifest.read(folder)
        how = CombinationSettings(**manifest.combination.model_dump() | changes)
        manifest.model_copy(update={"combination": how}).write(folder)
    return str(folder)


if __name__ == "__main__":
    main()
