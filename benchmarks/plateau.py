"""How forget quality and utility on TOFU change around what `uld tune` picks: α, margin and floor of one run, from one pass.

For seeing how wide the plateau is; nothing is chosen by it.

    python benchmarks/plateau.py --data DATA --models MODELS --run RUN --split forget10 --seed 11 --work runs/plateau
"""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from common import ROOT, arguments, machine, uld
from steady import RETAIN_ONLY

from uld.text.json_text import dumps

OUT = ROOT / "docs" / "results" / "tofu-4m-steady"
WEIGHTS = (3, 5, 10, 13.33, 20, 30, math.inf)
MARGINS = (3, 4, 5, 5.5, 6, 7)
FACTORS = (0.25, 0.5, 1, 2, 4)  # of the floor that was picked
PARTS = [f"{task}_{part}" for task in ("retain", "real_authors", "world_facts") for part in ("prob", "truth_ratio")]


def utility(result: dict[str, Any]) -> float:
    """M.U. of its six parts without ROUGE."""
    return statistics.harmonic_mean([result[name] for name in PARTS])


def figure(rows: list[dict[str, Any]], floors: list[float], path: Path) -> None:
    from matplotlib.figure import Figure

    image = Figure(figsize=(12, 3.6))
    panels = image.subplots(1, 3)
    middle = floors[len(floors) // 2]
    for margin in MARGINS:
        line = [row for row in rows if row["margin"] == margin and row["floor"] == middle]
        line = sorted((row for row in line if math.isfinite(row["weight"])), key=lambda row: row["weight"])
        panels[0].plot(
            [r["weight"] for r in line], [r["forget_quality"] for r in line], marker="o", label=f"margin {margin:g}"
        )
        panels[2].plot([r["weight"] for r in line], [r["utility"] for r in line], marker="o")
    for floor in floors:
        line = [row for row in rows if row["weight"] == 20 and row["floor"] == floor]
        line = sorted(line, key=lambda row: row["margin"])
        panels[1].plot(
            [r["margin"] for r in line], [r["forget_quality"] for r in line], marker="o", label=f"floor {floor:.2g}"
        )
    for panel, title in zip(panels, ("F.Q. at the picked floor", "F.Q. at α = 20", "M.U. without ROUGE"), strict=True):
        panel.set(title=title, xlabel="margin, nats" if panel is panels[1] else "α")
        panel.grid(alpha=0.3)
    for panel in panels[:2]:
        panel.set_yscale("log")
        panel.set_ylim(1e-8, 2)
        panel.axhline(0.05, color="grey", linestyle=":")
        panel.legend(fontsize=7)
    for panel in (panels[0], panels[2]):
        panel.set_xscale("log")
        panel.set_xticks([3, 5, 10, 20, 30], labels=["3", "5", "10", "20", "30"], minor=False)
        panel.minorticks_off()
    image.tight_layout()
    image.savefig(path, dpi=110)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="trained with the preset tofu-4m, and tuned")
    parser.add_argument("--split", choices=RETAIN_ONLY, required=True)
    parser.add_argument("--seed", type=int, required=True, help="of the run, for the names of files")
    parser.add_argument("--retain-log", type=Path, required=True, help="log of the split's retain-only model")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "plateau", help="kept between calls")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    picked = json.loads((options.run / "tune.json").read_text())["point"]
    floors = [float(f"{picked['floor'] * factor:.3g}") for factor in FACTORS]
    name = f"plateau-{options.split}-seed{options.seed}"
    lists = {"weight": WEIGHTS, "margin": MARGINS, "floor": floors}
    grid = [word for key, values in lists.items() for word in (f"--{key}", ",".join(f"{v:g}" for v in values))]
    place = ["--split", options.split, "--data", f"{options.data}/tofu", "--output", str(options.work / name)]
    place += ["--retain-log", str(options.retain_log), "--no-generate", "--quiet"]
    uld("eval", "tofu", "--model", str(options.run), *grid, *place, threads=options.threads)
    found = json.loads((options.work / name / "grid" / "grid.json").read_text())
    rows = [
        {key: one["combination"][key] for key in lists}
        | {"forget_quality": one["result"]["forget_quality"], "forget_prob": one["result"]["forget_prob"]}
        | {"utility": utility(one["result"])}
        for one in found
    ]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(dumps({"picked": picked, "rows": rows, "machine": machine()}, indent=1) + "\n")
    figure(rows, floors, OUT / f"{name}.png")
    middle = [row for row in rows if row["floor"] == floors[len(floors) // 2]]
    for margin in MARGINS:
        line = {row["weight"]: row["forget_quality"] for row in middle if row["margin"] == margin}
        print(f"margin {margin:g}: " + ", ".join(f"α {weight:g}: {line[weight]:.2g}" for weight in sorted(line)))


if __name__ == "__main__":
    main()
