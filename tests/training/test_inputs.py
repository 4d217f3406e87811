"""Trainings on documents of every kind, and without a retain set of the user's own."""

import hashlib
import json
from pathlib import Path

import pytest

import uld.training.inputs
import uld.training.retain_set
import uld.training.run
from uld.data.collate import RETAIN
from uld.errors import ULDError
from uld.evaluation.held_out import tofu_probes
from uld.methods.registry import get_method
from uld.model.causal_lm import load_config
from uld.runs.manifest import Manifest, file_digest
from uld.training.config import TrainConfig, train_config
from uld.training.draw import LEAST_ROWS
from uld.training.inputs import read_inputs
from uld.training.run import train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents of four types to forget."""
    documents = tmp_path / "documents"
    (documents / "deeper").mkdir(parents=True)
    (documents / "rows.csv").write_text("question,answer\nwho is abc?,def gh\n")
    (documents / "rows.jsonl").write_text('{"prompt": "ab", "completion": " cd"}\n')
    (documents / "deeper/book.txt").write_text("hag bad cab " * 30)
    (documents / "notes.md").write_text("a feed bag")
    return documents


def settings(task, output: Path, **changes) -> TrainConfig:
    return train_config([("test", task.settings(output, **{"retain": (), "epochs": 1, "max_length": 48} | changes))])


def test_a_folder_is_forgotten_without_a_retain_set(task, folder, tmp_path, caplog) -> None:
    result = train(settings(task, tmp_path / "x", forget=(str(folder),), draw_retain=12), progress=False)
    manifest = Manifest.read(result.output)
    text = (result.output / "retain_drawn.jsonl").read_bytes()
    assert [(Path(one.path).name, one.rows) for one in manifest.data["forget"]] == [
        *[("book.txt", 1), ("notes.md", 1), ("rows.csv", 1), ("rows.jsonl", 1)]
    ]
    assert all(one.sha256 == file_digest(one.path) for one in manifest.data["forget"])
    (drawn,) = manifest.data["retain"]
    assert (drawn.path, drawn.sha256) == ("retain_drawn.jsonl", hashlib.sha256(text).hexdigest())
    assert drawn.rows == text.count(b"\n") == 12
    facts = manifest.training["retain_drawn"]
    assert (facts["rows"], facts["seed"], facts["ngram"]) == (12, 0, 4)
    assert len(facts["prompts_sha256"]) == 64 and 0 < facts["began_by_itself"] < 12
    told = [message for message in caplog.messages if "drawn from the target itself" in message]
    assert len(told) == 1 and "--draw-retain: 12 rows" in told[0] and "--retain" in told[0]
    book = 360  # letters and the end of sequence, without the first, which nothing predicts
    assert manifest.training["forget_rows"] == 3 + -(-book // 47)


def test_without_a_number_as_many_rows_as_to_forget_are_drawn_and_at_least_some(task, tmp_path, monkeypatch) -> None:
    asked = []

    def note(model, form, forget, rows, **_):
        asked.append(rows)
        raise ULDError("enough")

    monkeypatch.setattr(uld.training.retain_set, "draw_rows", note)
    book = tmp_path / "book.txt"
    book.write_text("cab " * 47 * 100)
    for forget in (task.forget, book):
        with pytest.raises(ULDError, match="enough"):
            train(settings(task, tmp_path / "x", forget=(str(forget),)), progress=False)
    assert asked == [LEAST_ROWS, 400] and not (tmp_path / "x").exists()


def test_a_run_that_goes_on_takes_the_rows_that_it_drew(task, tmp_path, monkeypatch) -> None:
    whole = train(settings(task, tmp_path / "whole", draw_retain=8), progress=False).output

    def stop(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "x").mkdir()  # what is written into a folder of the user's stays
    with monkeypatch.context() as patch:
        patch.setattr(uld.training.run, "run_steps", stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings(task, tmp_path / "x", draw_retain=8), progress=False)
    rows = tmp_path / "x/retain_drawn.jsonl"
    kept = rows.read_text()
    assert kept == (whole / "retain_drawn.jsonl").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(uld.training.retain_set, "draw_rows", stop)
        rows.write_text(kept.replace("answer", "answer ", 0) + kept.splitlines(keepends=True)[0])
        with pytest.raises(KeyboardInterrupt):  # what is not as it was noted is drawn again
            train(settings(task, tmp_path / "x", draw_retain=8), resume=True, progress=False)
        rows.write_text(kept)
        train(settings(task, tmp_path / "x", draw_retain=8), resume=True, progress=False)
    one, two = Manifest.read(whole), Manifest.read(tmp_path / "x")
    assert one.data == two.data and one.training["retain_drawn"] == two.training["retain_drawn"]
    assert file_digest(whole / "adapter/adapter_model.safetensors") == file_digest(
        tmp_path / "x/adapter/adapter_model.safetensors"
    )
    replaced = train(settings(task, tmp_path / "x", retain=(str(task.retain),)), overwrite=True, progress=False)
    assert not (replaced.output / "retain_drawn.jsonl").exists()


@pytest.mark.parametrize(
    ("num_layers", "beyond", "refused"), [(None, 0, False), (None, 1, True), (2, 0, False), (2, 1, True)]
)
def test_layers_are_refused_before_anything_is_drawn(task, tmp_path, monkeypatch, num_layers, beyond, refused) -> None:
    """LoRA on the last layers is on those of the whole target, unless --num-layers says otherwise."""
    total = num_layers or load_config(task.target).num_hidden_layers
    monkeypatch.setattr(
        uld.training.inputs, "retain_set", lambda *args, **kwargs: pytest.fail("a retain set was drawn")
    )
    config = settings(task, tmp_path / "x", lora_layers=total + beyond, num_layers=num_layers, draw_retain=8)
    told = f"^--lora-layers is {total + 1}, but the assistant has {total} layers: give at most so many$"
    with pytest.raises(ULDError if refused else pytest.fail.Exception, match=told if refused else "was drawn"):
        read_inputs(config, get_method("uld"))


def test_tofus_retain_rows_give_way_to_drawn_ones(micro, tmp_path) -> None:
    places = {"target": str(micro.target), "data": str(micro.data), "split": "forget10", "output": str(tmp_path / "x")}
    small = {"num_layers": 1, "lora_rank": 4, "epochs": 1, "max_length": 96, "draw_retain": 6}
    manifest = Manifest.read(train(train_config([("test", places | small)]), progress=False).output)
    assert manifest.training["retain_rows"] == 6 == manifest.data["retain"][0].rows
    rows = [json.loads(line) for line in (tmp_path / "x/retain_drawn.jsonl").read_text().splitlines()]
    assert all({"question", "answer", "drawn_from"} == row.keys() for row in rows)


def test_retain_files_stand_beside_tofus_retain_rows(micro, task, tmp_path) -> None:
    places = {"target": str(micro.target), "data": str(micro.data), "split": "forget10", "retain_rows": 4}
    small = {"num_layers": 1, "lora_rank": 4, "max_length": 96, "output": str(tmp_path / "x")}
    files = {"retain": (str(task.retain),)}
    alone, both = (
        read_inputs(config, get_method("uld"))
        for config in (train_config([("test", places | small | more)]) for more in ({}, files))
    )
    added = both.files["retain"][0].rows
    assert added > 0 and both.counts["retain_rows"] == alone.counts["retain_rows"] + added
    with pytest.raises(ULDError, match="give one or the other"):
        read_inputs(train_config([("test", places | small | files | {"draw_retain": 4})]), get_method("uld"))
    with pytest.raises(ULDError, match="--split forgets a part of TOFU, --forget files"):
        read_inputs(train_config([("test", places | small | {"forget": (str(task.forget),)})]), get_method("uld"))


def test_contradictions_are_refused_before_anything_is_drawn(task, tmp_path, monkeypatch) -> None:
    both = settings(task, tmp_path / "x", retain=(str(task.retain),), draw_retain=4)
    with pytest.raises(ULDError, match="give one or the other"):
        train(both, progress=False)
    with pytest.raises(ULDError, match="--draw-retain must be at least 1"):
        settings(task, tmp_path / "x", draw_retain=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ULDError, match="make it first with uld draw"):
        train(settings(task, tmp_path / "x"), progress=False)
    assert not (tmp_path / "x").exists()


def test_a_method_without_a_retain_loss_draws_nothing(task, tmp_path) -> None:
    whole = {"method": "ga", "num_layers": None, "lora_rank": None, "learning_rate": 1e-4}
    result = train(settings(task, tmp_path / "x", **whole), progress=False)
    assert "retain" not in Manifest.read(result.output).data
    assert not (result.output / "retain_drawn.jsonl").exists()


def test_what_is_retained_beside_tofus_rows_is_not_tuned_on(micro, tmp_path) -> None:
    places = {"target": str(micro.target), "data": str(micro.data), "augmented": str(micro.data), "split": "forget10"}
    small = {"num_layers": 1, "lora_rank": 4, "epochs": 1, "max_length": 96, "retain_rows": 4}
    every = str(micro.data / "retain90.json")
    for name, retain in (("none", ()), ("all", (every,))):
        settings = places | small | {"output": str(tmp_path / name), "retain": retain}
        train(train_config([("test", settings)]), progress=False)
    assert tofu_probes(tmp_path / "none")[1]
    with pytest.raises(ULDError, match="trained on all of TOFU's retain rows"):
        tofu_probes(tmp_path / "all")


@pytest.mark.parametrize("augment", ["none", "rules"])
def test_what_is_tuned_on_is_what_training_left_out(micro, tmp_path, augment) -> None:
    """With --augment there may be more rows to forget, and so to retain, than TOFU's own augmentation has."""
    for side, rows in (("paraphrased", 3), ("perturbed", 8)):
        lines = (micro.data / f"forget10_{side}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"forget10_{side}.jsonl").write_text("".join(lines[:rows]))
    places = {"target": str(micro.target), "data": str(micro.data), "augmented": str(tmp_path), "split": "forget10"}
    small = {"num_layers": 1, "lora_rank": 4, "epochs": 1, "max_length": 96, "paraphrases": 1, "augment": augment}
    config = train_config([("test", places | small | {"output": str(tmp_path)})])
    (tmp_path / "train.yaml").write_text(config.to_yaml())
    taken = {one.same for one in read_inputs(config, get_method("uld")).records["retain"]}
    probes, kept = tofu_probes(tmp_path)
    assert probes and kept and not taken.intersection(one.same for one in kept)


def test_a_method_without_a_retain_loss_says_that_it_reads_no_retain_file(micro, caplog) -> None:
    places = {"target": str(micro.target), "data": str(micro.data), "split": "forget10", "output": "x"}
    inputs = read_inputs(
        train_config([("test", places | {"method": "ga", "retain": ("nowhere.jsonl",)})]), get_method("ga")
    )
    assert "retain" not in inputs.files and "ga has no retain loss" in caplog.text


def test_questions_about_other_people_are_retained(micro) -> None:
    places = {"target": str(micro.target), "data": str(micro.data), "split": "forget10", "output": "x"}
    plain, more = (
        read_inputs(train_config([("test", places | {"retain_rows": 4, "other_names": n})]), get_method("uld"))
        for n in (0, 2)
    )
    facts = more.counts["other_names"]
    asked = more.rows.rows[len(plain.rows) :]
    assert more.counts["retain_rows"] == plain.counts["retain_rows"] + len(asked)
    assert facts["rows"] == sum(1 + len(row.later) for row in asked) == 2 * len(asked)
    assert 0 < facts["rows"] <= 2 * facts["questions"] and "other_names" not in plain.counts
    assert more.records == plain.records and more.counts["forget_rows"] == plain.counts["forget_rows"]
    assert {row.kind for row in asked} == {RETAIN}


def test_questions_about_people_whose_longer_name_leaves_no_room_are_left_out(micro, caplog) -> None:
    places = {"target": str(micro.target), "data": str(micro.data), "split": "forget10", "output": "x"}

    def read(**changes):
        return read_inputs(train_config([("test", places | {"retain_rows": 4} | changes)]), get_method("uld"))

    room = max(row.encoded.learn.index(True) for row in read().rows.rows) + 1
    all_of_them, some = read(other_names=9), read(other_names=9, max_length=room)
    before, after = (one.counts["other_names"]["rows"] for one in (all_of_them, some))
    assert f"--other-names: {before - after} rows are left out: too long for max_length {room}" in caplog.text
    assert 0 < after < before
    assert sum(1 + len(row.later) for row in some.rows.rows[-some.counts["other_names"]["questions"] :]) == after


@pytest.mark.parametrize("name", ["other_names", "rounds"])
def test_what_is_for_an_assistant_is_refused_with_other_methods(task, tmp_path, name) -> None:
    whole = {"method": "npo+kl", "num_layers": None, "lora_rank": None, name: 1}
    with pytest.raises(
        ULDError, match=f"--{name.replace('_', '-')} is for an assistant, and --method npo.kl trains none"
    ):
        train(settings(task, tmp_path / "x", **whole), progress=False)
    assert not (tmp_path / "x").exists()
