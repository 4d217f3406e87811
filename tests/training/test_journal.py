"""The journal and the progress bar."""

import io
import json
import re
import signal
import sys
import time
from types import SimpleNamespace

import pytest

import uld.training.journal as journal_module
import uld.training.trainer as trainer_module
from uld.errors import ULDError
from uld.training.config import TrainConfig
from uld.training.journal import Journal, read_metrics, stop_on_interrupt
from uld.training.run import train
from uld.training.trainer import StepFacts, UnlearningTrainer


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar_shows_losses_speed_and_eta(task, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("shutil.get_terminal_size", lambda *a: (80, 24))
    monkeypatch.setenv("COLUMNS", "80")
    train(TrainConfig(**task.settings(tmp_path / "x", epochs=5)))
    states = sys.stderr.getvalue().split("\r")  # type: ignore[attr-defined]
    shown = re.compile(r"(\d+)%\|.*\| (\d+)/20, forget \d+\.\d{3}, uniform \d+\.\d{3}, [\d,]+ tok/s, ETA \d\d:\d\d")
    found = [match for state in states if (match := shown.search(state))]
    assert found and found[-1].group(1, 2) == ("100", "20")
    assert all(len(state.rstrip("\n")) <= 80 for state in states)


@pytest.mark.parametrize(("cost", "wanted"), [(0.0, [4, 8]), (100.0, [4, 14])])
def test_slow_steps_get_a_checkpoint_by_time(task, tmp_path, monkeypatch, cost, wanted):
    train(TrainConfig(**task.settings(tmp_path / "plain", epochs=5)), progress=False)
    now, saved = [0.0], []
    monkeypatch.setattr(journal_module.time, "perf_counter", lambda: now[0])
    seal = trainer_module.seal

    def sealed(folder):
        saved.append(int(folder.name.removeprefix("checkpoint-")))
        now[0] += cost
        seal(folder)

    monkeypatch.setattr(trainer_module, "seal", sealed)
    take = UnlearningTrainer.take_step

    def slow(self, *asked):
        now[0] += 250.0
        return take(self, *asked)

    monkeypatch.setattr(UnlearningTrainer, "take_step", slow)
    train(TrainConfig(**task.settings(tmp_path / "slow", epochs=5)), progress=False)
    # Asked before a step's own 250 s: 750 s have gone by at the fourth. What took 100 s waits for 2,000.
    assert saved[:2] == wanted and saved[-1] == 20
    plain, other = (
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("plain", "slow")
    )
    assert plain == other


def test_steps_say_how_long_each_took(task, tmp_path):
    begin = time.perf_counter()
    train(TrainConfig(**task.settings(tmp_path / "x", epochs=5)), progress=False)
    took = time.perf_counter() - begin
    seconds = [line["seconds"] for line in read_metrics(tmp_path / "x" / "metrics.jsonl")]
    assert len(seconds) == 20 and min(seconds) >= 0 and 0 < sum(seconds) < took


def test_quiet_run_writes_nothing(task, tmp_path, capfd):
    train(TrainConfig(**task.settings(tmp_path / "x", epochs=1)), progress=False)
    assert capfd.readouterr() == ("", "")


def make_journal(tmp_path, *facts: StepFacts) -> tuple[Journal, SimpleNamespace, SimpleNamespace]:
    journal = Journal(tmp_path, progress=False)
    steps = iter(facts)
    journal.trainer = SimpleNamespace(  # type: ignore
        take_step=lambda stop, save: next(steps), _get_learning_rate=lambda: 0.5, reweigh=lambda losses, epoch: None
    )
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=9, epoch=0.0)
    return journal, state, SimpleNamespace(should_save=False, should_training_stop=False)


def test_resumed_journal_drops_lines_behind_the_checkpoint_and_torn_ones(tmp_path):
    cost = {"tokens": 7, "seconds": 0.1}
    facts = [{"step": n, "epoch": n / 3, "forget_loss": 0.1 * n, "uniform_loss": 0.2, **cost} for n in range(1, 6)]
    lines = [json.dumps(line) for line in facts]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "forg')
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 5
    journal, state, control = make_journal(tmp_path, StepFacts({"forget_loss": 1.0, "uniform_loss": 2.0}, 30, False))
    state.global_step = 3
    journal.on_train_begin(None, state, control)
    journal.on_pre_optimizer_step(None, state, control)
    state.global_step = 4
    journal.on_step_end(None, state, control)
    journal.close()
    found = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert found[:3] == lines[:3] and len(found) == 4
    line = json.loads(found[3])
    assert (line["step"], line["forget_loss"], line["uniform_loss"], line["tokens"]) == (4, 1.0, 2.0, 30)
    assert line["learning_rate"] == 0.5
    assert not control.should_training_stop


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_training(tmp_path, loss):
    journal, state, control = make_journal(tmp_path, StepFacts({"forget_loss": loss, "uniform_loss": 2.0}, 30, False))
    journal.on_train_begin(None, state, control)
    with pytest.raises(ULDError, match="training diverged"):
        journal.on_step_end(None, state, control)
    journal.close()


def test_one_process_that_is_asked_to_stop_stops_all(tmp_path):
    journal, state, control = make_journal(tmp_path, StepFacts({"forget_loss": 1.0, "uniform_loss": 2.0}, 30, True))
    journal.on_train_begin(None, state, control)
    journal.on_step_end(None, state, control)
    journal.close()
    assert control.should_training_stop and control.should_save and journal.interrupted


def test_second_interrupt_stops_at_once(tmp_path, capfd):
    journal, _, _ = make_journal(tmp_path)
    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt), stop_on_interrupt(journal):
            signal.raise_signal(signal.SIGINT)
            assert journal.interrupted
            assert "a second Ctrl-C stops at once" in capfd.readouterr().err
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, found)
