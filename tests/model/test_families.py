"""Families of transformers, by the checks that write docs/families.md: each answers as the plain way, or is refused."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from families import END, PAGE, RESULTS, START, check, table  # noqa: E402
from family_models import CORE, FAMILIES  # noqa: E402

QUICK = ("refused", "lora", "fuses", "text", "scores")


def written():
    if not RESULTS.exists():
        pytest.skip("no table of families yet: run python benchmarks/families.py")
    return json.loads(RESULTS.read_text())


def as_written(found, names):
    """Hold a family against the committed table, where that was made with the same transformers."""
    if not RESULTS.exists():
        return
    facts = written()
    if facts["versions"]["transformers"] == transformers.__version__:
        (row,) = (one for one in facts["families"] if one["family"] == found.family)
        assert {name: row[name] for name in names} == {name: getattr(found, name) for name in names}


@pytest.mark.parametrize("family", CORE)
def test_a_family_answers_as_the_plain_way_or_is_refused(family):
    found = check(family, everything=False)
    assert found.refused or found.text == "yes"
    as_written(found, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_as_the_table_says(family):
    found = check(family)
    assert found.refused or (found.text == "yes" and found.lora > 0.5)
    as_written(found, asdict(found))


def test_the_page_shows_the_table_of_every_family():
    facts = written()
    assert [row["family"] for row in facts["families"]] == list(FAMILIES)
    between = PAGE.read_text().partition(START)[2].partition(END)[0]
    assert between.strip() == table(facts["families"], facts["date"]).strip(), "run python benchmarks/families.py"


def test_families_that_are_refused_have_a_sentence_that_names_them():
    for row in written()["families"]:
        if row["refused"]:
            name = FAMILIES[row["family"]][0]
            assert (
                name.removesuffix("Text") in row["refused"] and "\n" not in row["refused"] and len(row["refused"]) < 300
            )
