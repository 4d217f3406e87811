"""Per-sample logs by the hundred, in every format, each with one fault: refused with what is wrong, or read exactly."""

import copy
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uld.evaluation.tofu_log import AUTHORS_KEYS, AUTHORS_NAMES, OPEN_UNLEARNING_NAMES, LogError, TaskLog, read_log

ROWS = 3
NUMBER: tuple[Any, ...] = (-1.0, -math.inf, math.nan, "0.5", True, None, [0.1], {}, {"a": 1.0}, "", 10**400)
COUNT: tuple[Any, ...] = (0, -3, 2.5, "4", False, None, [1], 10**400, math.nan)
SHARE: tuple[Any, ...] = (7, 1.2, -0.1, math.nan, math.inf, "1", True, None, [])
TEXTS: tuple[Any, ...] = (["only", "two"], "abc", [1, 2, 3], ["a", "b", None], None, 3, ["a", "b", "c", "d"])
EACH: tuple[Any, ...] = ([1.0, math.nan], [1.0, "2"], [1.0, True], [1.0, -2.0], [1.0, None], [1.0], [], None, 3.0, "12")
SCORE: tuple[Any, ...] = (-math.inf, math.nan, "0.5", True, None, [0.1], {}, 10**400)
ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")
SHARES = ("extraction_strength", "exact_memorization", "paraphrase_rougeL", "clean")
BAD: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(ATTACKS, SCORE),
    **dict.fromkeys(SHARES, SHARE),
    **dict.fromkeys(("unknown_words", "judged_tokens"), COUNT[1:]),
    "judged_loss": NUMBER,
    "samples": ("abc", [1, 2], ["a", None], None, 3, {"0": "a", "1": "b"}),
    **dict.fromkeys(("avg_loss", "paraphrase_loss", "loss", "paraphrase_loss_sum", "stored_truth_ratio"), NUMBER),
    **dict.fromkeys(("tokens", "paraphrase_tokens"), COUNT),
    **dict.fromkeys(("rouge1", "rougeL", "stored_prob"), SHARE),
    **dict.fromkeys(("wrong_losses", "wrong_loss_sums"), EACH),
    "wrong_tokens": ([3, -1], [3, 0], [3, 2.5], [3, True], [3], "34", None, [3, "4"]),
    "generated": TEXTS,
    "question": (3, None, ["a"], {"a": "b"}),
}
GOOD: dict[str, list[Any]] = {
    "avg_loss": [0.1, 2, math.inf],
    "loss": [0.5, 9.0, math.inf],
    "tokens": [5, 3, 2],
    "generated": [["Who?", "Ada", "Ada B."], ["Où ?", "", "ici"], ["?", "x", "y"]],
    "question": ["Who?", "Où ?", "?"],
    "rouge1": [1.0, 0, 0.5],
    "rougeL": [1, 0.25, 0.0],
    "wrong_losses": [[2.0, 4.0], [1, 1.5], [0.0, math.inf]],
    "paraphrase_loss": [1.0, 2.0, 0.0],
    "paraphrase_loss_sum": [4.0, 8.0, 0.0],
    "wrong_loss_sums": [[4.0, 8.0], [1.0, 3.0], [0.0, 9.0]],
    "paraphrase_tokens": [4, 4, 1],
    "wrong_tokens": [[2, 2], [1, 2], [3, 3]],
    "stored_prob": [0.9, 0.0, 1.0],
    "stored_truth_ratio": [0.0, 1.0, 3.5],
    **{name: [-0.5, 2, math.inf] for name in ATTACKS},
    **{name: [0, 0.25, 1.0] for name in SHARES},
    "unknown_words": [0, 3, 1],
    "judged_loss": [0.0, 4.5, math.inf],
    "judged_tokens": [0, 3, 9],
    "samples": [["Ada", ""], ["là", "ici"], ["x", "y"]],
}
EXPECTED = TaskLog(keys=["0", "1", "2"], **GOOD)  # type: ignore[arg-type]


def authors(columns: dict[str, list[Any]], task: str, *, lists: bool) -> dict[str, Any]:
    """A log in the format of TOFU's authors, or of its earlier version with lists."""
    own = {
        AUTHORS_KEYS[name]: values if lists else {str(row): value for row, value in enumerate(values)}
        for name, values in columns.items()
    }
    return {AUTHORS_NAMES[task]: own | {"truth_ratio": "derived, and never read"}}


def open_unlearning(columns: dict[str, list[Any]], task: str) -> dict[str, Any]:
    """A log in open-unlearning's format, of a task with paraphrases."""
    prefix = OPEN_UNLEARNING_NAMES[task]
    ratio = "forget_truth_ratio" if task == "forget" else f"{prefix}_Truth_Ratio"
    sections: dict[str, dict[str, str]] = {
        f"{prefix}_Q_A_Prob": {"avg_loss": "avg_loss", "prob": "stored_prob"},
        f"{prefix}_Q_A_PARA_Prob": {"avg_loss": "paraphrase_loss"},
        f"{prefix}_Q_A_PERT_Prob": {"avg_loss": "wrong_losses"},
        f"{prefix}_Q_A_ROUGE": {"rouge1_recall": "rouge1", "rougeL_recall": "rougeL"},
        ratio: {"score": "stored_truth_ratio"},
    }
    made: dict[str, Any] = {}
    for section, keys in sections.items():
        rows = {}
        for row in range(len(columns["avg_loss"])):
            rows[str(row)] = {theirs: columns[ours][row] for theirs, ours in keys.items()}
            if section.endswith("ROUGE"):
                texts = zip(("input", "generation", "ground_truth"), columns["generated"][row], strict=True)
                rows[str(row)] |= dict(texts)
        made[section] = {"agg_value": 0.5, "value_by_index": rows}
    return made


def wrong_values() -> Iterator[tuple[dict[str, list[Any]], str, int]]:
    """The good columns with one value replaced: columns, the column's name and the row."""
    for name, values in BAD.items():
        for number, value in enumerate(values):
            row = number % ROWS
            columns = copy.deepcopy(GOOD)
            columns[name][row] = value
            yield columns, name, row


def files() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Logs with one fault: a name for messages, the text, and words that must be said."""
    for number, (columns, name, row) in enumerate(wrong_values()):
        task = list(AUTHORS_NAMES)[number % 4]
        for lists in (False, True):
            words = (f"task {task!r}", repr(name), *((f"row '{row}'",) if not name.startswith("wrong") else ()))
            yield f"{name} lists={lists}", json.dumps(authors(columns, task, lists=lists)), words
        if name in ("avg_loss", "paraphrase_loss", "wrong_losses", "rouge1", "rougeL", "stored_prob"):
            fictional = ("forget", "retain")[number % 2]
            yield f"{name} open", json.dumps(open_unlearning(columns, fictional)), (f"task {fictional!r}", repr(name))
    for lists in (False, True):
        good = authors(GOOD, "forget", lists=lists)
        section = good["eval_log_forget.json"]
        for name in GOOD:
            theirs = AUTHORS_KEYS[name]
            for what, changed in (
                ("a row less", section[theirs][:-1] if lists else dict(list(section[theirs].items())[:-1])),
                ("a row more", [*section[theirs], 1] if lists else section[theirs] | {"9": 1}),
                ("the other kind", dict(enumerate(section[theirs])) if lists else list(section[theirs].values())),
                ("empty", [] if lists else {}),
                ("a number", 3),
                ("a text", "abc"),
                ("null", None),
            ):
                text = json.dumps({"eval_log_forget.json": section | {theirs: changed}})
                words = ("task 'forget'", *((repr(theirs),) if name != "avg_loss" else ()))
                yield f"{name} {what}", text, words
            if name in ("avg_loss", "paraphrase_loss", "wrong_losses"):
                left = {key: value for key, value in section.items() if key != theirs}
                yield f"{name} missing", json.dumps({"eval_log_forget.json": left}), (repr(theirs), "is missing")
    for value in (3, "x", [1], True):
        whole = authors(GOOD, "retain", lists=False) | {"eval_log_forget.json": value}
        yield f"a task that is {value!r}", json.dumps(whole), ("task 'forget'",)
    content = open_unlearning(GOOD, "forget")
    for section in content:
        if section != "forget_Q_A_Prob":
            for value in (
                {},
                [],
                3,
                None,
                {"value_by_index": []},
                {"value_by_index": {}},
                {"value_by_index": {"0": None}},
            ):
                yield f"{section} {value}", json.dumps(content | {section: value}), ("task 'forget'", "evaluate")
    text = json.dumps(authors(GOOD, "forget", lists=False))
    yield "a row twice", text.replace('"1": 0.25', '"0": 0.25'), ("'0' stands there twice",)
    yield "a column twice", text.replace('"gt_loss"', '"avg_gt_loss"'), ("'avg_gt_loss' stands there twice",)
    for end in range(1, len(text), len(text) // 25):
        yield f"cut at {end}", text[:end], ("is not valid JSON",)
    for broken in ("[" * 100_000, '{"a":' * 100_000):
        yield "deep", broken, ("too deep",)
    for other in ("[1, 2]", "3", "null", '"x"', "{}", '{"alpha": 1}', '{"eval_log_forget.json": null}'):
        yield other, other, ("is no TOFU log",)
    yield "digits", '{"eval_log_forget.json": {"avg_gt_loss": {"0": ' + "9" * 6000 + "}}}", ("is not valid JSON",)


def test_every_log_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    counts: Counter[str] = Counter()
    for what, text, words in files():
        path.write_text(text)
        try:
            read_log(path)
        except LogError as error:
            said = str(error)
            assert said.startswith(str(path)) and "\n" not in said, (what, said)
            assert all(word in said for word in words), (what, words, said)
            counts[what.rpartition(" ")[2] if "=" in what or "open" in what else "whole files"] += 1
        else:
            raise AssertionError(f"accepted: {what}")
    print(dict(counts))
    assert counts.total() >= 300 and min(counts["lists=True"], counts["lists=False"]) >= 80


@pytest.mark.parametrize("task", AUTHORS_NAMES)
@pytest.mark.parametrize("lists", [False, True])
def test_lists_and_mappings_are_read_to_the_same(tmp_path: Path, task: str, lists: bool) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(authors(GOOD, task, lists=lists)))
    assert dict(read_log(path)) == {task: EXPECTED}


def test_the_order_of_rows_does_not_matter_in_mappings(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    content = authors(GOOD, "forget", lists=False)
    section = content["eval_log_forget.json"]
    for name, values in section.items():
        if isinstance(values, dict) and name != "avg_gt_loss":
            section[name] = dict(reversed(values.items()))
    path.write_text(json.dumps(content))
    assert read_log(path)["forget"] == EXPECTED


def test_a_loss_that_rounding_brought_below_0_is_none_that_is_wrong() -> None:
    given: dict[str, Any] = {"keys": ["0"], "paraphrase_loss": [0.0], "wrong_losses": [[1.0]]}
    assert TaskLog(avg_loss=[-1e-7], **given).avg_loss == [-1e-7]
    with pytest.raises(LogError, match=r"'avg_loss' must be at least 0, not -0\.01 "):
        TaskLog(avg_loss=[-0.01], **given)
