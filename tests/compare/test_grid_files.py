"""Grid files by the hundred, each with one fault somewhere: refused with the line and the name, or read exactly."""

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from uld.compare.grid import Grid, read_grid
from uld.errors import ConfigError, ULDError
from uld.training.config import TrainConfig

GOOD: dict[str, Any] = {
    "target": "MODEL",
    "retain_only": {"forget10": "R90", "forget01": "R99"},
    "data": "DATA",
    "settings": {"max_length": 64, "dtype": "fp32"},
    "methods": {"npo+kl": {"epochs": 3}, "uld": {"preset": "tofu-4m"}},
    "labels": {"npo+kl": "NPO+KL"},
    "learning_rates": [
        {"candidates": [0.0001, 0.001], "split": "forget01", "seed": 1, "families": {"npo+kl": ["npo", "npo+kl"]}}
    ],
    "notes": {"table2": ["One sentence."]},
    "cells": [
        {"tables": ["table2"], "methods": ["uld", "npo"], "splits": ["forget10"], "seeds": [0], "keep_epochs": True},
        {"tables": [], "methods": ["uld"], "splits": ["forget01"], "seeds": [1], "variant": "v"},
    ],
}
GOOD["cells"][1]["settings"] = {"paraphrases": 0}
Keys = tuple[str | int, ...]
RATES, FIRST, SECOND = ("learning_rates", 0), ("cells", 0), ("cells", 1)


def with_value(keys: Keys, value: Any) -> dict[str, Any]:
    """The good grid with another value in one place."""
    grid = copy.deepcopy(GOOD)
    inside: Any = grid
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = value
    return grid


def renamed(keys: Keys, name: str) -> dict[str, Any]:
    """The good grid with another name for a key, in its place."""
    grid = copy.deepcopy(GOOD)
    inside: Any = grid
    for key in keys[:-1]:
        inside = inside[key]
    items = [(name if key == keys[-1] else key, value) for key, value in inside.items()]
    inside.clear()
    inside.update(items)
    return grid


def line_of(text: str, keys: Keys) -> int:
    """The line of a place in a text, counted from 1, by PyYAML's own nodes."""
    node: Any = yaml.compose(text, Loader=yaml.CSafeLoader)
    line = 0
    for key in keys:
        if isinstance(key, int):
            node = node.value[key]
            line = node.start_mark.line
        else:
            line, node = next((name.start_mark.line, value) for name, value in node.value if name.value == key)
    return line + 1


def slips(name: str) -> list[str]:
    return [name[:-1], name + "x", name[0] + name, name.upper()]


PLACES: tuple[Keys, ...] = (("target",), ("data",), ("retain_only", "forget10"))
NAMES: tuple[Keys, ...] = (
    *((*FIRST, key, 0) for key in ("tables", "methods", "splits")),
    (*FIRST, "methods", 1),
    (*RATES, "split"),
    *((*RATES, "families", "npo+kl", index) for index in (0, 1)),
)
NAMED: tuple[Keys, ...] = (
    *(("retain_only", split) for split in ("forget10", "forget01")),
    *(("methods", name) for name in ("npo+kl", "uld")),
    ("labels", "npo+kl"),
    ("notes", "table2"),
    (*RATES, "families", "npo+kl"),
)
BLOCKS: tuple[Keys, ...] = (("settings",), ("methods", "npo+kl"), (*SECOND, "settings"))
WRONG: dict[Keys, tuple[Any, ...]] = {
    (*FIRST, "seeds", 0): (-1, 2**32, 1.5, "0", True, None, [0], {}, float("nan")),
    (*RATES, "seed"): (-1, 2**32, 0.5, "1", False, [1]),
    (*RATES, "candidates", 0): (0, 1, 2, -1e-4, "fast", "nan", True, None, float("nan"), float("inf"), 10**400, [0.1]),
    (*FIRST, "keep_epochs"): (1, "yes", "true", None, []),
    **{(*FIRST, key): ([], {}, "uld", 3, None) for key in ("methods", "splits", "seeds")},
    ("cells",): ([], {}, "x", None),
    (*RATES, "candidates"): ([], 0.1, "0.1"),
    ("notes", "table2"): ("a text", {}),
    ("notes", "table2", 0): (3, "", ["x"]),
    **{keys: ("", "   ", "a\0b", 3, True, ["x"], {"a": "b"}) for keys in PLACES if keys != ("target",)},
    ("labels", "npo+kl"): ("", 3, ["x"]),
    (*SECOND, "variant"): (3, ["x"]),
    **{keys: (3, ["x"], "x") for keys in BLOCKS},
    ("learning_rates",): ({}, "x", 3),
    ("retain_only",): ([], "R90", 3),
}


def faults() -> Iterator[tuple[dict[str, Any], Keys, str]]:
    """Grids with one fault: the grid, the place of the fault, and a word that must be said."""
    for level in ((), RATES, FIRST, SECOND):
        inside: Any = GOOD
        for key in level:
            inside = inside[key]
        for key in inside:
            for slip in slips(str(key)):
                yield renamed((*level, key), slip), (*level, slip), slip
        yield with_value((*level, "unheard"), 1), (*level, "unheard"), "unheard"
    for keys in NAMES:
        name: Any = GOOD
        for key in keys:
            name = name[key]
        for other in (*slips(name), "nothing-like-it", "", "  ", 3, None, True, ["x"], {"a": "b"}):
            word = (
                other if isinstance(other, str) and other.strip() else str(keys[-2] if keys[-1] != "split" else "split")
            )
            yield with_value(keys, other), keys, word
    for keys in NAMED:
        for other in (*slips(str(keys[-1])), "nothing-like-it"):
            yield renamed(keys, other), (*keys[:-1], other), other
    for keys in BLOCKS:
        for field in dataclasses.fields(TrainConfig)[BLOCKS.index(keys) :: len(BLOCKS)]:
            yield with_value((*keys, field.name + "x"), 1), (*keys, field.name + "x"), f"no setting '{field.name}x'"
        for name in ("target", "output", "data", "split", "seed", "method", "forget", "retain"):
            yield with_value((*keys, name), "x"), (*keys, name), f"{name} is decided by the grid"
        for name, value in (("epochs", 0), ("filter", 2), ("weight", float("nan")), ("template", " ")):
            yield with_value((*keys, name), value), (*keys, name), name
        yield with_value((*keys, "preset"), "tofu-4"), (*keys, "preset"), "there is no preset 'tofu-4'"
    for keys, values in WRONG.items():
        for value in values:
            words = [str(key) for key in keys if isinstance(key, str)]
            yield with_value(keys, value), keys, words[-1]


def test_every_grid_is_refused_where_it_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    counts: Counter[str] = Counter()
    for grid, keys, word in faults():
        text = yaml.dump(grid, Dumper=yaml.CSafeDumper, sort_keys=False)
        path.write_text(text)
        try:
            read_grid(str(path))
        except ULDError as error:
            said = str(error)
            near = {line_of(text, keys[:size]) for size in range(max(1, len(keys) - 1), len(keys) + 1)}
            assert any(said.startswith(f"{path}:{line}: ") for line in near), (keys, word, said)
            assert word in said and "\n" not in said and len(said) < 900, (keys, word, said)
            assert "should" not in said and "required" not in said, said  # pydantic's words, which are not ours
            counts["refused"] += 1
        else:
            raise AssertionError(f"accepted: {keys} {word!r} {text}")
    print(dict(counts))
    assert counts["refused"] >= 300


def test_a_right_grid_is_read_exactly_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    expected = Grid.model_validate(GOOD)
    block = yaml.safe_dump(GOOD, sort_keys=False)
    texts = [
        block,
        yaml.safe_dump(GOOD, sort_keys=True),
        yaml.safe_dump(GOOD, default_flow_style=True, width=10**6),
        f"# a grid\n---\n{block}...\n",
        block.replace("- 0.0001", "- 1e-4").replace("- 0.001", "- '1e-3'"),
        block.replace("data: DATA", "data: &d DATA\naugmented: null"),
        block.replace("- forget10\n", "- &s forget10\n"),
    ]
    for text in texts:
        path.write_text(text)
        assert read_grid(str(path)) == expected
        assert read_grid(str(path), {"target": "OTHER", "data": None}).target == "OTHER"


def test_a_folder_is_no_grid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory \(GRID\)"):
        read_grid(str(tmp_path))


def test_a_method_with_two_rates_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    twice = {"npo+kl": ["npo", "npo+kl"], "ga+kl": ["ga+kl", "npo"]}
    path.write_text(yaml.safe_dump(with_value((*RATES, "families"), twice), sort_keys=False))
    try:
        read_grid(str(path))
    except ULDError as error:
        assert "npo has its rate from npo+kl already" in str(error)
    else:
        raise AssertionError
