"""What the paper printed for Llama-2-7B-chat on TOFU, to stand beside numbers of another model (arXiv 2406.08607)."""

import re
from collections.abc import Mapping
from typing import Literal

MODEL = "Llama-2-7B, the paper"
URL = "https://arxiv.org/abs/2406.08607"
METRICS = ("forget_quality", "forget_rouge_l", "model_utility", "retain_rouge_l")
TableName = Literal["table2", "table4", "table8", "table9"]
SPLITS = ("forget01", "forget05", "forget10")

# Table 2, a row a method: F.Q., forget ROUGE-L (%), M.U., retain ROUGE-L (%) of forget01, forget05 and forget10. Every
# one of these rows is the epoch with the best forget quality.
_TABLE2 = """
target         1e-3 95.2 .62 98.2   3e-16 97.3 .62 98.2   2e-19 98.6 .62 98.2
retain-only    1    37.6 .62 98.5   1     39.3 .62 98.1   1     39.8 .62 98.2
ga             .40  34.4 .52 59.6   .05   24.4 .37 31.3   8e-10 0    0   0
ga+gd          .27  30.5 .53 58.9   .11   19.5 .33 28.9   9e-3  19.6 .17 23.9
ga+kl          .40  35.2 .53 59.9   .14   20.3 .35 29.2   2e-4  12.1 .05 18.6
dpo            .27  4.1  .58 55.2   1e-4  1.1  .02 .89    5e-7  .7   0   .72
dpo+gd         .25  4.1  .58 56.5   1e-7  1.2  .02 .84    8e-10 .8   0   .89
dpo+kl         .26  4.2  .58 55.6   4e-5  1.1  .03 .93    5e-8  .7   .03 .81
npo            .66  39.2 .52 62.8   .68   15.9 .19 24.6   .09   15.2 .26 15.3
npo+gd         .58  34.5 .57 63.1   .46   24.7 .44 36.5   .29   25.7 .53 41.1
npo+kl         .52  33.7 .54 58.7   .44   24.2 .48 40.2   .07   18.1 .32 22.9
offset-ga+kl   .27  44.7 .52 45.8   1e-4  1.2  0   0      2e-6  3.1  .04 2.9
offset-dpo+kl  .13  3.8  .12 19.1   2e-8  0    0   0      3e-9  1.3  .02 1.4
offset-npo+kl  .41  31.4 .43 34.5   5e-10 37.3 .59 40.9   4e-5  34.2 .48 34.8
uld            .99  40.7 .62 98.3   .73   41.2 .62 93.4   .52   42.6 .62 85.9
"""
# Tables 4 and 9 are about ULD on forget10; Table 9 prints F.Q. and M.U. alone.
_TABLE4 = {
    "no D'f, no D'r": (1e-7, 13.7, 0.53, 34.1),
    "no D'f": (1e-9, 43.8, 0.63, 84.1),
    "no D'r": (0.51, 12.7, 0.55, 72.3),
    "": (0.52, 42.4, 0.62, 86.4),
}
_TABLE9 = {
    "retain 0 %": (0.22, 0.61),
    "retain 25 %": (0.34, 0.62),
    "retain 50 %": (0.45, 0.62),
    "retain 75 %": (0.39, 0.62),
    "": (0.52, 0.62),
}
_ROWS = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in _TABLE2.split("\n") if line}
METHODS = tuple(name for name in _ROWS if name not in ("target", "retain-only", "uld"))
"""The paper's baselines in its order."""


def paper_numbers(table: str, method: str, variant: str, split: str) -> Mapping[str, float]:
    """What a table of the paper says in one row.

    Args:
        table: ``table2``, ``table4``, ``table8`` or ``table9``.
        method: Registered name, ``target`` or ``retain-only``.
        variant: Name of an ablation; empty for none. Blanks, case and the kind of apostrophe do not matter.
        split: Forget split.

    Returns:
        Printed numbers by metric, ROUGE-L as a share; empty where the paper has no such row.
    """
    wanted = spelling(variant)
    if table == "table2" and not wanted and method in _ROWS and split in SPLITS:
        start = 4 * SPLITS.index(split)
        return _named(METRICS, _ROWS[method][start : start + 4])
    if method == "uld" and split == "forget10":
        for name, values in (_TABLE4 if table == "table4" else _TABLE9 if table == "table9" else {}).items():
            if spelling(name) == wanted:
                return _named(METRICS if table == "table4" else ("forget_quality", "model_utility"), values)
    return {}


def ablation_order(variant: str) -> int:
    """Where the paper has a variant: from everything left out to nothing left out; unknown ones come between."""
    known = [spelling(name) for name in (*list(_TABLE4)[:-1], *list(_TABLE9)[:-1])]
    wanted = spelling(variant)
    return known.index(wanted) if wanted in known else len(known) + (wanted == "")


def spelling(variant: str) -> str:
    """A variant's name without what people spell differently: blanks, case, apostrophes."""
    return re.sub(r"[’′`]", "'", re.sub(r"\s+", "", variant)).casefold()


def _named(metrics: tuple[str, ...], values: "tuple[float, ...] | list[float]") -> dict[str, float]:
    """Values by metric, percentages as shares."""
    return {
        name: value / 100 if name.endswith("rouge_l") else value for name, value in zip(metrics, values, strict=True)
    }
