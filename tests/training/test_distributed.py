"""Two processes (gloo) are one process with the same global batch; what fails in them fails as in one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uld.runs.folder import last_checkpoint
from uld.training.config import TrainConfig
from uld.training.run import train

# 23 rows: the last batch of an epoch has 5, so that one of the 6 micro-batches is empty.
OPTIONS = {"dtype": "fp32", "learning_rate": 0.02, "epochs": 3}


def journal(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def assert_same_losses(one: Path, other: Path) -> None:
    for a, b in zip(journal(one), journal(other), strict=True):
        assert b["forget_loss"] == pytest.approx(a["forget_loss"], rel=1e-5)
        assert b["uniform_loss"] == pytest.approx(a["uniform_loss"], rel=1e-5)
        assert (a["tokens"], a["learning_rate"], a["epoch"]) == (b["tokens"], b["learning_rate"], b["epoch"])


@pytest.mark.parametrize("micro", [1, pytest.param(None, marks=pytest.mark.slow)])
def test_two_processes_equal_one(task, start_two, tmp_path, micro):
    train(TrainConfig(**task.settings(tmp_path / "one", **OPTIONS)), progress=False)
    options = OPTIONS if micro is None else OPTIONS | {"micro_batch_size": micro}
    for process in start_two(["train", *task.flags(tmp_path / "two", **options)]):
        process.join()
        assert process.exitcode == 0, (tmp_path / "log-0").read_text() + (tmp_path / "log-1").read_text()
    assert_same_losses(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "log-1").read_text() == ""
    facts = [json.loads((tmp_path / run / "uld.json").read_text()) for run in ("one", "two")]
    assert facts[0]["target_fingerprint"] == facts[1]["target_fingerprint"]
    assert sorted(os.listdir(tmp_path / "one")) == sorted(os.listdir(tmp_path / "two"))


@pytest.mark.slow
def test_two_processes_learn_from_the_run_that_they_train_first(task, start_two, tmp_path):
    """Of `dd-distilled`: the run that teaches is a pair, and micro-batches of one row lack one side or the other."""
    given = {"method": "dd-distilled", "option": ("teacher_rate=0.02", "teacher_epochs=2"), "micro_batch_size": 1}
    train(TrainConfig(**task.settings(tmp_path / "one", **OPTIONS | given)), progress=False)
    for process in start_two(["train", *task.flags(tmp_path / "two", **OPTIONS | given)]):
        process.join()
        assert process.exitcode == 0, (tmp_path / "log-0").read_text() + (tmp_path / "log-1").read_text()
    for a, b in zip(journal(tmp_path / "one"), journal(tmp_path / "two"), strict=True):
        assert b["forget_loss"] == pytest.approx(a["forget_loss"], rel=1e-3)


@pytest.mark.slow
def test_interrupting_one_process_stops_both_and_both_go_on(task, start_two, tmp_path):
    options = OPTIONS | {"epochs": 10, "save_steps": 100}
    train(TrainConfig(**task.settings(tmp_path / "one", **options)), progress=False)
    processes = start_two(["train", *task.flags(tmp_path / "two", **options)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "two/metrics.jsonl").exists() or len(journal(tmp_path / "two")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(processes[1].pid or 0, signal.SIGINT)
    for process in processes:
        process.join()
        assert process.exitcode == 2
    step = len(journal(tmp_path / "two"))
    assert (last_checkpoint(tmp_path / "two/checkpoints") or Path()).name == f"checkpoint-{step}"
    assert f"uld: stopped at step {step} of 40" in (tmp_path / "log-0").read_text()
    for process in start_two(["train", "--output", str(tmp_path / "two"), "--resume"]):
        process.join()
        assert process.exitcode == 0, (tmp_path / "log-0").read_text()
    assert_same_losses(tmp_path / "one", tmp_path / "two")


def test_batch_that_cannot_be_shared(task, start_two, tmp_path):
    for process in start_two(["train", *task.flags(tmp_path / "two", batch_size=5)]):
        process.join()
        assert process.exitcode == 2
    assert (tmp_path / "log-0").read_text() == "uld: --batch-size 5 cannot be shared by 2 processes\n"
    assert not (tmp_path / "two").exists()


def torchrun(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``torchrun … uld``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    uld = str(Path(sys.executable).parent / "uld")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    with subprocess.Popen([*command, uld, *arguments], text=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.terminate()  # a killed torchrun would leave its workers behind
            raise
    return process.returncode, out, err


@pytest.mark.slow
def test_torchrun(task, tmp_path):
    train(TrainConfig(**task.settings(tmp_path / "one", **OPTIONS)), progress=False)
    code, out, err = torchrun("train", *task.flags(tmp_path / "two", **OPTIONS))
    assert code == 0, err
    assert_same_losses(tmp_path / "one", tmp_path / "two")
    assert out.count("forget loss") == 1


@pytest.mark.slow
def test_bad_input_under_torchrun(task, tmp_path):
    code, _, err = torchrun("train", *task.flags(tmp_path / "two", num_layers=9))
    assert code != 0
    assert [line for line in err.splitlines() if line.startswith("uld: ")] == [
        "uld: num_layers (K) is 9, but the target has 4 layers: choose K between 1 and 4 (--num-layers)"
    ]
    assert not (tmp_path / "two").exists()
