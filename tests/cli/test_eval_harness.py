"""``uld eval harness``: a run from the command line, resumed, with its table, and bad input in one sentence."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

import uld.evaluation
from uld.cli.main import app


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """lm-eval asks pip and the compilers for their versions in every evaluation, which takes seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("harness"), "llama")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    docs = [{"q": q, "choices": ["a cat", "it", "the dog"], "gold": i} for i, q in enumerate(("who", "what", "where"))]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = {
        "task": "local_mc",
        "dataset_path": "json",
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "q: {{q}} a:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}, "cache_dir": str(folder / "cache")},
    }
    (folder / "local_mc.yaml").write_text(yaml.safe_dump(task))
    return folder


def evaluate(*arguments: object, task: str = "local_mc"):
    return CliRunner().invoke(app, ["eval", "harness", "--tasks", task, "-q", *map(str, arguments)])


def test_a_run_its_target_and_an_ordinary_model(run, tasks, tmp_path):
    given = ("--include-path", tasks, "--log-samples")
    done = evaluate("--model", run, *given, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (acc,) = [one for one in found["scores"] if one["metric"] == "acc"]
    assert acc["documents"] == 3 and acc["kind"] == "paired" and acc["difference"] == acc["after"] - acc["before"]
    folder = run / "eval" / "harness"
    assert json.loads((folder / "result.json").read_text()) == found
    assert {path.name.split("_")[0] for side in ("before", "after") for path in (folder / side).iterdir()} == {
        "results",
        "samples",
    }
    stored = (folder / "tasks" / "local_mc.after.json").stat().st_mtime_ns
    again = evaluate("--model", run, *given)
    assert (
        again.exit_code == 0
        and "| local_mc | acc | ↑ | 0 | 3 |" in " ".join(again.stdout.split())
        and "difference" in again.stdout
    )
    assert (folder / "tasks" / "local_mc.after.json").stat().st_mtime_ns == stored
    alone = evaluate("--model", run.parent / "target", *given, "--output", tmp_path / "target", "--json")
    (plain,) = [one for one in json.loads(alone.stdout)["scores"] if one["metric"] == "acc"]
    assert plain["after"] == acc["before"] and plain["before"] is None
    short = evaluate("--model", run, *given, "--limit", 1, "--weight", 0, "--no-before")
    assert short.exit_code == 0 and " score |" in short.stdout and " before |" not in short.stdout
    assert not (run / "eval" / "harness-weight-0.0-limit-1" / "before").exists()
    assert (run / "eval" / "harness-weight-0.0-limit-1" / "after").is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--include-path": "nowhere"}, "there is no folder nowhere of task files"),
        ({"--limit": 0}, "--limit"),
        ({"--model": "no/where/at/all"}, "--model takes a folder or a Hub id"),
        ({"--num-fewshot": 3}, "would be shown its own answers"),
        ({"--rule": "nonsense"}, "nonsense"),
    ],
)
def test_bad_input(run, tasks, tmp_path, change, message):
    given = {"--model": run, "--include-path": tasks, "--output": tmp_path / "out", **change}
    done = evaluate(*(part for pair in given.items() for part in pair))
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name != "settings.json" and path.is_file()]


def test_an_ordinary_model_has_no_before(run, tasks, tmp_path):
    done = evaluate("--model", run.parent / "target", "--include-path", tasks, "--before", "--output", tmp_path / "out")
    assert done.exit_code == 2 and "holds no target beside it" in done.stderr


def test_without_lm_eval_one_sentence_says_what_to_install(run, monkeypatch):
    for name in [one for one in sys.modules if one.startswith(("uld.evaluation.harness", "uld.evaluation.lm_eval"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("harness", "lm_eval_model"):
        monkeypatch.delattr(uld.evaluation, name, raising=False)
    for name in [one for one in sys.modules if one.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    for arguments in (["eval", "harness", "--model", str(run), "--tasks", "x"], ["lm-eval", "--model", "uld"]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2 and done.stderr.startswith("uld: lm-eval is missing"), done.stderr
        assert 'pip install -e ".[harness]" in the folder of uld' in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("error", [ConnectionError("no Hub"), KeyError("no Hub"), ValueError("no Hub")])
def test_what_lm_eval_cannot_do_ends_in_one_sentence(monkeypatch, error):
    import lm_eval.__main__ as command

    def fails():
        raise error

    monkeypatch.setattr(command, "cli_evaluate", fails)
    done = CliRunner().invoke(app, ["lm-eval", "--tasks", "piqa"])
    assert done.exit_code == 2 and done.stderr.startswith("uld: lm-eval: ") and "no Hub" in done.stderr


@pytest.mark.slow
def test_unknown_tasks_and_tasks_of_the_hub(run, tmp_path):
    """Slow, because lm-eval reads its thousands of task files first."""
    wrong = evaluate("--model", run, "--output", tmp_path / "out", task="boolqq")
    assert wrong.exit_code == 2 and "no task boolqq: did you mean 'boolq'" in wrong.stderr
    hub = evaluate("--model", run, "--output", tmp_path / "out", task="boolq")
    assert hub.exit_code == 2 and "the data of the task boolq is not on this machine" in hub.stderr
    assert not (tmp_path / "out").exists()
