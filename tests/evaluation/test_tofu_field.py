"""The field's scores from logs: as open-unlearning's own aggregates, with intervals, absent where nothing is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from uld.evaluation import membership
from uld.evaluation.open_unlearning import ATTACKS, MEMORISATION, field_scores
from uld.evaluation.task_log import MIA, TaskLog, TofuLog
from uld.evaluation.tofu_answers import Classifier
from uld.evaluation.tofu_field import SCORES, TRUTH_RATIOS, field_result
from uld.evaluation.tofu_log import LogError, read_log, write_log
from uld.evaluation.tofu_result import aggregate

ROWS = 40


def made(seed: int, *, known: bool = True, generated: bool = True) -> TofuLog:
    """A log of random numbers of every column."""
    draw = np.random.default_rng(seed)
    tasks = {}
    for name in ("forget", "retain", "real_authors", "world_facts"):
        further = {}
        if name == "forget" and known:
            shares = ("extraction_strength", "exact_memorization", "paraphrase_rougeL")
            further = {one: draw.uniform(size=ROWS) for one in shares} | {one: draw.normal(size=ROWS) for one in MIA}
        tasks[name] = TaskLog(
            keys=list(map(str, range(ROWS))),
            avg_loss=draw.uniform(0, 3, ROWS),
            paraphrase_loss=draw.uniform(0, 3, ROWS),
            wrong_losses=draw.uniform(0, 3, (ROWS, 3)),
            rougeL=draw.uniform(size=ROWS) if generated else None,
            generated=[("Who?", "It is so." if i % 4 else "so so so", f"It is so {i}.") for i in range(ROWS)]
            if generated
            else None,
            **further,
        )
    return TofuLog(tasks, f"log {seed}", {one: draw.normal(size=30) for one in MIA} if known else None)


def test_metrics_of_a_published_log_are_those_in_the_file(data_dir):
    folder = data_dir / "reference_logs"
    theirs = {}
    for name in ("full", "retain90"):
        file = json.loads((folder / f"openunlearning_llama32_1b_{name}/TOFU_EVAL.json").read_text())
        theirs[name] = {key: value["agg_value"] for key, value in file.items()}
    full, retain90 = (read_log(folder / f"openunlearning_llama32_1b_{name}") for name in ("full", "retain90"))
    found = field_result(retain90, full, retain90)
    for name in ("extraction_strength", "exact_memorization", *ATTACKS):
        assert found.metrics[name] == pytest.approx(theirs["retain90"][name], rel=1e-9)
    ours = {name: theirs["retain90"][name] for name in (*MEMORISATION, *ATTACKS)}
    fluent = {"forget_Q_A_gibberish": found.metrics["fluency"], "model_utility": theirs["retain90"]["model_utility"]}
    before = {
        "model_utility": theirs["full"]["model_utility"],
        "forget_Q_A_gibberish": field_result(full).metrics["fluency"],
    }
    expected = field_scores(ours | fluent, before, ours).to_dict()
    assert found.scores["closer_to_1_better"] == pytest.approx(expected, rel=1e-7)
    assert found.scores["prob_mean"]["mem"] > expected["mem"] and found.fluency_by == "proxy"


def test_scores_are_the_formulas_of_the_metrics_and_lie_in_their_intervals():
    log, target, retain = made(1), made(2), made(3)
    result = aggregate(log, retain, target)
    found = result.field
    assert found.metrics["mia_zlib"] == membership.auc(log["forget"].mia_zlib, log.non_members["mia_zlib"])
    for name in TRUTH_RATIOS:
        summary = {
            **{one: found.metrics[one] for one in (*ATTACKS, "extraction_strength", "exact_memorization")},
            "forget_Q_A_PARA_Prob": np.exp(-np.asarray(log["forget"].paraphrase_loss)).mean(),
            "forget_truth_ratio": found.metrics[f"truth_ratio_{name}"],
            "model_utility": result.model_utility,
            "forget_Q_A_gibberish": 0.75,
        }
        before = {"model_utility": aggregate(target).model_utility, "forget_Q_A_gibberish": 0.75}
        attacks = {one: membership.auc(getattr(retain["forget"], one), retain.non_members[one]) for one in MIA}
        assert found.scores[name] == pytest.approx(field_scores(summary, before, attacks).to_dict(), rel=1e-9)
        for score in SCORES:
            low, high = found.intervals[name][score]
            assert low < found.scores[name][score] < high
    assert found == aggregate(log, retain, target).field


def test_the_same_model_on_the_same_draws_keeps_all_of_its_utility_and_is_private():
    log = made(1)
    found = field_result(log, log, log)
    for name in TRUTH_RATIOS:
        assert (found.scores[name]["priv"], found.scores[name]["utility"]) == (1, 1)
        assert found.intervals[name]["priv"] == (1, 1) and found.intervals[name]["utility"] == pytest.approx((1, 1))


def test_the_interval_of_an_attack_is_that_of_resampled_rows():
    log, draw = made(1), np.random.default_rng(0)
    members, others = np.asarray(log["forget"].mia_loss), np.asarray(log.non_members["mia_loss"])
    aucs = [
        membership.auc(members[draw.integers(ROWS, size=ROWS)], others[draw.integers(30, size=30)]) for _ in range(1000)
    ]
    same = dict.fromkeys(MIA, [-10.0] * ROWS)
    private = replace(log, tasks={"forget": replace(log["forget"], **same)}, non_members=dict.fromkeys(MIA, [0.0] * 30))
    each = dict.fromkeys(MIA, log["forget"].mia_loss)
    alike = TofuLog({"forget": replace(log["forget"], **each)}, "", dict.fromkeys(MIA, log.non_members["mia_loss"]))
    low, high = field_result(alike, None, private).intervals["prob_mean"]["priv"]
    assert (low, high) == pytest.approx(np.quantile(aucs, [0.005, 0.995]), abs=0.03)


def test_what_was_not_measured_is_absent():
    found = field_result(made(1, known=False), made(2), made(3))
    assert all(found.scores[name]["mem"] is None and found.scores[name]["priv"] is None for name in TRUTH_RATIOS)
    assert found.scores["prob_mean"]["utility"] is not None and found.scores["prob_mean"]["agg"] is None
    assert "–" in found.table() and not any(name.startswith("mia") for name in found.metrics)
    no_answers = field_result(made(1, generated=False), made(2), made(3))
    assert no_answers.scores["prob_mean"]["utility"] is None and no_answers.fluency_by is None
    alone = field_result(made(1)).scores["prob_mean"]
    assert alone["mem"] is not None and (alone["priv"], alone["utility"], alone["agg"]) == (None, None, None)
    assert field_result(TofuLog({"retain": made(1)["retain"]})) is None


def test_a_classifier_counts_where_it_judged_both_models():
    log, target = (
        replace(one, tasks={**one.tasks, "forget": replace(one["forget"], clean=[0.5] * ROWS)})
        for one in (made(1), made(2))
    )
    both = field_result(log, target)
    assert (both.metrics["fluency"], both.fluency_by) == (0.5, "classifier")
    assert field_result(log, made(2)).fluency_by == "proxy"


def test_a_target_without_utility_leaves_it_out():
    target = made(2)
    target = replace(target, tasks={**target.tasks, "retain": replace(target["retain"], rougeL=[0.0] * ROWS)})
    found = field_result(made(1), target, made(3))
    assert found.scores["prob_mean"]["utility"] is None and found.scores["prob_mean"]["priv"] is not None


def test_impossible_answers_have_finite_scores():
    forget = replace(made(1)["forget"], paraphrase_loss=[math.inf] * ROWS, mia_loss=[math.inf] * ROWS)
    log = TofuLog({"forget": forget}, "", dict.fromkeys(MIA, [math.inf] * 5))
    found = field_result(log, None, log)
    assert found.metrics["mia_loss"] == 0.5 and found.scores["prob_mean"]["priv"] == 1
    assert found.metrics["paraphrase_prob"] == 0 and found.scores["prob_mean"]["mem"] is not None


def test_every_column_survives_a_round_trip_and_gives_the_same_result(tmp_path):
    log = made(1)
    forget = replace(log["forget"], unknown_words=[1] * ROWS, clean=[0.9] * ROWS, samples=[["a", "b"]] * ROWS)
    forget = replace(forget, judged_loss=[2.5] * ROWS, judged_tokens=[0, *[3] * (ROWS - 1)])
    log = replace(log, tasks={**log.tasks, "forget": forget})
    again = read_log(write_log(log, tmp_path / "log.json"))
    assert again == log and again.non_members == log.non_members
    assert aggregate(again, again, again) == aggregate(log, log, log)


def non_members(**changes: object) -> dict:
    return {name: {"0": 1.0, "1": 2.0} for name in MIA} | changes


@pytest.mark.parametrize(
    "section",
    [
        [],
        {},
        non_members(mia_zlib=None),
        non_members(mia_zlib={"0": 1.0}),
        non_members(mia_zlib={"0": 1.0, "1": "2"}),
        non_members(mia_loss={"0": 1.0, "1": math.nan}),
        {name: {} for name in MIA},
    ],
)
def test_damaged_non_members_are_refused(tmp_path, section):
    file = write_log(TofuLog({"forget": made(1)["forget"]}), tmp_path / "log.json")
    content = json.loads(file.read_text()) | {"eval_log_non_members.json": section}
    file.write_text(json.dumps(content))
    with pytest.raises(LogError, match="non-members") as raised:
        read_log(file)
    assert str(file) in str(raised.value)


def test_rows_that_open_unlearning_left_out_leave_the_column_out(data_dir, tmp_path):
    content = json.loads((data_dir / "reference_logs/openunlearning_llama32_1b_full/TOFU_EVAL.json").read_text())
    content["exact_memorization"]["value_by_index"]["3"]["score"] = None
    content["mia_loss"]["holdout"]["value_by_index"]["3"]["score"] = None
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(content))
    log = read_log(tmp_path)
    assert log["forget"].exact_memorization is None and log["forget"].extraction_strength is not None
    assert log.non_members is None


def test_a_classifier_is_not_asked_about_an_answer_without_a_token(tmp_path, letters):
    torch.manual_seed(0)
    labels = {"id2label": {0: "clean", 1: "noise"}, "label2id": {"clean": 0, "noise": 1}}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=34, pad_token_id=0, num_labels=2, **sizes, **labels)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    letters.save_pretrained(tmp_path)
    judge = Classifier(str(tmp_path), "clean")
    (alone,) = judge(["abc"])
    assert (
        0 < alone < 1 and judge(["", "abc", ""]) == pytest.approx([0.0, alone, 0.0]) and judge(["", ""]) == [0.0, 0.0]
    )
    judge.tokenizer.pad_token = None
    assert judge(["abc", ""]) == pytest.approx([alone, 0.0])
