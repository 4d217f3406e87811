"""All numbers of a comparison as one CSV file: a line for every cell and metric, and for every epoch and metric."""

import csv
import io
from typing import Any

from uld.report.cells import Folder, Identity

COLUMNS = (
    *("name", "role", "method", "label", "variant", "tables", "split", "seed", "digest"),
    *("epoch", "metric", "value", "problem"),
)
_EPOCH = ("forget_quality", "utility_without_rouge", "forget_loss", "held_out_loss")


def tidy(folder: Folder) -> str:
    """Write the CSV.

    Returns:
        Text with the head `COLUMNS`. ``epoch`` is empty for the result (last epoch) and for facts of the training
        (``training_…``); a failed or missing cell has one line without a metric that says why; ``timing.json`` gives
        lines with the role ``timing``. Numbers are exact: reading one back gives the same float.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for cell in folder.cells:
        head = _head(cell) | {"digest": cell.digest}
        if cell.failure is not None:
            writer.writerow(head | {"problem": cell.failure})
        facts = cell.training.model_dump() if cell.training else {}
        found = cell.result.numbers() if cell.result is not None else {}
        values: list[tuple[Any, str, Any]] = [("", name, value) for name, value in found.items()]
        values += [("", f"training_{name}", value) for name, value in facts.items()]
        values += [(epoch.epoch, name, getattr(epoch, name)) for epoch in cell.epochs for name in _EPOCH]
        for epoch, metric, value in values:
            if isinstance(value, int | float) and not isinstance(value, bool):
                writer.writerow(head | {"epoch": epoch, "metric": metric, "value": repr(value)})
    for one in folder.missing:
        writer.writerow(_head(one) | {"problem": "missing: it has not been run yet"})
    for method, seconds in (folder.timing.seconds_per_epoch if folder.timing else {}).items():
        row = {"role": "timing", "method": method, "metric": "seconds_per_epoch", "value": repr(seconds)}
        writer.writerow(row)
    return text.getvalue()


def _head(one: Identity) -> dict[str, Any]:
    return {
        "name": one.name,
        "role": one.role,
        "method": one.method or "",
        "label": one.label or "",
        "variant": one.variant,
        "tables": " ".join(one.group),
        "split": one.split,
        "seed": one.seed,
    }
