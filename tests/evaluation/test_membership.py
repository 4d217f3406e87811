"""Attacks against naive versions and published logs; AUC with ties; PrivLeak's published values."""

import json
import math
import statistics
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uld.evaluation import membership, metrics

RNG = np.random.default_rng(0)
LOG_PROBS = -RNG.exponential(1.0, 13)
MEANS = -RNG.uniform(0.5, 3.0, 13)
DEVIATIONS = RNG.uniform(0.1, 2.0, 13)
TEXT = "It is a truth universally acknowledged, more or less."
scores = st.lists(st.integers(0, 4), min_size=1, max_size=9)
LOGS = ("full", "retain90")


@pytest.fixture(scope="module")
def logs(data_dir):
    folder = data_dir / "reference_logs"
    return {
        name: json.loads((folder / f"openunlearning_llama32_1b_{name}" / "TOFU_EVAL.json").read_text()) for name in LOGS
    }


def column(metric, key):
    return [row[key] for row in metric["value_by_index"].values()]


def test_attacks_equal_the_naive_formulas():
    assert membership.loss(LOG_PROBS) == pytest.approx(-statistics.fmean(LOG_PROBS), rel=1e-14)
    size = len(zlib.compress(TEXT.encode()))
    assert membership.zlib_ratio(LOG_PROBS, TEXT) == pytest.approx(-statistics.fmean(LOG_PROBS) / size, rel=1e-14)
    assert membership.min_k(LOG_PROBS) == pytest.approx(-statistics.fmean(sorted(LOG_PROBS)[:5]), rel=1e-14)
    places = sorted((p - m) / s for p, m, s in zip(LOG_PROBS, MEANS, DEVIATIONS, strict=True))
    found = membership.min_k_plus_plus(LOG_PROBS, MEANS, DEVIATIONS)
    assert found == pytest.approx(-statistics.fmean(places[:5]), rel=1e-14)
    other = LOG_PROBS - RNG.uniform(0, 1, 13)
    difference = statistics.fmean(other) - statistics.fmean(LOG_PROBS)
    assert membership.reference(LOG_PROBS, other) == pytest.approx(difference, rel=1e-12)


def test_a_short_text_has_a_least_likely_token_and_certainty_divides_by_no_zero():
    assert membership.min_k([-3.0]) == 3.0
    assert membership.min_k_plus_plus([-1.0], [0.0], [0.0]) == 1000.0


def test_a_text_of_probability_zero_ranks_last():
    assert membership.loss([-1.0, -math.inf]) == membership.min_k([-1.0, -math.inf]) == math.inf
    assert membership.reference([-math.inf], [-math.inf]) == 0.0
    assert membership.auc([math.inf, 1.0], [math.inf, 2.0]) == (0.5 + 0 + 1 + 1) / 4


@given(scores, scores)
def test_auc_compares_every_pair_and_counts_ties_half(members, others):
    pairs = [1.0 if m < o else 0.5 if m == o else 0.0 for m in members for o in others]
    assert membership.auc(members, others) == pytest.approx(statistics.fmean(pairs), abs=1e-12)


@given(scores, scores, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_true_positive_rate_tries_every_threshold(members, others, rate):
    best = 0.0
    for threshold in range(-1, 6):
        if sum(o <= threshold for o in others) / len(others) <= rate + 1e-12:
            best = max(best, sum(m <= threshold for m in members) / len(members))
    assert membership.true_positive_rate(members, others, rate) == best


@pytest.mark.parametrize("measure", [membership.auc, membership.true_positive_rate])
@pytest.mark.parametrize("bad", [[], [math.nan], [[1.0]]])
def test_what_is_no_list_of_scores_is_refused(measure, bad):
    with pytest.raises(ValueError, match="others must be"):
        measure([1.0], bad)
    with pytest.raises(ValueError, match="log_probs must be"):
        membership.loss([])


def test_privleak_is_zero_for_a_retain_only_model_and_least_for_one_that_gives_all_away():
    assert membership.privleak(0.6, 0.6) == 0.0
    assert membership.privleak(1.0, 0.4) == -100.0
    assert membership.privleak(0.25) == pytest.approx(50.0)
    assert membership.privleak(0.5, 1.0) == math.inf and membership.privleak(1.0, 1.0) == 0.0


@pytest.mark.parametrize("name", LOGS)
def test_published_aucs(logs, name):
    attacks = [key for key in logs[name] if key.startswith("mia_")]
    assert len(attacks) == (6 if name == "full" else 5)
    for attack in attacks:
        log = logs[name][attack]
        found = membership.auc(column(log["forget"], "score"), column(log["holdout"], "score"))
        assert found == pytest.approx(log["auc"], abs=1e-12), attack


def test_published_privleak(logs):
    """open-unlearning adds 1e-10 below the line; its retain log stands against an AUC of 0.5."""
    aucs = {name: logs[name]["mia_min_k"]["auc"] for name in LOGS}
    found = [membership.privleak(aucs["full"], aucs["retain90"]), membership.privleak(aucs["retain90"])]
    below = [1 - aucs["retain90"], 0.5]
    expected = [logs[name]["privleak"]["agg_value"] for name in LOGS]
    for one, other, r in zip(found, expected, below, strict=True):
        assert one * r / (r + 1e-10) == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize("name", LOGS)
def test_published_zlib_scores_from_losses_and_texts(logs, name):
    log = logs[name]
    texts = column(log["forget_Q_A_ROUGE"], "ground_truth")
    losses = column(log["mia_loss"]["forget"], "score")
    assert losses == column(log["forget_Q_A_Prob"], "avg_loss")
    found = [membership.zlib_ratio([-one], text) for one, text in zip(losses, texts, strict=True)]
    np.testing.assert_allclose(found, column(log["mia_zlib"]["forget"], "score"), rtol=1e-12)


@pytest.mark.parametrize("name", LOGS)
def test_published_truth_ratios(logs, name):
    """The logs' code adds 1e-10 to the right answer's probability and below the line: so does this test."""
    for task, right, wrong, aggregator in (
        ("forget_truth_ratio", "forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob", "closer_to_1_better"),
        ("retain_Truth_Ratio", "retain_Q_A_PARA_Prob", "retain_Q_A_PERT_Prob", "true_better"),
        ("ra_Truth_Ratio", "ra_Q_A_Prob", "ra_Q_A_PERT_Prob", "true_better"),
        ("wf_Truth_Ratio", "wf_Q_A_Prob", "wf_Q_A_PERT_Prob", "true_better"),
    ):
        log = logs[name]
        losses = -np.log(np.exp(-np.array(column(log[right], "avg_loss"))) + 1e-10)
        t = metrics.truth_ratio_statistic(losses, column(log[wrong], "avg_loss"))
        np.testing.assert_allclose(1 / t, column(log[task], "score"), rtol=1e-9)
        assert metrics.truth_ratio_rows(t, aggregator).mean() == pytest.approx(log[task]["agg_value"], abs=1e-9), task


@pytest.mark.parametrize("name", LOGS)
def test_published_rouge_f1(logs, name):
    for row in logs[name]["forget_Q_A_ROUGE"]["value_by_index"].values():
        assert metrics.rouge_l_f1(row["generation"], row["ground_truth"], stemmed=True) == row["rougeL_f1"]
