"""Published aggregates from published logs, and what is left out when a log lacks something."""

import dataclasses
import json
import math

import pytest

from uld.evaluation import metrics
from uld.evaluation.tofu_log import LogError, TaskLog, TofuLog, read_log, write_log
from uld.evaluation.tofu_result import aggregate, comparison_table

NAMES = {"ra": "real_authors", "wf": "world_facts", "retain": "retain"}


def close(value: float, rel: float = 1e-12):
    return pytest.approx(value, rel=rel, abs=0.0)


def task(shift: float = 0.0, rows: int = 8, first: int = 0, rouge: bool = True, text: str = "answer") -> TaskLog:
    index = range(first, first + rows)
    return TaskLog(
        keys=[str(i) for i in index],
        avg_loss=[0.1 + 0.01 * i for i in index],
        paraphrase_loss=[1.0 + 0.05 * i + shift for i in index],
        wrong_losses=[[2.0, 2.0 + 0.3 * i] for i in index],
        rougeL=[0.5] * rows if rouge else None,
        generated=[("q", "g", f"{text} {i}") for i in index] if rouge else None,
    )


def complete(**forget) -> TofuLog:
    tasks = {name: task() for name in ("retain", "real_authors", "world_facts")}
    return TofuLog({**tasks, "forget": task(**forget)})


def test_authors_published_numbers(data_dir):
    folder = data_dir / "reference_logs"
    full, retain90 = (read_log(folder / f"tofu_llama2_7b_{name}") for name in ("full", "retain90"))
    result = aggregate(full, retain90)
    assert result.forget_quality == close(1.834066410994743e-21)
    assert result.model_utility == close(0.6226773637427153)
    assert aggregate(retain90).model_utility == close(0.613744995233942)
    assert aggregate(retain90, retain90).forget_quality == 1.0
    assert result.compared_rows == 300
    assert result.rows == {"forget": 300, "retain": 300, "real_authors": 100, "world_facts": 117}
    published = {
        "retain": (0.98953, 0.98565, 0.47470),
        "real_authors": (0.45548, 0.93300, 0.59623),
        "world_facts": (0.41856, 0.88248, 0.53903),
        "forget": (0.99094, 0.98545, 0.51599),
    }
    for name, values in published.items():
        ours = [getattr(result, f"{name}_{part}") for part in ("prob", "rouge_l", "truth_ratio")]
        assert ours == pytest.approx(list(values), abs=5.001e-6)


@pytest.mark.parametrize("name", ["full", "retain90"])
def test_open_unlearning_aggregates_equal_those_in_the_file(data_dir, name):
    folder = data_dir / "reference_logs" / f"openunlearning_llama32_1b_{name}"
    stated = {
        key: section.get("agg_value") for key, section in json.loads((folder / "TOFU_EVAL.json").read_text()).items()
    }
    result = aggregate(read_log(folder))
    assert result.model_utility == close(stated["model_utility"])
    assert result.forget_prob == close(stated["forget_Q_A_Prob"])
    assert result.forget_rouge_l == close(stated["forget_Q_A_ROUGE"])
    # Theirs is min(x, 1 / (x + 1e-10)) with x = 1/t.
    assert result.forget_truth_ratio == close(stated["forget_truth_ratio"], rel=1e-10)
    for prefix, ours in NAMES.items():
        prob = "retain_Q_A_Prob" if prefix == "retain" else f"{prefix}_Q_A_Prob_normalised"
        assert getattr(result, f"{ours}_prob") == close(stated[prob])
        assert getattr(result, f"{ours}_rouge_l") == close(stated[f"{prefix}_Q_A_ROUGE"])
        assert getattr(result, f"{ours}_truth_ratio") == close(stated[f"{prefix}_Truth_Ratio"])


def test_open_unlearning_published_numbers(data_dir):
    folder = data_dir / "reference_logs"
    full, retain90 = (read_log(folder / f"openunlearning_llama32_1b_{name}") for name in ("full", "retain90"))
    assert aggregate(full, retain90).forget_quality == close(3.9054713571083378e-22)
    assert aggregate(full).model_utility == close(0.5991534707368931)
    result = aggregate(retain90)
    assert result.model_utility == close(0.5911246639353407)
    assert result.forget_prob == close(0.1161314930615481)
    assert result.forget_rouge_l == close(0.37907355526383685)
    assert result.rows["forget"] == 400


def test_stored_scores_differ_from_the_losses_by_rounding_only(data_dir):
    log = read_log(data_dir / "reference_logs" / "openunlearning_llama32_1b_full")
    stored, derived = aggregate(log).to_dict(), aggregate(log, from_losses=True).to_dict()
    assert stored != derived
    for key, value in stored.items():
        if isinstance(value, float):
            assert derived[key] == close(value, rel=2e-6)


def test_published_numbers_survive_rewriting(data_dir, tmp_path):
    folder = data_dir / "reference_logs"
    logs = [read_log(folder / f"openunlearning_llama32_1b_{name}") for name in ("full", "retain90")]
    again = [read_log(write_log(log, tmp_path / f"{i}.json")) for i, log in enumerate(logs)]
    assert aggregate(*again) == aggregate(*logs)


def test_formats_compare_on_common_rows(data_dir):
    folder = data_dir / "reference_logs"
    ours = read_log(folder / "tofu_llama2_7b_full")
    theirs = read_log(folder / "openunlearning_llama32_1b_retain90")
    result = aggregate(ours, theirs)
    t = metrics.truth_ratio_statistic(ours["forget"].paraphrase_loss, ours["forget"].wrong_losses)
    other = metrics.truth_ratio_statistic(theirs["forget"].paraphrase_loss, theirs["forget"].wrong_losses)
    assert result.compared_rows == 300
    assert result.forget_quality == metrics.forget_quality(t, other[:300])
    assert "F.Q. compares the 300 forget rows" in result.table()


def test_a_result_is_written_alike_whatever_the_order_of_the_log():
    log = complete(rows=4)
    turned = TofuLog(dict(reversed(log.tasks.items())))
    assert json.dumps(aggregate(turned, turned).to_dict()) == json.dumps(aggregate(log, log).to_dict())


def test_common_rows_are_matched_by_key():
    # Keys 4..7 are shared, and there both logs are equal; rows 0..3 of either are far apart.
    ours, theirs = complete(rows=8), complete(rows=8, first=4)
    result = aggregate(ours, theirs)
    assert (result.forget_quality, result.compared_rows) == (1.0, 4)


def test_forget_quality_falls_with_the_distance():
    far, near, same = (aggregate(complete(shift=s), complete()).forget_quality for s in (5.0, 0.15, 0.0))
    assert far < near < same == 1.0
    assert far == close(2 / math.comb(16, 8))


def test_model_utility_does_not_see_the_forget_rows():
    a, b = aggregate(complete(shift=5.0)), aggregate(complete())
    assert a.model_utility == b.model_utility
    parts = [getattr(b, f"{t}_{m}") for t in NAMES.values() for m in ("prob", "rouge_l", "truth_ratio")]
    assert b.model_utility == close(9 / sum(1 / part for part in parts))


def test_authors_and_facts_use_the_normalised_probability():
    result = aggregate(complete())
    rows = task()
    assert result.retain_prob == close(float(metrics.probability(rows.avg_loss).mean()))
    expected = float(metrics.normalised_probability(rows.avg_loss, rows.wrong_losses).mean())
    assert result.real_authors_prob == result.world_facts_prob == close(expected)


def test_what_cannot_be_computed_is_none():
    alone = aggregate(complete())
    assert (alone.forget_quality, alone.compared_rows) == (None, None)
    without_rouge = aggregate(TofuLog({name: task(rouge=False) for name in complete()}), complete())
    assert without_rouge.retain_rouge_l is None and without_rouge.model_utility is None
    assert without_rouge.forget_quality == 1.0 and without_rouge.retain_prob is not None
    only_forget = aggregate(TofuLog({"forget": task()}), complete())
    assert only_forget.model_utility is None and only_forget.world_facts_prob is None
    assert only_forget.rows == {"forget": 8} and only_forget.forget_quality == 1.0
    no_counterpart = aggregate(complete(), TofuLog({"retain": task()}))
    assert (no_counterpart.forget_quality, no_counterpart.compared_rows) == (None, None)


def test_a_zero_part_makes_utility_zero():
    tasks = dict(complete())
    tasks["world_facts"] = dataclasses.replace(tasks["world_facts"], rougeL=[0.0] * 8)
    assert aggregate(TofuLog(tasks)).model_utility == 0.0


def test_an_impossible_answer_stays_a_number():
    forget = dataclasses.replace(task(), paraphrase_loss=[math.inf] * 8, avg_loss=[math.inf] * 8)
    result = aggregate(TofuLog({"forget": forget}), complete())
    assert (result.forget_prob, result.forget_truth_ratio) == (0.0, 0.0)
    assert result.forget_quality == close(2 / math.comb(16, 8))


def test_logs_without_common_rows_are_refused():
    ours = TofuLog({"forget": task(rows=4)}, "ours.json")
    with pytest.raises(LogError, match=r"ours\.json and this log have no forget row in common"):
        aggregate(ours, complete(rows=4, first=10))


def test_logs_of_other_splits_are_refused():
    with pytest.raises(LogError, match="other true answers in 8 of 8 forget rows"):
        aggregate(complete(), complete(text="something else"))
    # Case, blanks and punctuation come from the tokenizers, and are no difference.
    assert aggregate(complete(), complete(text="  Answer, ")).forget_quality == 1.0


def test_to_dict_is_json_with_every_number():
    result = aggregate(complete(), complete())
    again = json.loads(json.dumps(result.to_dict()))
    assert again == result.to_dict()
    assert set(again) == {field.name for field in dataclasses.fields(result)}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_prints_the_papers_columns_first():
    lines = aggregate(complete(shift=5.0), complete()).table().splitlines()
    utility = aggregate(complete()).model_utility
    assert cells(lines[0]) == ["F.Q.", "forget ROUGE-L (%)", "M.U.", "retain ROUGE-L (%)"]
    assert cells(lines[2]) == [f"{2 / math.comb(16, 8):.2e}", "50.0", f"{utility:.3f}", "50.0"]
    assert cells(lines[4]) == ["task", "rows", "Prob", "ROUGE-L", "truth ratio"]
    assert [cells(line)[0] for line in lines[6:10]] == ["forget", "retain", "real authors", "world facts"]
    assert len({len(line) for line in lines[4:10]}) == 1  # padded: the columns stand one above the other
    empty = aggregate(TofuLog({"forget": task(rouge=False)})).table().splitlines()
    assert cells(empty[2]) == ["-"] * 4
    assert cells(empty[7]) == ["retain", *["-"] * 4]


def test_models_are_compared_in_one_table():
    results = {"before": aggregate(complete(shift=5.0), complete()), "never knew": aggregate(complete(), complete())}
    head, rule, *rows = comparison_table(results).splitlines()
    assert cells(head) == ["model", "F.Q.", "forget Prob", "forget ROUGE-L (%)", "M.U.", "retain ROUGE-L (%)"]
    assert set(rule) == set("| -:")
    utility, prob = results["before"].model_utility, results["before"].forget_prob
    assert cells(rows[0]) == [
        "before",
        f"{2 / math.comb(16, 8):.2e}",
        f"{prob:.3f}",
        "50.0",
        f"{utility:.3f}",
        "50.0",
    ]
    assert cells(rows[1])[:2] == ["never knew", "1.00"]


def test_a_quality_of_zero_is_printed_as_one():
    result = dataclasses.replace(aggregate(complete(), complete()), forget_quality=0.0)
    assert cells(result.table().splitlines()[2])[0] == "0.00e+00"


def test_impossible_answers_are_counted_and_named():
    possible = aggregate(complete())
    assert possible.impossible_answers == 0 and "probability 0" not in possible.table()
    wrong = [[math.inf, 1.0], *[[1.0, 1.0]] * 7]
    forget = dataclasses.replace(task(), paraphrase_loss=[math.inf, *[1.0] * 7], wrong_losses=wrong)
    result = aggregate(TofuLog({**complete(), "forget": forget}))
    assert result.impossible_answers == 2
    assert result.table().endswith("Scored answers of probability 0 (--outside mask forbids them): 2.\n")
    losses = [math.inf, *[1.0] * 7]
    for name, number in {"forget": 2, "retain": 2, "real_authors": 1, "world_facts": 1}.items():
        both = dataclasses.replace(task(), avg_loss=losses, paraphrase_loss=losses)  # real authors have no other answer
        assert aggregate(TofuLog({**complete(), name: both})).impossible_answers == number
