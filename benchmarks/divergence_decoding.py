"""ULD beside the table of Divergence Decoding (arXiv 2605.31293), which prints it from a malformed run.

Their rows are copied from their paper (TOFU forget10, Llama-3.1-8B). Ours are read from what `steady.py` measured on the
four-million-parameter models, with the same formulas (`uld.evaluation.open_unlearning`, truth ratio as correct / (correct + wrong)).
Those models have no non-members, so Priv and Agg, which needs it, are absent.

    python benchmarks/divergence_decoding.py
"""

import json
import statistics
from typing import Any

from common import ROOT

from uld.evaluation.open_unlearning import harmonic_mean

STEADY = ROOT / "docs" / "results" / "tofu-4m-steady"
PAGE = ROOT / "docs" / "results" / "divergence-decoding" / "README.md"
MARKS = ("<!-- tables: written by benchmarks/divergence_decoding.py -->", "<!-- end of tables -->")
SPLIT = "forget10"
THEIRS = {
    "target": (0.02, 0.01, 0.38, 1.00),
    "retain-only model": (0.78, 0.53, 0.98, 1.03),
    "rank DD, k 20": (0.85, 0.80, 0.81, 0.95),
    "linear DD, α 1.5": (0.78, 0.56, 0.95, 1.00),
    "distilled DD": (0.73, 0.51, 0.89, 0.95),
    "NPO": (0.67, 0.57, 0.68, 0.82),
    "RMU": (0.67, 0.60, 0.74, 0.69),
    "ECO": (0.65, 0.69, 0.66, 0.62),
    "UNDIAL": (0.60, 0.57, 0.43, 1.07),
    "SimNPO": (0.59, 0.48, 0.54, 0.90),
    "WHP": (0.56, 0.43, 0.51, 0.94),
    "**ULD, as they ran it**": (0.40, 0.40, 0.39, 0.42),
    "Offset": (0.28, 0.78, 0.69, 0.13),
}
"""Agg, Mem, Priv and Utility of their paper's table."""


def main() -> None:
    runs = [json.loads(path.read_text()) for path in sorted(STEADY.glob(f"{SPLIT}-seed*.json"))]
    runs = [run for run in runs if not run["seen"]]
    target = runs[0]["target"]
    rows = [
        ["target", *cells([target], target)],
        ["retain-only model", *cells([runs[0]["retain_only"]], target)],
        [f"**ULD**, {len(runs)} seeds", *cells([run["settings"]["picked"]["result"] for run in runs], target)],
    ]
    heads = ["", "Mem", "Utility", "fluency", "ES", "EM", "para Prob", "TR", "F.Q.", "re-entry"]
    theirs = [[name, *(f"{one:.2f}" for one in scores)] for name, scores in THEIRS.items()]
    text = "\n".join(
        [
            "## Theirs: Llama-3.1-8B",
            "",
            *table(["", "Agg", "Mem", "Priv", "Utility"], theirs),
            "",
            "## Ours: four million parameters",
            "",
            *table(heads, rows),
        ]
    )
    before, rest = PAGE.read_text().split(MARKS[0])
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
    print(text)


def cells(results: list[dict[str, Any]], target: dict[str, Any]) -> list[str]:
    """Numbers of a model, or means of several runs' with the least and the greatest of Mem and Utility."""
    mem = [one["field"]["scores"]["prob_mean"]["mem"] for one in results]
    useful = [usefulness(one) / usefulness(target) for one in results]
    metrics = ("fluency", "extraction_strength", "exact_memorization", "paraphrase_prob", "truth_ratio_prob_mean")
    shown = [spread(mem), spread(useful)]
    shown += [f"{statistics.mean(one['field']['metrics'][name] for one in results):.3f}" for name in metrics]
    quality = [one["forget_quality"] for one in results]
    shown += ["1" if None in quality else f"{statistics.geometric_mean(quality):.2g}"]
    return [*shown, f"{100 * statistics.mean(one['reading']['re_entry'] for one in results):.0f} %"]


def usefulness(result: dict[str, Any]) -> float:
    """Utility before it is divided by the target's."""
    return harmonic_mean([result["model_utility"], result["field"]["metrics"]["fluency"]])


def spread(values: list[float]) -> str:
    middle = f"{statistics.mean(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f}–{max(values):.2f})"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]


if __name__ == "__main__":
    main()
