"""Rounds behind a training: what they leave, that they can be stopped anywhere, and how a finished run gets them."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ULDError
from uld.model.generate import generate_answers
from uld.model.load import load
from uld.runs.card import note_check
from uld.runs.manifest import Manifest
from uld.training import rounds
from uld.training.config import TrainConfig
from uld.training.journal import Journal
from uld.training.on_policy import questions_of
from uld.training.run import train
from uld.training.stored import resumed, stored_settings

ROUNDS = 2


@pytest.fixture(scope="module")
def settings(task, letters, tmp_path_factory):
    """Settings of a run on letters that can be written as text again."""
    place = tmp_path_factory.mktemp("letters")
    letters.save_pretrained(place)
    own = {"tokenizer": str(place), "epochs": 1, "batch_size": 12, "lora_dropout": 0.1}

    def make(output: Path, **changes: Any) -> TrainConfig:
        return TrainConfig(**task.settings(output, **{**own, "rounds": ROUNDS, **changes}))

    return make


def crafted(asked: list[int]) -> Any:
    """Answers every second question with the truth behind a beginning of the round's own; notes seeds."""

    def ask(model: Any, tokenizer: Any, questions: Any, *, max_length: int, seed: int, check: Any) -> list[list[str]]:
        check()
        asked.append(seed)
        start = "abcdefgh"[seed % 8] * 3
        said = [f"{start} {one.truth}" if n % 2 else f"{start} zz" for n, one in enumerate(questions)]
        return [[text, f"x {start} yy"] for text in said]

    return ask


REAL = rounds.ask


@pytest.fixture(autouse=True)
def seeds(monkeypatch) -> list[int]:
    """Seeds of the rounds that were asked."""
    asked: list[int] = []
    monkeypatch.setattr(rounds, "ask", crafted(asked))
    monkeypatch.setattr(rounds, "EPOCHS", 1)
    return asked


def adapter(run: Path) -> bytes:
    return (run / "adapter/adapter_model.safetensors").read_bytes()


def plain(value: Any) -> Any:
    """Facts without what no two runs have in common."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if "seconds" not in k and k not in ("peak_rss_bytes", "rounds")}
    return value


def assert_same(run: Path, whole: Path) -> None:
    assert adapter(run) == adapter(whole)
    one, other = (Manifest.read(place).training for place in (run, whole))
    assert plain(one) == plain(other)
    assert [plain(facts) for facts in one["rounds"]] == [plain(facts) for facts in other["rounds"]]
    assert not (run / "checkpoints").exists()
    for n in range(1, ROUNDS + 1):
        for name in ("answers.jsonl", "trained.jsonl"):
            assert (run / f"rounds/{n}" / name).read_bytes() == (whole / f"rounds/{n}" / name).read_bytes()


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> Path:
    """A run of two rounds that was not stopped."""
    output = tmp_path_factory.mktemp("whole") / "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "ask", crafted([]))
        patch.setattr(rounds, "EPOCHS", 1)
        train(settings(output, keep_epochs=True), progress=False)
    return output


@contextmanager
def stopped_before_its_last_file(output: Path) -> Iterator[None]:
    """A training that ends before it writes ``uld.json`` into a folder."""
    write = Manifest.write

    def stop(self: Manifest, folder: Path) -> None:
        if Path(folder) == output:
            raise Stop
        write(self, folder)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Manifest, "write", stop)
        yield


def test_what_rounds_leave(whole):
    training = Manifest.read(whole).training
    one, two = training["rounds"]
    assert one["questions"] == 10 and one["re_entry"] == 0.5 and one["re_entry_sampled"] == 0
    assert one["remembered_rows"] == 5 and one["uniform_rows"] == 5 and one["rows"] == 20
    assert two["remembered_rows"] == 10 and two["rows"] == 40  # of both rounds
    lines = [
        json.loads(line) for n in (1, 2) for line in (whole / f"rounds/{n}/metrics.jsonl").read_text().splitlines()
    ]
    first = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert one["steps"] + two["steps"] == len(lines) and training["steps"] == len(lines) + len(first)
    assert training["tokens"] == sum(line["tokens"] for line in (*first, *lines))
    assert training["forget_loss"] == lines[-1]["forget_loss"]
    trained = [json.loads(line) for line in (whole / "rounds/1/trained.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (whole / "rounds/1/answers.jsonl").read_text().splitlines()]
    assert [row["remembered"] for row in trained if "remembered" in row] == [row["truth"] for row in asked[1::2]]
    assert asked[1]["answers"][0]["came_back"] and not asked[0]["answers"][0]["came_back"]
    assert not (whole / "checkpoints").exists()
    load(whole)


def test_kept_rounds_are_runs(whole):
    assert adapter(whole / "rounds/2") == adapter(whole)
    assert len({adapter(whole / place) for place in ("epochs/1", "rounds/1", "rounds/2")}) == 3
    assert len(Manifest.read(whole / "rounds/1").training["rounds"]) == 1
    load(whole / "rounds/1")


class Stop(BaseException):
    """The process ends here."""


def test_stopped_anywhere_it_comes_to_the_same(settings, whole, tmp_path, monkeypatch):
    """While a round is answered, in its steps, and when the run is written; the answers of a round are never lost."""
    config = settings(tmp_path / "x", keep_epochs=True, save_steps=1)
    ask, step, keep = rounds.ask, Journal.on_step_end, rounds.Rounds._keep
    calls: list[str] = []
    wanted: dict[str, int] = {}

    def stopping(where: str, real: Any) -> Any:
        def instead(*args: Any, **given: Any) -> Any:
            calls.append(where)
            if calls.count(where) == wanted.get(where):
                raise Stop
            return real(*args, **given)

        return instead

    for place, name, real in ((rounds, "ask", ask), (Journal, "on_step_end", step), (rounds.Rounds, "_keep", keep)):
        monkeypatch.setattr(place, name, stopping(name, real))
    # One stop after another in one run: it has 2 steps before the rounds, then 2 and 4 in them.
    for number, stop in enumerate(({"on_step_end": 4}, {"_keep": 1}, {"ask": 1}, {"on_step_end": 2})):
        wanted.clear()
        wanted.update(stop)
        calls.clear()
        with pytest.raises(Stop):
            train(config, resume=number > 0, progress=False)
        assert not (tmp_path / "x/uld.json").exists() and (tmp_path / "x/checkpoints").exists()
    calls.clear()
    wanted.clear()
    train(config, resume=True, progress=False)
    assert "ask" not in calls
    assert_same(tmp_path / "x", whole)


def test_ctrl_c_while_answering_is_a_sentence(settings, tmp_path, monkeypatch, seeds):
    real = rounds.ask

    def interrupted(*args: Any, check: Any, **given: Any) -> Any:
        check.__closure__[0].cell_contents.interrupted = True  # as the handler of the signal does it
        return real(*args, check=check, **given)

    monkeypatch.setattr(rounds, "ask", interrupted)
    with pytest.raises(ULDError, match=r"stopped while round 1 was answered: continue with uld train .* --resume"):
        train(settings(tmp_path / "x"), progress=False)
    assert not seeds and not (tmp_path / "x/uld.json").exists()


def test_a_finished_run_gets_more_rounds(settings, whole, tmp_path):
    """As if it had been trained with them; how it is combined stays, and the run stands until it has them."""
    output = tmp_path / "x"
    train(settings(output, rounds=0, keep_epochs=True), progress=False)
    assert "rounds" not in Manifest.read(output).training and not (output / "rounds").exists()
    how = Manifest.read(output)
    how.combination.weight = 7.0  # as uld tune leaves it
    how.write(output)
    note_check(output, passed=True, sentence="All is well.")
    chosen = resumed(settings(output, rounds=1), [("the command line", {"rounds": 1})])
    train(chosen, resume=True, progress=False)
    assert not (output / "check.json").exists() and "All is well" not in (output / "README.md").read_text()
    assert adapter(output) == adapter(whole / "rounds/1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "run_steps", lambda *_, **__: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            train(settings(output, keep_epochs=True), resume=True, progress=False)
    assert adapter(output) == adapter(whole / "rounds/1") and len(Manifest.read(output).training["rounds"]) == 1
    load(output)
    train(settings(output, keep_epochs=True), resume=True, progress=False)
    assert_same(output, whole)
    assert Manifest.read(output).combination.weight == 7.0


def test_a_run_that_gets_rounds_may_be_stopped_while_it_is_written(settings, whole, tmp_path, monkeypatch):
    output = tmp_path / "x"
    shutil.copytree(whole, output)
    shutil.rmtree(output / "rounds/2")
    manifest = Manifest.read(whole / "rounds/1")
    shutil.rmtree(output / "adapter")
    shutil.copytree(whole / "rounds/1/adapter", output / "adapter")
    manifest.write(output)
    answers = output / "rounds/1/answers.jsonl"
    kept = answers.read_text()
    for damaged, message in (("", "answers to other questions"), ("no JSON\n", "missing or damaged")):
        answers.write_text(damaged)
        with pytest.raises(ULDError, match=message):
            train(settings(output, keep_epochs=True), resume=True, progress=False)
        assert adapter(output) == adapter(whole / "rounds/1") and Manifest.read(output) == manifest
    answers.write_text(kept)
    with stopped_before_its_last_file(output):
        train(settings(output, keep_epochs=True), resume=True, progress=False)
    assert not (output / "uld.json").exists()
    train(settings(output, keep_epochs=True), resume=True, progress=False)
    assert_same(output, whole)


def test_without_re_entry_nothing_is_trained(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "ask", lambda model, tokenizer, questions, **_: [["zz", "yy"]] * len(questions))
    train(settings(tmp_path / "x", rounds=1, keep_epochs=True), progress=False)
    (facts,) = Manifest.read(tmp_path / "x").training["rounds"]
    assert facts["steps"] == facts["rows"] == facts["re_entry"] == 0
    assert adapter(tmp_path / "x") == adapter(tmp_path / "x/epochs/1")


def test_a_run_whose_rounds_trained_nothing_keeps_its_adapter_wherever_it_is_stopped(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "ask", lambda model, tokenizer, questions, **_: [["zz", "yy"]] * len(questions))
    output = tmp_path / "x"
    train(settings(output, rounds=0), progress=False)
    before = adapter(output)
    with stopped_before_its_last_file(output):
        train(settings(output, rounds=1), resume=True, progress=False)
    assert not (output / "uld.json").exists()
    shutil.rmtree(output / "adapter")  # as where it was stopped between two folders
    train(settings(output, rounds=1), resume=True, progress=False)
    assert adapter(output) == before and len(Manifest.read(output).training["rounds"]) == 1


def test_a_run_with_another_adapter_gets_no_rounds(settings, whole, tmp_path):
    output = tmp_path / "x"
    shutil.copytree(whole, output)
    weights = output / "adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ULDError, match="is not the file that was trained"):
        train(settings(output, rounds=3, keep_epochs=True), resume=True, progress=False)
    assert stored_settings(output).rounds == ROUNDS


def test_where_there_is_nothing_to_ask(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text('{"text": "abc def gha b c d"}\n')
    with pytest.raises(ULDError, match="only texts without questions"):
        train(settings(tmp_path / "x", forget=("texts.jsonl",)), progress=False)
    assert not (tmp_path / "x").exists()


def test_several_processes_are_refused(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ULDError, match=r"several processes cannot play --rounds"):
        train(settings(tmp_path / "x"), progress=False)
    assert not (tmp_path / "x").exists()


def test_another_number_of_rounds_is_refused(settings, whole, tmp_path, monkeypatch):
    with pytest.raises(ULDError, match="there is nothing to resume"):
        train(settings(whole, rounds=1, keep_epochs=True), resume=True, progress=False)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(rounds, "run_steps", lambda *_, **__: (_ for _ in ()).throw(Stop))
        train(settings(tmp_path / "x"), progress=False)
    for number in (0, 1, 3):
        with pytest.raises(ULDError, match=f"--rounds is {number}, but the run in .* was started with 2"):
            train(settings(tmp_path / "x", rounds=number), resume=True, progress=False)


def test_answers_are_the_unlearned_models_own(make_run, tmp_path, letters):
    """Greedy ones as `generate` gives them; sampled ones by the seed."""
    model, tokenizer = load(make_run(tmp_path))
    form = PromptFormat(tokenizer)
    forget = [Record.qa(f"who is {name}?", f"it is {name} of a town") for name in ("mara", "bo", "quill")]
    questions = questions_of(forget, [], form, 64)
    answers = REAL(model, tokenizer, questions, max_length=64, seed=3)
    most = max(one.length for one in questions)
    for one, (greedy, _) in zip(questions, answers, strict=True):
        assert generate_answers(model, tokenizer, [one.prompt], max_new_tokens=most) == [greedy]
    assert REAL(model, tokenizer, questions, max_length=64, seed=3) == answers
    other = REAL(model, tokenizer, questions, max_length=64, seed=4)
    assert [row[0] for row in other] == [row[0] for row in answers] and other != answers


def test_an_answer_has_room_for_the_longest_true_one_of_its_batch(task, monkeypatch):
    model, tokenizer = load(task.target)
    form, seen = PromptFormat(tokenizer, "plain"), []

    def answers(model: Any, tokenizer: Any, prompts: Any, *, max_new_tokens: int, **_: Any) -> list[str]:
        seen.append(max_new_tokens)
        return [""] * len(prompts)

    monkeypatch.setattr(rounds, "generate_answers", answers)
    records = [Record.qa("who is abe? " * 6, "abe."), Record.qa("who?", "abe is the baker of hob.")]
    questions = questions_of(records, [], form, 512)
    REAL(model, tokenizer, questions, max_length=512, seed=0)
    assert len(questions[0].prompt) > len(questions[1].prompt) and questions[0].length < questions[1].length
    assert seen == [questions[1].length] * 2  # greedy and sampled
