"""Thresholds: what a line says, what is no line, and what is held against what."""

import math
import os
import re
from pathlib import Path

import pytest

from uld.checking.measures import MEASURES, Value, is_lower_better
from uld.checking.thresholds import default_text, read_thresholds, refuse_unmeasured
from uld.errors import ConfigError
from uld.text.yaml_text import parse


def value(number: float, spread: float = 0.0) -> Value:
    return Value(number, number - spread, number + spread, 10)


SIGNS = {"≤": "<=", "≥": ">=", "·": "*", "−": "-"}
OTHERS = {"target": {"forget_rouge": value(0.8)}, "retain-only": {"forget_rouge": value(0.3)}}


def only(text: str, name: str = "forget_rouge"):
    (found,), _ = read_thresholds({name: text}, retain_only=True, held_out=True)
    return found


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("<= 0.25", 0.25),
        ("<=.25", 0.25),
        ("<= 2.5e-1", 0.25),
        ("<= target", 0.8),
        ("<= 0.5 * target", 0.4),
        ("<= retain-only + 0.1", 0.4),
        ("<=2*retain-only-0.1", 0.5),
    ],
)
def test_a_limit_is_a_number_or_another_models(text, limit):
    found = only(text)
    assert found.limit(OTHERS) == pytest.approx(limit)
    assert found.judge(value(limit), OTHERS).passed and not found.judge(value(limit + 0.01), OTHERS).passed
    assert not found.judge(value(math.nan), OTHERS).passed


def test_what_must_be_high_must_be_at_least_that():
    found = only(">= 0.9", "retain_rouge")
    assert found.judge(value(0.9), {}).passed and not found.judge(value(0.89), {}).passed


def test_a_number_that_equals_its_limit_is_within_however_floats_are_rounded():
    others = {"target": {}, "retain-only": {"retain_same": value(0.8), "forget_rouge": value(0.7)}}
    assert only(">= retain-only - 0.1", "retain_same").judge(value(7 / 10), others).passed
    assert only("<= retain-only + 0.1").judge(value(8 / 10), others).passed
    assert not only(">= retain-only - 0.1", "retain_same").judge(value(0.699), others).passed
    assert not only("<= retain-only + 0.1").judge(value(math.inf), others).passed


def test_a_limit_inside_of_the_interval_is_close():
    found = only("<= 0.25")
    assert found.judge(value(0.2, 0.1), {}).close and not found.judge(value(0.2, 0.04), {}).close
    assert not found.judge(Value(math.inf, None, None, 3), {}).close


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("forget_rogue: '<= 0.25'", r":1: there is no measure 'forget_rogue': did you mean 'forget_rouge'\?"),
        (
            "forget_rouge: '=< 0.25'",
            r":1: forget_rouge must begin with one of <= and >=, not '=< 0.25': did you mean '<='",
        ),
        ("forget_rouge: '>= 0.25'", r":1: forget_rouge is better when it is lower, so its threshold begins with <="),
        ("retain_same: '<= 0.25'", r":1: retain_same is better when it is higher, so its threshold begins with >="),
        ("forget_rouge: 0.25", r":1: forget_rouge must be a text such as .*, not 0.25"),
        ("forget_rouge: .nan", r":1: forget_rouge must be a text such as .*, not nan"),
        ("forget_rouge: '<= nan'", r":1: forget_rouge must compare with a number, .*, not with 'nan'"),
        ("forget_rouge: '<= 1e999'", r":1: forget_rouge must be a finite number"),
        ("forget_rouge: '<= 25'", r":1: forget_rouge is a share, between 0 and 1"),
        ("forget_rouge: '<= the target'", r"compare with .*, not with 'the target': did you mean 'target'"),
        ("\nforget_rouge: '<= 0.2'\nheld_out_rouge: '<= 0.2'", r":3: held_out_rouge is not measured .*--held-out"),
        ("forget_rouge: '<= retain-only + 0.1'", r":1: forget_rouge compares with a retain-only .*--retain-model"),
        ("forget_rouge: '<= 0.2'\nforget_rouge: '<= 0.3'", r":2: 'forget_rouge' stands there twice"),
        ("", r"names no threshold"),
        ("- forget_rouge", r"expected 'setting: value' lines"),
        ("# mine\nretain_rouge: >= 0.9 * target\n", r'quotation marks: retain_rouge: ">= 0.9 \* target"$'),
        ("forget_rouge: '<= 1'\nretain_kl :  >=.5\n", r'quotation marks: retain_kl : ">=.5"$'),
    ],
)
def test_a_line_that_says_nothing_is_refused_with_its_place(tmp_path, lines, sentence):
    path = tmp_path / "gate.yaml"
    path.write_text(lines)
    with pytest.raises(ConfigError, match=sentence):
        read_thresholds(path, retain_only=False, held_out=False)


def test_a_file_that_is_not_there_is_named_with_its_flag(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.yaml: there is no such file \(--thresholds\)"):
        read_thresholds(tmp_path / "nowhere.yaml", retain_only=False, held_out=False)


@pytest.mark.parametrize("retain_only", [False, True])
def test_the_default_thresholds_can_be_copied_and_cover_both_sides(retain_only, tmp_path):
    whole, text = read_thresholds(None, retain_only=retain_only, held_out=True)
    Path(tmp_path / "mine.yaml").write_text(text)
    assert read_thresholds(tmp_path / "mine.yaml", retain_only=retain_only, held_out=True)[0] == whole
    assert [one.name for one in whole] == list(parse(default_text(retain_only))[0])
    assert {one.name.rpartition("_")[0] for one in whole} >= {"forget", "retain"}
    few, text = read_thresholds(None, retain_only=retain_only, held_out=False)
    assert few == [one for one in whole if not one.name.startswith("held_out")] != whole
    Path(tmp_path / "few.yaml").write_text(text)
    assert read_thresholds(tmp_path / "few.yaml", retain_only=retain_only, held_out=False)[0] == few
    assert any(one.base == "retain-only" for one in whole) == retain_only


def test_a_model_that_never_saw_the_documents_may_expect_some_of_their_wordings():
    (line,) = [
        one for one in read_thresholds(None, retain_only=False, held_out=True)[0] if one.name == "held_out_probability"
    ]
    for target, own, passed in ((0.098, 0.064, True), (0.9, 0.6, False), (0.9, 0.4, True)):
        value, other = (Value(number, None, None, 20) for number in (own, target))
        assert line.judge(value, {"target": {line.name: other}}).passed == passed


def test_the_page_tells_the_default_thresholds_and_every_measure():
    page = (Path(__file__).resolve().parents[2] / "docs" / "check.md").read_text()
    told = [
        re.findall(r"[^|]+", line)
        for line in page.splitlines()
        if re.match(r"\| `(forget_|retain_|held_out_probability)", line)
    ]
    for at, retain_only in ((1, False), (2, True)):
        texts = {cells[0].strip(" `"): cells[at].strip() for cells in told}
        texts = {name: re.sub("[≤≥·−]", lambda sign: SIGNS[sign[0]], one) for name, one in texts.items()}
        own = parse(default_text(retain_only))[0]
        others = {name: one for name, one in own.items() if name.startswith("held_out") and name not in texts}
        assert texts == {name: one for name, one in own.items() if name not in others}
        assert others == {name: own[name.replace("held_out", "forget")] for name in others} != {}
    assert all(f"`{name.partition('_')[2].removeprefix('out_')}`" in page for name in MEASURES)


def test_every_measure_has_a_way_that_is_better():
    assert is_lower_better("forget_rouge") and not is_lower_better("retain_rouge")
    assert not is_lower_better("forget_loss") and is_lower_better("retain_loss") and is_lower_better("retain_kl")
    assert "retain_re_entry" not in MEASURES and "forget_same" not in MEASURES


def test_what_a_model_did_not_give_is_no_zero():
    gate = [only("<= retain-only + 0.1")]
    with pytest.raises(ConfigError, match="forget_rouge cannot be measured of runs/x"):
        refuse_unmeasured(gate, {}, OTHERS, "runs/x")
    with pytest.raises(ConfigError, match="cannot be measured of the retain-only model"):
        refuse_unmeasured(gate, {"forget_rouge": value(0.1)}, {"target": {}, "retain-only": {}}, "runs/x")
    refuse_unmeasured(gate, {"forget_rouge": value(0.1)}, OTHERS, "runs/x")


def test_a_file_is_read_once_so_it_may_be_a_pipe():
    reading, writing = os.pipe()
    os.write(writing, b'forget_rouge: "<= 0.5"\n')
    os.close(writing)
    (found,), text = read_thresholds(f"/dev/fd/{reading}", retain_only=False, held_out=False)
    os.close(reading)
    assert found.name == "forget_rouge" and text == 'forget_rouge: "<= 0.5"\n'
