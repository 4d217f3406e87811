"""What `uld tune --aim steady` picks on tofu-4m, and what it is worth: margin and floor, at two thirds and one and a half times α as well.

Each run is trained with the preset ``tofu-4m``, tuned on rows of the training side alone (no benchmark's row, no
retain-only model), and evaluated at what was picked; at 2/3 and 1.5 times that α without generated answers; and with
``--before`` under the rule without margin and floor as well. What is finished is kept in ``--work``.

Chosen by looking at benchmark rows: that the floor is the target's surprise, and α = 20 (forget10, seed 0); that no margin
is larger than 2/3 log V (forget10, seeds 0 and 10; forget05, seed 10, where 7 nats had been picked without that bound).
Claims rest on the other cells.

    python benchmarks/steady.py --data DATA --models MODELS --work runs/steady
"""

import argparse
import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

from common import ROOT, arguments, machine, uld

from uld.runs.machine import library_versions
from uld.text.json_text import dumps

OUT = ROOT / "docs" / "results" / "tofu-4m-steady"
RETAIN_ONLY = {"forget10": "tofu-4m-retain90", "forget05": "tofu-4m-retain95", "forget01": "tofu-4m-retain99"}
SEEN = {("forget10", 0), ("forget10", 10), ("forget05", 10)}
CELLS = [("forget10", 11), ("forget05", 11), ("forget01", 10), ("forget10", 12), ("forget05", 12), ("forget01", 11)]
CELLS += [("forget10", 13), ("forget05", 13), ("forget01", 12)]
STEP = 1.5
BEFORE = {"weight": 1.5, "margin": 0.0, "floor": 0.0}  # the preset's rule before there were margins and floors


def flags_of(setting: dict[str, float]) -> list[str]:
    return [word for name, value in setting.items() for word in (f"--{name}", f"{value:g}")]


def settings_of(point: dict[str, float], before: bool) -> dict[str, dict[str, float]]:
    """What is evaluated of a run, by name: the picked setting first."""
    picked = {name: point[name] for name in ("weight", "margin", "floor")}
    found = {"picked": picked}
    if picked["weight"] < math.inf:
        found |= {f"α × {factor:.2g}": picked | {"weight": picked["weight"] * factor} for factor in (1 / STEP, STEP)}
    return found | ({"before": BEFORE} if before else {})


def beside(name: str) -> list[str]:
    """What is left out at settings that were not picked: generated answers, and all that needs them."""
    return ["--no-generate"] if name != "picked" else []


def evaluate(options: argparse.Namespace, model: Path, split: str, name: str, *flags: str) -> dict[str, Any]:
    """The numbers of a model on a split; its retain-only model is evaluated once."""
    path = options.work / "results" / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    only = options.work / "eval" / RETAIN_ONLY[split]
    where = ["--split", split, "--data", f"{options.data}/tofu", "--quiet"]
    if not (only / "eval_log_aggregated.json").exists():
        words = ["eval", "tofu", "--model", f"{options.models}/{RETAIN_ONLY[split]}", "--output", str(only)]
        uld(*words, *where, threads=options.threads)
    folder = options.work / "eval" / name
    words = ["eval", "tofu", "--model", str(model), "--output", str(folder), "--retain-log", str(only), *flags]
    uld(*words, *where, threads=options.threads)
    from uld.evaluation.tofu_log import read_log
    from uld.evaluation.tofu_result import aggregate

    found = aggregate(read_log(folder), read_log(only)).to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(found))
    return found


def train(options: argparse.Namespace, split: str, seed: int) -> Path:
    output = options.work / "runs" / f"{split}-seed{seed}"
    if not (output / "uld.json").exists():
        where = ["--target", f"{options.models}/tofu-4m-full", "--data", f"{options.data}/tofu"]
        where += ["--augmented", f"{options.data}/tofu_augmented", "--output", str(output), "--quiet"]
        resume = ["--resume"] if (output / "train.yaml").exists() else []
        words = ["train", "--preset", "tofu-4m", *options.set, "--split", split, "--seed", str(seed)]
        uld(*words, *where, *resume, threads=options.threads)
    return output


def cell(options: argparse.Namespace, split: str, seed: int) -> dict[str, Any]:
    """Train, tune and evaluate one run."""
    run = train(options, split, seed)
    tuned = options.work / "tuned" / f"{split}-seed{seed}"
    if not (tuned / "tune.json").exists():
        shutil.rmtree(tuned, ignore_errors=True)
        shutil.copytree(run, tuned, ignore=shutil.ignore_patterns("epochs", "checkpoints"))
        uld("tune", str(tuned), "--aim", "steady", threads=options.threads)
    choice = json.loads((tuned / "tune.json").read_text())
    target = evaluate(options, options.models / "tofu-4m-full", split, f"target-{split}")
    results = {
        name: {
            **setting,
            "result": evaluate(
                options, run, split, f"{split}-seed{seed}-{name.replace(' × ', '')}", *flags_of(setting), *beside(name)
            ),
        }
        for name, setting in settings_of(choice["point"], options.before).items()
    }
    from uld.evaluation.tofu_log import read_log
    from uld.evaluation.tofu_result import aggregate

    only = aggregate(read_log(options.work / "eval" / RETAIN_ONLY[split])).to_dict()
    about = {
        "split": split,
        "seed": seed,
        "seen": (split, seed) in SEEN,
        "set": options.set,
        "training": json.loads((run / "uld.json").read_text()),
    }
    about["training"] = about["training"]["training"]
    return about | {
        "tuning": {"point": choice["point"], "reason": choice["reason"], "probes": choice["probes"]},
        "target": target,
        "retain_only": only,
        "settings": results,
        "machine": machine(),
        "versions": library_versions(),
    }


def decades(cells: list[dict[str, Any]], name: str) -> str:
    """Mean of log10 F.Q. over runs as a number, and the worst."""
    if name == "before" and not all(name in one["settings"] for one in cells):
        return "–"
    values = [one["settings"].get(name, one["settings"]["picked"])["result"]["forget_quality"] for one in cells]
    mean = 10 ** statistics.fmean(math.log10(max(value, 1e-300)) for value in values)
    return f"{mean:.2g} (worst {min(values):.2g})"


def write(cells: list[dict[str, Any]]) -> None:
    """The table of all finished cells as Markdown."""
    lines = [
        "# What tuning picks on tofu-4m",
        "",
        "Written by `python benchmarks/steady.py`, which says what was trained, tuned and evaluated; the JSON files here hold "
        "every number. Runs in brackets were looked at while the protocol was chosen, so nothing is claimed from them. Re-entry and degenerate answers are those at what was picked ([evaluation](../../evaluation.md)).",
        "",
        "| split | seed | α | margin | floor | F.Q. | at ⅔ α | at 1.5 α | rule before | M.U. (target's) | retain ROUGE-L "
        "(target's) | re-entry (target's, retain-only model's) | degenerate (the same) |",
        f"|{'---|' * 13}",
    ]
    for one in cells:
        settings, target = one["settings"], one["target"]
        picked = settings["picked"]
        result = picked["result"]
        sides = [settings.get(f"α × {factor:.2g}", picked)["result"] for factor in (1 / STEP, STEP)]
        row = [
            f"({one['split']})" if one["seen"] else one["split"],
            str(one["seed"]),
            f"{picked['weight']:g}",
            f"{picked['margin']:g}",
            f"{picked['floor']:.2g}",
        ]
        row += [f"{found['forget_quality']:.2g}" for found in (result, *sides)]
        row.append(f"{settings['before']['result']['forget_quality']:.2g}" if "before" in settings else "–")
        for name in ("model_utility", "retain_rouge_l"):
            row.append(f"{result[name]:.4f} ({target[name]:.4f})")
        reads = [found["reading"] for found in (result, target, one["retain_only"])]
        for name in ("re_entry", "degenerate"):
            own, before, only = ("–" if read[name] is None else f"{read[name]:.1%}" for read in reads)
            row.append(f"{own} ({before}, {only})")
        lines.append(f"| {' | '.join(row)} |")
    lines += [
        "",
        "| split | runs | F.Q. as picked (mean of log10) | at ⅔ α | at 1.5 α | rule before |",
        f"|{'---|' * 6}",
    ]
    for split in RETAIN_ONLY:
        if own := [one for one in cells if one["split"] == split and not one["seen"]]:
            names = ("picked", f"α × {1 / STEP:.2g}", f"α × {STEP:.2g}", "before")
            lines.append(f"| {' | '.join([split, str(len(own)), *(decades(own, name) for name in names)])} |")
    for picture in sorted(OUT.glob("plateau-*.png")):
        run = picture.stem.removeprefix("plateau-").replace("-seed", ", seed ")
        lines += [
            "",
            f"What other settings give on one of these runs, {run} (`python benchmarks/plateau.py`; nothing was chosen by it):",
        ]
        lines += ["", f"![F.Q. and M.U. against α and margin]({picture.name})"]
    (OUT / "README.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "steady")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cells", nargs="*", default=[f"{split}:{seed}" for split, seed in CELLS], help="SPLIT:SEED")
    parser.add_argument("--set", nargs="*", default=[], help="words for uld train, such as --set=--gate")
    parser.add_argument("--before", action="store_true", help="evaluate the rule without margin and floor as well")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for text in options.cells:
        split, _, seed = text.partition(":")
        path = OUT / f"{split}-seed{seed}.json"
        if not path.exists() or (options.before and "before" not in json.loads(path.read_text())["settings"]):
            path.write_text(dumps(cell(options, split, int(seed)), indent=1) + "\n")
            print(f"finished {text}", flush=True)
    write([json.loads(path.read_text()) for path in sorted(OUT.glob("forget*-seed*.json"))])


if __name__ == "__main__":
    main()
