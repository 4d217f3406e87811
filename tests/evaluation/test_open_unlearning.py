import json
import math
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uld.errors import ULDError
from uld.evaluation.open_unlearning import (
    ATTACKS,
    MEMORISATION,
    UTILITY,
    field_scores,
    read_summary,
    scores_from_summaries,
)

EVERY = (*MEMORISATION, *ATTACKS, *UTILITY)


def summary(**changes: float) -> dict[str, float]:
    return {name: 0.1 * number for number, name in enumerate(EVERY, 1)} | {"forget_Q_A_gibberish": 0.9} | changes


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_published_scores_are_reproduced(data_dir, tmp_path):
    published = json.loads((data_dir / "reference_logs/openunlearning_scores_llama31_8b.json").read_text())
    files = {name: write(tmp_path / f"{i}.json", one["summary"]) for i, (name, one) in enumerate(published.items())}
    for name, one in published.items():
        found = scores_from_summaries(files[name], files["baselines/target"], files["baselines/retrain"])
        assert found.to_dict() == pytest.approx(one["scores"], rel=1e-12, abs=1e-12)


def test_a_worked_example():
    zero = dict.fromkeys((*MEMORISATION, *ATTACKS), 0.5) | {"model_utility": 0.5, "forget_Q_A_gibberish": 1.0}
    retain = zero | {"mia_loss": 0.75}
    target = zero | {"model_utility": 1.0}
    found = field_scores(zero | {"extraction_strength": 0.75}, target, retain)
    assert found.mem == pytest.approx(4 / (4 + 2 + 2 + 2))
    assert found.priv == pytest.approx(4 / (1 / 0.75 + 3))
    assert found.utility == pytest.approx(2 / 3)
    assert found.agg == pytest.approx(3 / (1 / 0.4 + 1 / found.priv + 1.5))


def test_what_is_all_memorised_scores_zero_and_the_retain_only_model_is_private():
    assert field_scores(summary(exact_memorization=1.0), summary(), summary()).agg == 0
    assert field_scores(summary(), summary(), summary()).priv == 1
    assert field_scores(summary(), summary(), summary()).utility == 1


def test_a_score_whose_metrics_are_missing_is_absent_and_not_invented():
    without = {name: value for name, value in summary().items() if name not in ATTACKS}
    found = field_scores(without, summary(), summary())
    assert found.priv is None and found.agg is None and found.mem is not None and found.utility == 1
    assert field_scores(summary(), summary(), None).priv is None
    assert "–" in found.table()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must hold one JSON object"),
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        (json.dumps(summary() | {"mia_zlib": None}), "lacks mia_zlib: the scores need"),
        (json.dumps({"mia_zlib": 0.5}), "lacks extraction_strength and 8 more"),
        (json.dumps(summary(mia_loss=1.5)), "mia_loss must be a number from 0 to 1, not 1.5"),
        (json.dumps(summary(model_utility=-0.1)), "model_utility must be a number from 0 to 1"),
        (json.dumps(summary(mia_loss=math.nan)), "mia_loss must be a number from 0 to 1, not nan"),
        (json.dumps(summary() | {"mia_loss": "0.5"}), "mia_loss must be a number"),
        (json.dumps(summary() | {"mia_loss": True}), "mia_loss must be a number"),
        (
            json.dumps(summary() | {"mia_loss": {"agg_value": 0.5}}),
            "mia_loss is no number but a mapping: name the TOFU_",
        ),
        (json.dumps(summary() | {"mia_loss": [0.5]}), "mia_loss must be a number"),
        (json.dumps(summary(mia_loss=1 + 1e-6)), "mia_loss must be a number from 0 to 1, not 1.000001"),
        (json.dumps(summary(model_utility=-21.5)), "model_utility must be a number from 0 to 1"),
        (json.dumps(summary())[:-1] + ', "mia_loss": 0.2}', "'mia_loss' stands there twice"),
    ],
)
def test_a_damaged_summary_is_refused_with_the_file_and_the_key(tmp_path, text, message):
    path = write(tmp_path / "S.json", text)
    with pytest.raises(ULDError, match=message) as raised:
        read_summary(path, EVERY)
    assert str(path) in str(raised.value)


def test_what_else_a_summary_holds_is_not_looked_at_and_a_folder_or_a_mark_in_front_is_no_matter(tmp_path):
    extra = {"privleak": -99.9, "forget_quality": 1e-22, "forget_Q_A_ROUGE": None, "mia_gradnorm": math.nan, "of": {}}
    write(tmp_path / "TOFU_SUMMARY.json", "\ufeff" + json.dumps(summary() | extra))
    assert read_summary(tmp_path, EVERY) == summary()
    write(tmp_path / "TOFU_SUMMARY.json", summary(mia_loss=1 + 1e-15, mia_zlib=-1e-15, model_utility=1))
    found = read_summary(tmp_path, EVERY)
    assert (found["mia_loss"], found["mia_zlib"], found["model_utility"]) == (1, 0, 1)


NUMBER = st.floats(0, 1) | st.sampled_from([0, 1, 5e-324])
NO_NUMBER = (
    st.floats(max_value=-1e-6) | st.floats(min_value=1.001) | st.just(math.nan) | st.none() | st.booleans()
    | st.text(max_size=5) | st.lists(st.floats(), max_size=2) | st.dictionaries(st.text(max_size=3), st.floats())
    | st.integers(min_value=2)
)  # fmt: skip
METRICS = st.fixed_dictionaries(dict.fromkeys(EVERY, NUMBER))


@settings(max_examples=150)
@given(METRICS, METRICS, METRICS)
def test_any_three_summaries_give_scores_in_their_range_or_one_sentence(ours, before, theirs):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        files = [write(Path(folder) / f"{i}.json", one) for i, one in enumerate((ours, before, theirs))]
        try:
            found = scores_from_summaries(*files)
        except ULDError as error:
            assert min(before[name] for name in UTILITY) < 1e-300 and "target's utility is 0" in str(error)
            return
        assert 0 <= found.mem <= 1 and 0 <= found.priv <= 1 and 0 <= found.utility < math.inf
        assert 0 <= found.agg <= 3 * min(found.mem, found.priv, found.utility) + 1e-12


@settings(max_examples=300)
@given(METRICS, st.sampled_from(EVERY), NO_NUMBER | st.just(...), st.integers(0, 400))
def test_any_damage_to_a_summary_is_one_sentence(whole, name, value, length):
    with tempfile.TemporaryDirectory() as folder:
        damaged = {key: one for key, one in whole.items() if key != name} | ({} if value is ... else {name: value})
        text = json.dumps(damaged)
        for damage in (text, json.dumps(whole)[:length]) if length < len(json.dumps(whole)) else (text,):
            with pytest.raises(ULDError) as raised:
                read_summary(write(Path(folder) / "S.json", damage), EVERY)
            assert "S.json" in str(raised.value) and "\n" not in str(raised.value)


def test_a_summary_that_is_not_there_and_a_target_without_utility_are_refused(tmp_path):
    with pytest.raises(ULDError, match="No such file"):
        read_summary(tmp_path / "none.json", EVERY)
    with pytest.raises(ULDError, match="target's utility is 0"):
        field_scores(summary(), summary(model_utility=0.0), summary())
