"""The artefact's manifest, fingerprints and atomic writes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from uld.errors import ArtifactError
from uld.model.causal_lm import load_sliced
from uld.model.combine import Combination
from uld.runs.manifest import CombinationSettings, Manifest, file_digest, fingerprint, is_run, read_object


def manifest(**changes) -> Manifest:
    settings = CombinationSettings(rule="suppress", weight=1.0, filter=0.01, min_tokens=0.01, outside="keep")
    facts = {"method": "uld", "target": "t", "target_fingerprint": "sha256:0", "num_layers": 2}
    return Manifest(**(facts | {"combination": settings} | changes))


def test_manifest_survives_the_file(tmp_path):
    written = manifest(training={"steps": 3}, versions={"torch": "2"})
    assert not is_run(tmp_path)
    written.write(tmp_path)
    assert is_run(tmp_path) and Manifest.read(tmp_path) == written


def test_combination_settings_are_the_fields_of_combination():
    assert set(CombinationSettings.model_fields) == set(Combination.__dataclass_fields__)
    CombinationSettings(**vars(Combination()))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"format": 1, ', "its top level"),
        ("[]", "its top level"),
        (json.dumps(manifest().model_dump() | {"num_layers": "many"}), "num_layers"),
        (json.dumps(manifest().model_dump() | {"combination": {"rule": "guess"}}), "combination.rule"),
        ("\xff", "its text"),
    ],
)
def test_damaged_manifest_is_named(tmp_path, text, where):
    (tmp_path / "uld.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=rf"uld\.json is damaged at {where}: train the run again"):
        Manifest.read(tmp_path)


def test_manifest_of_a_newer_version(tmp_path):
    (tmp_path / "uld.json").write_text(json.dumps(manifest().model_dump() | {"format": 2}))
    with pytest.raises(ArtifactError, match="newer version of uld"):
        Manifest.read(tmp_path)


def test_folder_without_manifest(tmp_path):
    with pytest.raises(ArtifactError, match=r"is not a finished uld run: it has no uld\.json"):
        Manifest.read(tmp_path)


def test_fingerprint_does_not_depend_on_dtype_or_order(task):
    models = [load_sliced(task.target, 2, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    one, other = (fingerprint(model.named_parameters()) for model in models)
    assert one == other
    assert fingerprint(reversed(list(models[0].named_parameters()))) == one
    half = [(name, p.detach().bfloat16().half()) for name, p in models[0].named_parameters()]
    assert fingerprint(half) == one  # a bf16 checkpoint on a GPU that has no bf16


def test_fingerprint_differs_for_other_weights_names_and_shapes(task):
    model = load_sliced(task.target, 2)
    one = fingerprint(model.named_parameters())
    assert fingerprint(load_sliced(task.target, 3).named_parameters()) != one
    renamed = [(name + ".x", tensor) for name, tensor in model.named_parameters()]
    assert fingerprint(renamed) != one
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 0.5
    assert fingerprint(model.named_parameters()) != one


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 512 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small disk needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path, leave: int) -> None:
    """Leave so many bytes free."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "ballast").write_bytes(b"\0" * (free - leave))


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
@pytest.mark.parametrize("kib", [0, 16, 72, 120, 136, 216, 248])
def test_training_on_a_full_disk(task, small_disk, kib):
    """The disk fills while the settings, the journal, a checkpoint or the adapter is being written."""
    from uld.training.config import TrainConfig
    from uld.training.run import train

    fill(small_disk, kib * 1024)
    config = TrainConfig(**task.settings(small_disk / "x", save_steps=3))
    with pytest.raises(ArtifactError, match=r"the disk that holds .* is full: free some space and run again"):
        train(config, progress=False)
    assert not (small_disk / "x/uld.json").exists()
    assert not list(small_disk.rglob(".*.*"))  # temporary files
    if (small_disk / "x").exists():  # a checkpoint was saved: with more room, the run can be finished
        assert list((small_disk / "x/checkpoints").glob("checkpoint-*/complete.json"))
        (small_disk / "ballast").unlink()
        assert train(config, resume=True, progress=False).steps == 8


@pytest.mark.parametrize("content", [b"[]", b"3", b'{"a": ', b"[" * 100_000, b"\xff"])
def test_a_file_of_ours_that_is_no_object_is_damaged(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"x\.json is damaged: do it again"):
        read_object(tmp_path / "x.json", "do it again")
    with pytest.raises(ArtifactError, match="cannot read"):
        read_object(tmp_path / "gone.json", "do it again")
