"""Files and folders come as a whole or not at all, and what is in the way is said."""

import errno
import os

import pytest
import torch

from uld.errors import ArtifactError
from uld.runs.files import new_file, new_folder, remove_folder, sweep, write_text, writing


def test_write_text_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.json"
    write_text(path, "old")
    assert oct(path.stat().st_mode & 0o777) == "0o644"

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArtifactError, match=r"cannot write to .*: Input/output error"):
        write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(path.parent) == ["file.json"]


def test_new_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "x") as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with new_folder(tmp_path / "x") as folder:
        (folder / "one").write_text("1")
        assert not (tmp_path / "x").exists()
    with pytest.raises(ArtifactError, match="exists already"), new_folder(tmp_path / "x"):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "x", replace=True):
        raise ZeroDivisionError
    assert (tmp_path / "x/one").read_text() == "1" and os.listdir(tmp_path) == ["x"]
    with new_folder(tmp_path / "x", replace=True) as folder:
        (folder / "two").write_text("2")
    assert os.listdir(tmp_path / "x") == ["two"]


def test_full_disks_are_named_whatever_reports_them(tmp_path):
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0"),
    ):
        with pytest.raises(ArtifactError, match="is full: free some space"), writing(tmp_path):
            raise error
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError


@pytest.mark.parametrize("letter", ["a", "ä", "漢"])
def test_a_name_may_be_as_long_as_files_may_be_called(tmp_path, letter):
    name = letter * (255 // len(letter.encode()))
    write_text(tmp_path / name, "x")
    with new_folder(tmp_path / "y" / name) as folder:
        (folder / "z").touch()
    assert (tmp_path / name).read_text() == "x" and (tmp_path / "y" / name / "z").exists()
    with pytest.raises(ArtifactError, match=r"cannot write to .*File name too long"):
        write_text(tmp_path / (letter * 300) / "x", "x")


def test_a_limit_on_the_size_of_files_is_named(tmp_path):
    """In Python's own words, and in those of torch and safetensors."""
    import resource

    from safetensors.torch import save_file

    ways = {
        "a.json": lambda path: write_text(path, "x" * 200_000),
        "b.safetensors": lambda path: save_file({"x": torch.zeros(50_000)}, path),
        "c.pt": lambda path: torch.save(torch.zeros(50_000), path),
    }
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, write in ways.items():
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
            with pytest.raises(ArtifactError, match=r"ulimit -f"), writing(tmp_path):
                write(tmp_path / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "a.json").exists() and not list(tmp_path.glob(".*"))


def test_what_is_being_written_is_not_swept_and_what_was_left_is(tmp_path):
    with new_folder(tmp_path / "x") as folder, new_file(tmp_path / "y.json") as file:
        sweep(tmp_path)
        assert folder.exists() and file.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y.json"]
    for name in (".x.abcd1234.uld", ".y.json.abcd1234.uld", ".z.abcd1234.uld", ".mine.uld.txt"):
        (tmp_path / name).touch()
    write_text(tmp_path / "y.json", "{}")  # removes what was left of its own
    assert {path.name for path in tmp_path.glob(".*")} == {".x.abcd1234.uld", ".z.abcd1234.uld", ".mine.uld.txt"}
    sweep(tmp_path)
    assert {path.name for path in tmp_path.glob(".*")} == {".mine.uld.txt"}


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/one").write_text("1")
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    remove_folder(tmp_path / "checkpoints")
    assert os.listdir(tmp_path) == ["disk"] and (tmp_path / "disk/one").exists()
