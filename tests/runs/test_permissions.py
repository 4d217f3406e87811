"""Who may read what is written: the user's umask decides, and a file that was kept from others stays so."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from uld.augment.generate import Wanted
from uld.augment.run import augment_by_rules
from uld.runs.files import new_folder, permissions, write_text
from uld.runs.rows import RowFile, claim
from uld.training.config import TrainConfig
from uld.training.journal import Journal
from uld.training.run import train

UMASKS = (0o077, 0o027, 0o022, 0o002, 0o007, 0o177)
SOURCE = Path(__file__).resolve().parents[2] / "src" / "uld"


@pytest.fixture
def under() -> Iterator[Callable[[int], None]]:
    """Sets the umask for the rest of a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in sorted(folder.rglob("*"))}


def as_the_umask_says(folder: Path, umask: int) -> bool:
    """Whether everything in a folder has the mode that a plain `open` or `mkdir` would have given it."""
    wanted = {
        name: (0o777 if (folder / name).is_dir() else 0o666) & ~umask for name in modes(folder) if "probe" not in name
    }
    assert wanted and modes(folder) == wanted
    return True


@pytest.mark.parametrize("umask", UMASKS)
def test_files_and_folders_written_at_once(under, tmp_path: Path, umask: int):
    under(umask & 0o077)  # a folder of one's own can always be entered
    write_text(tmp_path / "a" / "b" / "text.json", "{}")
    with new_folder(tmp_path / "folder") as folder:
        (folder / "inside").write_text("x")
    assert as_the_umask_says(tmp_path, umask & 0o077)
    under(umask)
    write_text(tmp_path / "text.json", "{}")
    assert modes(tmp_path)["text.json"] == 0o666 & ~umask


@pytest.mark.parametrize(("umask", "found", "kept"), [(0o022, 0o600, 0o600), (0o077, 0o644, 0o600), (0, 0o640, 0o640)])
def test_what_was_kept_from_others_stays_so(under, tmp_path: Path, umask: int, found: int, kept: int):
    under(umask)
    for name in ("file", "folder"):
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
            (path / "old").touch()
            path.chmod(found | 0o100)
            with new_folder(path, replace=True):
                pass
            assert stat.S_IMODE(path.stat().st_mode) == kept | 0o100
        else:
            path.touch()
            path.chmod(found)
            write_text(path, "new")
            assert stat.S_IMODE(path.stat().st_mode) == kept and path.read_text() == "new"


def test_asking_for_the_umask_leaves_it_as_it_was(under):
    under(0o027)
    assert [permissions(most) for most in (0o666, 0o777, 0o600)] == [0o640, 0o750, 0o600]
    assert os.umask(0o027) == 0o027


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002])
def test_files_of_augmentations_evaluations_and_logs(under, task, tmp_path: Path, umask: int):
    under(umask)
    augment_by_rules(task.forget, tmp_path / "augmented", Wanted(), seed=0, chunk_words=50)
    claim(tmp_path / "eval", {"model": "m"})
    with RowFile.of(tmp_path / "eval", "task") as rows:
        rows.add(1, {"a": 1})
        rows.add(1, {"a": 2})
        rows.merge([1])
    assert as_the_umask_says(tmp_path, umask)


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_every_file_of_a_run(under, task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int):
    under(umask)
    seen: list[dict[str, int]] = []
    end = Journal.close

    def look(self: Journal) -> None:
        end(self)
        seen.append(modes(tmp_path))

    monkeypatch.setattr(Journal, "close", look)
    train(TrainConfig(**task.settings(tmp_path / "run", epochs=1, save_steps=2)), progress=False)
    assert as_the_umask_says(tmp_path / "run", umask)
    while_training = {name: mode for name, mode in seen[0].items() if "checkpoint-" in name}
    assert any(name.endswith(".safetensors") for name in while_training)
    assert not any(mode & umask for mode in seen[0].values())


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_every_file_of_whole_models(under, micro, tmp_path: Path, umask: int):
    from uld.demo.models import _save
    from uld.model.load import load
    from uld.model.weights import save_model

    under(umask)
    model, tokenizer = load(micro.target)
    _save(model, tokenizer, tmp_path / "demo")  # type: ignore[arg-type]
    (tmp_path / "model").mkdir()
    save_model(model, tmp_path / "model", None)
    unlearned, _ = load(micro.run)
    unlearned.save_pretrained(tmp_path / "run")
    assert as_the_umask_says(tmp_path, umask)


def test_nothing_else_in_the_source_sets_a_mode():
    for path in SOURCE.rglob("*.py"):
        for line in path.read_text().splitlines():
            if re.search(r"\bchmod\(|\bmknod|copymode|copystat|copy2\(|copytree\(", line):
                assert "permissions(" in line, f"{path.name}: {line.strip()}"
            if "os.open(" in line and "O_CREAT" in line:
                assert re.search(r"0o6[04][04]\)", line), f"{path.name}: {line.strip()}"  # the umask takes from it
