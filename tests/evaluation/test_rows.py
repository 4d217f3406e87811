"""The folder of an evaluation: whose it is, what survives a kill, and what is refused."""

import json
import math

import pytest

from uld.artifact import ArtifactError
from uld.evaluation.rows import RowFile, claim, dumps

ABOUT = {"model": "a", "weights": "sha256:1", "split": "forget10"}


def test_infinity_is_written_as_a_number_that_json_knows():
    value = {"Infinity": ['say "Infinity" \\', math.inf, 1.5, {"x": [math.inf]}]}
    text = dumps(value)
    assert json.loads(text, parse_constant=pytest.fail) == value
    assert text.count("1e999") == 2
    assert dumps({"a": [1, "b"]}, indent=2) == json.dumps({"a": [1, "b"]}, indent=2)


def test_a_killed_file_gives_its_whole_lines_and_takes_the_rest_anew(tmp_path):
    path = tmp_path / "forget.jsonl"
    with RowFile(path) as file:
        for row in (4, 0, 2):
            file.add(row, {"scores": [[float(row), 1], [math.inf, 2]]})
    text = path.read_bytes()
    path.write_bytes(text[:-5])
    with RowFile(path) as file:
        assert file.rows == {row: {"scores": [[float(row), 1], [math.inf, 2]]} for row in (4, 0)}
        file.add(2, {"scores": [[2.0, 1], [math.inf, 2]]})
    assert path.read_bytes() == text


def test_lines_that_are_no_rows_are_passed_over_and_the_later_of_two_counts(tmp_path):
    path = tmp_path / "retain.jsonl"
    path.write_bytes(b'{"row": 1, "x": 1}\n\x00\x00\xff\n[1]\n{"x": 2}\n{"row": "b"}\n{"row": 1, "x": 3}\n{"row": 7')
    with RowFile(path) as file:
        assert file.rows == {1: {"x": 3}}


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / "forget.jsonl"
    with RowFile(path), pytest.raises(ArtifactError, match=r"another evaluation is writing to .*--output"):
        RowFile(path)
    with RowFile(path) as file:  # the lock went with the first
        assert file.rows == {}


def test_a_folder_belongs_to_one_evaluation(tmp_path):
    folder = tmp_path / "eval" / "tofu"
    claim(folder, ABOUT)
    claim(folder, ABOUT | {"model": "another/way/to/say/a"})
    with pytest.raises(ArtifactError, match=r"with other settings \(split, weights\): name another folder"):
        claim(folder, ABOUT | {"weights": "sha256:2", "split": "forget05"})
    with pytest.raises(ArtifactError, match=r"\(limit\)"):
        claim(folder, ABOUT | {"limit": 3})
    (folder / "settings.json").write_text('{"model": ')
    with pytest.raises(ArtifactError, match=r"settings\.json is damaged"):
        claim(folder, ABOUT)


def test_folders_with_other_things_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ArtifactError, match="is not empty and holds no evaluation"):
        claim(tmp_path, ABOUT)
    with pytest.raises(ArtifactError, match=r"thesis\.tex is a file"):
        claim(tmp_path / "thesis.tex", ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
