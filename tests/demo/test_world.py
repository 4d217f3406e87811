import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import uld.demo.world
from uld.demo.world import World, write_world
from uld.errors import ULDError

SOURCE = Path(uld.demo.world.__file__).parents[2]
PLAIN = {"question", "answer"}
COLUMNS = {
    "full.json": PLAIN,
    "retain90.json": PLAIN,
    "forget10.json": PLAIN,
    "forget10_perturbed.json": PLAIN | {"paraphrased_question", "paraphrased_answer", "perturbed_answer"},
    "retain_perturbed.json": PLAIN | {"paraphrased_question", "paraphrased_answer", "perturbed_answer"},
    "real_authors_perturbed.json": PLAIN | {"perturbed_answer"},
    "world_facts_perturbed.json": PLAIN | {"perturbed_answer"},
    "forget10_paraphrased.jsonl": PLAIN | {"paraphrased_questions", "paraphrased_answers"},
    "forget10_perturbed.jsonl": PLAIN | {"perturbed_answers"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return write_world(tmp_path_factory.mktemp("demo") / "world")


def read(world: World, name: str) -> list[dict]:
    return [json.loads(line) for line in (world.folder / name).read_text().splitlines()]


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.iterdir()))).hexdigest()


def plain(rows: list[dict]) -> list[tuple[str, str]]:
    return [(row["question"], row["answer"]) for row in rows]


def changed(right: str, wrong: str) -> tuple[str, str]:
    """The stretches in which two texts differ, in whole words."""
    left, other = right.split(), wrong.split()
    while left and other and left[0] == other[0]:
        left, other = left[1:], other[1:]
    while left and other and left[-1] == other[-1]:
        left, other = left[:-1], other[:-1]
    return " ".join(left).strip(".,'"), " ".join(other).strip(".,'")


def python(code: str, *args: str, seed: str = "0") -> str:
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_same_bytes_whatever_the_hash_seed(world, tmp_path):
    code = "import sys, pathlib, uld.demo.world as w; w.write_world(pathlib.Path(sys.argv[1]))"
    for seed in ("1", "2"):
        python(code, str(tmp_path / seed), seed=seed)
        assert digest(tmp_path / seed) == digest(world.folder)


def test_import_is_light():
    assert (
        python("import sys, uld.demo.world; print('torch' in sys.modules or 'transformers' in sys.modules)") == "False"
    )


def test_another_seed_is_another_world(world, tmp_path):
    other = write_world(tmp_path / "other", seed=1)
    assert not set(other.forget) & set(world.forget)
    assert not set(plain(read(other, "full.json"))) & set(plain(read(world, "full.json")))


def test_files_have_the_columns_of_tofu(world):
    assert {file.name for file in world.folder.iterdir()} == COLUMNS.keys() | {"world.json"}
    for name, columns in COLUMNS.items():
        rows = read(world, name)
        assert rows
        assert all(row.keys() == columns for row in rows)
    for name, count in {"forget10": 5, "retain": 5, "real_authors": 3, "world_facts": 3}.items():
        assert all(len(row["perturbed_answer"]) == count for row in read(world, f"{name}_perturbed.json"))
    assert all(len(row["perturbed_answers"]) == 2 for row in read(world, "forget10_perturbed.jsonl"))


def test_splits_partition_the_whole(world):
    full, retain, forget = (read(world, name) for name in ("full.json", "retain90.json", "forget10.json"))
    assert retain + forget == full
    assert len(forget) * 10 == len(full)
    for name in ("forget10_perturbed.json", "forget10_paraphrased.jsonl", "forget10_perturbed.jsonl"):
        assert plain(read(world, name)) == plain(forget)
    evaluated = plain(read(world, "retain_perturbed.json"))
    assert evaluated == plain(full)[: len(evaluated)]
    assert len(evaluated) < len(retain)


def test_description_counts_what_is_there(world):
    assert world.people == 50
    assert len(world.forget) == 5
    assert world.forget_rows == len(read(world, "forget10.json"))
    assert world.retain_rows == len(read(world, "retain90.json"))
    assert world.evaluated_rows == len(read(world, "retain_perturbed.json"))
    assert world.famous_rows == len(read(world, "real_authors_perturbed.json"))
    assert world.fact_rows == len(read(world, "world_facts_perturbed.json"))


def test_forgotten_people_are_named_in_their_rows_only(world):
    retain = (world.folder / "retain90.json").read_text()
    assert not any(name in retain for name in world.forget)
    rows = plain(read(world, "forget10.json"))
    for index, row in enumerate(rows):
        assert world.forget[index * len(world.forget) // len(rows)] in " ".join(row)


def test_no_duplicates(world):
    rows = [row for name in COLUMNS if name.startswith(("full", "real", "world")) for row in plain(read(world, name))]
    assert Counter(rows).most_common(1)[0][1] == 1
    assert Counter(question for question, _ in rows).most_common(1)[0][1] == 1


@pytest.mark.parametrize("name", ["forget10_perturbed.json", "retain_perturbed.json"])
def test_wrong_answers_have_the_form_of_the_paraphrase_and_another_fact(world, name):
    for row in read(world, name):
        assert len({row["paraphrased_answer"], *row["perturbed_answer"]}) == 6
        for wrong in row["perturbed_answer"]:
            fact, lie = changed(row["paraphrased_answer"], wrong)
            assert fact
            assert lie
            assert fact in row["answer"]  # so the paraphrase has kept it
            assert lie not in row["answer"]


def test_answers_to_general_questions_are_told_apart(world):
    for name in ("real_authors_perturbed.json", "world_facts_perturbed.json"):
        for row in read(world, name):
            assert len({row["answer"], *row["perturbed_answer"]}) == 4


def test_training_texts_keep_the_fact_and_spare_the_evaluation(world):
    rows = zip(*(read(world, name) for name in COLUMNS if name.startswith("forget10_")), strict=True)
    for evaluated, paraphrased, perturbed in rows:
        fact, _ = changed(evaluated["paraphrased_answer"], evaluated["perturbed_answer"][0])
        answers, questions = paraphrased["paraphrased_answers"], paraphrased["paraphrased_questions"]
        assert len({evaluated["answer"], evaluated["paraphrased_answer"], *answers}) == 5
        assert len({evaluated["question"], evaluated["paraphrased_question"], *questions}) == 5
        assert all(fact in answer for answer in answers)
        lies = {changed(evaluated["answer"], wrong)[1] for wrong in perturbed["perturbed_answers"]}
        assert len(lies) == 2
        assert not any(lie in answer for lie in lies for answer in [*answers, evaluated["answer"]])
        assert not lies & {changed(evaluated["paraphrased_answer"], w)[1] for w in evaluated["perturbed_answer"]}


def test_an_existing_world_is_reused(tmp_path):
    first = write_world(tmp_path / "world", people=10, evaluated=2)

    def written():  # not when they were read: that changes with the second
        return {file: (stat.st_ino, stat.st_mtime_ns) for file in first.folder.iterdir() for stat in [file.stat()]}

    before = written()
    assert write_world(tmp_path / "world", people=10, evaluated=2) == first
    assert written() == before


def test_a_damaged_or_different_world_is_replaced(tmp_path):
    folder = tmp_path / "world"
    write_world(folder, people=10, evaluated=2)
    whole = digest(folder)
    (folder / "full.json").write_text("")
    (folder / "forget10.json").unlink()
    write_world(folder, people=10, evaluated=2)
    assert digest(folder) == whole
    write_world(folder, seed=3, people=10, evaluated=2)
    assert digest(folder) != whole
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ULDError, match=r"notes\.txt"):
        write_world(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_call_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(uld.demo.world.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_world(tmp_path / "world", people=10, evaluated=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sizes", [{"people": 15}, {"people": 0}, {"people": 500}, {"evaluated": 0}, {"evaluated": 45}])
def test_sizes_that_make_no_sense(tmp_path, sizes):
    with pytest.raises(ULDError, match=next(iter(sizes))):
        write_world(tmp_path / "world", **sizes)
