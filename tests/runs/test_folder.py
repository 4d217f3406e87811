"""Who may start in a run folder, the lock, and which checkpoint a run continues from."""

import json
import os

import pytest

from uld.errors import ArtifactError
from uld.runs.folder import check_output, drop_incomplete, held, last_checkpoint, refuse_busy, seal
from uld.training.config import TrainConfig
from uld.training.stored import refuse_other_settings, stored_settings


@pytest.fixture
def folder(request, tmp_path):
    """A folder in one of the states that a user can name."""
    path = tmp_path / "x"
    files = {
        "absent": None,
        "file": None,
        "empty": [],
        "foreign": ["thesis.tex"],
        "unfinished": ["train.yaml", "metrics.jsonl"],
        "finished": ["train.yaml", "uld.json", "config.json"],
        "finished with chat templates": ["train.yaml", "uld.json", "additional_chat_templates"],
        "finished with notes": ["train.yaml", "uld.json", "notes.txt"],
        "project with a train.yaml": ["train.yaml", "src"],
    }[request.param]
    if request.param == "file":
        path.write_text("x")
    elif files is not None:
        path.mkdir()
        for name in files:
            (path / name).write_text("x")
    return path


OK = ""
STATES = ["absent", "empty", "file", "foreign", "unfinished", "finished", "finished with notes"]
STATES += ["project with a train.yaml", "finished with chat templates"]
AGAIN, DONE = "--overwrite", "nothing to resume"
EXPECTED = {
    "plain": [OK, OK, "is a file", "holds no run of uld train", "--resume", AGAIN, AGAIN, "--resume", AGAIN],
    "resume": [*["holds no run"] * 2, "is a file", "holds no run", OK, *[DONE] * 2, OK, DONE],
    "overwrite": [OK, OK, "is a file", "holds thesis.tex", OK, OK, "holds notes.txt", "holds src", OK],
}
CASES = [(state, mode, message) for mode, row in EXPECTED.items() for state, message in zip(STATES, row, strict=True)]


@pytest.mark.parametrize(("folder", "mode", "message"), CASES, indirect=["folder"])
def test_who_may_start_where(folder, mode, message):
    flags = {"resume": mode == "resume", "overwrite": mode == "overwrite"}
    before = sorted(os.listdir(folder)) if folder.is_dir() else folder.exists()
    if message:
        with pytest.raises(ArtifactError, match=message):
            check_output(folder, **flags)
    else:
        check_output(folder, **flags)
    assert before == (sorted(os.listdir(folder)) if folder.is_dir() else folder.exists())


def test_second_run_is_refused_while_the_first_works(tmp_path):
    refuse_busy(tmp_path / "x")
    with held(tmp_path / "x"):
        with pytest.raises(ArtifactError, match="another run is working in"):
            refuse_busy(tmp_path / "x")
        with pytest.raises(ArtifactError, match="another run is working in"), held(tmp_path / "x"):
            pass
        with pytest.raises(ArtifactError, match="another run"), held(tmp_path / "x", overwrite=True):
            pass
        assert (tmp_path / "x/.lock").exists()
    assert os.listdir(tmp_path / "x") == []
    refuse_busy(tmp_path / "x")


def test_what_came_in_between_is_seen_under_the_lock(tmp_path):
    check_output(tmp_path / "x", resume=False, overwrite=False)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/uld.json").write_text("{}")
    with pytest.raises(ArtifactError, match="holds a finished run"), held(tmp_path / "x"):
        pass
    assert (tmp_path / "x/uld.json").exists()


def checkpoint(folder, step, sealed=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json"):
        (path / name).write_text(f"{name} of {step}")
    if sealed:
        seal(path)
    return path


def test_failed_block_leaves_a_new_folder_only_with_a_checkpoint(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / "x"):
        (tmp_path / "x/metrics.jsonl").write_text("")
        raise ZeroDivisionError
    assert not (tmp_path / "x").exists()
    with pytest.raises(ZeroDivisionError), held(tmp_path / "x"):
        checkpoint(tmp_path / "x/checkpoints", 3)
        raise ZeroDivisionError
    assert last_checkpoint(tmp_path / "x/checkpoints") == tmp_path / "x/checkpoints/checkpoint-3"


def test_failed_block_never_removes_what_was_there_before(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(ZeroDivisionError), held(tmp_path / "x"):
        raise ZeroDivisionError
    assert (tmp_path / "x").exists()


def test_overwrite_clears_what_a_run_writes(tmp_path):
    for name in ("train.yaml", "uld.json", "eval/log.json", "adapter/adapter_config.json", "tokenizer.json"):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text("old")
    (tmp_path / "x/.gitkeep").write_text("")
    with held(tmp_path / "x", overwrite=True):
        assert sorted(os.listdir(tmp_path / "x")) == [".gitkeep", ".lock"]


def test_newest_checkpoint_is_chosen_by_number(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (9, 100, 20):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("torn", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "complete.json"])
@pytest.mark.parametrize("how", ["truncated", "missing", "zeroed"])
def test_torn_checkpoint_is_passed_over(tmp_path, torn, how):
    older, newer = checkpoint(tmp_path, 10), checkpoint(tmp_path, 20)
    path = newer / torn
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if how == "truncated" else bytes(len(content)))
    assert last_checkpoint(tmp_path) == older
    drop_incomplete(tmp_path)
    assert not newer.exists() and older.exists()


def test_unsealed_checkpoint_is_passed_over(tmp_path):
    checkpoint(tmp_path, 20, sealed=False)
    assert last_checkpoint(tmp_path) is None


def test_resuming_under_other_settings_is_refused(tmp_path):
    started = TrainConfig(target="m", output=str(tmp_path), forget=("a", "b"), epochs=3)
    (tmp_path / "train.yaml").write_text(started.to_yaml())
    assert stored_settings(tmp_path) == started
    refuse_other_settings(tmp_path, started, started)
    moved = TrainConfig(target="m", output="elsewhere", forget=("a", "b"), epochs=3)
    refuse_other_settings(tmp_path, moved, started)
    other = TrainConfig(target="m", output=str(tmp_path), forget=("a", "b"), epochs=5)
    with pytest.raises(ArtifactError, match=r"--epochs is 5, but the run in .* was started with 3"):
        refuse_other_settings(tmp_path, other, started)


def test_seal_lists_every_file(tmp_path):
    path = checkpoint(tmp_path, 1)
    names = {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json"}
    assert json.loads((path / "complete.json").read_text()).keys() == names
