"""Invented cells: ``make_cell("npo", fq=1e-3)``, and ``comparison``, a folder with some of every kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uld.evaluation.tofu_result import TofuResult
from uld.report.cells import ANSWERS, CELLS, Answer, Answers, Cell, Folder, Identity, Plan, Timing, read_folder
from uld.report.figures import Figure, all_figures
from uld.report.html import page
from uld.report.tables import all_tables

TASKS = ("retain", "real_authors", "world_facts")


def cell(method: str, split: str = "forget10", seed: int = 0, *, fq: float = 0.5, mu: float = 0.9, **more: Any) -> Cell:
    """A cell of a method, of the target or of a retain-only model."""
    role = method if method in ("target", "retain-only") else "method"
    slug = "".join(letter if letter.isalnum() else "-" for letter in more.get("variant", ""))
    numbers: dict[str, Any] = {f"{task}_{part}": mu for task in TASKS for part in ("prob", "truth_ratio")}
    numbers |= {f"{task}_rouge_l": 0.75 for task in TASKS}
    result = TofuResult(
        forget_quality=fq,
        model_utility=mu,
        forget_rouge_l=more.pop("rouge", 0.25),
        forget_prob=0.125,
        forget_truth_ratio=0.5,
        rows={"forget": 4},
        compared_rows=4,
        impossible_answers=0,
        **numbers,
    )
    own = {"role": role, "method": method if role == "method" else None, "result": result, "digest": f"d{seed}"}
    name = f"{method}{slug}-{split}-seed{seed}"
    return Cell.model_validate({"name": name, "split": split, "seed": seed, **own, **more})


@pytest.fixture
def make_cell() -> Callable[..., Cell]:
    """See `cell`."""
    return cell


def write(folder: Path, cells: list[Cell]) -> Path:
    """Write cells into a folder."""
    for one in cells:
        one.write(folder / CELLS / f"{one.name}.json")
    return folder


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[[list[Cell]], Path]:
    """Write cells into a folder: ``write_folder(cells)``."""
    return lambda cells: write(tmp_path / "written", cells)


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """A folder of a test's own, see `fill`."""
    return fill(tmp_path / "comparison")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The same, read; not to be changed."""
    return read_folder(fill(tmp_path_factory.mktemp("report") / "comparison"))


@pytest.fixture(scope="session")
def shared_figures(shared: Folder) -> list[Figure]:
    """Its figures."""
    return all_figures(shared)


@pytest.fixture(scope="session")
def shared_page(shared: Folder, shared_figures: list[Figure]) -> str:
    """Its page."""
    return page(shared, all_tables(shared), shared_figures)


def fill(folder: Path) -> Path:
    """Two splits, three seeds of ULD, ablations, epochs, failed and missing cells, answers, timing."""
    curve = {"forget_quality": (1e-6, 0.7, 1e-4), "utility_without_rouge": (0.8, 0.7, 0.6), "forget_loss": (1, 2, 3)}
    epochs = [{"epoch": e, "held_out_loss": 1, **{name: row[e - 1] for name, row in curve.items()}} for e in (1, 2, 3)]
    taken = {"steps": 10, "epochs": 2, "seconds": 30.0, "weights_bytes": 2**20, "peak_rss_bytes": 2**21}
    seeds = ((0, 0.01, 0.90), (1, 0.1, 0.91), (2, 0.001, 0.905))
    trained: dict[str, Any] = {"training": taken, "settings": {"method": "uld", "batch_size": 8}}
    cells = [
        *(cell("uld", seed=seed, fq=fq, mu=mu, label="ULD", **trained) for seed, fq, mu in seeds),
        *(cell("target", split, fq=1e-20, mu=0.91) for split in ("forget01", "forget10")),
        *(cell("retain-only", split, fq=1.0, mu=0.92) for split in ("forget01", "forget10")),
        cell("uld", "forget01", fq=0.8, label="ULD"),
        cell("npo+kl", fq=0.3, mu=0.5, epochs=epochs, settings={"method": "npo+kl", "batch_size": 8}, training=taken),
        cell("npo+kl", "forget01", fq=1e-3, mu=0.905),
        cell("simnpo", fq=0.0, mu=0.0),
        cell("ga", result=None, error="its process ended with SIGKILL"),
        cell("uld", variant="no D'f", fq=1e-9, mu=0.91, label="ULD", group=["table4"]),
        cell("uld", variant="retain 25 %", fq=1e-4, mu=0.8, label="ULD", group=["table9"]),
        cell("di", fq=0.005, group=["table8"]),
    ]
    cells[0] = cells[0].model_copy(update={"group": ["table2", "table4", "table9"]})
    write(folder, cells)
    for name, text in (("target-forget10-seed0", "Ada <b>wrote</b> it."), ("uld-forget10-seed0", "no & idea")):
        row = Answer(question="Who wrote <script>alert(1)</script>?", truth="Ada wrote it.", answer=text)
        Answers(forget=[row], retain=[row.model_copy(update={"question": "Who kept it?"})]).write(
            folder / ANSWERS / f"{name}.json"
        )
    seconds = {"uld": 2.0, "npo+kl": 30.0, "simnpo": 20.0}
    Timing(machine={"cores": 2}, seconds_per_epoch=seconds, rows_per_epoch={"uld": 40, "npo+kl": 20}).write(
        folder / "timing.json"
    )
    plan = [Identity(**{name: getattr(one, name) for name in Identity.model_fields}) for one in cells]
    Plan(cells=[*plan, Identity(name="rmu-forget10-seed0", method="rmu", split="forget10")]).write(folder / "plan.json")
    return folder
