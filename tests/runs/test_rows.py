"""The folder of an evaluation: whose it is, what survives a kill, and what is refused."""

import json
import math
import threading

import pytest

from uld.errors import ArtifactError
from uld.runs import rows
from uld.runs.rows import RowFile, claim
from uld.text.json_text import dumps

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


def test_rows_that_were_done_again_stand_once_and_in_order(tmp_path, monkeypatch):
    path = tmp_path / "members.jsonl"
    with RowFile(path) as file:
        for row in (2, 0, 1):
            file.add(row, {"x": row})
        text, number = path.read_bytes(), path.stat().st_ino
        file.merge([0, 1, 2])
        assert path.read_bytes() == text and path.stat().st_ino == number  # nothing was done again
        file.add(0, {"x": 10})
        assert len(path.read_text().splitlines()) == 4
        with monkeypatch.context() as patch, pytest.raises(ArtifactError):
            patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            file.merge([0, 1, 2])
        assert len(path.read_text().splitlines()) == 4  # all or nothing
        file.merge([2, 0, 1])
        assert [json.loads(line) for line in path.read_text().splitlines()] == [
            {"row": 2, "x": 2},
            {"row": 0, "x": 10},
            {"row": 1, "x": 1},
        ]
        with pytest.raises(ArtifactError, match="another evaluation is writing"):
            RowFile(path)  # the lock is on the new file
        file.add(3, {"x": 3})
    assert RowFile.read(tmp_path, "members") == {2: {"x": 2}, 0: {"x": 10}, 1: {"x": 1}, 3: {"x": 3}}
    assert [one.name for one in tmp_path.iterdir()] == ["members.jsonl"]


def test_a_file_with_rows_twice_from_before_is_tidied(tmp_path):
    path = tmp_path / "members.jsonl"
    path.write_text('{"row": 0, "x": 1}\n{"row": 1, "x": 1}\n{"row": 0, "x": 2}\n')
    with RowFile(path) as file:
        file.merge([0, 1])
    assert path.read_text() == '{"row": 0, "x": 2}\n{"row": 1, "x": 1}\n'


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
    parts = {"settings": {"epochs": 3, "seed": 1, "dtype": "fp32"}}
    claim(tmp_path / "parts", ABOUT | parts)
    with pytest.raises(ArtifactError, match=r"\(settings: epochs and rounds, split\)"):
        claim(
            tmp_path / "parts",
            ABOUT | {"split": "x", "settings": {"epochs": 4, "seed": 1, "dtype": "fp32", "rounds": 2}},
        )
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


@pytest.mark.parametrize("damage", ["[]", "1", "null", '{"model": ', "[" * 100_000, "\ud800"])
def test_settings_that_are_no_object_are_damaged(tmp_path, damage):
    claim(tmp_path / "x", ABOUT)
    (tmp_path / "x/settings.json").write_bytes(damage.encode("utf-8", "surrogatepass"))
    with pytest.raises(ArtifactError, match=r"settings\.json is damaged: remove .*x, or name another"):
        claim(tmp_path / "x", ABOUT)


def test_of_two_that_look_at_once_one_takes_the_folder(tmp_path, monkeypatch):
    """The other waits until it is said whose the folder is, and is refused."""
    write, found = rows.write_text, []
    monkeypatch.setattr(rows, "_WAIT", 20.0)

    def other() -> None:
        try:
            claim(tmp_path / "x", ABOUT | {"weights": "sha256:2"})
            found.append("taken")
        except ArtifactError as error:
            found.append(str(error))

    def slow(path, text):
        monkeypatch.setattr(rows, "write_text", write)
        thread.start()
        thread.join(0.3)  # it has looked, if anything lets it look
        write(path, text)

    thread = threading.Thread(target=other)
    monkeypatch.setattr(rows, "write_text", slow)
    claim(tmp_path / "x", ABOUT)
    thread.join()
    assert len(found) == 1 and "with other settings (weights)" in found[0]
    assert json.loads((tmp_path / "x/settings.json").read_text()) == ABOUT
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["settings.json"]


def test_who_waits_too_long_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_WAIT", 0.0)
    with rows.claiming(tmp_path / "x", "evaluation"), pytest.raises(ArtifactError, match="about to begin in"):
        claim(tmp_path / "x", ABOUT)


def test_what_a_kill_left_is_not_foreign_and_goes(tmp_path):
    for name in (".settings.json.abcd1234.uld", ".lock", ".forget.jsonl.abcd1234.uld"):
        (tmp_path / name).write_text("{")
    claim(tmp_path, ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
