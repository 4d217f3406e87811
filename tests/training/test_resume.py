"""A run that is killed or stopped at any step goes on bit-identically."""

import json
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from uld.runs.folder import last_checkpoint
from uld.training.config import TrainConfig, train_config
from uld.training.run import train
from uld.training.trainer import Interrupted

OPTIONS = {"epochs": 5, "lora_dropout": 0.2, "learning_rate": 0.02, "save_steps": 4}
STEPS = 20


@pytest.fixture
def start(start_uld, task, tmp_path):
    """Start ``uld train`` into ``tmp_path/x``; gives the process, whose output goes to ``tmp_path/log``."""

    def command(*extra: str) -> BaseProcess:
        flags = ["--output", str(tmp_path / "x")] if "--resume" in extra else task.flags(tmp_path / "x", **OPTIONS)
        return start_uld(["train", *flags, *extra], tmp_path / "log")

    return command


@pytest.fixture(scope="module")
def whole(start_uld, task, tmp_path_factory) -> Path:
    """The same run without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    process = start_uld(["train", *task.flags(folder / "x", **OPTIONS)], folder / "log")
    process.join()
    assert process.exitcode == 0, (folder / "log").read_text()
    return folder / "x"


def journal(output: Path) -> list[dict]:
    path = output / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition, process: BaseProcess) -> None:
    deadline = time.monotonic() + 60
    while not condition() and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def wait_for_step(output: Path, step: int, process: BaseProcess) -> None:
    path = output / "metrics.jsonl"
    wait_for(lambda: path.exists() and path.read_text().count("\n") >= step, process)


def finish(start, output: Path, log: Path) -> None:
    process = start("--resume")
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert (output / "uld.json").exists()


def assert_same(output: Path, whole: Path) -> None:
    names = ("adapter_model.safetensors", "adapter_config.json")
    assert all((output / "adapter" / n).read_bytes() == (whole / "adapter" / n).read_bytes() for n in names)
    for found, expected in zip(journal(output), journal(whole), strict=True):
        assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert not (output / "checkpoints").exists()


@pytest.mark.parametrize("step", [1, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 8, 11, 15))])
def test_killed_run_goes_on_bit_identically(start, whole, tmp_path, step):
    """Before the first checkpoint, while one is being written, and between two."""
    process = start()
    wait_for_step(tmp_path / "x", step, process)
    process.kill()
    process.join()
    if (tmp_path / "x/uld.json").exists():
        pytest.skip("the run was faster than the kill")
    assert process.exitcode == -signal.SIGKILL
    finish(start, tmp_path / "x", tmp_path / "log")
    assert_same(tmp_path / "x", whole)


def test_states_that_are_kept_of_lower_layers_change_nothing_behind_a_kill(start_uld, task, tmp_path):
    flags = {name: task.flags(tmp_path / name, **OPTIONS, lora_layers=1) for name in ("whole", "x")}
    process = start_uld(["train", *flags["whole"]], tmp_path / "log")
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    process = start_uld(["train", *flags["x"]], tmp_path / "log")
    wait_for_step(tmp_path / "x", 10, process)
    process.kill()
    process.join()
    if (tmp_path / "x/uld.json").exists():
        pytest.skip("the run was faster than the kill")
    process = start_uld(["train", "--output", str(tmp_path / "x"), "--resume"], tmp_path / "log")
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert_same(tmp_path / "x", tmp_path / "whole")


@pytest.mark.slow
def test_run_that_is_killed_again_and_again(start, whole, tmp_path):
    chance = random.Random(7)
    kills = 0
    while not (tmp_path / "x/uld.json").exists():
        process = start(*(["--resume"] if (tmp_path / "x/train.yaml").exists() else []))
        before = len(journal(tmp_path / "x"))
        path = tmp_path / "x/metrics.jsonl"
        wait_for(lambda: path.exists() and path.read_text().count("\n") != before, process)  # noqa: B023
        process.join(chance.uniform(0, 0.15 + 0.02 * kills))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL), (tmp_path / "log").read_text()
    assert kills > 3
    assert_same(tmp_path / "x", whole)


def test_torn_checkpoint_is_passed_over(start, whole, tmp_path):
    process = start()
    wait_for(lambda: last_checkpoint(tmp_path / "x/checkpoints") is not None, process)
    wait_for_step(tmp_path / "x", 9, process)
    process.kill()
    process.join()
    newest = last_checkpoint(tmp_path / "x/checkpoints")
    if newest is None:
        pytest.skip("the run was faster than the kill")
    path = newest / "optimizer.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    finish(start, tmp_path / "x", tmp_path / "log")
    assert_same(tmp_path / "x", whole)


def test_interrupted_run_leaves_a_checkpoint_and_goes_on_bit_identically(start, whole, tmp_path):
    process = start()
    wait_for_step(tmp_path / "x", 2, process)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    told = (tmp_path / "log").read_text()
    assert process.exitcode == 2, told
    step = len(journal(tmp_path / "x"))
    assert step < STEPS
    assert last_checkpoint(tmp_path / "x/checkpoints") == tmp_path / f"x/checkpoints/checkpoint-{step}"
    sentence = f"uld: stopped at step {step} of {STEPS}: continue with uld train --output {tmp_path / 'x'} --resume"
    assert told.splitlines()[-1] == sentence and "Traceback" not in told
    finish(start, tmp_path / "x", tmp_path / "log")
    assert_same(tmp_path / "x", whole)


def refused(start, tmp_path, *extra: str) -> str:
    """The one sentence of a command that ends with exit code 2."""
    (tmp_path / "log").unlink(missing_ok=True)
    process = start(*extra)
    process.join()
    told = (tmp_path / "log").read_text()
    assert process.exitcode == 2, told
    lines = told.splitlines()
    assert len(lines) == 1 and lines[0].startswith("uld: "), told
    return lines[0]


def test_folder_of_an_unfinished_run(start, task, whole, tmp_path):
    process = start()
    wait_for_step(tmp_path / "x", 6, process)
    os.kill(process.pid, signal.SIGSTOP)
    assert "another run is working in" in refused(start, tmp_path)
    assert "another run is working in" in refused(start, tmp_path, "--resume")
    assert "another run is working in" in refused(start, tmp_path, "--overwrite")
    process.kill()
    process.join()
    assert "continue it with --resume, or start over with --overwrite" in refused(start, tmp_path)
    assert "--epochs is 7, but the run in" in refused(start, tmp_path, "--resume", "--epochs", "7")
    content = task.forget.read_text()
    try:
        task.forget.write_text(content.replace("who", "how"))
        assert f"{task.forget} has changed since the run" in refused(start, tmp_path, "--resume")
    finally:
        task.forget.write_text(content)
    finish(start, tmp_path / "x", tmp_path / "log")
    assert_same(tmp_path / "x", whole)
    assert "there is nothing to resume" in refused(start, tmp_path, "--resume")
    assert "replace it with --overwrite" in refused(start, tmp_path)


def test_resuming_nothing(start, tmp_path):
    assert "holds no run to resume" in refused(start, tmp_path, "--resume")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_whole_models_with_experts_go_on_bit_identically(task, tmp_path, family):
    """Files have names for every expert's matrices that the model itself does not have."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    import uld
    from uld.training.trainer import Interrupted

    size = {"vocab_size": 34, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "num_experts_per_tok": 2}
    narrow = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts": 4}
    count = narrow if family == "qwen2_moe" else {"num_local_experts": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **size, **heads, **count))
    model.save_pretrained(tmp_path / "target")
    AutoTokenizer.from_pretrained(task.target).save_pretrained(tmp_path / "target")
    settings = task.settings(tmp_path / "whole", target=str(tmp_path / "target"), method="ga+gd", save_steps=2)
    settings |= {"num_layers": None, "lora_rank": None, "learning_rate": 0.01, "epochs": 1}
    uld.train(uld.TrainConfig(**settings), progress=False)
    part = uld.TrainConfig(**settings | {"output": str(tmp_path / "x")})
    with pytest.raises(Interrupted):
        uld.train(part, progress=False, stop_after=3)
    uld.train(part, resume=True, progress=False)
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("x", "whole"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 1}, {"num_layers": None, "lora_layers": 2}])
def test_a_run_that_goes_on_within_an_epoch_takes_the_rows_of_that_epoch(task, tmp_path, changes):
    """Rows about other people differ from epoch to epoch."""
    people = {"forget": ("Ada Bell", "Bob Cab", "Eve Fog"), "retain": ("Jim Kid", "Lea Mig", "Nan Opp")}
    for side, names in people.items():
        rows = [
            {"question": f"where is {name}?", "answer": f"in {name.lower()[::-1].replace(' ', 'x')}"} for name in names
        ]
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {side: (str(tmp_path / f"{side}.jsonl"),) for side in people}

    def config(name: str) -> TrainConfig:
        settings = task.settings(tmp_path / name, **files, epochs=3, batch_size=3, other_names=3, **changes)
        return train_config([("test", settings)])

    result = train(config("whole"), progress=False)
    assert result.steps == 9
    for step in (2, 5, 8):
        with pytest.raises(Interrupted):
            train(config("x"), progress=False, stop_after=step, overwrite=(tmp_path / "x").exists())
        train(config("x"), resume=True, progress=False)
        assert_same(tmp_path / "x", tmp_path / "whole")
