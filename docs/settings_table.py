"""Writes the table of settings in ``docs/training.md`` from `uld.training.config.TrainConfig`.

Run it as ``python docs/settings_table.py``. Names, defaults and texts are the code's own; where a default comes from
stands here.
"""

from pathlib import Path
from typing import Any

from uld.errors import flag
from uld.model.combine import Combination
from uld.training.config import TrainConfig, setting_fields

PAGE = Path(__file__).with_name("training.md")
START, END = "<!-- settings: written by docs/settings_table.py -->\n", "<!-- end of settings -->\n"
PAPER, CODE, OWN, TRANSFORMERS = "paper", "paper's code", "ours", "transformers"
SOURCES = {
    **dict.fromkeys(("paraphrases", "wrong_answers", "retain_rows", "method", "num_layers"), PAPER),
    **dict.fromkeys(("lora_rank", "lora_alpha", "retain_weight", "filter", "epochs", "batch_size"), PAPER),
    **dict.fromkeys(("learning_rate", "weight_decay", "beta1", "beta2"), PAPER),
    **dict.fromkeys(("alternatives", "augment", "keep_epochs", "rounds", "other_names"), OWN),
    "warmup": CODE,
    "max_grad_norm": TRANSFORMERS,
    **dict.fromkeys(("max_length", "lora_dropout", "uniform_on", "dtype", "seed", "save_steps"), OWN),
    "rule": "ours, measured",
    "weight": "ours, measured",
    "min_tokens": "ours, measured",
    "rank_tokens": "DD's paper",
    **dict.fromkeys(("margin", "floor"), "ours, measured"),
    **dict.fromkeys(("outside", "gate", "lora_layers", "remember"), OWN),
}
"""Where a default comes from: the paper, its released code, transformers' Trainer, or this project."""
_WORDS = {
    "weight": "20, with margin and floor; else 1.5",
    "margin": "⅔ log V, with α and floor; else 0",
    "floor": "5e-4, with α and margin; else 0",
    "num_layers": "a quarter, rounded up",
    "lora_layers": "all",
    "retain_rows": "as many as forget rows",
    "lora_rank": "32; a target: none",
}


def default(name: str, value: Any) -> str:
    """A setting's default as it is shown; the combination's are those of `uld.model.combine.Combination`."""
    if name in _WORDS:
        return _WORDS[name]
    if name in Combination.__dataclass_fields__:
        value = getattr(Combination(), name)
    if value in (None, "", ()):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def table() -> str:
    """All settings as Markdown, a heading and a table for each group of ``uld train --help``."""
    groups: dict[str, list[str]] = {}
    for field in setting_fields(TrainConfig):
        text = field.metadata["help"].replace("|", "\\|")
        cells = [f"`{flag(field.name)}`", default(field.name, field.default), SOURCES.get(field.name, "–"), text]
        groups.setdefault(field.metadata["group"], []).append(f"| {' | '.join(cells)} |")
    head = ["| flag | default | from | what |", "|---|---|---|---|"]
    return "\n\n".join("\n".join([f"**{name}**", "", *head, *rows]) for name, rows in groups.items()) + "\n"


if __name__ == "__main__":
    from between_marks import put

    put(table(), PAGE, START, END)
