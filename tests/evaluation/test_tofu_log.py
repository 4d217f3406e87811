"""Reading both formats, writing the authors' one, and what is said of broken files."""

import json
import math

import numpy as np
import pytest

from uld.errors import DiskFullError, ULDError
from uld.evaluation import metrics
from uld.evaluation.tofu_log import AUTHORS_NAMES, LogError, TaskLog, TofuLog, read_log, write_log

PUBLISHED = [
    "tofu_llama2_7b_full",
    "tofu_llama2_7b_retain90",
    "openunlearning_llama32_1b_full",
    "openunlearning_llama32_1b_retain90",
]


def small_log() -> TofuLog:
    full = TaskLog(
        keys=["0", "7"],
        avg_loss=[0.1, 0.3],
        paraphrase_loss=[1.0, 2.0],
        wrong_losses=[[2.0, 4.0], [1.0, 1.5]],
        loss=[0.5, 0.9],
        tokens=[5, 3],
        paraphrase_loss_sum=[4.0, 8.0],
        paraphrase_tokens=[4, 4],
        wrong_loss_sums=[[4.0, 8.0], [1.0, 3.0]],
        wrong_tokens=[[2, 2], [1, 2]],
        rouge1=[1.0, 0.5],
        rougeL=[0.5, 0.25],
        generated=[("Who?", "Ada", "Ada B."), ("Où ?", "là", "ici")],
    )
    bare = TaskLog(keys=["a"], avg_loss=[1.0], paraphrase_loss=[1.0], wrong_losses=[[2.0, 0.5, 3.0]])
    return TofuLog({"forget": full, "world_facts": bare})


def open_unlearning(prefix: str = "ra") -> dict:
    def section(*rows):
        return {"agg_value": 0.0, "value_by_index": {str(i): row for i, row in enumerate(rows)}}

    content = {
        f"{prefix}_Q_A_Prob": section({"prob": 0.9, "avg_loss": 0.1}, {"prob": 0.3, "avg_loss": 1.2}),
        f"{prefix}_Q_A_PERT_Prob": section({"prob": [0.1], "avg_loss": [2.0]}, {"prob": [0.2], "avg_loss": [1.5]}),
    }
    if prefix in ("forget", "retain"):
        content[f"{prefix}_Q_A_PARA_Prob"] = section({"prob": 0.5, "avg_loss": 0.7}, {"prob": 0.5, "avg_loss": 0.8})
    return content


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rouge_is_what_rouge_recall_gives(data_dir, name):
    for task in read_log(data_dir / "reference_logs" / name).values():
        recomputed = [metrics.rouge_recall(generation, truth) for _, generation, truth in task.generated]
        assert recomputed == list(zip(task.rouge1, task.rougeL, strict=True))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_logs_survive_a_round_trip(data_dir, tmp_path, name):
    log = read_log(data_dir / "reference_logs" / name)
    assert {task: len(rows) for task, rows in log.items() if task in ("real_authors", "world_facts")} == {
        "real_authors": 100,
        "world_facts": 117,
    }
    assert read_log(write_log(log, tmp_path / "log.json")) == log


@pytest.mark.parametrize("name", PUBLISHED[:2])
def test_what_is_written_is_what_the_authors_wrote(data_dir, tmp_path, name):
    file = data_dir / "reference_logs" / name / "eval_log_aggregated.json"
    theirs = json.loads(file.read_text())
    ours = json.loads(write_log(read_log(file), tmp_path / "log.json").read_text())
    assert ours.keys() == theirs.keys()
    for task, columns in theirs.items():
        # The same keys in the same order; only truth_ratio (their fp32) and normalized_gt_loss are derived anew.
        assert list(ours[task]) == list(columns)
        for key, values in columns.items():
            if key in ("truth_ratio", "normalized_gt_loss"):
                assert list(ours[task][key]) == list(values)
                rtol = 2e-6 if key == "truth_ratio" else 1e-13
                np.testing.assert_allclose(list(ours[task][key].values()), list(values.values()), rtol=rtol)
            else:
                assert ours[task][key] == values


@pytest.mark.parametrize("name", PUBLISHED[2:])
def test_open_unlearning_scores_follow_from_the_losses(data_dir, name):
    for task, rows in read_log(data_dir / "reference_logs" / name).items():
        fictional = task in ("forget", "retain")
        right, wrong = np.exp(-np.array(rows.paraphrase_loss)), np.exp(-np.mean(rows.wrong_losses, axis=1))
        np.testing.assert_allclose(rows.stored_truth_ratio, wrong / (right + 1e-10), rtol=1e-14)
        if fictional:
            np.testing.assert_allclose(rows.stored_prob, metrics.probability(rows.avg_loss), rtol=2e-7)
            assert rows.paraphrase_loss != rows.avg_loss
        else:
            p = metrics.normalised_probability(rows.avg_loss, rows.wrong_losses)
            np.testing.assert_allclose(rows.stored_prob, p, rtol=1e-4)
            assert rows.paraphrase_loss == rows.avg_loss


def test_round_trip_keeps_every_column(tmp_path):
    log = small_log()
    again = read_log(write_log(log, tmp_path / "new" / "log.json"))
    assert again == log
    assert again["world_facts"].rougeL is None
    assert again["forget"].generated[1] == ("Où ?", "là", "ici")


def test_round_trip_keeps_stored_scores_and_infinities(tmp_path):
    task = TaskLog(
        keys=["0", "1"],
        avg_loss=[math.inf, 0.0],
        paraphrase_loss=[1.0, 900.0],
        wrong_losses=[[math.inf], [1.0]],
        stored_prob=[0.0, 0.1],
        stored_truth_ratio=[0.0, 3.0],
    )
    log = TofuLog({"real_authors": task})
    file = write_log(log, tmp_path / "log.json")
    assert read_log(file) == log
    text = file.read_text()
    assert "Infinity" not in text  # which is not JSON; 1e999 is, and every parser of doubles reads infinity
    columns = json.loads(text, parse_constant=pytest.fail)["eval_real_author_wo_options.json"]
    assert columns["truth_ratio"] == {"0": 0.0, "1": math.inf}
    assert columns["normalized_gt_loss"]["0"] == pytest.approx(math.log(2))


def test_derived_keys_hold_their_formula(tmp_path):
    columns = json.loads(write_log(small_log(), tmp_path / "log.json").read_text())
    ratio = columns["eval_log_forget.json"]["truth_ratio"]
    assert ratio == {"0": pytest.approx(math.exp(1 - 3)), "7": pytest.approx(math.exp(2 - 1.25))}
    assert "normalized_gt_loss" not in columns["eval_log_forget.json"]
    p, wrong = math.exp(-1), math.exp(-2) + math.exp(-0.5) + math.exp(-3)
    facts = columns["eval_real_world_wo_options.json"]
    assert facts["normalized_gt_loss"] == {"a": pytest.approx(-math.log(p / (p + wrong)))}
    assert "rougeL_recall" not in facts and "gt_loss" not in facts


def test_numpy_values_become_plain_ones(tmp_path):
    task = TaskLog(
        keys=[0, 1],  # pyright: ignore[reportArgumentType]
        avg_loss=np.float32([0.1, 0.2]),  # pyright: ignore[reportArgumentType]
        paraphrase_loss=np.ones(2),  # pyright: ignore[reportArgumentType]
        wrong_losses=np.ones((2, 3), dtype=np.float32),  # pyright: ignore[reportArgumentType]
        tokens=np.array([3, 4]),  # pyright: ignore[reportArgumentType]
    )
    assert task.keys == ["0", "1"]
    assert [type(v) for v in (task.avg_loss[0], task.wrong_losses[0][0], task.tokens[0])] == [float, float, int]
    log = TofuLog({"retain": task})
    assert read_log(write_log(log, tmp_path)) == log


def test_rows_are_lined_up_by_key_not_by_order(tmp_path):
    file = write_log(small_log(), tmp_path / "log.json")
    content = json.loads(file.read_text())
    forget = content["eval_log_forget.json"]
    forget["rougeL_recall"] = dict(reversed(forget["rougeL_recall"].items()))
    file.write_text(json.dumps(content))
    assert read_log(file) == small_log()


def test_a_log_that_was_saved_with_a_byte_order_mark_is_read(tmp_path):
    place = write_log(small_log(), tmp_path / "log.json")
    place.write_bytes(b"\xef\xbb\xbf" + place.read_bytes().replace(b"\n", b"\r\n"))
    assert read_log(place) == read_log(tmp_path) == small_log()


def test_a_folder_is_read_by_content(tmp_path):
    write_log(small_log(), tmp_path / "any_name.json")
    (tmp_path / "config.json").write_text('{"alpha": 1}')
    (tmp_path / "broken.json").write_text("{")
    log = read_log(tmp_path)
    assert log == small_log()
    assert log.source == str(tmp_path / "any_name.json")


def test_the_known_name_wins_in_a_folder(tmp_path):
    write_log(TofuLog({"world_facts": small_log()["world_facts"]}), tmp_path / "older.json")
    assert write_log(small_log(), tmp_path) == tmp_path / "eval_log_aggregated.json"
    assert read_log(tmp_path) == small_log()


def test_open_unlearning_without_rouge_or_scores(tmp_path):
    file = tmp_path / "renamed.json"
    file.write_text(json.dumps(open_unlearning("ra") | open_unlearning("forget")))
    log = read_log(file)
    assert set(log) == {"forget", "real_authors"}
    assert log["real_authors"].paraphrase_loss == log["real_authors"].avg_loss == [0.1, 1.2]
    assert log["real_authors"].stored_prob is None
    assert log["forget"].paraphrase_loss == [0.7, 0.8]
    assert log["forget"].stored_prob == [0.9, 0.3]
    assert log["forget"].rougeL is None and log["forget"].generated is None


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    file = write_log(small_log(), tmp_path / "log.json")
    before = file.read_text()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(DiskFullError, match=r"the disk that holds .* is full"):
        write_log(TofuLog({"retain": small_log()["forget"]}), file)
    assert file.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["log.json"]


def broken_authors(**changes):
    def build(tmp_path):
        file = write_log(small_log(), tmp_path / "log.json")
        content = json.loads(file.read_text())
        for key, value in changes.items():
            if value is None:
                del content["eval_log_forget.json"][key]
            else:
                content["eval_log_forget.json"][key] |= value
        return json.dumps(content)

    return build


def broken_open_unlearning(drop=None, row=None):
    def build(_):
        content = open_unlearning("forget")
        if drop:
            del content[drop]
        if row is not None:
            content["forget_Q_A_Prob"]["value_by_index"]["1"] = row
        return json.dumps(content)

    return build


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda _: '{"eval_log.json": {', "not valid JSON"),
        (lambda _: '{"alpha": 1}', "is no TOFU log"),
        (lambda _: "[1, 2]", "is no TOFU log"),
        (broken_authors(avg_paraphrased_loss=None), "task 'forget': 'avg_paraphrased_loss' is missing; evaluate"),
        (broken_authors(rougeL_recall={"9": 1.0}), "'rougeL_recall' does not hold the same 2 rows"),
        (broken_authors(avg_paraphrased_loss={"7": math.nan}), "'paraphrase_loss' is NaN or -inf in row '7'"),
        (broken_authors(avg_paraphrased_loss={"7": "x"}), "'paraphrase_loss' cannot hold 'x' \\(row '7'\\)"),
        (broken_authors(num_token_gt={"7": 2.5}), "'tokens' cannot hold '2.5'"),
        (broken_authors(generated_text={"7": ["only", "two"]}), "'generated' cannot hold"),
        (broken_authors(average_perturb_loss={"7": [1.0]}), "same number of wrong answers"),
        (broken_open_unlearning(drop="forget_Q_A_PARA_Prob"), "'forget_Q_A_PARA_Prob' is missing"),
        (broken_open_unlearning(row={"prob": 1.0}), "'forget_Q_A_Prob' lacks 'avg_loss' of some row"),
        (broken_open_unlearning(row={"prob": None, "avg_loss": None}), "'avg_loss' cannot hold 'None' \\(row '1'\\)"),
    ],
)
def test_errors_name_file_and_fault(tmp_path, build, message):
    text = build(tmp_path)
    (tmp_path / "log.json").write_text(text)
    with pytest.raises(LogError, match=message) as raised:
        read_log(tmp_path / "log.json")
    assert str(raised.value).startswith(str(tmp_path / "log.json"))
    assert isinstance(raised.value, ULDError) and isinstance(raised.value, ValueError)


def test_errors_of_places(tmp_path):
    with pytest.raises(LogError, match="does not exist"):
        read_log(tmp_path / "absent.json")
    with pytest.raises(LogError, match=r"exactly one TOFU log .*found: none"):
        read_log(tmp_path)
    write_log(small_log(), tmp_path / "a.json")
    write_log(small_log(), tmp_path / "b.json")
    with pytest.raises(LogError, match=r"found: a\.json, b\.json"):
        read_log(tmp_path)
    with pytest.raises(LogError, match="no task to write"):
        write_log(TofuLog({}), tmp_path / "c.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": []}, "at least one row"),
        ({"keys": ["0", "0"]}, "repeated row keys"),
        ({"rougeL": [1.0]}, "Column 'rougeL' has 1 entries for 2 rows"),
        ({"avg_loss": None}, "Column 'avg_loss' has no entries"),
        ({"wrong_losses": [[], []]}, "wrong answers, at least one"),
    ],
)
def test_a_task_log_checks_its_columns(changes, message):
    columns = {"keys": ["0", "1"], "avg_loss": [1, 2], "paraphrase_loss": [1, 2], "wrong_losses": [[1], [2]]}
    with pytest.raises(LogError, match=message):
        TaskLog(**columns | changes)


def test_unknown_tasks_are_refused():
    with pytest.raises(LogError, match="Unknown TOFU task 'facts'"):
        TofuLog({"facts": small_log()["forget"]})
    assert set(AUTHORS_NAMES) == {"forget", "retain", "real_authors", "world_facts"}
