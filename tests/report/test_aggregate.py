from collections.abc import Callable
from pathlib import Path

import pytest

from uld.report.aggregate import epoch_spread, rows_of, seconds_per_epoch, splits_of, verdict
from uld.report.cells import Cell, read_folder

ORDER = ["target", "retain-only", "ga", "dpo+kl", "npo", "offset-npo+kl", "rmu", "simnpo", "uld"]


def test_rows_are_in_the_papers_order_whatever_the_files_are_called(
    write_folder: Callable[..., Path], make_cell: Callable[..., Cell]
):
    folder = write_folder([make_cell(method) for method in sorted(ORDER, reverse=True)])
    assert [row.method for row in rows_of(read_folder(folder), "forget10")] == ORDER


def test_seeds_are_one_row(comparison: Path):
    row = next(row for row in rows_of(read_folder(comparison), "forget10", "table2") if row.method == "uld")
    quality, utility = row.metric("forget_quality"), row.metric("model_utility")
    assert quality is not None and utility is not None
    assert quality.mean == pytest.approx((0.01 * 0.1 * 0.001) ** (1 / 3), rel=1e-12)
    assert utility.mean == pytest.approx(0.905, rel=1e-12) and (utility.low, utility.high) == (0.90, 0.91)
    assert row.label == "ULD"


def test_a_table_has_the_cells_that_name_it_and_only_those_seeds(comparison: Path):
    folder = read_folder(comparison)
    rows = {row.label: row for row in rows_of(folder, "forget10", "table4")}
    assert list(rows) == ["target", "retain-only model", "ULD, no D'f", "ULD"]
    assert [cell.seed for cell in rows["ULD"].cells] == [0]
    assert splits_of(folder) == ["forget01", "forget10"]
    assert splits_of(folder, "table4") == ["forget10"]


def test_failed_and_missing_cells_are_rows_with_a_reason(comparison: Path):
    rows = {row.method: row for row in rows_of(read_folder(comparison), "forget10", "table2")}
    assert rows["ga"].cells == () and rows["ga"].problems == ["ga, forget10 failed: its process ended with SIGKILL"]
    assert rows["rmu"].problems == ["rmu, forget10 is missing: it has not been run yet"]


def test_one_failed_seed_leaves_the_others(write_folder: Callable[..., Path], make_cell: Callable[..., Cell]):
    cells = [make_cell("npo", fq=0.25), make_cell("npo", seed=1, result=None, error="NaN")]
    (row,) = rows_of(read_folder(write_folder(cells)), "forget10")
    quality = row.metric("forget_quality")
    assert quality is not None and (quality.mean, quality.count) == (0.25, 1)
    assert row.problems == ["npo, forget10, seed 1 failed: NaN"]


def test_the_verdict_keeps_who_loses_at_most_a_hundredth(comparison: Path):
    found = verdict(read_folder(comparison), "forget10")
    assert found is not None and found.target == 0.91
    assert [row.method for row in found.keeping] == ["uld"]  # 0.905 on average, 0.005 below; di is not in Table 2
    assert [row.method for row in found.losing] == ["npo+kl", "simnpo"]  # by falling forget quality; ga has failed


def test_exactly_a_hundredth_is_kept_and_more_is_not(write_folder: Callable[..., Path], make_cell: Callable[..., Cell]):
    cells = [
        make_cell("target", mu=0.91),
        make_cell("npo", mu=0.90),
        make_cell("dpo", mu=0.8999),
        make_cell("ga", mu=0.95),
    ]
    found = verdict(read_folder(write_folder(cells)), "forget10")
    assert found is not None
    assert {row.method for row in found.keeping} == {"npo", "ga"}
    assert [row.method for row in found.losing] == ["dpo"]


def test_there_is_no_verdict_without_a_target(write_folder: Callable[..., Path], make_cell: Callable[..., Cell]):
    assert verdict(read_folder(write_folder([make_cell("npo")])), "forget10") is None


def test_epochs_are_averaged_over_the_seeds_that_have_them(
    write_folder: Callable[..., Path], make_cell: Callable[..., Cell]
):
    first = [
        {"epoch": 1, "forget_quality": 1e-4, "forget_loss": 1.0},
        {"epoch": 2, "forget_quality": 0.1, "forget_loss": 2.0},
    ]
    second = [{"epoch": 1, "forget_quality": 1e-2, "forget_loss": 3.0}, {"epoch": 2, "forget_loss": None}]
    cells = [make_cell("npo", epochs=first), make_cell("npo", seed=1, epochs=second), make_cell("npo", seed=2)]
    (row,) = rows_of(read_folder(write_folder(cells)), "forget10")
    quality, loss = epoch_spread(row, "forget_quality"), epoch_spread(row, "forget_loss")
    assert list(quality) == [1] and quality[1].mean == pytest.approx(1e-3)  # epoch 2 lacks a seed
    assert {epoch: found.mean for epoch, found in loss.items()} == {1: 2.0}


def test_seconds_an_epoch_are_the_trainings_own(comparison: Path):
    rows = {row.method: row for row in rows_of(read_folder(comparison), "forget10", "table2")}
    found = seconds_per_epoch(rows["npo+kl"])
    assert found is not None and found.mean == 15.0
    assert seconds_per_epoch(rows["simnpo"]) is None
