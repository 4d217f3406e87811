"""Per-sample logs of a TOFU evaluation: what a model scored on every row, from which all aggregates follow.

Two formats are read, told apart by their content: the one of TOFU's authors (`eval_log_aggregated.json`, arXiv
2401.06121) and open-unlearning's (`TOFU_EVAL.json`, arXiv 2506.12618). The authors' format is written.

The authors' format maps a row's key to its value in every column. The logs in the repositories of ULD and NPO come from
an earlier version of it, whose columns are lists, a value a row from row 0 on: they are read to the same.

Logs hold losses, and scores derived from losses. Derived scores are computed again, with one exception: open-unlearning
rounds its probabilities to fp32 and adds 1e-10 to its denominators, so the scores that its published numbers average
are kept as `stored_prob` and `stored_truth_ratio`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from uld.artifact import write_text
from uld.evaluation import metrics
from uld.evaluation.log_values import LogError, once, plain
from uld.evaluation.rows import dumps

FILE_NAME = "eval_log_aggregated.json"
"""What a log is called in a folder when its format is the one of TOFU's authors."""

AUTHORS_NAMES = {
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
"""Task names, in the authors' order, and what the authors call them."""

OPEN_UNLEARNING_NAMES = {"retain": "retain", "real_authors": "ra", "world_facts": "wf", "forget": "forget"}

AUTHORS_KEYS = {
    "avg_loss": "avg_gt_loss",
    "loss": "gt_loss",
    "tokens": "num_token_gt",
    "generated": "generated_text",
    "rouge1": "rouge1_recall",
    "rougeL": "rougeL_recall",
    "wrong_losses": "average_perturb_loss",
    "paraphrase_loss": "avg_paraphrased_loss",
    "paraphrase_loss_sum": "paraphrased_loss",
    "wrong_loss_sums": "perturb_loss",
    "paraphrase_tokens": "num_token_paraphrased",
    "wrong_tokens": "num_token_perturb",
    "stored_prob": "stored_prob",
    "stored_truth_ratio": "stored_truth_ratio",
}
"""Fields of `TaskLog` and their names in the authors' format; the last two are not the authors' own."""

REQUIRED = ("avg_loss", "paraphrase_loss", "wrong_losses")


@dataclass(frozen=True, kw_only=True)
class TaskLog:
    """One task set: a column per quantity, an entry per row. Optional columns are None as a whole, never in part.

    Losses are in nats; numbers are turned into plain Python ones, so numpy arrays may be passed.

    Raises:
        LogError: if a column is shorter or longer than `keys`, a key repeats, a value is NaN, no number or out of its
            range, or rows differ in their number of wrong answers.
    """

    keys: list[str]
    """The row's index in its data set, as text."""
    avg_loss: list[float]
    """Mean loss per token of the answer."""
    paraphrase_loss: list[float]
    """Mean loss per token of the paraphrased answer (real authors and world facts: of the answer itself)."""
    wrong_losses: list[list[float]]
    """``(rows, wrong)``: mean loss per token of each wrong answer."""
    loss: list[float] | None = None
    """Summed loss of the answer."""
    tokens: list[int] | None = None
    """Tokens of the answer that carry a loss."""
    paraphrase_loss_sum: list[float] | None = None
    paraphrase_tokens: list[int] | None = None
    wrong_loss_sums: list[list[float]] | None = None
    wrong_tokens: list[list[int]] | None = None
    rouge1: list[float] | None = None
    """ROUGE-1 recall of the generated answer, in [0, 1]."""
    rougeL: list[float] | None = None
    """ROUGE-L recall of the generated answer, in [0, 1]."""
    generated: list[tuple[str, str, str]] | None = None
    """``(prompt, generation, truth)`` of each row."""
    stored_prob: list[float] | None = None
    """Probability (real authors and world facts: the normalised one) as the log itself states it."""
    stored_truth_ratio: list[float] | None = None
    """``1 / t`` as the log itself states it."""

    def __post_init__(self) -> None:
        """Turn values into plain numbers and check that the columns fit together."""
        set_field = object.__setattr__
        set_field(self, "keys", [str(key) for key in self.keys])
        if not self.keys:
            raise LogError("A task log needs at least one row.")
        if len(set(self.keys)) != len(self.keys):
            raise LogError("A task log has repeated row keys: give every row its own index.")
        for column in fields(self)[1:]:
            values = getattr(self, column.name)
            if values is None and column.name not in REQUIRED:
                continue
            if values is None or len(values) != len(self.keys):
                count = "no" if values is None else len(values)
                raise LogError(f"Column {column.name!r} has {count} entries for {len(self.keys)} rows: log every row.")
            rows = zip(self.keys, values, strict=True)
            set_field(self, column.name, [plain(column.name, key, value) for key, value in rows])
        counts = {len(row) for row in self.wrong_losses}
        if len(counts) != 1 or 0 in counts:
            raise LogError("Column 'wrong_losses' needs the same number of wrong answers, at least one, in every row.")
        for name in ("wrong_loss_sums", "wrong_tokens"):
            if {len(row) for row in getattr(self, name) or ()} - counts:
                raise LogError(f"Column {name!r} needs as many entries as there are wrong answers in every row.")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)


@dataclass(frozen=True, eq=False)
class TofuLog(Mapping[str, TaskLog]):
    """The evaluation of one model: some or all of `forget`, `retain`, `real_authors`, `world_facts`.

    Equality looks at the tasks alone. `source` is the file it came from, for messages.

    Raises:
        LogError: if a task has another name.
    """

    tasks: dict[str, TaskLog]
    source: str = field(default="this log")

    def __post_init__(self) -> None:
        """Check the names of the tasks."""
        for name in self.tasks:
            if name not in AUTHORS_NAMES:
                raise LogError(f"Unknown TOFU task {name!r}: use {', '.join(sorted(AUTHORS_NAMES))}.")

    def __getitem__(self, name: str) -> TaskLog:
        """Return the task of that name."""
        return self.tasks[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the tasks."""
        return iter(self.tasks)

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.tasks)


def read_log(path: str | os.PathLike[str]) -> TofuLog:
    """Read a per-sample log in either format.

    Args:
        path: the file, or a folder that holds exactly one such file.

    Returns:
        The log, with those of the four tasks that the file holds.

    Raises:
        LogError: if there is no log there, or a task is incomplete.
    """
    file, content = _find(Path(path))
    build = _from_authors if _is_authors(content) else _from_open_unlearning
    tasks = {}
    for name in AUTHORS_NAMES:
        try:
            task = build(content, name)
        except LogError as error:
            raise LogError(f"{file}: task {name!r}: {error}") from error
        if task is not None:
            tasks[name] = task
    return TofuLog(tasks, str(file))


def write_log(log: TofuLog, path: str | os.PathLike[str]) -> Path:
    """Write a log in the format of TOFU's authors, with every derived score that they write; all of it or nothing.

    `truth_ratio` is ``1 / t`` and `normalized_gt_loss` (real authors, world facts) is ``-log(p / (p + Σ p_wrong))``;
    optional columns that the log lacks are left out, and infinities are written as ``1e999``. `read_log` gives back an
    equal log.

    Args:
        log: what to write; non-empty.
        path: the file, or an existing folder, where it becomes `eval_log_aggregated.json`.

    Returns:
        The file written.

    Raises:
        LogError: if the log is empty.
        ArtifactError: the disk is full or the folder cannot be written.
    """
    file = Path(path)
    file = file / FILE_NAME if file.is_dir() else file
    if not log.tasks:
        raise LogError(f"{file}: there is no task to write; evaluate at least one of {', '.join(AUTHORS_NAMES)}.")
    content = {AUTHORS_NAMES[name]: _to_authors(name, log[name]) for name in AUTHORS_NAMES if name in log}
    write_text(file, dumps(content, indent=4))
    return file


def _find(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the one log at the path, and its content."""
    if not path.is_dir():
        content = _load(path)
        if not _is_authors(content) and not _is_open_unlearning(content):
            raise LogError(
                f"{path} is no TOFU log: it has neither 'eval_log_forget.json' nor 'forget_Q_A_Prob' nor another task; "
                f"name a {FILE_NAME} or TOFU_EVAL.json."
            )
        return path, content
    known = [path / name for name in (FILE_NAME, "TOFU_EVAL.json") if (path / name).is_file()]
    if len(known) == 1:
        return _find(known[0])
    found = {}
    for file in sorted(path.glob("*.json")):
        try:
            found[file] = _find(file)[1]
        except LogError:
            continue
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise LogError(f"{path} must hold exactly one TOFU log to be read as a folder (found: {names}); name the file.")
    return next(iter(found.items()))


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=once)
    except FileNotFoundError:
        raise LogError(f"{file} does not exist; name a TOFU log or the folder that holds it.") from None
    except OSError as error:
        raise LogError(f"{file} cannot be read ({error.strerror}); check its permissions.") from error
    except RecursionError:
        raise LogError(f"{file} is no TOFU log: its lists or mappings lie too deep within each other.") from None
    except LogError as error:
        raise LogError(f"{file}: {error}") from error
    except ValueError as error:
        raise LogError(f"{file} is not valid JSON ({error}); it may be cut short, evaluate again.") from error


def _is_authors(content: Any) -> bool:
    return isinstance(content, dict) and any(isinstance(content.get(k), dict) for k in AUTHORS_NAMES.values())


def _is_open_unlearning(content: Any) -> bool:
    return isinstance(content, dict) and any(f"{p}_Q_A_Prob" in content for p in OPEN_UNLEARNING_NAMES.values())


def _from_authors(content: dict[str, Any], name: str) -> TaskLog | None:
    section = content.get(AUTHORS_NAMES[name])
    if section is None:
        return None
    if not isinstance(section, dict):
        raise LogError(f"{AUTHORS_NAMES[name]!r} holds no columns; evaluate this task again.")
    columns = {ours: section[theirs] for ours, theirs in AUTHORS_KEYS.items() if theirs in section}
    return _task(columns, AUTHORS_KEYS)


def _from_open_unlearning(content: dict[str, Any], name: str) -> TaskLog | None:
    prefix = OPEN_UNLEARNING_NAMES[name]
    fictional = name in ("forget", "retain")
    answer, rouge = f"{prefix}_Q_A_Prob", f"{prefix}_Q_A_ROUGE"
    sources = {
        "avg_loss": (answer, "avg_loss"),
        "paraphrase_loss": (f"{prefix}_Q_A_PARA_Prob" if fictional else answer, "avg_loss"),
        "wrong_losses": (f"{prefix}_Q_A_PERT_Prob", "avg_loss"),
        "rouge1": (rouge, "rouge1_recall"),
        "rougeL": (rouge, "rougeL_recall"),
        "generated": (rouge, ("input", "generation", "ground_truth")),
        "stored_prob": (answer if fictional else f"{prefix}_Q_A_Prob_normalised", "prob"),
        "stored_truth_ratio": ("forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio", "score"),
    }
    if not any(section in content for section, _ in sources.values()):
        return None
    columns = {}
    for ours, (section, key) in sources.items():
        if section in content:
            try:
                rows = content[section]["value_by_index"]
                pick = (lambda row, k=key: row[k]) if isinstance(key, str) else (lambda row, k=key: [row[x] for x in k])
                columns[ours] = {index: pick(row) for index, row in rows.items()}
            except (KeyError, TypeError, AttributeError):
                raise LogError(f"Section {section!r} lacks {key!r} of some row; evaluate again.") from None
    return _task(columns, {ours: section for ours, (section, _) in sources.items()})


def _task(columns: dict[str, Any], names: Mapping[str, str]) -> TaskLog:
    """Line the columns up by row: mappings from row key to value, or lists in the order of the rows.

    `names` is what the file calls the columns.
    """
    for ours in REQUIRED:
        if ours not in columns:
            raise LogError(f"{names[ours]!r} is missing; evaluate this task again with all of its metrics.")
    kind = list if isinstance(columns["avg_loss"], list) else dict
    rows: dict[str, dict[str, Any]] = {}
    for ours, values in columns.items():
        if not isinstance(values, kind):
            wanted = "a list of rows" if kind is list else "a mapping from rows to values"
            raise LogError(f"{names[ours]!r} is not {wanted}, as the losses are; evaluate again.")
        rows[ours] = values if isinstance(values, dict) else {str(row): value for row, value in enumerate(values)}
    keys = list(rows["avg_loss"])
    for ours, values in rows.items():
        if values.keys() != set(keys):
            raise LogError(f"{names[ours]!r} does not hold the same {len(keys)} rows as the losses; evaluate again.")
    try:
        return TaskLog(keys=keys, **{ours: [values[key] for key in keys] for ours, values in rows.items()})
    except LogError as error:
        column = next((ours for ours in rows if f"Column {ours!r} " in str(error)), None)
        theirs = f" (The file calls it {names[column]!r}.)" if column is not None and names[column] != column else ""
        raise LogError(f"{error}{theirs}") from error


def _to_authors(name: str, task: TaskLog) -> dict[str, dict[str, Any]]:
    """Return the authors' columns of a task, in their order and with the scores they derive."""
    columns = {}
    for ours, theirs in AUTHORS_KEYS.items():
        values = getattr(task, ours)
        if values is not None:
            columns[theirs] = values
        if ours == "paraphrase_loss":
            with np.errstate(divide="ignore"):
                t = metrics.truth_ratio_statistic(task.paraphrase_loss, task.wrong_losses)
                columns["truth_ratio"] = (1.0 / t).tolist()
    if name in ("real_authors", "world_facts"):
        with np.errstate(divide="ignore"):
            p = metrics.normalised_probability(task.avg_loss, task.wrong_losses)
            columns["normalized_gt_loss"] = (-np.log(p)).tolist()
    return {theirs: dict(zip(task.keys, values, strict=True)) for theirs, values in columns.items()}
