"""The folder of a grid: where each thing lies in it, and under which digest of all that decides it."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from uld.compare.grid import Grid, Spec, config
from uld.errors import ArtifactError
from uld.methods.registry import get_method
from uld.model.causal_lm import load_config
from uld.model.combine import MOST_MARGIN, STEADY_WEIGHT, USUAL_FLOOR
from uld.report.cells import CELLS, Cell
from uld.runs.files import writing
from uld.runs.locks import locked
from uld.runs.machine import library_versions
from uld.runs.manifest import file_digest
from uld.training.config import TrainConfig

WORK = "work"
LOCKS = "locks"  # in it
_FORMAT = 1  # raise it when the same inputs come to give other numbers
FURTHER = (
    *("chat_template.jinja", "generation_config.json", "*.bin", "*.model", "vocab.*", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)
"""Files of a model's folder that decide what it writes, beside those of its first digest (`model_digest`)."""
_PLACES = ("target", "output", "data", "augmented", "forget", "retain", "small")


class OtherGridError(ArtifactError):
    """The folder holds results of another grid."""


@dataclass(frozen=True)
class Workspace:
    """A grid and the folder that it is computed in."""

    grid: Grid
    folder: Path

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Digests of the target, of the retain-only models and of the data."""
        trust = bool(self.grid.settings.get("trust_remote_code"))
        found = {"target": model_digest(self.grid.target, trust_remote_code=trust, **self.hub)}
        found |= {split: model_digest(model, trust_remote_code=trust) for split, model in self.grid.retain_only.items()}
        for name, folder in (("data", self.grid.data), ("augmented", self.grid.augmented)):
            found[name] = _folder_digest(folder, ("*.json", "*.jsonl")) if folder is not None else ""
        return found

    @cached_property
    def further_inputs(self) -> dict[str, str]:
        """Digests of what else decides the models in folders, which `inputs` leave out: see `FURTHER`."""
        places = {"target": self.grid.target, **self.grid.retain_only}
        return {name: _folder_digest(one, FURTHER) for name, one in places.items() if Path(one).is_dir()}

    def further(self, spec: Spec) -> str:
        """Digest of these for a cell; cells of earlier versions have none, and count as they are."""
        return _digest([self.further_inputs.get(name) for name in ("target", spec.split)])

    def settings(self, spec: Spec) -> TrainConfig:
        """Training settings of a cell, its run folder among them."""
        return config(spec, self.grid, str(self.run_folder(spec)))

    def training_digest(self, spec: Spec) -> str:
        """Digest of everything that decides a training: settings that are not the default's, models and data."""
        plain, own = vars(TrainConfig()), config(spec, self.grid, "")
        settings = {
            name: value
            for name, value in vars(own).items()
            if value != plain[name] and name not in (*_PLACES, "keep_epochs", "save_steps")
        }
        inputs = {name: self.inputs[name] for name in ("target", "data", "augmented")}
        if own.small is not None:
            inputs["small"] = model_digest(own.small)
        if own.untuned and get_method(own.method).trains == "assistant":
            inputs["combination"] = str([STEADY_WEIGHT, MOST_MARGIN, USUAL_FLOOR])  # of older cells α = 1.5
        if "augment" in settings and Path(settings["augment"]).is_dir():
            inputs["augment"] = _folder_digest(settings.pop("augment"), ("*.jsonl",))
        return _digest([_FORMAT, settings, inputs])

    def digest(self, spec: Spec) -> str:
        """Digest of everything that decides a cell."""
        own = self.training_digest(spec) if spec.method is not None else self.inputs["target"]
        parts = [_FORMAT, own, spec.role, spec.split, spec.keep_epochs, self.inputs.get(spec.split)]
        asked = [self.template, *([self.date] if self.date else []), *([self.hub] if self.hub else [])]
        return _digest([*parts, self.inputs["data"], *asked])

    @property
    def hub(self) -> dict[str, Any]:
        """Which of the target's revisions the whole grid takes; nothing where it names none."""
        revision = self.grid.settings.get("revision")
        return {} if revision is None else {"revision": revision}

    @property
    def template(self) -> str | None:
        """Prompt template of the whole grid, with which every model is asked."""
        return self.grid.settings.get("template")

    @property
    def date(self) -> str | None:
        """Day that a chat template with a clock writes for every model."""
        day = self.grid.settings.get("date")
        return str(day) if day is not None else None  # YAML reads a day as a date

    def run_folder(self, spec: Spec) -> Path:
        """Where a cell's training goes; cells that differ in their evaluation alone share it."""
        return (
            self.folder / WORK / "runs" / f"{spec.method}-{spec.split}-seed{spec.seed}-{self.training_digest(spec)[:8]}"
            f"-{_digest(self.further_inputs.get('target'))[:8]}"
        )

    def evaluation(self, name: str, spec: Spec) -> str:
        """Name of the folder of an evaluation in the place of a cell."""
        return f"{name}-{self.digest(spec)[:8]}-{self.further(spec)[:8]}"

    @contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a name for this process; the lock goes with it, however it ends.

        Args:
            name: What no two processes should do at once.
            wait: Whether to wait for another that holds it; else False is given where one does.
        """
        folder = self.folder / WORK / LOCKS
        with ExitStack() as stack:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                mine = stack.enter_context(locked(folder / name, wait=math.inf if wait else 0))
            yield mine

    def finished(self, spec: Spec) -> Cell | None:
        """A cell's result, if it was computed from the same inputs."""
        path = self.folder / CELLS / f"{spec.name}.json"
        cell = Cell.read(path) if path.exists() else None
        if cell is None or cell.digest != self.digest(spec) or cell.error is not None:
            return None
        return cell if cell.further in (None, self.further(spec)) else None

    def refuse_other(self, spec: Spec) -> None:
        """Keep a result that was computed from other inputs.

        Raises:
            OtherGridError: there is one.
        """
        path = self.folder / CELLS / f"{spec.name}.json"
        if path.exists() and self.finished(spec) is None and Cell.read(path).error is None:
            raise OtherGridError(
                f"{self.folder} holds {spec.name} of another grid (other settings, models or data): name another "
                "folder with --output, or replace its results with --replace"
            )

    def identity(self, spec: Spec) -> dict[str, Any]:
        """Fields of `uld.report.cells.Identity`."""
        return {
            "name": spec.name,
            "role": spec.role,
            "method": spec.method,
            "label": self.grid.labels.get(spec.method or ""),
            "variant": spec.variant,
            "group": list(spec.tables),
            "split": spec.split,
            "seed": spec.seed,
        }

    def write(self, spec: Spec, **found: Any) -> Cell:
        """Write a cell's result.

        Args:
            spec: The cell.
            found: Fields of `Cell` that are not the spec's own.
        """
        settings = {}
        if spec.method is not None:
            stored = vars(config(spec, self.grid, ""))
            settings = {k: list(v) if isinstance(v, tuple) else v for k, v in stored.items() if k not in _PLACES}
        cell = Cell.model_validate(
            {
                **self.identity(spec),
                "digest": self.digest(spec),
                "further": self.further(spec),
                "settings": settings,
                "versions": library_versions(),
                "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count() or 1},
                **found,
            }
        )
        cell.write(self.folder / CELLS / f"{spec.name}.json")
        return cell


def model_digest(place: str, **hub: Any) -> str:
    """Digest of a model folder's weights, config and tokenizer; of a Hub model its name and commit.

    Args:
        place: Folder or Hub id.
        hub: Revision and the like.
    """
    if Path(place).is_dir():
        return _folder_digest(place, ("*.safetensors", "config.json", "tokenizer*.json", "uld.json"))
    commit = getattr(load_config(place, **hub), "_commit_hash", None)
    return _digest([place, commit])


def _folder_digest(folder: str, patterns: tuple[str, ...]) -> str:
    paths = sorted(path for pattern in patterns for path in Path(folder).rglob(pattern))
    return _digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in paths])


def _digest(value: Any) -> str:
    """Sixteen hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:16]
