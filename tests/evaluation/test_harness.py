"""lm-eval on local tasks: scores equal those computed by hand, before equals the target, stops and resumes."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from uld.errors import ULDError
from uld.evaluation import harness
from uld.evaluation.harness import evaluate
from uld.evaluation.harness_tasks import load_tasks
from uld.evaluation.perplexity import text_perplexity

CHOICES = [
    {"q": "who sat on the mat", "choices": ["the cat", "a dog", "it"], "gold": 0},
    {"q": "what sang", "choices": ["a bird", "the wind in the trees"], "gold": 1},
    {"q": "where is it", "choices": ["by the door", "on the mat", "here", "there"], "gold": 2},
    {"q": "who is it", "choices": ["it is the wind", "nobody"], "gold": 1},
    {"q": "what fell", "choices": ["a leaf", "rain", "the cup"], "gold": 1},
]
SHOTS = [{"q": f"which {one}", "choices": [one, "none"], "gold": 0} for one in ("tree", "bird")]
TEXTS = [
    {"text": "the cat sat on the mat. who is it? it is the wind."},
    {"text": "a bird  sang to the dog by the door."},
]
LONG = {
    "text": "the wind in the trees and a bird that sang to the dog by the door and the cat that sat on the mat. " * 3
}


def write_tasks(folder: Path) -> Path:
    """Three tasks over JSON lines, and a group of two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("choices", CHOICES), ("shots", SHOTS), ("texts", [*TEXTS, LONG])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def data(**splits: str) -> dict:
        files = {split: str(folder / f"{name}.jsonl") for split, name in splits.items()}
        return {"data_files": files, "cache_dir": str(folder / "cache")}

    asked = {
        "dataset_path": "json",
        "dataset_kwargs": data(test="choices", train="shots"),
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": "q: {{q}} a:",
    }
    tasks = {
        "mc": asked
        | {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "gen": asked
        | {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[gold]}}",
            "generation_kwargs": {"until": ["z"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
        "roll": {
            "dataset_path": "json",
            "dataset_kwargs": data(test="texts"),
            "test_split": "test",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": one} for one in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        },
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **task}))
    group = {
        "group": "both",
        "task": ["mc", "gen"],
        "aggregate_metric_list": [{"metric": "acc", "filter_list": "none"}],
    }
    (folder / "both.yaml").write_text(yaml.safe_dump(group | {"task": ["mc"]}))
    return folder


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """lm-eval asks pip and the compilers for their versions in every evaluation, which takes seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)


@pytest.fixture(scope="module")
def model(make_target, make_unlearned):
    return make_unlearned(make_target("llama", num_layers=3), 2)


def run(model, letters, tasks, output, **options):
    result = evaluate(model, copy.deepcopy(letters), tasks, output, progress=False, **options)
    return {(one.task, one.metric): one for one in result.scores}


def samples(folder: Path, side: str, task: str) -> list[dict]:
    (path,) = (folder / side).glob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def likelihood(model, letters, prompt: str, answer: str) -> float:
    """Summed log-probability of an answer behind a prompt, a token at a time."""
    given, ids = letters(prompt).input_ids, letters(prompt + answer).input_ids
    logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logs[i - 1, ids[i]].item() for i in range(len(given), len(ids)))


def by_hand(model, letters, docs=CHOICES, prompt="q: {q} a:") -> tuple[list[float], list[float]]:
    """Right or wrong on each question, by likelihood and by likelihood a byte."""
    right, normed = [], []
    for doc in docs:
        values = [likelihood(model, letters, prompt.format(**doc), f" {one}") for one in doc["choices"]]
        a_byte = [value / len(one) for value, one in zip(values, doc["choices"], strict=True)]
        right.append(float(values.index(max(values)) == doc["gold"]))
        normed.append(float(a_byte.index(max(a_byte)) == doc["gold"]))
    return right, normed


def mean(values):
    return sum(values) / len(values)


def test_scores_equal_those_by_hand(model, letters, local, tmp_path):
    tasks = load_tasks(["mc", "roll"], [local])
    found = run(model, letters, tasks, tmp_path / "out", before=model.target, log_samples=True, batch_size=3)
    after, before = by_hand(model, letters), by_hand(model.target, letters)
    for metric, ours, theirs in (("acc", after[0], before[0]), ("acc_norm", after[1], before[1])):
        score = found["mc", metric]
        assert (score.after, score.before, score.documents) == (mean(ours), mean(theirs), 5)
        assert score.difference == pytest.approx(mean(ours) - mean(theirs))
        changes = [b - a for a, b in zip(theirs, ours, strict=True)]
        spread = math.sqrt(sum((one - mean(changes)) ** 2 for one in changes) / 4 / 5)
        assert (score.kind, score.difference_stderr) == ("paired", pytest.approx(spread))
    for row, doc in zip(samples(tmp_path / "out", "after", "mc"), CHOICES, strict=True):
        theirs = [float(one[0]) for one in row["filtered_resps"]]
        ours = [likelihood(model, letters, f"q: {doc['q']} a:", f" {one}") for one in doc["choices"]]
        assert theirs == pytest.approx(ours, rel=1e-4)
    for side, one in (("after", model), ("before", model.target)):
        expected = text_perplexity(one, letters, [doc["text"] for doc in (*TEXTS, LONG)]).to_dict()
        assert getattr(found["roll", "word_perplexity"], side) == pytest.approx(expected["word"], rel=1e-4)
        assert getattr(found["roll", "byte_perplexity"], side) == pytest.approx(expected["byte"], rel=1e-4)
        assert getattr(found["roll", "bits_per_byte"], side) == pytest.approx(math.log2(expected["byte"]), rel=1e-4)
    assert (
        found["roll", "word_perplexity"].kind == "bootstrap" and found["roll", "word_perplexity"].after_stderr is None
    )
    assert not found["roll", "word_perplexity"].higher_is_better and found["mc", "acc"].higher_is_better


def test_before_equals_lm_eval_on_the_target_folder_and_files_are_lm_evals(make_run, local, tmp_path):
    """All of a run against a plain `HFLM`, with few-shot examples and a group."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from uld.model.load import load

    folder = make_run(tmp_path, "llama")
    loaded, tokenizer = load(folder)
    tasks = load_tasks(["both", "gen", "roll"], [local])
    found = evaluate(loaded, tokenizer, tasks, tmp_path / "out", before=loaded.target, num_fewshot=1, progress=False)
    lm = HFLM(pretrained=str(tmp_path / "target"), device="cpu", batch_size=8)
    manager = TaskManager(include_path=str(local), include_defaults=False)
    plain = simple_evaluate(lm, tasks=["both", "gen", "roll"], num_fewshot=1, task_manager=manager, bootstrap_iters=10)
    (path,) = (tmp_path / "out" / "before").glob("results_*.json")
    ours = json.loads(path.read_text())
    for task, metrics in plain["results"].items():
        for name, value in metrics.items():
            assert ours["results"][task][name] == (pytest.approx(value) if isinstance(value, float) else value)
    for key in ("groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert set(ours[key]) == set(plain[key])
    missing = {"samples", "pretty_env_info"}
    assert set(plain) - missing <= set(ours) and ours["model_name"].endswith("target")
    scores = {(one.task, one.metric): one for one in found.scores}
    assert scores["both", "acc"].kind == "combined" and scores["mc", "acc"].kind == "paired"
    assert scores["both", "acc"].after == scores["mc", "acc"].after
    assert not list((tmp_path / "out" / "after").glob("samples_*"))  # they were not asked for
    (path,) = (tmp_path / "out" / "after").glob("results_*.json")
    assert json.loads(path.read_text())["config"]["combination"] == loaded.combination.to_dict()


def test_few_shots_and_the_chat_template_change_the_prompt(model, letters, local, tmp_path):
    tasks = load_tasks(["mc"], [local])

    def prompts(name: str, **options) -> list[str]:
        run(model, letters, tasks, tmp_path / name, log_samples=True, limit=2, **options)
        return [row["arguments"]["gen_args_0"]["arg_0"] for row in samples(tmp_path / name, "after", "mc")]

    bare, shots = prompts("bare"), prompts("shots", num_fewshot=2)
    assert bare == [f"q: {doc['q']} a:" for doc in CHOICES[:2]]
    for one, plain in zip(shots, bare, strict=True):
        assert one.endswith(plain) and all(f"q: {shot['q']} a: {shot['choices'][0]}" in one for shot in SHOTS)
    assert prompts("chat", apply_chat_template=True) == [f"<s>q: {one} a:" for one in bare]
    both = prompts("both", apply_chat_template=True, num_fewshot=1)
    assert all(one.count("<s>") == 2 and one.count("</s>") == 1 and one.endswith(f"<s>q: {plain} a:")
               for one, plain in zip(both, bare, strict=True))  # fmt: skip


def test_batches_padded_on_the_left_write_what_single_rows_write(model, letters, local, tmp_path):
    tasks = load_tasks(["gen"], [local])
    written = []
    for size in (1, 4):
        run(model, letters, tasks, tmp_path / str(size), batch_size=size, log_samples=True)
        written.append([row["filtered_resps"][0] for row in samples(tmp_path / str(size), "after", "gen")])
    assert written[0] == written[1] and len(set(written[0])) > 1
    ids = letters(f"q: {CHOICES[0]['q']} a:", return_tensors="pt").input_ids
    answer = letters.decode(model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :])
    assert written[0][0] == answer.split("z")[0].split("</s>")[0]


def test_a_stopped_evaluation_goes_on_and_leaves_nothing_half_written(model, letters, local, tmp_path, monkeypatch):
    tasks, ran, inner = load_tasks(["mc", "roll"], [local]), [], harness._run

    def counted(lm, name, *rest):
        ran.append((lm.model is model, name))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return inner(lm, name, *rest)

    monkeypatch.setattr(harness, "_run", counted)
    with pytest.raises(KeyboardInterrupt):
        run(model, letters, tasks, tmp_path, before=model.target)
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert kept[1:] == ["settings.json", "tasks/mc.before.json", "tasks/roll.before.json"]
    assert kept[0].startswith("before/results_")
    found = run(model, letters, tasks, tmp_path, before=model.target)
    assert ran[3:] == [(True, "mc"), (True, "roll")]
    assert found == run(model, letters, tasks, tmp_path / "again", before=model.target)
    assert run(model, letters, tasks, tmp_path) == {
        key: type(one)(**{**vars(one), **dict.fromkeys(
            ("before", "before_stderr", "difference", "difference_stderr", "kind"))})
        for key, one in found.items()
    }  # fmt: skip
    del ran[:]
    monkeypatch.setattr(harness, "_run", inner)
    with pytest.raises(ULDError, match=r"other settings \(limit\)"):
        run(model, letters, tasks, tmp_path, limit=1)


def test_other_questions_are_asked_again(model, letters, tmp_path):
    folder = write_tasks(tmp_path / "tasks")
    first = run(model, letters, load_tasks(["mc"], [folder]), tmp_path / "out")
    (folder / "choices.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in CHOICES[:3]))
    second = run(model, letters, load_tasks(["mc"], [folder]), tmp_path / "out")
    assert (first["mc", "acc"].documents, second["mc", "acc"].documents) == (5, 3)
    assert second["mc", "acc"].after == mean(by_hand(model, letters, CHOICES[:3])[0])


def test_masked_tokens_give_infinite_perplexities_and_a_broken_model_is_refused(
    make_target, make_unlearned, letters, local, tmp_path
):
    from uld.model.combine import Combination

    masked = make_unlearned(
        make_target("llama", num_layers=3), 2, Combination(rule="subtract", outside="mask", filter=0.5)
    )
    found = run(masked, letters, load_tasks(["roll"], [local]), tmp_path / "mask", before=masked.target)
    score = found["roll", "word_perplexity"]
    assert score.after == math.inf and score.difference == math.inf and score.difference_stderr is None
    broken = make_target("llama", num_layers=3)
    broken.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(ULDError, match="gives NaN"):
        run(broken, letters, load_tasks(["mc"], [local]), tmp_path / "broken")
    assert not (tmp_path / "broken" / "tasks").exists()


def test_bad_input(model, letters, local, tmp_path):
    with pytest.raises(ULDError, match="no folder nowhere"):
        load_tasks(["mc"], ["nowhere"])
    with pytest.raises(ULDError, match="holds no task file"):
        load_tasks(["mc"], [tmp_path])
    with pytest.raises(ULDError, match="at least one task"):
        load_tasks([])
    bare = copy.deepcopy(letters)
    bare.chat_template = None
    with pytest.raises(ULDError, match="no chat template"):
        evaluate(model, bare, load_tasks(["mc"], [local]), tmp_path / "out", apply_chat_template=True)
    with pytest.raises(ULDError, match="the task mc has 2 examples to show: lower --num-fewshot 50"):
        run(model, letters, load_tasks(["mc"], [local]), tmp_path / "shots", num_fewshot=50)
    with pytest.raises(ULDError, match=r"lm-eval cannot run the task gen: .*maximum sequence length"):
        run(model, letters, load_tasks(["gen"], [local]), tmp_path / "short", max_length=10)
    assert not list((tmp_path / "short").rglob("*.gen*"))
    nowhere = {"task": "bad", **OVER_JSON, "dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(nowhere))
    with pytest.raises(ULDError, match=r"the task bad cannot be loaded: .*nowhere\.jsonl"):
        load_tasks(["bad"], [tmp_path])
    hub = {"task": "hub", "dataset_path": "nobody/nothing", "output_type": "multiple_choice", "test_split": "test"}
    (tmp_path / "hub.yaml").write_text(yaml.safe_dump(hub))
    with pytest.raises(ULDError, match="the data of the task hub is not on this machine"):
        load_tasks(["hub"], [tmp_path])


OVER_JSON = {"dataset_path": "json", "output_type": "loglikelihood_rolling", "test_split": "test"}


def test_a_task_over_files_that_names_none_is_refused_before_the_working_folder_is_searched(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "test.jsonl").write_text('{"text": "of somebody else"}\n')
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "tasks").mkdir()
    data = {"data_files": {"test": str(tmp_path / "here" / "test.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    texts = {**OVER_JSON, "doc_to_text": "", "doc_to_target": "{{text}}"}
    written: list[dict] = [
        {"task": "none", "tag": "tagged", **texts},
        {"task": "some", "dataset_kwargs": data, **texts},
        {"group": "names-it", "task": ["some", "none"]},
        {"group": "within", "task": ["some", {"group": "inline", "task": ["none"]}]},
        {"group": "gives-it", "task": ["some", {"task": "none", "dataset_kwargs": data}]},
        {"group": "gives-all", "task": ["none"], "dataset_kwargs": data},
        {"group": "loop", "task": ["some", "loop"]},
    ]
    for task in written:
        (tmp_path / "tasks" / f"{task.get('group', task.get('task'))}.yaml").write_text(yaml.safe_dump(task))
    for name in ("none", "tagged", "names-it", "within"):
        with pytest.raises(ULDError, match="the task none reads json files and names none: name them in its task file"):
            load_tasks([name], [tmp_path / "tasks"])
    with pytest.raises(ULDError, match="the group loop holds itself"):
        load_tasks(["loop"], [tmp_path / "tasks"])
    for name, names in (("gives-it", {"some", "none"}), ("gives-all", {"none"})):
        assert load_tasks([name], [tmp_path / "tasks"]).loaded[name]["tasks"].keys() == names


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *(("num_fewshot", value, said) for value, said in ((-1, "at least 0"), (1.5, "a whole number"))),
        *(("limit", value, said) for value, said in ((0, "at least 1"), (-2, "at least 1"), (0.5, "a whole number"))),
        *(("batch_size", value, said) for value, said in ((0, "at least 1"), (True, "a whole number"))),
        *(("max_length", value, said) for value, said in ((0, "at least 2"), (-5, "at least 2"), (1, "at least 2"))),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(
    model, letters, local, tmp_path, name, value, said
):
    with pytest.raises(ULDError, match=f"{name} must be {said}"):
        run(model, letters, load_tasks(["mc"], [local]), tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()
