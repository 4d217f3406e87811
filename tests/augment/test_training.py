"""`uld train --augment`: what joins the forget set and what the retain set, and what the run says about it."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from uld.augment.output import folder_beside
from uld.cli.main import app
from uld.data.collate import FORGET, RETAIN
from uld.errors import ULDError
from uld.methods.registry import get_method
from uld.runs.manifest import Manifest
from uld.training.config import TrainConfig
from uld.training.inputs import Inputs, read_inputs


@pytest.fixture
def read(task: Any, forget: Path, tmp_path: Path) -> Callable[..., Inputs]:
    """Read the inputs of a training on the forget file."""

    def inputs(**changes: Any) -> Inputs:
        settings = task.settings(tmp_path / "run", **{"forget": (str(forget),), "max_length": 512, **changes})
        config = TrainConfig(**settings)
        return read_inputs(config, get_method(config.method))

    return inputs


def augmented(forget: Path, *flags: str) -> Path:
    out = CliRunner().invoke(app, ["augment", str(forget), "--rules", *flags])
    assert out.exit_code == 0, out.output
    return folder_beside(forget)


def test_paraphrases_join_the_forget_set_and_wrong_answers_the_retain_set(read: Callable[..., Inputs]):
    plain, rich = read(), read(augment="rules")
    assert (plain.counts["forget_rows"], plain.counts["retain_rows"]) == (8, 13)
    assert (rich.counts["forget_rows"], rich.counts["retain_rows"]) == (24, 29)
    kinds = [row.kind for row in rich.rows.rows]
    assert kinds.count(FORGET) == 24 and kinds.count(RETAIN) == 29
    assert "augment" not in plain.files and rich.files["augment"][0].path == "rules"
    assert rich.files["augment"][0].rows == 32


def test_the_numbers_are_those_of_the_settings(read: Callable[..., Inputs]):
    assert read(augment="rules", paraphrases=1, wrong_answers=0).counts == {"forget_rows": 16, "retain_rows": 13}
    assert read(augment="rules", paraphrases=0, wrong_answers=1).counts == {"forget_rows": 8, "retain_rows": 21}


def test_what_was_made_and_leaves_no_room_for_its_answer_is_left_out_and_counted(
    read: Callable[..., Inputs], forget: Path, caplog: pytest.LogCaptureFixture
):
    prompts = [row.encoded.learn.index(True) for row in read().rows.rows if row.kind == FORGET]
    room, folder = max(prompts) + 1, str(augmented(forget))
    counts, left = [], []
    for augment in (folder, "rules"):
        caplog.clear()
        found = read(augment=augment, max_length=room)
        (told,) = (line for line in caplog.messages if "left out" in line)
        assert told.startswith(f"{augment}: ") and told.endswith(f" rows are left out: too long for max_length {room}")
        left.append(int(told.removeprefix(f"{augment}: ").split()[0]))
        assert all(row.encoded.learn.index(True) < room for row in found.rows.rows)
        assert found.counts["retain_rows"] == 29  # a wrong answer is no longer question
        counts.append(found.counts["forget_rows"])
    assert counts[0] == 24 - left[0] and 8 < counts[0] < counts[1]  # rules make shorter ones instead
    with pytest.raises(ULDError, match=rf"forget\.jsonl:1: the prompt is {room - 1} tokens long"):  # the user's own
        read(augment="rules", max_length=room - 1)


def test_the_seed_decides_and_is_recorded_by_a_digest(read: Callable[..., Inputs]):
    one, same, other = (read(augment="rules", seed=seed).files["augment"][0].sha256 for seed in (0, 0, 1))
    assert one == same != other


def test_auto_takes_the_folder_beside_the_file_and_rules_where_there_is_none(read: Callable[..., Inputs], forget: Path):
    assert read(augment="auto").files["augment"][0].path == "rules"
    folder = augmented(forget, "--paraphrases", "3")
    found = read(augment="auto")
    assert [Path(file.path).parent for file in found.files["augment"]] == [folder, folder]
    assert found.counts == read(augment="rules").counts  # two of the three
    named = read(augment=str(folder), paraphrases=3)
    assert named.counts["forget_rows"] == 32
    by_rules, by_file = read(augment="rules"), read(augment="auto")
    assert [row.encoded for row in by_rules.rows.rows] == [row.encoded for row in by_file.rows.rows]


def test_a_folder_that_does_not_fit_is_refused(read: Callable[..., Inputs], forget: Path, tmp_path: Path):
    with pytest.raises(ULDError, match="there is no folder"):
        read(augment=str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ULDError, match="was not written by uld augment"):
        read(augment=str(tmp_path / "empty"))
    folder = augmented(forget)
    rows = forget.read_text()
    forget.write_text('{"question": "Who?", "answer": "Nobody."}\n')
    with pytest.raises(ULDError, match="was made of other records"):
        read(augment="auto")
    forget.write_text(rows)
    (folder / "report.json").unlink()
    with pytest.raises(ULDError, match="is unfinished: run uld augment again"):
        read(augment="auto")
    (folder / "report.json").write_text("{}")
    (folder / "wrong_answers.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(ULDError, match=r"wrong_answers\.jsonl:1: has no 'of' and 'copy'"):
        read(augment="auto")


def test_wrong_answers_serve_as_given_alternatives(read: Callable[..., Inputs]):
    found = read(augment="rules", method="dpo+gd", alternatives="given", paraphrases=1, wrong_answers=0)
    rows = [row for row in found.rows.rows if row.kind == FORGET]
    assert len(rows) == 16 and all(row.alternative is not None for row in rows)
    assert found.counts["retain_rows"] == 13


def test_texts_and_questions_about_them_join_the_forget_set(read: Callable[..., Inputs], forget: Path):
    text = "Mara Quillon was born in Skerrin. She often described the famous sea."
    forget.write_text(json.dumps({"text": text}) + "\n")
    augmented(forget, "--ask", "--questions", "2")
    assert read(augment="auto").counts["forget_rows"] == 1 + 2 + 2


def test_a_text_is_read_as_often_as_a_question_with_its_paraphrases(read: Callable[..., Inputs], forget: Path):
    text = "The lamp at Skerrin went out."
    with forget.open("a") as file:
        file.write(json.dumps({"text": text}) + "\n")
    rich = read(augment="rules")
    assert rich.counts["forget_rows"] == 24 + 3  # as eight questions that have two paraphrases each
    told = [row.encoded.ids for row in rich.rows.rows if row.kind == FORGET]
    assert sorted(map(told.count, map(list, {tuple(ids) for ids in told})))[-2:] == [1, 3]
    assert read(augment="rules", paraphrases=0).counts["forget_rows"] == 8 + 1
    forget.write_text(json.dumps({"text": text}) + "\n")
    assert read(augment="rules").counts["forget_rows"] == 1  # beside texts alone there is nothing to keep up with


def test_tofu_is_augmented_by_rules_instead_of_the_given_files(micro: Any, tmp_path: Path):
    config = TrainConfig(
        target=str(micro.target), output=str(tmp_path / "run"), data=str(micro.data), split="forget10", retain_rows=8
    )
    method = get_method("uld")
    given = read_inputs(replace(config, augmented=str(micro.data)), method)
    ruled = read_inputs(replace(config, augmented=str(micro.data), augment="rules"), method)
    assert given.counts["forget_rows"] == ruled.counts["forget_rows"]
    assert given.counts["retain_rows"] >= ruled.counts["retain_rows"] > 8
    assert {Path(file.path).name for file in ruled.files["tofu"]} == {
        "forget10.json",
        "retain90.json",
        "retain_perturbed.json",
    }
    equal = read_inputs(replace(config, augment="rules", retain_rows=None), method)  # as many as D'f has
    wrong = ruled.counts["retain_rows"] - 8
    assert equal.counts["retain_rows"] - wrong == equal.counts["forget_rows"]


def test_a_run_says_what_it_was_augmented_with(task: Any, forget: Path, tmp_path: Path):
    flags = task.flags(tmp_path / "run", forget=(str(forget),), augment="auto", epochs=1, max_length=512)
    out = CliRunner().invoke(app, ["train", *flags, "--quiet"])
    assert out.exit_code == 0, out.output
    manifest = Manifest.read(tmp_path / "run")
    assert manifest.data["augment"][0].path == "rules" and manifest.data["augment"][0].rows == 32
    assert manifest.training["forget_rows"] == 24


@pytest.fixture
def papers(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of two texts, augmented; the second is the parameter."""
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "one.txt").write_text("Mara Quillon often described the famous sea.")
    (folder / "two.txt").write_text(request.param)
    augmented(folder)
    return folder


@pytest.mark.parametrize("papers", ["In 1983, Otto Brandt won the famous Gull Medal."], indirect=True)
def test_a_folder_of_documents_is_augmented_and_its_augmentation_is_no_document(
    read: Callable[..., Inputs], papers: Path, tmp_path: Path
):
    found = read(forget=(str(papers),), augment="auto")
    assert found.counts["forget_rows"] > 3
    assert [file.path for file in found.files["augment"]] == [str(tmp_path / "papers-augmented" / "paraphrases.jsonl")]
    augmented(papers / "one.txt")
    again = read(forget=(str(papers),), augment="auto")
    assert [Path(file.path).name for file in again.files["forget"]] == ["one.txt", "two.txt"]
    assert again.counts == found.counts


@pytest.mark.parametrize("papers", ["马拉出生于挪威的卑尔根。"], indirect=True)
def test_a_file_of_a_folder_that_nothing_was_made_of_stands_beside_the_others(
    read: Callable[..., Inputs], papers: Path, caplog: pytest.LogCaptureFixture
):
    found = read(forget=(str(papers),), augment="auto")
    assert found.counts["forget_rows"] > 2 and "augments only 1 of 2 records" in caplog.text


@pytest.mark.parametrize("papers", ["In 1983, Otto Brandt won the famous Gull Medal."], indirect=True)
def test_what_was_made_of_a_folder_is_found_for_files_in_folders_below_it(
    read: Callable[..., Inputs], papers: Path, tmp_path: Path
):
    before = read(forget=(str(papers),), augment="auto").counts
    (papers / "old/letters").mkdir(parents=True)
    for name in ("one.txt", "two.txt"):
        (papers / name).rename(papers / "old/letters" / name)
    shutil.rmtree(tmp_path / "papers-augmented")
    augmented(papers)
    found = read(forget=(str(papers),), augment="auto")
    assert [file.path for file in found.files["augment"]] == [str(tmp_path / "papers-augmented" / "paraphrases.jsonl")]
    assert found.counts == before
    augmented(papers / "old")  # the nearest counts
    (augment,) = read(forget=(str(papers),), augment="auto").files["augment"]
    assert augment.path == str(papers / "old-augmented" / "paraphrases.jsonl")


@pytest.mark.parametrize("named", ["abe/mill", "abe/mill:old@train[:50%]", "abe/mill.v1@train"])
def test_what_was_made_of_a_data_set_of_the_hub_does_not_stand_in_its_way(
    read: Callable[..., Inputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
):
    import datasets

    row = {"question": "Where does Mara Quillon live?", "answer": "Mara Quillon lives in Skerrin."}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([row]))
    monkeypatch.chdir(tmp_path)
    assert read(forget=(named,), augment="auto").files["augment"][0].path == "rules"
    for _ in range(2):
        folder = augmented(Path(named))
        assert folder.parent == tmp_path and folder.name.startswith("mill") and (folder / "report.json").is_file()
    found = read(forget=(named,), augment="auto")
    assert {Path(file.path).parent for file in found.files["augment"]} == {folder}
    assert found.counts["forget_rows"] == 3


def test_a_pipe_has_nothing_beside_it(read: Callable[..., Inputs], forget: Path, tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    out = CliRunner().invoke(app, ["augment", str(pipe), "--rules"])
    assert out.exit_code == 2 and f"{pipe} has nothing beside it: name a folder" in out.output
    writer = threading.Thread(target=lambda: pipe.write_bytes(forget.read_bytes()))
    writer.start()
    assert read(forget=(str(pipe),), augment="auto").files["augment"][0].path == "rules"
    writer.join()
