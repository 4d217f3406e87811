"""Seconds an epoch of every method takes, on the rows that it is trained on (Figure 5 of the paper).

A few steps of each method's own epoch on TOFU forget10 are measured in turn, in one process, and scaled to the number of
steps of its epoch. `uld report` takes the file as ``timing.json``.

    python benchmarks/epochs.py --output docs/results/tofu-4m/timing.json
"""

import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from common import ROOT, arguments, machine

from uld.compare.grid import config, families, read_grid, specs
from uld.data.collate import FORGET, Collator, epoch_plan
from uld.methods.registry import get_method
from uld.training.inputs import read_inputs
from uld.training.learners import make_learner
from uld.training.objective import Objective, frozen_log_likelihoods, terms_of

SPLIT = "forget10"
REPEATS, STEPS = 5, 2


def stepper(settings: Any) -> tuple[int, int, Any]:
    """Steps and rows of an epoch, and a function that takes `STEPS` steps and gives the seconds of one."""
    method = get_method(settings.method)
    options = method.read_options(settings.option)
    inputs = read_inputs(settings, method)
    learner = make_learner(settings, method, options, "auto")
    pad = int(inputs.tokenizer.pad_token_id or 0)  # type: ignore[arg-type]
    rows = inputs.rows
    if any(loss.reference for loss in method.losses):
        forget = [row for row in rows.rows if row.kind == FORGET]
        others = [row.alternative for row in forget if row.alternative is not None]
        rows.set_references(
            frozen_log_likelihoods(learner, [row.encoded for row in forget], pad),
            frozen_log_likelihoods(learner, others, pad) if others else None,
        )
    objective = Objective(learner, terms_of(method, options)).train()
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-6, fused=True)
    kinds, lengths = [row.kind for row in rows.rows], [len(row.encoded.ids) for row in rows.rows]
    plan = epoch_plan(kinds, lengths, settings.batch_size, 0)
    collate, draw = Collator(pad), random.Random(0)
    sample = [collate([rows[i] for i in plan[k]]) for k in draw.sample(range(len(plan) - 1), STEPS)]

    def run() -> float:
        began = time.perf_counter()
        for batch in sample:
            sums = objective(**batch)
            (sums / 1000).sum().backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return (time.perf_counter() - began) / STEPS

    return len(plan), len(kinds), run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--grid", default="tofu-4m")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "tofu-4m" / "timing.json")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    retain = {f"forget{n}": f"{options.models}/tofu-4m-retain{100 - int(n)}" for n in ("01", "05", "10")}
    places = {"target": f"{options.models}/tofu-4m-full", "retain_only": retain}
    places |= {"data": f"{options.data}/tofu", "augmented": f"{options.data}/tofu_augmented"}
    grid = read_grid(options.grid, places)
    cells = specs(grid, dict.fromkeys(families(grid), 1e-4))
    first = {s.method: s for s in cells if s.method and s.split == SPLIT and not s.variant}
    steppers = {str(name): stepper(config(spec, grid, "")) for name, spec in first.items()}
    for _, _, run in steppers.values():
        run()  # kernels are built
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(REPEATS):
        for name, (steps, _, run) in steppers.items():
            seconds[name].append(run() * steps)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    rows = {name: count for name, (_, count, _) in steppers.items()}
    found = {"machine": machine(), "split": SPLIT, "seconds_per_epoch": middle, "rows_per_epoch": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    for name, value in sorted(middle.items(), key=lambda pair: pair[1]):
        ratios = [a / b for a, b in zip(seconds[name], seconds["uld"], strict=True)]
        same = statistics.median(ratios) * rows["uld"] / rows[name]
        print(
            f"{name:16} {value:7.1f} s an epoch of {rows[name]} rows: {statistics.median(ratios):5.2f} "
            f"({min(ratios):.2f}–{max(ratios):.2f}) times ULD's, {same:5.2f} times on as many rows"
        )


if __name__ == "__main__":
    main()
