"""What a run leaves on disk, and how it gets there: ``uld.json``, fingerprints, digests, atomic writes.

A run folder holds ``uld.json`` (this module's `Manifest`, the truth about the unlearning), ``adapter/`` (LoRA in PEFT's
own format; a target that was trained without LoRA is ``model.safetensors`` instead), ``config.json`` and
``generation_config.json`` (so that `AutoModelForCausalLM` finds it), the tokenizer, ``train.yaml`` (the resolved
settings), ``metrics.jsonl`` and, where the retain set was drawn from the target, ``retain_drawn.jsonl``. Everything is
safetensors, JSON or YAML: no pickle.
"""

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from uld.digests import ADAPTER as ADAPTER
from uld.digests import content_digest, first_broken, weights_files
from uld.errors import ULDError, explained
from uld.json_text import dumps
from uld.locks import hold, is_held
from uld.machine import files_are_limited

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "uld.json"
FORMAT = 1
METRICS = "metrics.jsonl"
SETTINGS = "train.yaml"
CHECKPOINTS = "checkpoints"
EPOCHS = "epochs"
RETAIN_DRAWN = "retain_drawn.jsonl"
PAIR = ("retain", "forget")  # the adapters of a pair, each below ``adapter/``: whose logits are added, and subtracted
UNENCODABLE = "backslashreplace"  # half of a surrogate pair, as in a name that is not UTF-8, as JSON writes it
_SAMPLES = 65_536
_FULL_DISK = ("No space left",)  # torch and safetensors report it as errors of their own, in words of their own
_TOO_LARGE = ("File too large", "file write failed", "unexpected pos", "iostream error")  # so does torch a full disk
_TEMPORARY = ".uld"  # ending of what is not yet, or no longer, in its place
_TINY = 2.0**-14  # below it fp16 is not exact for every bf16 number


class ArtifactError(ULDError):
    """A run folder is missing, damaged, taken, or belongs to another target."""


class DiskFullError(ArtifactError):
    """The disk is full."""


class CombinationSettings(BaseModel):
    """The fields of `uld.logits.Combination` as they stand in ``uld.json``."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
    rule: Literal["suppress", "subtract", "reference", "offset", "rank", "generic"]
    weight: float
    filter: float
    min_tokens: float
    outside: Literal["keep", "mask"]
    margin: float = 0.0
    floor: float = 0.0
    rank_tokens: int = 20

    @model_serializer(mode="wrap", when_used="json")
    def _in_use(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As `uld.logits.Combination.to_dict`: files that use nothing new stay as they were."""
        unused = {name for name in ("margin", "floor") if not getattr(self, name)}
        unused |= {"rank_tokens"} if self.rule != "rank" else set()
        return {name: value for name, value in write(self).items() if name not in unused}


def _utf8(name: str) -> str:
    """A name that JSON can hold: bytes in it that are not UTF-8 are escaped."""
    return name.encode("utf-8", UNENCODABLE).decode() if isinstance(name, str) else name


class DataFile(BaseModel):
    """One input file: where it was, what was in it."""

    path: Annotated[str, BeforeValidator(_utf8)]
    sha256: str
    rows: int


class Manifest(BaseModel):
    """``uld.json``: which target, which layers, which rule, made from what.

    Attributes:
        format: Version of this layout.
        method: Registered name of the method.
        trains: What the run holds: an assistant, the target itself after training, an Offset model's small model, or a
            pair of small models, one trained on each side.
        target: Folder or Hub id of the target as it was given.
        target_revision: Hub revision, if any.
        target_fingerprint: `fingerprint` of the tensors that the assistant shares with the target, or of all of it
            where the run has no assistant of its layers.
        small: Where the small model of Offset or of a pair is, if it is not the target's first layers.
        small_fingerprint: `fingerprint` of all its tensors.
        num_layers: K.
        combination: Rule, α, τ, min_tokens and outside; can be overridden at load.
        template: Prompt template that it was trained with; None: the tokenizer's chat template.
        date: Day that stood in the prompts of a chat template with a clock; None: no clock, or an older run.
        weights: `content_digest` of each file that holds what was trained, by its name in the run; none in runs that
            were written before there was this field.
        data: Files that were trained on.
        versions: Versions of the libraries that trained it.
        training: Steps, rows, seconds, last losses and other facts of the run.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")
    format: Literal[1] = 1
    method: str
    trains: Literal["assistant", "target", "offset", "pair"] = "assistant"
    target: str
    target_revision: str | None = None
    target_fingerprint: str
    small: str | None = None
    small_fingerprint: str | None = None
    num_layers: int
    combination: CombinationSettings
    template: str | None = None
    date: str | None = None
    weights: dict[str, str] = {}
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
            text = path.read_text(encoding="utf-8")
            return cls.model_validate_json(text)
        except FileNotFoundError as error:
            raise ArtifactError(f"{folder} is not a finished uld run: it has no {MANIFEST}") from error
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValidationError, UnicodeDecodeError) as error:
            detail = error.errors()[0] if isinstance(error, ValidationError) else None
            if (
                detail
                and detail["loc"] == ("format",)
                and isinstance(detail["input"], int)
                and detail["input"] > FORMAT
            ):
                raise ArtifactError(_newer(path, detail["input"])) from error
            where = ".".join(str(part) for part in detail["loc"]) if detail else "its text"
            raise ArtifactError(f"{path} is damaged at {where or 'its top level'}: train the run again") from error

    def write(self, folder: str | Path) -> None:
        """Write ``uld.json`` into a folder, atomically."""
        write_text(Path(folder) / MANIFEST, dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")


def _newer(path: Path, found: int) -> str:
    """What to say of a run that a later version has written."""
    from importlib.metadata import version

    versions = json.loads(path.read_text(encoding="utf-8")).get("versions")
    by = versions.get("uld") if isinstance(versions, dict) else None
    return (
        f"{path} was written by a newer version of uld ({by or 'unknown'}, format {found}), and this one "
        f"({version('uld-llm')}) reads format {FORMAT}: update uld to read it"
    )


def place(model: str) -> str:
    """How an artefact names a model: a folder by its absolute path, a Hub id as it is."""
    return str(Path(model).absolute()) if os.path.isdir(model) else model


def is_run(path: str | Path) -> bool:
    """Whether a path is a finished run folder (and not a plain model)."""
    return os.path.isfile(os.path.join(path, MANIFEST))  # unlike Path's, false for a name that is too long


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


def refuse_changed(folder: Path, manifest: Manifest) -> None:
    """Refuse a run whose weights are not those that its ``uld.json`` was written for; one without digests passes.

    Raises:
        ArtifactError: names the file.
    """
    for name, digest in manifest.weights.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{folder} lacks {name}, which its {MANIFEST} names: copy the run again, whole")
        with explained(f"{path} cannot be read", ArtifactError):
            found = content_digest(path)
        if found != digest:
            raise ArtifactError(
                f"{path} is not the file that was trained: its digest is another than {MANIFEST} says; copy the run "
                "again, or train it again"
            )
    for path in weights_files(folder) if manifest.weights else ():
        if path.relative_to(folder).as_posix() not in manifest.weights:
            raise ArtifactError(
                f"{path} belongs to no run here: {MANIFEST} does not name it; copy the run again, whole"
            )


def _refuse_broken(tensors: Iterable[tuple[str, "Tensor"]]) -> None:
    if broken := first_broken(tensors):
        raise ArtifactError(
            f"training came to NaN or infinite numbers ({broken}), and such weights are not written: lower "
            "--learning-rate, or train with --dtype fp32"
        )


def rows_digest(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of rows that lie in no file of ours, as JSON lines, in hexadecimal."""
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def read_object(path: Path, mend: str) -> dict[str, Any]:
    """Read a file of ours that holds a JSON object.

    Args:
        path: The file.
        mend: What to do where it does not.

    Raises:
        ArtifactError: it cannot be read, or is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is damaged: {mend}")
    return value


def write_text(path: Path, text: str) -> None:
    """Write a whole file atomically, see `new_file`.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=UNENCODABLE)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Make a file atomically: yields a temporary sibling, which is flushed to disk and then renamed over the path.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        handle, name = tempfile.mkstemp(**_beside(path))
        try:
            hold(handle, Path(name))
            yield Path(name)
            os.fsync(handle)
            os.chmod(name, permissions(0o666, path))
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)


def _beside(path: Path) -> dict[str, Any]:
    """How `tempfile` names what is to take a path's place, or has left it; the path's own name may be a long one."""
    return {"prefix": f".{path.name[:40]}.", "suffix": _TEMPORARY, "dir": path.parent}


def present(folder: Path) -> set[str]:
    """Names of what somebody has put into a folder, which need not exist; hidden names are locks and the like."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what a kill left in a folder before it was in its place; what a living process writes is locked.

    Args:
        folder: Which need not exist.
        name: Of what was to be there; any.
    """
    for path in folder.glob(f".{name if name == '*' else glob.escape(name[:40])}.*{_TEMPORARY}"):
        if not is_held(path):
            with suppress(OSError):  # another process may sweep as well
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_folder(path: Path) -> None:
    """Remove a folder, if there is one, so that it is there as a whole or not at all."""
    if path.exists():
        aside = tempfile.mkdtemp(**_beside(path))
        os.replace(path, aside)
        shutil.rmtree(aside)


def permissions(most: int, path: Path | None = None) -> int:
    """The mode of what is made now: what the user's umask leaves, and no more than a file in its place had.

    Args:
        most: Without a umask: 0o666 for a file, 0o777 for a folder.
        path: What is replaced, if it is there.
    """
    umask = os.umask(0o077)  # there is no way to look at it; what another thread makes meanwhile is not too open
    os.umask(umask)
    found = path.stat().st_mode if path is not None and path.exists() else most
    return most & found & ~umask


def as_usual(files: Iterable[Path]) -> None:
    """Give files that safetensors wrote, which keeps everybody else off them, what the user's umask leaves."""
    for path in files:
        path.chmod(permissions(0o666))


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
        if _tells(error, (errno.ENOSPC, errno.EDQUOT), _FULL_DISK):
            raise DiskFullError(f"the disk that holds {folder} is full: free some space and run again") from error
        if _tells(error, (errno.EFBIG,), _TOO_LARGE):
            if files_are_limited():
                raise ArtifactError(
                    f"a file in {folder} would be larger than files may be here: raise the limit (ulimit -f)"
                ) from error
            raise DiskFullError(f"the disk that holds {folder} is full: free some space and run again") from error
        if isinstance(error, OSError):
            raise ArtifactError(f"cannot write to {folder}: {error.strerror or error}") from error
        raise


def _tells(error: BaseException | None, numbers: tuple[int, ...], words: tuple[str, ...]) -> bool:
    """Whether an error, or one that it wraps, is an OSError with one of these numbers or holds one of these words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        if any(hint in str(error) for hint in words):
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
        sweep(path.parent, path.name)
        temporary = Path(tempfile.mkdtemp(**_beside(path)))
        handle = os.open(temporary, os.O_RDONLY)
        try:
            hold(handle, temporary)
            os.chmod(temporary, permissions(0o777, path))
            yield temporary
            _exchange(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(handle)


def _exchange(new: Path, path: Path) -> None:
    """Put a folder into a place; the one that was there is removed when the new one is there."""
    if not path.exists():
        os.replace(new, path)
        return
    old = tempfile.mkdtemp(**_beside(path))
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old)


def save_adapter(adapter: Any, folder: Path, target: str) -> None:
    """Write an adapter in PEFT's own format, naming the target as its base; its gate, if it has one, lies beside it.

    Args:
        adapter: A `peft.PeftModel`.
        folder: Where to.
        target: Folder or Hub id of the target.

    Raises:
        ArtifactError: a weight is NaN or infinite.
    """
    from peft import get_peft_model_state_dict

    from uld.gate import gate_of, save_gate

    if (gate := gate_of(adapter)) is not None:
        _refuse_broken((f"the gate's {name}", tensor) for name, tensor in gate.named_parameters())
    _refuse_broken(get_peft_model_state_dict(adapter, save_embedding_layers=False).items())
    adapter.peft_config["default"].base_model_name_or_path = target
    write_lora(adapter, folder)
    save_gate(adapter, folder)
    as_usual(folder.glob("*.safetensors"))


def write_lora(adapter: Any, folder: Path) -> None:
    """Have PEFT write its two files, without the form of a model card, which takes longer than both."""
    adapter.create_or_update_model_card = lambda _: None
    try:
        adapter.save_pretrained(str(folder), save_embedding_layers=False)
    finally:
        del adapter.create_or_update_model_card


def save_model(model: Any, folder: Path, dtype: Any) -> int:
    """Write a whole model with its config, in the dtype of the checkpoint that it came from.

    Args:
        model: A transformers model.
        folder: Where to.
        dtype: Of the checkpoint; None keeps the model's.

    Returns:
        Bytes of the weights on disk.

    Raises:
        ArtifactError: a weight is NaN or infinite.
    """
    own = model.dtype
    wanted = own if dtype is None else dtype
    weights = model.state_dict()
    _refuse_broken(weights.items())
    model.config.dtype = wanted
    try:
        model.save_pretrained(
            str(folder), state_dict={k: v.to(wanted) if v.is_floating_point() else v for k, v in weights.items()}
        )
        model.config.dtype = wanted  # transformers has put the model's own there
        model.config.save_pretrained(str(folder))
    finally:
        model.config.dtype = own
    as_usual(folder.glob("model*.safetensors"))
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
