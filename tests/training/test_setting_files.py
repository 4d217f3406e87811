"""Settings files by the hundred, made from the fields: each is refused where it is wrong, or read exactly."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from uld.errors import ULDError
from uld.runs.values import Within
from uld.training.config import FinetuneConfig, RunConfig, TrainConfig, finetune_config, read_yaml, train_config
from uld.training.settings import kind_of

READERS: dict[type[RunConfig], Any] = {TrainConfig: train_config, FinetuneConfig: finetune_config}
BEFORE = "# settings\n\noutput: somewhere\n"  # three lines
Case = tuple[str, Any]  # a file, and the settings that it comes to, or (line, word) of what is wrong

NO_NUMBER = ("ten", "[1]", "{a: 1}", "true", "'1 2'", "2026-02-28", "!!binary YQ==", "!!int abc", "1:30")
WRONG: dict[Any, tuple[str, ...]] = {
    int: (*NO_NUMBER, "2.5", "'3'", "010", "-" + "9" * 50, "9" * 50, "9" * 6000, ".nan", ".inf"),
    float: (*NO_NUMBER, ".nan", ".inf", "-.inf", "'nan'", "9" * 400, "9" * 6000, "-1e-3", "1e300"),
    bool: ("1", "'true'", "ja", "[true]", "!!bool maybe", "0.0", "{}", "''"),
    str: ("7", "1.5", "true", "[a]", "{a: 1}", "'  '", '"a\\0b"', '"\\ud800"', "2026-02-30", "!!timestamp x", "!x y"),
    tuple: ("3", "[a, 3]", "{a: 1}", "['']", "'  '", "[[a]]", "[a, null]", "true", "''"),
    Literal: ("nothing-of-the-kind", "3", "true", "''", "[auto]"),
}
RIGHT: dict[Any, tuple[tuple[str, Any], ...]] = {
    int: (("5", 5), ("+5", 5), ("0x5", 5), ("0b101", 5), ("1_0", 10)),
    float: (("0.5", 0.5), ("5e-1", 0.5), ("'0.5'", 0.5), (".5", 0.5), ("5.0e-1", 0.5)),
    bool: (("true", True), ("False", False), ("yes", True), ("off", False)),
    str: (
        ("a b", "a b"),
        ("'7'", "7"),
        ("!!str 7", "7"),
        ("'2026-02-28'", "2026-02-28"),
        ("é: no" and "'é: x'", "é: x"),
    ),
    tuple: (("a", ("a",)), ("[a, 'b']", ("a", "b")), ("\n  - a\n  - b c", ("a", "b c")), ("[]", ())),
}


def kinds(config: type[RunConfig]) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Every field with what it holds: a type, ``Literal`` or ``tuple``."""
    types = get_type_hints(config)
    for field in dataclasses.fields(config):
        options = [one for one in get_args(types[field.name]) if one is not type(None)]
        kind = types[field.name] if get_origin(types[field.name]) or not options else options[0]
        if get_origin(kind) not in (Literal, tuple, None):
            (kind,) = options
        yield field, get_origin(kind) or kind


def range_of(field: dataclasses.Field[Any]) -> Within | None:
    """The range that stands beside a field."""
    return next((one for one in getattr(kind_of(field), "__metadata__", ()) if isinstance(one, Within)), None)


def slips(name: str) -> list[str]:
    """A name as people mistype it."""
    return [name[:-1], name + "s", name.replace("_", "-") if "_" in name else name.upper(), name[0] + name]


def of_fields(config: type[RunConfig]) -> Iterator[Case]:
    """A file for each wrong and each right value of each field, for its name mistyped, and for its name twice.

    What fields of both kinds of settings share is asked of the first.
    """
    names = {field.name for field in dataclasses.fields(config)}
    shared = {} if config is TrainConfig else {field.name: field.default for field in dataclasses.fields(RunConfig)}
    for field, kind in kinds(config):
        name = field.name
        if name == "output" or shared.get(name, dataclasses.MISSING) == field.default:
            continue
        for text in WRONG[kind]:
            if text == ".inf" and (range_of(field) or Within(0, 0)).endless:
                yield f"{BEFORE}{name}: {text}\n", {name: math.inf}
            elif not (kind is str and text == "''" and field.default == ""):
                yield f"{BEFORE}{name}: {text}\n", (4, name)
        for slip in slips(name):
            if slip not in names:
                yield f"{BEFORE}{slip}: 1\n", (4, f"there is no setting '{slip}'")
        yield f"{BEFORE}{name}: null\n{name}: null\n", (5, f"'{name}' stands there twice, first in line 4")
        if kind is str and field.default != "":
            yield f"{BEFORE}{name}: ''\n", (4, name)
        own = {"method": (("'ga'", "ga"), ("npo+kl", "npo+kl")), "date": (("'2026-02-28'", "2026-02-28"),)}
        right = own.get(name, RIGHT.get(kind, ()))
        for text, value in right:
            yield f"{BEFORE}{name}: {text}\n", {name: value}
        yield f"{BEFORE}{name}:\n", {}
        for text, value in right[:1]:
            yield f'{{output: somewhere, "{name}": {text}}}\n', {name: value}


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)
WHOLE: list[Case] = [
    ("a: 1\nb: [1, 2\n", (3, "not a YAML file")),
    ("output: x\n\tepochs: 2\n", (2, "not a YAML file")),
    ("output: x\n---\noutput: y\n", (2, "single document")),
    ("output: x\n... \n---\nepochs: 1\n", (3, "single document")),
    ("- a\n- b\n", (None, "expected 'setting: value' lines")),
    ("just words\n", (None, "expected 'setting: value' lines")),
    ("7\n", (None, "expected 'setting: value' lines")),
    ("output: x\n7: 1\n", (2, "a key must be a text")),
    ("output: x\ntrue: 1\n", (2, "a key must be a text")),
    ("output: x\n? [a, b]\n: 1\n", (2, "a key must be a text")),
    ("output: x\n? {a: b}\n: 1\n", (2, "a key must be a text")),
    ("output: x\nnull: 1\n", (2, "a key must be a text")),
    ("output: *nothing\n", (1, "undefined alias")),
    ("output: x\nforget: &a [x, *a]\n", (2, "inside of what it repeats")),
    ("output: x\nforget: " + "[" * 3000 + "]" * 3000 + "\n", (2, "levels")),
    ("output: x\nforget: " + "{a: " * 200 + "1" + "}" * 200 + "\n", (2, "levels")),
    ("output: x\nforget: !!python/object/apply:os.getcwd []\n", (2, "tag")),
    ("output: x\nforget: !!set {a, b}\n", (2, "tag")),
    ("output: x\nforget: !!omap [a: 1]\n", (2, "tag")),
    ("output: x\nforget: !mine [a]\n", (2, "tag")),
    ("output: x\nepochs: =\n", (2, "quotes")),
    ("output: x\nepochs: \x07\n", (2, "character")),
    (LAUGHS, (5, "values")),
    ("%YAML 9.9\n---\noutput: x\n", (1, "YAML")),
    ("output: x\nepochs: 3\nepochs: 4\n", (3, "'epochs' stands there twice, first in line 2")),
    ("", {}),
    ("# nothing\n", {}),
    ("---\n", {}),
    ("\ufeffepochs: 3\n", {"epochs": 3}),
    ("epochs: 3  # a comment\n...\n", {"epochs": 3}),
    ("epochs: &n 3\nbatch_size: *n\n", {"epochs": 3, "batch_size": 3}),
    ("<<: {epochs: 3, seed: 1}\nseed: 2\n", {"epochs": 3, "seed": 2}),
    ("template: |\n  Q: {question}\n  A: {answer}\n", {"template": "Q: {question}\nA: {answer}\n"}),
    ("template: 'it''s # {question}{answer}'\n", {"template": "it's # {question}{answer}"}),
]


@pytest.mark.parametrize("config", READERS)
def test_every_file_is_refused_where_it_is_wrong_or_read_exactly(config: type[RunConfig], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    counts: Counter[str] = Counter()
    for text, expected in [*of_fields(config), *WHOLE]:
        path.write_text(text, encoding="utf-8")
        try:
            found = READERS[config]([(str(path), read_yaml(path))])
        except ULDError as error:
            line, word = expected if isinstance(expected, tuple) else ("none", "no error")
            start = f"{path}: " if line is None else f"{path}:{line}: "
            assert str(error).startswith(start) and word in str(error), (text[:200], str(error))
            assert "\n" not in str(error) and len(str(error)) < 600 + len(str(path)), (text[:200], str(error))
            counts["refused"] += 1
        else:
            assert isinstance(expected, dict), f"accepted: {text[:200]}"
            places = {"output": "somewhere"} if "somewhere" in text else {}
            assert found == config(**places | expected), text
            counts["read"] += 1
    print(config.__name__, dict(counts))
    assert counts["refused"] >= 300 and counts["read"] >= 100


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for content in (b"\xff\xfe", "epochs: 1".encode("utf-16"), b"output: \xe9\n"):
        path.write_bytes(content)
        with pytest.raises(ULDError, match=r"run\.yaml: not a YAML file: it is not UTF-8"):
            read_yaml(path)


@pytest.mark.parametrize("config", READERS)
def test_every_number_has_a_least_and_a_most(config: type[RunConfig]) -> None:
    for field, kind in kinds(config):
        if kind in (int, float):
            within = range_of(field)
            assert within is not None and within.least < within.most, field.name
            assert config(**{field.name: within.least}) and config(**{field.name: within.most})
