import csv
import io
from pathlib import Path

from uld.report.cells import read_folder
from uld.report.tidy import COLUMNS, tidy


def lines(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(tidy(read_folder(folder)))))


def test_every_number_of_every_cell_comes_back_exactly(comparison: Path):
    found = {(line["name"], line["epoch"], line["metric"]): line["value"] for line in lines(comparison)}
    for cell in read_folder(comparison).cells:
        for name, value in (vars(cell.result) if cell.result else {}).items():
            if name != "rows":
                assert float(found[cell.name, "", name]) == value
        for epoch in cell.epochs:
            assert float(found[cell.name, str(epoch.epoch), "forget_quality"]) == epoch.forget_quality
    assert float(found["npo+kl-forget10-seed0", "", "training_seconds"]) == 30.0


def test_no_cell_and_metric_stands_twice(comparison: Path):
    keys = [(line["name"], line["role"], line["method"], line["epoch"], line["metric"]) for line in lines(comparison)]
    assert len(keys) == len(set(keys))


def test_failed_and_missing_cells_have_a_line_that_says_why(comparison: Path):
    problems = {line["name"]: line["problem"] for line in lines(comparison) if line["problem"]}
    assert problems == {
        "ga-forget10-seed0": "its process ended with SIGKILL",
        "rmu-forget10-seed0": "missing: it has not been run yet",
    }


def test_a_line_says_which_cell_it_is_of(comparison: Path):
    line = next(line for line in lines(comparison) if line["name"] == "uld-forget10-seed0")
    assert list(line) == list(COLUMNS)
    assert (line["method"], line["label"], line["split"], line["seed"]) == ("uld", "ULD", "forget10", "0")
    assert line["tables"] == "table2 table4 table9" and line["digest"] == "d0"
    (ablation,) = {line["variant"] for line in lines(comparison) if line["tables"] == "table4"}
    assert ablation == "no D'f"


def test_measured_seconds_are_lines_of_their_own(comparison: Path):
    timing = {line["method"]: float(line["value"]) for line in lines(comparison) if line["role"] == "timing"}
    assert timing == {"uld": 2.0, "npo+kl": 30.0, "simnpo": 20.0}
