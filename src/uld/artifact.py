"""What a run leaves on disk, and how it gets there: ``uld.json``, fingerprints, digests, atomic writes.

A run folder holds ``uld.json`` (this module's `Manifest`, the truth about the unlearning), ``adapter/`` (LoRA in PEFT's
own format; a target that was trained without LoRA is ``model.safetensors`` instead), ``config.json`` and
``generation_config.json`` (so that `AutoModelForCausalLM` finds it), the tokenizer, ``train.yaml`` (the resolved
settings), ``metrics.jsonl`` and, where the retain set was drawn from the target, ``retain_drawn.jsonl``. Everything is
safetensors, JSON or YAML: no pickle.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from uld.errors import ULDError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "uld.json"
ADAPTER = "adapter"
METRICS = "metrics.jsonl"
SETTINGS = "train.yaml"
CHECKPOINTS = "checkpoints"
EPOCHS = "epochs"
RETAIN_DRAWN = "retain_drawn.jsonl"
_SAMPLES = 65_536
_FULL_DISK = (
    "No space left",
    "file write failed",
    "unexpected pos",
    "iostream error",
)  # torch's and safetensors' words
_TINY = 2.0**-14  # below it fp16 is not exact for every bf16 number


class ArtifactError(ULDError):
    """A run folder is missing, damaged, taken, or belongs to another target."""


class DiskFullError(ArtifactError):
    """The disk is full."""


class CombinationSettings(BaseModel):
    """The fields of `uld.logits.Combination` as they stand in ``uld.json``."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")
    rule: Literal["suppress", "subtract", "reference", "offset"]
    weight: float
    filter: float
    min_tokens: float
    outside: Literal["keep", "mask"]
    margin: float = 0.0
    floor: float = 0.0


class DataFile(BaseModel):
    """One input file: where it was, what was in it."""

    path: str
    sha256: str
    rows: int


class Manifest(BaseModel):
    """``uld.json``: which target, which layers, which rule, made from what.

    Attributes:
        format: Version of this layout.
        method: Registered name of the method.
        trains: What the run holds: an assistant, the target itself after training, or an Offset model's small model.
        target: Folder or Hub id of the target as it was given.
        target_revision: Hub revision, if any.
        target_fingerprint: `fingerprint` of the tensors that the assistant shares with the target, or of all of it
            where the run has no assistant of its layers.
        small: Where Offset's small model is, if it is not the target's first layers.
        small_fingerprint: `fingerprint` of all its tensors.
        num_layers: K.
        combination: Rule, α, τ, min_tokens and outside; can be overridden at load.
        template: Prompt template that it was trained with; None: the tokenizer's chat template.
        data: Files that were trained on.
        versions: Versions of the libraries that trained it.
        training: Steps, rows, seconds, last losses and other facts of the run.
    """

    format: Literal[1] = 1
    method: str
    trains: Literal["assistant", "target", "offset"] = "assistant"
    target: str
    target_revision: str | None = None
    target_fingerprint: str
    small: str | None = None
    small_fingerprint: str | None = None
    num_layers: int
    combination: CombinationSettings
    template: str | None = None
    data: dict[str, list[DataFile]] = {}
    versions: dict[str, str] = {}
    training: dict[str, Any] = {}

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """Read a run folder's ``uld.json``.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        path = Path(folder) / MANIFEST
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ArtifactError(f"{folder} is not a finished uld run: it has no {MANIFEST}") from error
        except (ValidationError, UnicodeDecodeError) as error:
            detail = error.errors()[0] if isinstance(error, ValidationError) else None
            if detail and detail["loc"] == ("format",):
                raise ArtifactError(f"{path} was written by a newer version of uld: update uld to read it") from error
            where = ".".join(str(part) for part in detail["loc"]) if detail else "its text"
            raise ArtifactError(f"{path} is damaged at {where or 'its top level'}: train the run again") from error

    def write(self, folder: str | Path) -> None:
        """Write ``uld.json`` into a folder, atomically."""
        write_text(Path(folder) / MANIFEST, self.model_dump_json(indent=2) + "\n")


def place(model: str) -> str:
    """How an artefact names a model: a folder by its absolute path, a Hub id as it is."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def is_run(path: str | Path) -> bool:
    """Whether a path is a finished run folder (and not a plain model)."""
    return (Path(path) / MANIFEST).is_file()


def fingerprint(tensors: Iterable[tuple[str, "Tensor"]]) -> str:
    """Identify a set of weights, whatever dtype or device they are loaded in.

    SHA-256 over each tensor's name, shape and evenly spaced elements (at most 131,071) rounded to bf16 and, below
    2^-14, to zero, so that a model loaded in bf16 and in fp32, and a bf16 checkpoint loaded in fp16, gets the same
    fingerprint and a fine-tuned one another. It guards against mistakes, not against someone who forges weights.

    Args:
        tensors: Pairs of name and tensor; the order does not matter.

    Returns:
        ``sha256:`` and 64 hexadecimal digits.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        flat = tensor.detach().reshape(-1)
        stride = max(1, flat.numel() // _SAMPLES)
        sample = flat[::stride].to(torch.bfloat16).cpu()
        sample = torch.where(sample.abs() < _TINY, 0.0, sample).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rows_digest(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of rows that lie in no file of ours, as JSON lines, in hexadecimal."""
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a whole file atomically: a temporary file beside it, flushed to disk, then renamed over it.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """Turn failures to write below a folder into one clear sentence.

    Raises:
        ArtifactError: the disk is full (`DiskFullError`), the folder is read-only, or something else is in the way.
    """
    try:
        yield
    except ULDError:
        raise
    except Exception as error:
        # torch and safetensors report a full disk as errors of their own, so the disk itself is asked.
        if _disk_is_full(error, Path(folder)):
            raise DiskFullError(f"the disk that holds {folder} is full: free some space and run again") from error
        if isinstance(error, OSError):
            raise ArtifactError(f"cannot write to {folder}: {error.strerror or error}") from error
        raise


def _disk_is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether an error, or one that it wraps, comes from a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(hint in str(error) for hint in _FULL_DISK):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def new_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Make a folder atomically: yields a temporary sibling, which takes the path's place only when all went well.

    Args:
        path: The folder to make.
        replace: Whether an existing folder may be replaced.

    Raises:
        ArtifactError: the path exists and may not be replaced, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise ArtifactError(f"{path} exists already: choose another folder")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            os.chmod(temporary, 0o755)
            yield temporary
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def save_adapter(adapter: Any, folder: Path, target: str) -> None:
    """Write an adapter in PEFT's own format, naming the target as its base.

    Args:
        adapter: A `peft.PeftModel`.
        folder: Where to.
        target: Folder or Hub id of the target.
    """
    adapter.peft_config["default"].base_model_name_or_path = target
    adapter.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model-card form, all of it to be filled in
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes files that nobody else may read


def save_model(model: Any, folder: Path, dtype: Any) -> int:
    """Write a whole model with its config, in the dtype of the checkpoint that it came from.

    Args:
        model: A transformers model.
        folder: Where to.
        dtype: Of the checkpoint; None keeps the model's.

    Returns:
        Bytes of the weights on disk.
    """
    own = model.dtype
    wanted = own if dtype is None else dtype
    weights = model.state_dict()
    model.config.dtype = wanted
    try:
        model.save_pretrained(
            str(folder), state_dict={k: v.to(wanted) if v.is_floating_point() else v for k, v in weights.items()}
        )
        model.config.dtype = wanted  # transformers has put the model's own there
        model.config.save_pretrained(str(folder))
    finally:
        model.config.dtype = own
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))


def peak_memory() -> int:
    """Largest resident memory that this process has had, in bytes."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a run's numbers."""
    import platform
    from importlib.metadata import version

    packages = {"uld": "uld-llm", "torch": "torch", "transformers": "transformers", "peft": "peft"}
    return {"python": platform.python_version()} | {name: version(package) for name, package in packages.items()}
