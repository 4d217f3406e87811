"""What an exported checkpoint says of itself, and how its assistants' weights come out of the target's.

The folder holds the target's own weight files (linked), ``config.json`` (the target's, with an entry ``uld``: an
`Export`), the tokenizer, and ``uld/assistants.safetensors``: LoRA and gates of all assistants. An assistant's layers
are the target's first K with LoRA added, and that is done while vLLM reads the target's weights. So the checkpoint
costs no more than its runs, and a target that is another one by now is noticed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from uld.errors import ArtifactError
from uld.model.combine import Combination
from uld.runs.manifest import CombinationSettings, file_digest, fingerprint_of, sampled

FORMAT = 1
ENTRY = "uld"
ASSISTANTS = "uld/assistants.safetensors"


class Part(BaseModel):
    """One model whose logits take part beside the target's.

    Attributes:
        run: Name of the run folder that it is from.
        num_layers: K.
        fingerprint: Of the target's tensors that it shares (`uld.runs.manifest.fingerprint`).
        combination: How its logits change the target's.
        gate: Whether it has a gate.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
    run: str
    num_layers: int
    fingerprint: str
    combination: CombinationSettings
    gate: bool

    @property
    def how(self) -> Combination:
        """Rule, α and the rest."""
        return Combination(**self.combination.model_dump())


class Export(BaseModel):
    """The entry ``uld`` of ``config.json``.

    Attributes:
        format: Version of this layout.
        version: Of uld that wrote it.
        target: Where the target was.
        architecture: The target's own, which vLLM knows.
        layers: Name of the target's list of layers in its weights.
        weights: SHA-256 of `ASSISTANTS`.
        unshared: Names of weights outside the layers that no fingerprint holds (a head that is tied and stored).
        parts: The assistants, in the order in which they are combined.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
    format: Literal[1] = FORMAT
    version: str
    target: str
    architecture: str
    layers: str
    weights: str
    unshared: list[str] = []
    parts: list[Part]

    @classmethod
    def read(cls, entry: Any, place: str) -> "Export":
        """Read the entry of a config.

        Args:
            entry: As it is.
            place: The checkpoint's folder, for messages.

        Raises:
            ArtifactError: there is none, it is damaged, or another version of uld has written it.
        """
        again = "export it again with uld export"
        if not isinstance(entry, Mapping):
            raise ArtifactError(f"{place} is no checkpoint that uld has exported: its config.json has no entry {ENTRY}")
        if (found := entry.get("format")) != FORMAT and isinstance(found, int):
            raise ArtifactError(
                f"{place} was exported by another version of uld ({entry.get('version')}, format {found}), and this "
                f"one reads format {FORMAT}: {again}"
            )
        try:
            return cls.model_validate(entry)
        except ValidationError as error:
            where = ".".join(map(str, (ENTRY, *error.errors()[0]["loc"])))
            raise ArtifactError(f"{place}/config.json is damaged at {where}: {again}") from error

    def depth(self, name: str) -> int:
        """The number of the layer that a weight of the target is in; -1 of one outside the layers."""
        found = re.match(rf"{re.escape(self.layers)}\.(\d+)\.", name)
        return int(found[1]) if found else -1

    def first_own(self, stored: Iterable[str]) -> list[int]:
        """The first layer of each part that something is added to; K where nothing is.

        Args:
            stored: Names in `ASSISTANTS`.
        """
        found = [part.num_layers for part in self.parts]
        for name in stored:
            number, side, weight = name.split(".", 2)
            if side in ("a", "b"):
                found[int(number)] = min(found[int(number)], self.depth(weight))
        return found


class Kept:
    """Keeps what assistants need of a target's weights while these go by, and tells whether they are the right ones."""

    def __init__(self, export: Export) -> None:
        """Begin with nothing."""
        self.export = export
        self.deepest = max(part.num_layers for part in export.parts)
        self.layers: dict[str, Tensor] = {}
        self._samples: dict[str, bytes] = {}

    def passing(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same weights; those of the first layers are kept (as views of the file, where they come as such)."""
        for name, tensor in weights:
            depth = self.export.depth(name)
            if depth < self.deepest and name not in self.export.unshared:
                self._samples[name] = sampled(name, tensor)
                if depth >= 0:
                    self.layers[name] = tensor
            yield name, tensor

    def verify(self, place: str) -> None:
        """Refuse a target that is not the one that the runs were trained on.

        Raises:
            ArtifactError: names the run and the target.
        """
        for part in self.export.parts:
            own = {name: one for name, one in self._samples.items() if self.export.depth(name) < part.num_layers}
            if (found := fingerprint_of(own)) != part.fingerprint:
                raise ArtifactError(
                    f"the weights in {place} are not those of the target that {part.run} was trained on "
                    f"({self.export.target}): their fingerprint is {found}, and {part.fingerprint} is wanted; if the "
                    "target was changed or moved, put it back and export the run again"
                )

    def of_part(self, number: int, stored: Mapping[str, Tensor], first: int = 0) -> Iterator[tuple[str, Tensor]]:
        """Weights of an assistant's layers, under the target's names: LoRA added to them.

        Args:
            number: Of the part.
            stored: What `ASSISTANTS` holds.
            first: The first layer that is wanted.
        """
        part = self.export.parts[number]
        for name, tensor in self.layers.items():
            if not first <= self.export.depth(name) < part.num_layers:
                continue
            down = stored.get(lora_name(number, "a", name))
            if down is not None:
                up = stored[lora_name(number, "b", name)]
                tensor = (tensor.float() + up.float() @ down.float()).to(tensor.dtype)
            yield name, tensor


def lora_name(number: int, side: Literal["a", "b"], weight: str) -> str:
    """Name in `ASSISTANTS` of a half of what is added to a weight: ``b @ a``, scale included."""
    return f"{number}.{side}.{weight}"


def gate_name(number: int, tensor: str) -> str:
    """Name in `ASSISTANTS` of a tensor of an assistant's gate."""
    return f"{number}.gate.{tensor}"


def load_assistants(folder: str | Path, export: Export) -> dict[str, Tensor]:
    """What `ASSISTANTS` of a checkpoint holds.

    Raises:
        ArtifactError: it is missing, or not the file that was exported.
    """
    path = Path(folder) / ASSISTANTS
    if not path.is_file():
        raise ArtifactError(f"{folder} lacks {ASSISTANTS}: copy the exported checkpoint again, whole")
    if file_digest(path) != export.weights:
        raise ArtifactError(f"{path} is damaged or another checkpoint's: export the runs again with uld export")
    return load_file(str(path))
