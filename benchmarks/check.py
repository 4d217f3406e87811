"""What `uld check` says of tofu-4m's models, of which it is known what they know.

python benchmarks/check.py --data DATA --models MODELS --run RUN --other OTHER --work runs/check
"""

import json
import shutil
from pathlib import Path
from typing import Any

from common import ROOT, arguments, machine

import uld
from uld.checking.result import TITLES, limit, number
from uld.checking.thresholds import read_thresholds
from uld.runs.manifest import CombinationSettings, Manifest

OUT = ROOT / "docs" / "results" / "check"
COLUMNS = {
    "ROUGE-L (%)": "forget_rouge",
    "re-entry (%)": "forget_re_entry",
    "extraction (%)": "forget_extraction",
    "kept ROUGE-L (%)": "retain_rouge",
    "as before (%)": "retain_same",
    "KL (nats)": "retain_kl",
}
HEAD = """# What the gate says of tofu-4m's models

Written by `python benchmarks/check.py --run RUN --other OTHER --questions {questions} --tokens {tokens}`, RUN as in
`uld train --preset tofu-4m --split forget10` and `uld tune RUN --aim steady`, OTHER the same on forget01. Asked are
{questions} of forget10's questions that forget01 does not hold, and {questions} of its retain set, spread evenly. The thresholds are
[the default ones](../../check.md#thresholds), written down before. Intervals are in `results.json`.

The target and the run with α = 0 know it all, and OTHER forgot other authors. Under RUN memorised names come back in other sentences
(re-entry). With α = 20 and neither margin nor floor it also loses what is to be kept. All of these have to fail, and the retain-only
model has to pass. Questions that count: {asked}."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a ULD run on forget10, tuned with --aim steady")
    parser.add_argument("--other", type=Path, required=True, help="the same on forget01: it forgets other authors")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "check", help="kept between calls")
    parser.add_argument("--questions", type=int, default=60, help="of each set")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    files = questions(options.data / "tofu", options.work)
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
    how = {"retain_model": retain_only, "limit": options.questions, "max_new_tokens": options.tokens}
    result = uld.check(places, target=target, **files, output=options.work / "check", **how)
    alone, _ = read_thresholds(None, retain_only=False, held_out=False)
    asked = ", ".join(
        f"{one.counted} of {one.questions} ({TITLES[name].lower()})" for name, one in result.asked.items()
    )
    lines = [*HEAD.format(questions=options.questions, tokens=options.tokens, asked=asked).splitlines(), ""]
    lines += [f"| | {' | '.join(COLUMNS)} |", "|---" + "|---:" * len(COLUMNS) + "|"]
    for label, run in zip(runs, result.runs, strict=True):
        cells = [number(one, run.values[one].value).removesuffix(" %") for one in COLUMNS.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for name in ("beside the retain-only model", "without one"):
        lines += ["", f"## The default thresholds {name}", "", "| | gate | beyond its limit |", "|---|---|---|"]
        for label, run in zip(runs, result.runs, strict=True):
            judged = [one.judge(run.values[one.name], result.others) for one in alone]
            failed = [one for one in (judged if name == "without one" else run.verdicts) if not one.passed]
            words = ", ".join(f"`{one.name}` ({limit(one)})" for one in failed)
            lines.append(f"| {label} | {'failed' if failed else 'passed'} | {words} |")
    OUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.to_dict() | {"machine": machine()}, indent=1).replace(str(options.work), "runs/check")
    text = text.replace(str(options.models), "models").replace(str(options.data), "data")
    (OUT / "results.json").write_text(text + "\n")
    (OUT / "README.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def questions(tofu: Path, work: Path) -> dict[str, str]:
    """Two files: forget10's questions without those of forget01, and questions of the retain set."""

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tofu / f"{name}.json").read_text().splitlines()]

    files = {}
    for name, some in (("forget", rows("forget10_perturbed")[:360]), ("retain", rows("retain_perturbed"))):
        path = work / f"{name}.jsonl"
        path.write_text("".join(json.dumps({key: row[key] for key in ("question", "answer")}) + "\n" for row in some))
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
