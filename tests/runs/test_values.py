"""Kinds of values: what is brought to them, what is refused, and that there is one of each."""

import datetime
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import numpy as np
import pytest

from uld.cli.common import ModelOptions
from uld.model.combine import Combination
from uld.runs import values
from uld.runs.manifest import CombinationSettings
from uld.runs.values import PAIRED, OutOfRange, Rule, Within, bounds, brought
from uld.training.config import TrainConfig
from uld.training.settings import kind_of


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, values.Seed, 3),
        (1, values.Share, 1.0),
        ("1e-3", values.Rate, 0.001),
        (np.float64(0.25), values.Share, 0.25),
        (np.float32(0.25), values.Share, 0.25),
        (np.int64(3), values.Seed, 3),
        (math.inf, values.Weight, math.inf),
        (Path("a") / "b", str, "a/b"),
        (datetime.date(2024, 12, 31), str, "2024-12-31"),
        ("a", tuple[str, ...], ("a",)),
        ([Path("a"), "b"], tuple[str, ...], ("a", "b")),
        ("rank", Rule, "rank"),
        (False, bool, False),
    ],
)
def test_a_value_is_brought_to_its_kind(value: Any, kind: Any, expected: Any) -> None:
    found = brought(value, kind)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (-1, values.Seed, "must be at least 0, not -1"),
        (2**32, values.Seed, "must be at most 4,294,967,295, not 4294967296"),
        (1.0, values.BelowOne, "must be at least 0 and less than 1, not 1.0"),
        (0, values.Rate, "must lie between 0 and 1, not 0.0"),
        (1.0, values.Rate, "must lie between 0 and 1, not 1.0"),
        (math.nan, values.Share, "must lie between 0 and 1, not nan"),
        (-math.inf, values.Weight, "must be a finite number, not -inf"),
        (math.inf, Annotated[float, Within(0, 5)], "must be a finite number, not inf"),
    ],
)
def test_a_value_out_of_range_is_told_with_the_range(value: Any, kind: Any, said: str) -> None:
    with pytest.raises(OutOfRange, match=f"^{re.escape(said)}$"):
        brought(value, kind)


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (True, values.Seed, "must be a whole number, not True"),
        (2.0, values.Seed, "must be a whole number, not 2.0"),
        (True, values.Share, "must be a number, not True"),
        (10**400, values.Share, "must be a finite number"),
        (1, bool, "must be true or false, not 1"),
        (b"a", str, "must be a text, not b'a'"),
        (" ", str, "is empty"),
        (["a", " "], tuple[str, ...], "is empty"),
        (["a", 3], tuple[str, ...], "must be a text or a list of texts, not ['a', 3]"),
        ("divide", Rule, f"must be {', '.join(get_args(Rule))}, not 'divide'"),
        (["rank"], Rule, "must be suppress"),
    ],
)
def test_a_value_of_another_type_is_told_what_it_must_be(value: Any, kind: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}") as caught:
        brought(value, kind)
    assert not isinstance(caught.value, OutOfRange)


def test_rules_are_the_same_everywhere() -> None:
    setting = {one.name: kind_of(one) for one in fields(TrainConfig)}
    for name in ("rule", "outside"):
        kinds = [get_type_hints(holder)[name] for holder in (Combination, CombinationSettings)]
        assert kinds == [setting[name]] * 2
    (text,) = get_type_hints(ModelOptions, include_extras=True)["rule"].__metadata__
    assert sorted(re.findall(r"\w+", text.help.partition(": ")[2].replace("of a pair", ""))) == sorted(get_args(Rule))
    assert {rule for rule in get_args(Rule) if Combination(rule=rule).paired} == set(PAIRED)


def test_a_flag_has_the_range_of_its_kind() -> None:
    assert bounds(values.Seed) == {"min": 0, "max": 2**32 - 1}
    (option,) = get_type_hints(ModelOptions, include_extras=True)["rank_tokens"].__metadata__
    assert {"min": option.min, "max": option.max} == bounds(kind_of(TrainConfig.__dataclass_fields__["rank_tokens"]))
