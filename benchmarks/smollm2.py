"""What `uld tune` picks on a pretrained model, and what it is worth: SmolLM2-135M that learnt TOFU-60, forget10.

Each run is trained with the settings below, which were fixed before any of its cells was scored, tuned on rows of the training
side alone (no benchmark's row, no retain-only model), and evaluated at what was picked, with generated answers and membership
attacks (non-members: TOFU's rows 800–3599); then one grid of α, margin at the picked floor without generated answers, from which
nothing is chosen. *names* trains on rows about other names as well (``other_names.py``). What is finished is kept in ``--work``.

    python benchmarks/smollm2.py --data DATA --models MODELS --work runs/smollm2 --cells base:10 names:10

MODELS holds ``smol/target`` and ``smol/retain90``.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import ROOT, arguments, machine, uld

from uld.runs.machine import library_versions
from uld.text.json_text import dumps

OUT = ROOT / "docs" / "results" / "smollm2"
SPLIT, RETAIN_ROWS = "forget10", 320
SETTINGS = """--gate --num-layers 8 --lora-rank 32 --lora-alpha 64 --learning-rate 2e-3 --retain-weight 2 --batch-size 16
--max-length 256 --dtype fp32 --rule suppress"""
EPOCHS = {"base": 5, "names": 4}  # about as many steps: 725 and 752
STEP = 1.5
BUDGETS = "0.01,0.02,0.05,0.1,0.2,0.4,0.8"
"""Shares of held-out retain answers' probability that may be lost: the first that any setting keeps."""
MARGINS = (3.0, 5.0, 7.0)


def where(options: argparse.Namespace) -> list[str]:
    return ["--split", SPLIT, "--data", f"{options.data}/tofu60", "--quiet"]


def train(options: argparse.Namespace, variant: str, seed: int) -> Path:
    output = options.work / "runs" / f"{variant}-seed{seed}"
    if not (output / "uld.json").exists():
        words = ["train", "--target", f"{options.models}/smol/target", "--augmented", f"{options.data}/tofu_augmented"]
        words += [
            *SETTINGS.split(),
            "--retain-rows",
            str(RETAIN_ROWS),
            "--epochs",
            str(EPOCHS[variant]),
            "--seed",
            str(seed),
        ]
        if variant == "names":
            words += ["--retain", str(names(options, seed))]
        resume = ["--resume"] if (output / "train.yaml").exists() else []
        uld(*words, *where(options), "--output", str(output), *resume, threads=options.threads)
    return output


def names(options: argparse.Namespace, seed: int) -> Path:
    path = options.work / f"names-seed{seed}.jsonl"
    if not path.exists():
        script = Path(__file__).with_name("other_names.py")
        words = ["--split", SPLIT, "--data", f"{options.data}/tofu60", "--retain-rows", str(RETAIN_ROWS)]
        done = subprocess.run(
            [sys.executable, str(script), *words, "--seed", str(seed)], stdout=subprocess.PIPE, text=True, check=True
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(done.stdout)
    return path


def strangers(options: argparse.Namespace) -> Path:
    """Rows that neither model was trained on: every seventh of TOFU's rows 800 to 3599."""
    path = options.work / "non_members.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = (options.data / "tofu" / "full.json").read_text().splitlines()
        path.write_text("\n".join(rows[800:3600:7]) + "\n")
    return path


def log_of(options: argparse.Namespace, model: Path | str, name: str, *flags: str) -> Path:
    """The log of a model's evaluation with generated answers."""
    folder = options.work / "eval" / name
    if not (folder / "eval_log_aggregated.json").exists():
        words = ["eval", "tofu", "--model", str(model), "--output", str(folder), "--dtype", "fp32"]
        words += ["--non-members", str(strangers(options)), *flags]
        uld(*words, *where(options), threads=options.threads)
    return folder


def cell(options: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Train, tune and evaluate one run."""
    from uld.evaluation.tofu_log import read_log
    from uld.evaluation.tofu_result import aggregate

    run = train(options, variant, seed)
    tuned = options.work / "tuned" / run.name
    if not (tuned / "tune.json").exists():
        shutil.rmtree(tuned, ignore_errors=True)
        shutil.copytree(run, tuned, ignore=shutil.ignore_patterns("epochs", "checkpoints"))
        uld("tune", str(tuned), "--aim", "steady", "--budget", BUDGETS, "--dtype", "fp32", threads=options.threads)
    choice = json.loads((tuned / "tune.json").read_text())
    point = choice["point"]
    only = read_log(log_of(options, options.models / "smol" / "retain90", "retain-only"))
    target = read_log(log_of(options, options.models / "smol" / "target", "target")) if options.target else None
    picked = read_log(log_of(options, tuned, run.name))
    return {
        "variant": variant,
        "seed": seed,
        "training": json.loads((run / "uld.json").read_text())["training"],
        "tuning": {"point": point, "reason": choice["reason"], "probes": choice["probes"]},
        "retain_only": aggregate(only, only, target).to_dict(),
        "target": aggregate(target, only, target).to_dict() if target is not None else None,
        "picked": aggregate(picked, only, target).to_dict(),
        "grid": grid(options, tuned, point),
        "machine": machine(),
        "versions": library_versions(),
    }


def grid(options: argparse.Namespace, tuned: Path, point: dict[str, float]) -> list[dict[str, Any]]:
    """The run under other margins and α, from one pass without generated answers."""
    folder = options.work / "grid" / tuned.name
    path = folder / "grid" / "grid.json"
    if not path.exists():
        alpha = point["weight"]
        weights = sorted({3.0, alpha, *([alpha / STEP, alpha * STEP] if math.isfinite(alpha) else [])})
        flags = ["--margin", ",".join(f"{one:g}" for one in sorted({*MARGINS, point["margin"]}))]
        flags += ["--weight", ",".join(f"{one:g}" for one in weights), "--floor", f"{point['floor']:g}"]
        words = ["eval", "tofu", "--model", str(tuned), "--output", str(folder), "--no-generate", "--dtype", "fp32"]
        words += ["--retain-log", str(options.work / "eval" / "retain-only"), *flags]
        uld(*words, *where(options), threads=options.threads)
    return json.loads(path.read_text())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-target", dest="target", action="store_false", help="leave out the target's own numbers")
    parser.add_argument("--cells", nargs="*", default=["base:10", "names:10"], help="VARIANT:SEED")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for text in options.cells:
        variant, _, seed = text.partition(":")
        path = OUT / f"{variant}-seed{seed}.json"
        if not path.exists():
            path.write_text(dumps(cell(options, variant, int(seed)), indent=1) + "\n")
            print(f"finished {text}", flush=True)


if __name__ == "__main__":
    main()
