"""TOFU from a model: equal to its definitions, resumable after a kill, and refused where numbers would not compare."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ks_2samp

import uld.evaluation.benchmark as benchmark
import uld.evaluation.tofu as tofu
from uld.data.prompt import PromptFormat
from uld.data.record import DataError, Record
from uld.errors import ArtifactError, ULDError
from uld.evaluation.benchmark import by_length
from uld.evaluation.tofu_log import read_log
from uld.evaluation.tofu_result import aggregate
from uld.model.combine import Combination
from uld.model.load import load

TASKS = ("forget", "retain", "real_authors", "world_facts")
LIMIT = 10
QUICK = {"max_new_tokens": 12, "limit": LIMIT, "progress": False}


@pytest.fixture(scope="module")
def unlearned(micro):
    return load(micro.run)


@pytest.fixture(scope="module")
def retain_only(micro):
    return load(micro.retain_only)


@pytest.fixture(scope="module")
def finished(micro, unlearned, tmp_path_factory) -> Path:
    """An evaluation in batches of a few rows."""
    folder = tmp_path_factory.mktemp("finished") / "eval"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tofu, "by_length", partial(by_length, tokens=64))
        tofu.evaluate(*unlearned, "forget10", folder, data=micro.data, **QUICK)
    return folder


@pytest.fixture
def copy(finished, tmp_path, monkeypatch) -> Path:
    """That evaluation, to be tampered with."""
    monkeypatch.setattr(tofu, "by_length", partial(by_length, tokens=64))
    shutil.copytree(finished, tmp_path / "eval")
    return tmp_path / "eval"


def rows_of(micro, task: str) -> list[dict]:
    name = "forget10" if task == "forget" else task
    return [json.loads(line) for line in (micro.data / f"{name}_perturbed.json").read_text().splitlines()][:LIMIT]


@torch.no_grad()
def mean_loss(model, form: PromptFormat, question: str, answer: str) -> float:
    """Mean NLL in nats of an answer's tokens, end of sequence included, from the whole row's logits."""
    row = form.encode(Record.qa(question, answer), max_length=10_000)
    logits = model(input_ids=torch.tensor([row.ids])).logits[0].double()
    losses = -logits.log_softmax(-1)[torch.arange(len(row.ids) - 1), torch.tensor(row.ids[1:])]
    return losses[torch.tensor(row.learn[1:])].mean().item()


def naive_task(model, tokenizer, rows: list[dict], task: str) -> dict[str, list[float]]:
    """Probability, ROUGE-L recall and t of every row, by definition and one answer at a time."""
    form = PromptFormat(tokenizer)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    found: dict[str, list[float]] = {"prob": [], "rouge": [], "t": []}
    for row in rows:
        truth = mean_loss(model, form, row["question"], row["answer"])
        wrong = [mean_loss(model, form, row["question"], answer) for answer in row["perturbed_answer"]]
        p = math.exp(-truth)
        if task in ("forget", "retain"):
            right = mean_loss(model, form, row["question"], row["paraphrased_answer"])
        else:
            right, p = truth, p / (p + sum(math.exp(-loss) for loss in wrong))
        found["prob"].append(p)
        found["t"].append(math.exp(sum(wrong) / len(wrong) - right))
        prompt = torch.tensor([form.prompt_ids(row["question"])])
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
        text = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
        found["rouge"].append(scorer.score(row["answer"], text)["rougeL"].recall)
    return found


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def test_every_number_is_what_its_definition_gives(micro, unlearned, retain_only, finished, tmp_path):
    other = tofu.evaluate(
        *retain_only, "forget10", tmp_path, data=micro.data, tasks=["forget"], generate=False, **QUICK
    )
    result = aggregate(read_log(finished), other).to_dict()
    naive = {task: naive_task(*unlearned, rows_of(micro, task), task) for task in TASKS}
    expected = {}
    for task, parts in naive.items():
        expected[f"{task}_prob"] = mean(parts["prob"])
        expected[f"{task}_rouge_l"] = mean(parts["rouge"])
        forget = task == "forget"
        ratios = (min(t, 1 / t) if forget else max(0.0, 1 - 1 / t) for t in parts["t"])
        expected[f"{task}_truth_ratio"] = mean(ratios)
    nine = [value for name, value in expected.items() if not name.startswith("forget")]
    assert len(nine) == 9
    expected["model_utility"] = 9 / sum(1 / value for value in nine) if all(nine) else 0.0
    form, rows = PromptFormat(retain_only[1]), rows_of(micro, "forget")
    t = [
        math.exp(
            mean(mean_loss(retain_only[0], form, row["question"], wrong) for wrong in row["perturbed_answer"])
            - mean_loss(retain_only[0], form, row["question"], row["paraphrased_answer"])
        )
        for row in rows
    ]
    expected["forget_quality"] = float(ks_2samp(naive["forget"]["t"], t).pvalue)
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert result["rows"] == {task: len(rows_of(micro, task)) for task in TASKS}
    assert (result["compared_rows"], result["impossible_answers"]) == (len(rows), 0)


def test_the_log_holds_prompt_answer_and_truth_of_every_row(micro, finished):
    log = read_log(finished)
    for task in TASKS:
        rows = rows_of(micro, task)
        assert log[task].keys == [str(i) for i in range(len(rows))]
        for (prompt, _, truth), row in zip(log[task].generated, rows, strict=True):
            assert row["question"] in prompt and truth == row["answer"]
        assert log[task].loss == pytest.approx(
            [a * n for a, n in zip(log[task].avg_loss, log[task].tokens, strict=True)]
        )


def damage(folder: Path) -> dict[str, set[int]]:
    """What a kill in the middle leaves: two tasks cut short, one of them within a line, one not begun, no log."""
    missing = {}
    for task, lost in (("retain", 3), ("world_facts", 5)):
        path = folder / f"{task}.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        torn = lines[-lost][:25] if task == "retain" else ""
        path.write_text("".join(lines[:-lost]) + torn)
        missing[task] = {json.loads(line)["row"] for line in lines[-lost:]}
    missing["real_authors"] = {json.loads(line)["row"] for line in (folder / "real_authors.jsonl").open()}
    (folder / "real_authors.jsonl").unlink()
    (folder / "eval_log_aggregated.json").unlink()
    return missing


def test_a_killed_evaluation_goes_on_and_ends_in_the_same_bytes(micro, unlearned, finished, copy, monkeypatch):
    missing = damage(copy)
    asked: list[str] = []
    original = tofu.evaluate_rows

    def watched(subject, rows, *how):
        asked.extend(row["question"] for row in rows)
        return original(subject, rows, *how)

    monkeypatch.setattr(tofu, "evaluate_rows", watched)
    log = tofu.evaluate(*unlearned, "forget10", copy, data=micro.data, **QUICK)
    wanted = [rows_of(micro, task)[i]["question"] for task, rows in missing.items() for i in rows]
    assert set(wanted) <= set(asked)
    assert (
        len(asked) <= len(wanted) + 2 * 4
    )  # the two batches that were cut are done as a whole: at most four rows each
    assert log == read_log(finished)
    for path in finished.iterdir():
        assert (copy / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_finished_evaluation_is_only_read(micro, unlearned, copy, monkeypatch):
    monkeypatch.setattr(tofu, "evaluate_rows", None)
    monkeypatch.setattr(benchmark, "Scorer", None)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    tofu.evaluate(*unlearned, "forget10", copy, data=micro.data, **QUICK)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_rows_without_generation_are_done_again_when_it_is_asked_for(micro, unlearned, tmp_path):
    options = {"data": micro.data, "tasks": ["forget"], **QUICK, "limit": 3}
    without = tofu.evaluate(*unlearned, "forget10", tmp_path, generate=False, **options)
    assert without["forget"].rougeL is None and len(without["forget"]) == 3
    with_it = tofu.evaluate(*unlearned, "forget10", tmp_path, **options)
    assert with_it["forget"].avg_loss == without["forget"].avg_loss
    assert len(with_it["forget"].generated) == 3


def test_limit_takes_the_first_rows_and_a_higher_one_goes_on(micro, unlearned, finished, tmp_path):
    few = tofu.evaluate(*unlearned, "forget10", tmp_path, data=micro.data, **QUICK | {"limit": 5})
    assert {name: len(task) for name, task in few.items()} == dict.fromkeys(TASKS, 5)
    whole = read_log(finished)
    for task in TASKS:
        assert few[task].avg_loss == pytest.approx(whole[task].avg_loss[:5], rel=1e-5)
        assert few[task].generated == whole[task].generated[:5]
    done = (tmp_path / "retain.jsonl").read_text()
    more = tofu.evaluate(*unlearned, "forget10", tmp_path, data=micro.data, **QUICK | {"limit": 7})
    assert (tmp_path / "retain.jsonl").read_text().startswith(done)
    assert more["retain"].avg_loss == pytest.approx(whole["retain"].avg_loss[:7], rel=1e-5)


def test_other_settings_are_refused(micro, unlearned, retain_only, copy):
    model, tokenizer = unlearned
    options = {"data": micro.data, **QUICK}
    with pytest.raises(ArtifactError, match=r"another model or with other settings \(max_new_tokens\)"):
        tofu.evaluate(model, tokenizer, "forget10", copy, **options | {"max_new_tokens": 13})
    with pytest.raises(ArtifactError, match=r"\(prompt\)"):
        tofu.evaluate(model, tokenizer, "forget10", copy, template="plain", **options)
    with pytest.raises(ArtifactError, match=r"\(combination, weights\)"):
        tofu.evaluate(*retain_only, "forget10", copy, **options)
    own = model.combination
    try:
        model.combination = own.override(weight=0.5)
        with pytest.raises(ArtifactError, match=r"\(combination: weight\)"):
            tofu.evaluate(model, tokenizer, "forget10", copy, **options)
    finally:
        model.combination = own


def test_the_same_weights_under_another_path_are_the_same_model(micro, copy, tmp_path):
    shutil.copytree(micro.run, tmp_path / "moved")
    tofu.evaluate(*load(tmp_path / "moved"), "forget10", copy, data=micro.data, **QUICK)


def test_masked_answers_are_infinite_and_the_files_stay_json(micro, tmp_path):
    model, tokenizer = load(micro.run, rule="subtract", weight=1.5, filter=0.9, min_tokens=0.0, outside="mask")
    log = tofu.evaluate(model, tokenizer, "forget10", tmp_path, data=micro.data, **QUICK)
    assert any(math.isinf(loss) for loss in log["forget"].avg_loss)
    files = [*tmp_path.glob("*.json"), *tmp_path.glob("*.jsonl")]
    for path in files:
        for text in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(text, parse_constant=pytest.fail)
    again = tofu.evaluate(model, tokenizer, "forget10", tmp_path, data=micro.data, **QUICK)
    assert again == log == read_log(tmp_path)
    result = aggregate(log, log)
    assert result.impossible_answers > 0 and result.forget_quality == 1.0
    assert 0 <= (result.forget_prob or 0) <= 1 and result.forget_truth_ratio is not None


def test_a_model_that_gives_nan_is_refused_before_anything_is_logged(micro, tmp_path):
    model, tokenizer = load(micro.target)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(ULDError, match="gives NaN as the probability of an answer"):
        tofu.evaluate(model, tokenizer, "forget10", tmp_path, data=micro.data, **QUICK)
    assert (tmp_path / "forget.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbed_answer": None}, r"forget10_perturbed\.json:2: .*'perturbed_answer'"),
        ({"perturbed_answer": ["one"]}, r"forget10_perturbed:2: 'perturbed_answer' must list as many"),
        ({"paraphrased_answer": None}, r"forget10_perturbed\.json:2: .*'paraphrased_answer'"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(micro, tmp_path, change, message):
    rows = rows_of(micro, "forget")
    rows[1] |= change
    (tmp_path / "forget10_perturbed.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        tofu.task_rows("forget", "forget10", tmp_path)


def test_real_tofu_has_the_rows_that_are_expected(data_dir):
    counts = {task: len(tofu.task_rows(task, "forget10", data_dir / "tofu")) for task in TASKS}
    assert counts == {"forget": 400, "retain": 400, "real_authors": 100, "world_facts": 117}
    assert len(tofu.task_rows("forget", "forget01", data_dir / "tofu")) == 40


def test_a_grid_of_combinations_gives_what_each_gives_alone(micro, unlearned):
    model, tokenizer = unlearned
    combinations = [Combination(weight=0.5), Combination("subtract", weight=1.0)]
    logs = tofu.score_grid(model, tokenizer, "forget10", combinations, data=micro.data, limit=4)
    own = model.combination
    try:
        for how, log in zip(combinations, logs, strict=True):
            model.combination = how
            for task in TASKS:
                naive = [
                    mean_loss(model, PromptFormat(tokenizer), row["question"], row["answer"])
                    for row in rows_of(micro, task)[:4]
                ]
                assert log[task].avg_loss == pytest.approx(naive, rel=1e-4)
    finally:
        model.combination = own
