"""``uld eval tofu``: published numbers from logs, a run against a retain-only model, where logs go, and bad input."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import uld.evaluation.benchmark as benchmark
import uld.evaluation.tofu as tofu
from uld.cli.main import app
from uld.evaluation.benchmark import by_length
from uld.runs.manifest import Manifest

PUBLISHED = {
    "tofu_llama2_7b": {
        "full": {
            "forget_quality": 1.834066410994743e-21,
            "model_utility": 0.6226773637427153,
        },
        "retain90": {"forget_quality": 1.0, "model_utility": 0.613744995233942},
    },
    "openunlearning_llama32_1b": {
        "full": {"forget_quality": 3.9054713571083378e-22, "model_utility": 0.5991534707368931},
        "retain90": {
            "forget_quality": 1.0,
            "model_utility": 0.5911246639353407,
            "forget_prob": 0.1161314930615481,
            "forget_rouge_l": 0.37907355526383685,
        },
    },
}
QUICK = ("--max-new-tokens", "4", "--limit", "3", "-q")


def evaluate(*arguments: object):
    return CliRunner().invoke(app, ["eval", "tofu", *map(str, arguments)])


def refused(done) -> str:
    """The one sentence of a failed command."""
    assert done.exit_code == 2, done.output
    assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("uld: ")
    return done.stderr


@pytest.fixture
def run(micro, tmp_path) -> Path:
    """A run folder of this test's own."""
    return Path(shutil.copytree(micro.run, tmp_path / "run"))


@pytest.mark.parametrize("source", PUBLISHED)
@pytest.mark.parametrize("model", ["full", "retain90"])
def test_published_numbers_from_logs_alone(data_dir, source, model):
    logs = data_dir / "reference_logs"
    done = evaluate("--from-log", logs / f"{source}_{model}", "--retain-log", logs / f"{source}_retain90", "--json")
    assert done.exit_code == 0 and done.stderr == ""
    found = json.loads(done.stdout)
    expected = PUBLISHED[source][model]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12, abs=0.0)


def test_published_parts_from_a_log(data_dir):
    done = evaluate("--from-log", data_dir / "reference_logs" / "tofu_llama2_7b_full" / "eval_log_aggregated.json")
    assert done.exit_code == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    assert rows[2] == ["-", "98.5", "0.623", "98.6"]
    assert ["retain", "300", "0.9895", "0.9857", "0.4747"] in rows
    assert ["world facts", "117", "0.4186", "0.8825", "0.5390"] in rows


def test_a_run_against_a_retain_only_model(micro, run):
    arguments = ("--model", run, "--data", micro.data, "--retain-model", micro.retain_only, "--json", *QUICK)
    done = evaluate(*arguments)
    assert done.exit_code == 0 and done.stderr == ""
    folder = run / "eval" / "tofu-forget10-max_new_tokens-4"
    result = json.loads(done.stdout)
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["rows"] == {"retain": 3, "real_authors": 3, "world_facts": 3, "forget": 3}
    (beside,) = folder.glob("retain-*")
    assert 0 <= result["forget_quality"] <= 1 and result["model_utility"] is not None
    from_logs = evaluate("--from-log", folder, "--retain-log", beside, "--json")
    assert json.loads(from_logs.stdout) == result


def test_a_second_time_computes_nothing(micro, run, monkeypatch):
    arguments = ("--model", run, "--data", micro.data, "--retain-model", micro.retain_only, "--json", *QUICK)
    first = evaluate(*arguments)
    monkeypatch.setattr(benchmark, "Scorer", None)
    monkeypatch.setattr(benchmark, "generate_ids", None)
    second = evaluate(*arguments)
    assert (second.exit_code, second.stdout) == (0, first.stdout)


def test_what_changes_the_numbers_is_in_the_folders_name(micro, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--data", micro.data, "--limit", 1, "--no-generate", "-q")
    assert "Logs and results: " in evaluate("-m", run, *options).stdout
    evaluate("-m", run, *options, "--weight", 0.5, "--dtype", "bf16")
    assert {path.name for path in (run / "eval").iterdir()} == {
        "tofu-forget10",
        "tofu-forget10-weight-0.5-dtype-bf16",
    }
    evaluate("-m", micro.target, *options)
    (model,) = (tmp_path / "eval").iterdir()
    assert model.name.endswith(micro.target.name) and [path.name for path in model.iterdir()] == ["tofu-forget10"]
    evaluate("-m", run, *options, "--output", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "result.json").is_file()


def test_an_override_changes_the_numbers_and_zero_is_the_target(micro, run, tmp_path):
    options = ("--data", micro.data, "--limit", 2, "--no-generate", "-q", "--json")
    own, none, target = (
        json.loads(evaluate("-m", model, *options, "--output", tmp_path / str(i), *more).stdout)
        for i, (model, more) in enumerate([(run, ()), (run, ("--weight", 0)), (micro.target, ())])
    )
    assert none["forget_prob"] == pytest.approx(target["forget_prob"], rel=1e-6)
    assert own["forget_prob"] != pytest.approx(target["forget_prob"], rel=1e-3)
    assert own["model_utility"] is None and own["forget_rouge_l"] is None


def test_an_interrupted_evaluation_goes_on_and_gives_the_same(micro, run, tmp_path, monkeypatch):
    monkeypatch.setattr(tofu, "by_length", partial(by_length, tokens=16))
    arguments = ("--model", run, "--data", micro.data, "--json", "-q", "--limit", 4, "--max-new-tokens", 4)
    whole = evaluate(*arguments, "--output", tmp_path / "whole")
    original, calls = tofu.evaluate_rows, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(tofu, "evaluate_rows", interrupted)
    stopped = refused(evaluate(*arguments, "--output", tmp_path / "parts"))
    assert stopped == (
        f"uld: interrupted: {tmp_path}/parts holds what is done, and the same command continues from there\n"
    )
    done = sum(len(path.read_text().splitlines()) for path in (tmp_path / "parts").glob("*.jsonl"))
    assert 5 <= done < 16
    again = evaluate(*arguments, "--output", tmp_path / "parts")
    assert (again.exit_code, again.stdout) == (0, whole.stdout)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()


def test_the_template_of_the_run_is_used_unless_one_is_given(micro, run, tmp_path):
    Manifest.read(run).model_copy(update={"template": "llama2"}).write(run)
    options = ("-m", run, "--data", micro.data, "--limit", 1, "--no-generate", "-q", "--json")

    def evaluated(folder: str, *more: object) -> list[str]:
        assert evaluate(*options, "--output", tmp_path / folder, *more).exit_code == 0
        found = [tmp_path / folder, *(tmp_path / folder).glob("retain-*")]
        return [json.loads((one / "settings.json").read_text())["prompt"] for one in found]

    own, beside = evaluated("own", "--retain-model", micro.retain_only)
    assert "[INST] QUESTION [/INST] ANSWER" in own and "[INST] QUESTION [/INST] ANSWER" in beside
    (given,) = evaluated("given", "--template", "Say {question}: {answer}")
    assert "Say QUESTION: ANSWER" in given
    done = evaluate(*options, "--output", tmp_path / "many", "--weight", "0,0.5")
    logs = sorted((tmp_path / "many" / "grid").glob("suppress-weight-*/"), key=lambda log: "weight-0.5" in log.name)
    from_logs = [json.loads(evaluate("--from-log", log, "--json").stdout)["forget_prob"] for log in logs]
    assert [row["result"]["forget_prob"] for row in json.loads(done.stdout)] == from_logs
    plain = json.loads(evaluate(*options, "--output", tmp_path / "target", "--weight", 0).stdout)["forget_prob"]
    assert from_logs[0] == pytest.approx(plain, rel=1e-6)


def test_a_grid_is_not_in_the_way_of_a_single_evaluation(micro, run):
    options = ("-m", run, "--data", micro.data, "--limit", 1, "--no-generate", "-q")
    first = evaluate(*options, "--weight", "0.5,1", "--retain-model", micro.retain_only)
    second = evaluate(*options, "--retain-model", micro.retain_only)
    assert (first.exit_code, second.exit_code) == (0, 0), second.output
    assert (run / "eval" / "tofu-forget10" / "result.json").is_file()
    assert (run / "eval" / "tofu-forget10" / "grid" / "grid.json").is_file()


def test_a_retain_log_of_another_split_is_refused_before_anything_is_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr("uld.model.load.load", None)
    log = {"avg_gt_loss": {"0": 1.0}, "avg_paraphrased_loss": {"0": 1.0}, "average_perturb_loss": {"0": [1.0]}}
    for split in ("forget05", "forget10"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "eval_log_aggregated.json").write_text(json.dumps({"eval_log_forget.json": log}))
        (tmp_path / split / "settings.json").write_text(json.dumps({"split": split}))
    other = " was made on forget05, not on forget10: evaluate both models on the same split"
    assert other in refused(evaluate("-m", run, "--retain-log", tmp_path / "forget05"))
    both = ("--from-log", tmp_path / "forget10", "--retain-log")
    assert other in refused(evaluate(*both, tmp_path / "forget05" / "eval_log_aggregated.json"))
    (tmp_path / "forget05" / "settings.json").unlink()  # a log that does not say
    assert evaluate(*both, tmp_path / "forget05").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give either --model (to run one) or --from-log"),
        ("--model RUN --from-log LOG", "give either --model (to run one) or --from-log"),
        ("--model RUN --retain-model RUN --retain-log LOG", "give either --retain-model or --retain-log, not both"),
        ("--from-log LOG --retain-model RUN", "--from-log runs no model: compare with --retain-log"),
        ("--from-log LOG --weight 2", "--from-log runs no model"),
        ("--from-log MISSING", "does not exist; name a TOFU log"),
        ("--from-log DAMAGED", "is not valid JSON"),
        ("--model RUN --retain-log DAMAGED --data DATA", "is not valid JSON"),
        (
            "--model RUN --split forget07 --data DATA",
            "'forget07' is not a forget split of TOFU: choose one of forget01",
        ),
        ("--model RUN --data EMPTY", "has no forget10_perturbed.json: --data must name a folder"),
        ("--model MISSING", "there is no run or model in"),
        ("--model UNFINISHED --data DATA", "is an unfinished run"),
        (
            "--model BARE --data DATA",
            "has no tokenizer that can be loaded (save one beside the model, or name one with --tokenizer)",
        ),
        ("--model RUN --target OTHER --data DATA", "the adapter belongs to another target: it was trained on"),
        ("--model TARGET --weight 2 --data DATA", ": --weight has no meaning for it"),
        ("--model RUN --weight -1 --data DATA", "weight (α) must lie between 0 and 1,000,000 or be inf, not -1.0"),
        ("--model RUN --rule invert --data DATA", "rule must be one of suppress, subtract, reference"),
        ("--model RUN --template x --data DATA", "template 'x' is neither one of qa, plain, llama2 nor"),
        ("--model RUN --dtype int4 --data DATA", "--dtype must be one of"),
        ("--model RUN --device gpu --data DATA", "--device must be"),
        ("--model RUN --data DATA --output EMPTY --output DATA", "is not empty and holds no evaluation"),
        ("--model RUN --data DATA --weight 1,2 --output LOG", "log is a file: name another folder with --output"),
        ("--model RUN --data DATA --retain-model MISSING", "missing: --retain-model takes a folder or a Hub id"),
        ("--model RUN --data DATA --retain-model LOG", "log is a file: --retain-model takes a folder or a Hub id"),
        ("--model TARGET --data DATA --weight 1,2", "has no assistant: only a run with one has settings to vary"),
    ],
)
def test_bad_input_is_one_sentence(micro, run, tmp_path, arguments, message):
    places = {"RUN": run, "TARGET": micro.target, "OTHER": tmp_path / "other", "DATA": micro.data}
    for name in ("LOG", "MISSING", "DAMAGED", "EMPTY", "UNFINISHED", "BARE"):
        places[name] = tmp_path / name.lower()
    places["EMPTY"].mkdir()
    (places["UNFINISHED"] / "checkpoints").mkdir(parents=True)
    places["DAMAGED"].write_text('{"eval_log_forget.json": {"avg_gt_loss": {"0": 0.')
    places["LOG"].write_text("{}")
    if "BARE" in arguments:
        shutil.copytree(micro.target, places["BARE"], ignore=shutil.ignore_patterns("token*", "special*", "chat*"))
    if "OTHER" in arguments:
        another_target(micro.target, places["OTHER"])
    before = sorted(path for path in tmp_path.rglob("*"))
    said = refused(evaluate(*(places.get(word, word) for word in arguments.split())))
    assert message in said
    assert sorted(path for path in tmp_path.rglob("*")) == before  # nothing half-written


def another_target(target: Path, folder: Path) -> None:
    """A model of the same shape with one weight changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(target, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.0" in name)
    weights[name] = torch.full_like(weights[name], 0.5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
