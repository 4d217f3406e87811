"""What holds the weights of a run, identified by what the files say, and whether those weights are numbers at all."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "adapter"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
GATE_WEIGHTS = "gate.safetensors"
_PLACES = ("base_model_name_or_path", "revision", "_name_or_path")


def content_digest(path: Path) -> str:
    """SHA-256 of what a file says, in hexadecimal.

    Of safetensors it is that of the bytes. Of JSON it is that of the values without the names of places, so that a run
    whose target has moved may say so in its adapter's config.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, and its name says so.
    """
    if path.suffix != ".json":
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    found = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(found, dict):
        found = {name: value for name, value in found.items() if name not in _PLACES}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def weights_files(folder: Path) -> list[Path]:
    """Files of a run that hold what was trained, or say how it is computed."""
    if (folder / ADAPTER).exists():
        names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, GATE_WEIGHTS)
        return sorted(path for path in (folder / ADAPTER).rglob("*") if path.name in names)
    models = [*sorted(folder.glob("model*.safetensors")), *sorted(folder.glob("model*.index.json"))]
    return [*models, folder / "config.json"]


def weights_digests(folder: Path) -> dict[str, str]:
    """`content_digest` of each of `weights_files`."""
    return {path.relative_to(folder).as_posix(): content_digest(path) for path in weights_files(folder)}


def first_broken(tensors: Iterable[tuple[str, "Tensor"]]) -> str | None:
    """Name of the first tensor that holds NaN or an infinite number, if one does."""
    import torch

    def broken(tensor: "Tensor") -> bool:
        # NaN and infinity survive a sum, which reads the tensor once and makes nothing of its size.
        return not torch.isfinite(tensor.sum(dtype=torch.float32)) and not bool(torch.isfinite(tensor).all())

    return next((name for name, one in tensors if one.is_floating_point() and broken(one)), None)
