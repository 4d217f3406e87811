import csv
import io
from pathlib import Path

from uld.evaluation.task_log import TaskLog, TofuLog
from uld.evaluation.tofu_result import aggregate
from uld.report.cells import Cell, read_folder
from uld.report.tidy import COLUMNS, tidy


def lines(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(tidy(read_folder(folder)))))


def test_every_number_of_every_cell_comes_back_exactly(comparison: Path):
    found = {(line["name"], line["epoch"], line["metric"]): line["value"] for line in lines(comparison)}
    for cell in read_folder(comparison).cells:
        for name, value in (cell.result.numbers() if cell.result else {}).items():
            assert float(found[cell.name, "", name]) == value
        if cell.result:
            assert float(found[cell.name, "", "forget_prob"]) == cell.result.forget_prob
        for epoch in cell.epochs:
            assert float(found[cell.name, str(epoch.epoch), "forget_quality"]) == epoch.forget_quality
    assert float(found["npo+kl-forget10-seed0", "", "training_seconds"]) == 30.0


def test_the_fields_scores_and_what_people_read_are_numbers_of_their_own():
    task = {"keys": ["0", "1"], "avg_loss": [0.5, 1.0], "paraphrase_loss": [0.5, 1.0], "wrong_losses": [[1.0], [2.0]]}
    known = {"extraction_strength": [0.5, 0.25], "exact_memorization": [0.5, 0.5]}
    told = [("Who?", "Ada did it.", "Ada did it."), ("Who?", "", "Ben did it.")]
    forget = TaskLog(**task, **known, generated=told, samples=[["Ada."], ["Ada."]])
    retain = TaskLog(**task, generated=[("Who?", "It did.", "It did.")] * 2)
    found = aggregate(TofuLog({"forget": forget, "retain": retain}))
    numbers = found.numbers()
    assert numbers["reading_leak@1"] == 0.5 and numbers["reading_degenerate"] == numbers["reading_empty"] == 0.5
    assert numbers["field_extraction_strength"] == 0.375
    assert numbers["field_mem_prob_mean"] == found.field.scores["prob_mean"]["mem"]
    assert "field_priv_prob_mean" not in numbers and "rows" not in numbers
    cell = Cell(name="x", role="target", split="forget10", result=found)
    assert Cell.model_validate_json(cell.model_dump_json()).result == found


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
