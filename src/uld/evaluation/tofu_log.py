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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uld.evaluation import metrics
from uld.evaluation.log_values import LogError, once
from uld.evaluation.task_log import AUTHORS_NAMES, MIA, REQUIRED, TaskLog, TofuLog
from uld.runs.files import write_text
from uld.text.json_text import dumps

FILE_NAME = "eval_log_aggregated.json"
"""What a log is called in a folder when its format is the one of TOFU's authors."""

OPEN_UNLEARNING_NAMES = {"retain": "retain", "real_authors": "ra", "world_facts": "wf", "forget": "forget"}

_READ = ("paraphrase_rougeL", "question", "unknown_words", "clean", "judged_loss", "judged_tokens", "samples")
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
    **{name: name for name in ("extraction_strength", "exact_memorization", *MIA)},
    **{name: name for name in _READ},
}
"""Fields of `TaskLog` and their names in the authors' format; those from `stored_prob` on are not the authors' own."""

NON_MEMBERS = "eval_log_non_members.json"
"""Section of scores of answers that the model was not trained on, in the authors' format."""


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
    try:
        return TofuLog(tasks, str(file), _non_members(content, _is_authors(content)))
    except (LogError, KeyError, TypeError, AttributeError, ValueError) as error:
        why = f": {error}" if isinstance(error, LogError) else " do not hold a score of every attack: evaluate again."
        raise LogError(f"{file}: the non-members{why}") from error


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
    if log.non_members is not None:
        content[NON_MEMBERS] = {name: {str(i): one for i, one in enumerate(v)} for name, v in log.non_members.items()}
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
        return json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
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
    further = {
        "extraction_strength": ("extraction_strength", "score"),
        "exact_memorization": ("exact_memorization", "score"),
        "paraphrase_rougeL": ("forget_Q_A_PARA_ROUGE", "rougeL_recall"),
        "clean": ("forget_Q_A_gibberish", "score"),
    }
    if not any(section in content for section, _ in sources.values()):
        return None
    columns = {}
    for ours, (section, key) in (sources | (further if name == "forget" else {})).items():
        if section in content:
            try:
                rows = content[section]["value_by_index"]
                pick = (lambda row, k=key: row[k]) if isinstance(key, str) else (lambda row, k=key: [row[x] for x in k])
                columns[ours] = {index: pick(row) for index, row in rows.items()}
            except (KeyError, TypeError, AttributeError):
                raise LogError(f"Section {section!r} lacks {key!r} of some row; evaluate again.") from None
    for attack in MIA if name == "forget" else ():
        if _measured(content.get(attack)):
            columns[attack] = _scores(content[attack]["forget"])
    for ours in {*further, *MIA} & columns.keys():
        if None in columns[ours].values():  # open-unlearning found no tokens to score: it leaves such rows out
            del columns[ours]
    names = {ours: section for ours, (section, _) in (sources | further).items()} | {one: one for one in MIA}
    return _task(columns, names)


def _measured(attack: Any) -> bool:
    """Whether a section of an open-unlearning log is an attack on members and non-members, row by row."""
    return isinstance(attack, dict) and {"forget", "holdout"} <= attack.keys()


def _scores(side: dict[str, Any]) -> dict[str, Any]:
    """Scores by row of one side of an attack in open-unlearning's format."""
    try:
        return {index: row["score"] for index, row in side["value_by_index"].items()}
    except (KeyError, TypeError, AttributeError):
        raise LogError("An attack lacks the score of some row; evaluate again.") from None


def _non_members(content: dict[str, Any], authors: bool) -> dict[str, list[float]] | None:
    """Scores of the non-members by attack, if there are any."""
    if authors:
        found = content.get(NON_MEMBERS)
        return None if found is None else {name: list(found[name].values()) for name in MIA}
    if not all(_measured(content.get(name)) for name in MIA):
        return None
    found = {name: list(_scores(content[name]["holdout"]).values()) for name in MIA}
    return None if any(None in values for values in found.values()) else found


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
