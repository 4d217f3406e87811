import json
import math
from pathlib import Path

import pytest

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
        (json.dumps(summary() | {"mia_loss": {"agg_value": 0.5}}), "mia_loss must be a number"),
    ],
)
def test_a_damaged_summary_is_refused_with_the_file_and_the_key(tmp_path, text, message):
    path = write(tmp_path / "S.json", text)
    with pytest.raises(ULDError, match=message) as raised:
        read_summary(path, EVERY)
    assert str(path) in str(raised.value)


def test_a_summary_that_is_not_there_and_a_target_without_utility_are_refused(tmp_path):
    with pytest.raises(ULDError, match="No such file"):
        read_summary(tmp_path / "none.json", EVERY)
    with pytest.raises(ULDError, match="target's utility is 0"):
        field_scores(summary(), summary(model_utility=0.0), summary())
