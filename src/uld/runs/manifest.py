"""What a run leaves on disk: ``uld.json``, fingerprints, digests.

A run folder holds ``uld.json`` (this module's `Manifest`, the truth about the unlearning), ``adapter/`` (LoRA in PEFT's
own format; a target that was trained without LoRA is ``model.safetensors`` instead), ``config.json`` and
``generation_config.json`` (so that `AutoModelForCausalLM` finds it), the tokenizer, ``train.yaml`` (the resolved
settings), ``metrics.jsonl`` and, where the retain set was drawn from the target, ``retain_drawn.jsonl``. Everything is
safetensors, JSON or YAML: no pickle.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
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

from uld.errors import ArtifactError, explained
from uld.runs.digests import ADAPTER as ADAPTER
from uld.runs.digests import content_digest, weights_files
from uld.runs.files import UNENCODABLE, write_text
from uld.runs.values import Outside, Rule
from uld.text.json_text import dumps

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "uld.json"
FORMAT = 1
METRICS = "metrics.jsonl"
TUNE = "tune.json"
RUN_SETTINGS = "train.yaml"
CHECKPOINTS = "checkpoints"
EPOCHS = "epochs"
ROUNDS = "rounds"
RETAIN_DRAWN = "retain_drawn.jsonl"
PAIR = ("retain", "forget")  # the adapters of a pair, each below ``adapter/``: whose logits are added, and subtracted
_SAMPLES = 65_536
_TINY = 2.0**-14  # below it fp16 is not exact for every bf16 number


class CombinationSettings(BaseModel):
    """The fields of `uld.model.combine.Combination` as they stand in ``uld.json``."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
    rule: Rule
    weight: float
    filter: float
    min_tokens: float
    outside: Outside
    margin: float = 0.0
    floor: float = 0.0
    rank_tokens: int = 20

    @model_serializer(mode="wrap", when_used="json")
    def _in_use(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was given: `uld.model.combine.Combination.to_dict` says what is in use; a file repeats what it said."""
        return {name: value for name, value in write(self).items() if name in self.model_fields_set}


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
        description: What was forgotten, in the words of whoever trained it; None: not said.
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
    description: str | None = None
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
    return fingerprint_of({name: sampled(name, tensor) for name, tensor in tensors})


def sampled(name: str, tensor: "Tensor") -> bytes:
    """What `fingerprint` takes of one tensor; at most 262,142 bytes and its name."""
    import torch

    flat = tensor.detach().reshape(-1)
    stride = max(1, flat.numel() // _SAMPLES)
    sample = flat[::stride].to(torch.bfloat16).cpu()
    sample = torch.where(sample.abs() < _TINY, 0.0, sample).contiguous()
    return f"{name} {tuple(tensor.shape)}\n".encode() + sample.view(torch.uint8).numpy().tobytes()


def fingerprint_of(samples: Mapping[str, bytes]) -> str:
    """The fingerprint of tensors that `sampled` has seen one after the other, by their names."""
    digest = hashlib.sha256()
    for name in sorted(samples):
        digest.update(samples[name])
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
