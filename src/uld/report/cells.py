"""Cells of a comparison as files: one method on one split with one seed, trained and evaluated.

A comparison's folder holds ``cells/*.json`` (`Cell`), and, if there are any, ``answers/*.json`` (`Answers`, by the same
names), ``rates/*.json`` (`Rate`), ``timing.json`` (`Timing`) and ``plan.json`` (`Plan`: which cells there will be).
`read_folder` reads it all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from uld.errors import ULDError
from uld.evaluation.tofu_result import TofuResult
from uld.report.paper import TableName
from uld.runs.files import write_text
from uld.text.json_text import dumps

CELLS, ANSWERS, RATES, TIMING, PLAN = "cells", "answers", "rates", "timing.json", "plan.json"
_INFINITE = ConfigDict(ser_json_inf_nan="constants")  # α may be, and so may losses; else they are written as null
_MEND = "delete it and run the comparison again"


class CellError(ULDError):
    """A comparison's folder has no cells, or a file of it is damaged."""


class _File(BaseModel):
    """A JSON file, read with one sentence for what is wrong, written atomically."""

    model_config = _INFINITE

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file.

        Raises:
            CellError: it cannot be read, or is damaged.
        """
        path = Path(path)
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CellError(f"cannot read {path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise CellError(f"{path} is damaged: it is not UTF-8 text; {_MEND}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            if any(one["loc"] == ("format",) for one in error.errors()):
                raise CellError(f"{path} was written by a newer version of uld: update uld to read it") from error
            reason = first["msg"].removeprefix("Value error, ")
            raise CellError(f"{path} is damaged{f' at {where}' if where else ''} ({reason}); {_MEND}") from error

    def write(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            ArtifactError: the disk is full or the folder cannot be written.
        """
        write_text(Path(path), dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


class Epoch(BaseModel):
    """What was measured after an epoch (0 is before training), in shares and nats a token."""

    model_config = _INFINITE
    epoch: int = Field(ge=0)
    forget_quality: float | None = None
    utility_without_rouge: float | None = None
    """Harmonic mean of the six parts of M.U. that need no generated answers."""
    forget_loss: float | None = None
    held_out_loss: float | None = None
    """Cross-entropy on retain rows that are not trained on."""


class Training(BaseModel):
    """What a training took; further facts are kept as they are."""

    model_config = ConfigDict(extra="allow", ser_json_inf_nan="constants")
    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    tokens: int | None = None
    weights_bytes: int | None = None
    peak_rss_bytes: int | None = None


class Identity(_File):
    """Which cell of a comparison it is.

    Attributes:
        name: Of the files, without ``.json``.
        role: A method's model, the target, or a model that never saw the forget rows.
        method: Registered name; None for target and retain-only model.
        label: How tables call it; None takes the method's name.
        variant: Name of an ablation (``no D'f``, ``retain 25 %``); empty for the method as it is.
        group: The paper's tables that the cell belongs to.
        split: Forget split.
        seed: Of the training.
    """

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[^/\\\x00-\x1f]+$")
    role: Literal["method", "target", "retain-only"] = "method"
    method: str | None = None
    label: str | None = None
    variant: str = ""
    group: list[TableName] = ["table2"]
    split: str = Field(pattern=r"^[\w.-]+$")
    seed: int = 0

    @model_validator(mode="after")
    def _has_a_method(self) -> Self:
        if (self.role == "method") != (self.method is not None):
            raise ValueError("a cell names a method exactly if its role is 'method'")
        return self

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What no two cells of a comparison share."""
        return (self.method or self.role, self.variant, self.split, self.seed)


class Cell(Identity):
    """A finished cell: its settings, its numbers, or why it failed.

    Attributes:
        digest: Of everything that decides the numbers.
        further: Of files of the models that the first digest leaves out; None in cells of earlier versions.
        settings: All resolved training settings.
        training: None for models that were not trained here.
        result: Of the last epoch; None for a failed cell.
        epochs: Measurements along training, if there were any.
        error: One sentence, for a failed cell.
        versions: Of libraries.
        machine: What it ran on.
    """

    format: Literal[1] = 1
    digest: str = ""
    further: str | None = None
    settings: dict[str, Any] = {}
    training: Training | None = None
    result: TofuResult | None = None
    epochs: list[Epoch] = []
    error: str | None = None
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}

    @property
    def failure(self) -> str | None:
        """Why there is no result; None if there is one."""
        return None if self.result is not None else self.error or "it has neither a result nor an error"


class Plan(_File):
    """``plan.json``: the cells that a comparison will have, so that missing ones can be named.

    Attributes:
        cells: They decide which tables a finished cell stands in, too.
        notes: Sentences that belong under a table.
        rates: Names of the candidates for learning rates; None in plans of earlier versions.
    """

    format: Literal[1] = 1
    cells: list[Identity]
    notes: dict[TableName, list[str]] = {}
    rates: list[str] | None = None


class Rate(_File):
    """``rates/NAME.json``: what one candidate for a learning rate did on the training side (`uld.compare.rates`).

    Attributes:
        method: Registered name.
        learning_rate: The candidate.
        score: Harmonic mean of the two below; −1 for a training that failed, which is never chosen.
        forgotten: 1 − the share of the target's probability of the forget answers that is left.
        kept: Share of the target's probability of retain answers that were neither trained nor are evaluated.
        error: Why it failed.
        digest: Of everything that decides the training.
        further: See `Cell`.
    """

    method: str
    learning_rate: float
    score: float = -1.0
    forgotten: float | None = None
    kept: float | None = None
    error: str | None = None
    digest: str
    further: str | None = None


def best_rate(rates: Sequence[Rate]) -> Rate | None:
    """The candidate with the highest score, of equal ones the smallest; None where all failed."""
    able = [rate for rate in rates if rate.error is None and rate.score >= 0]
    return min(able, key=lambda rate: (-rate.score, rate.learning_rate), default=None)


class Answer(BaseModel):
    """A question, its true answer and a model's."""

    question: str
    truth: str
    answer: str


class Answers(_File):
    """Answers of one cell's model to some forget and retain questions. Texts of the benchmark: not to be passed on."""

    forget: list[Answer] = []
    retain: list[Answer] = []


class Timing(_File):
    """``timing.json``: seconds an epoch of every method, measured in turn on a machine that did nothing else.

    Attributes:
        machine: What it was.
        split: Forget split that was trained on.
        seconds_per_epoch: By method.
        rows_per_epoch: By method, as far as they are known.
    """

    machine: Any = None
    split: str = "forget10"
    seconds_per_epoch: dict[str, float]
    rows_per_epoch: dict[str, int] = {}

    @model_validator(mode="after")
    def _is_positive(self) -> Self:
        if not all(0 < seconds < float("inf") for seconds in self.seconds_per_epoch.values()):
            raise ValueError("seconds must be above 0")
        return self


@dataclass(frozen=True)
class Folder:
    """Everything in a comparison's folder.

    Attributes:
        cells: In the order of their names.
        missing: Planned cells without a file.
        answers: By the name of the cell.
        timing: If there is any.
        rates: Candidates for learning rates, by method and rising.
        notes: Sentences that belong under a table.
    """

    cells: list[Cell]
    missing: list[Identity]
    answers: dict[str, Answers]
    timing: Timing | None
    rates: list[Rate]
    notes: Mapping[TableName, list[str]]


def read_cells(folder: str | Path) -> list[Cell]:
    """Read ``cells/*.json`` of a comparison's folder.

    Returns:
        The cells in the order of their names.

    Raises:
        CellError: no folder, no cells, a damaged one, or two of the same method, variant, split and seed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CellError(f"there is no folder {folder}: name the output folder of uld compare")
    paths = sorted((folder / CELLS).glob("[!.]*.json"))
    if not paths:
        raise CellError(f"{folder} has no cells ({CELLS}/*.json): name the output folder of uld compare")
    cells = [Cell.read(path) for path in paths]
    seen: dict[tuple[str, str, str, int], Path] = {}
    for path, cell in zip(paths, cells, strict=True):
        if cell.name != path.stem:
            raise CellError(f"{path} holds the cell {cell.name!r}: give the file its own name back")
        if cell.key in seen:
            raise CellError(
                f"{seen[cell.key]} and {path} are the same method, variant, split and seed: "
                "the folder holds two comparisons; move one of them out"
            )
        seen[cell.key] = path
    return cells


def read_folder(folder: str | Path, *, quote: bool = True) -> Folder:
    """Read a comparison's folder: with a plan the cells and rates that it names, and none that another grid left.

    Args:
        folder: Output folder of ``uld compare``.
        quote: Whether to read answers, which quote the benchmark.

    Raises:
        CellError: there are no cells, or a file is damaged.
    """
    folder = Path(folder)
    plan = Plan.read(folder / PLAN) if (folder / PLAN).exists() else None
    planned = {one.key: one for one in plan.cells} if plan is not None else {}
    cells = [cell for cell in read_cells(folder) if plan is None or cell.key in planned]
    paths = {cell.name: folder / ANSWERS / f"{cell.name}.json" for cell in cells if quote}
    answers = {name: Answers.read(path) for name, path in paths.items() if path.exists()}
    tried = plan.rates if plan is not None else None
    rates = [Rate.read(path) for path in (folder / RATES).glob("[!.]*.json") if tried is None or path.stem in tried]
    rates.sort(key=lambda rate: (rate.method, rate.learning_rate))
    timing = Timing.read(folder / TIMING) if (folder / TIMING).exists() else None
    cells = [cell.model_copy(update={"group": planned.get(cell.key, cell).group}) for cell in cells]
    done = {cell.key for cell in cells}
    missing = [one for key, one in planned.items() if key not in done]
    return Folder(cells, missing, answers, timing, rates, plan.notes if plan is not None else {})
