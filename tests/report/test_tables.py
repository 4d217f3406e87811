from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from uld.report.cells import Cell, Folder, Identity, Plan, Rate, read_folder
from uld.report.paper import MODEL
from uld.report.tables import BEST_EPOCH, OURS, ablation_table, all_tables, rates_table, summary_table, table2
from uld.text.table import Table


@pytest.fixture
def tables(shared: Folder) -> dict[str, Table]:
    return {table.name: table for table in all_tables(shared)}


def row(table: Table | None, name: str) -> Sequence[str]:
    assert table is not None
    return next(row for row in table.rows if row[0] == name)


def test_every_table_is_there_in_the_order_of_the_report(tables: dict[str, Table]):
    expected = "summary table2 table2-forget01 table2-forget10 table4-forget10 table8-forget10 table9-forget10 "
    expected += "parts-forget01 parts-forget10 training-forget10 timing"
    assert list(tables) == expected.split()


def test_table_2_has_our_numbers_and_the_papers(tables: dict[str, Table]):
    table = tables["table2-forget10"]
    assert [text for text, _ in table.groups] == ["", OURS, MODEL]
    own, paper = row(table, "ULD")[1:7], row(table, "ULD")[7:]
    assert own == ["0.01 (1e-3–0.1)", "25.0", "0.905 (0.900–0.910)", "75.0", "3", "–"]
    assert paper == ["0.52", "42.6", "0.62", "85.9"]
    assert row(table, "simnpo")[7:] == ["–"] * 4  # the paper has no such row
    assert row(table, "target")[1:5] == ["1e-20", "25.0", "0.910", "75.0"]


def test_the_last_epoch_is_the_result_and_the_best_one_a_column_that_says_so(tables: dict[str, Table]):
    table = tables["table2-forget10"]
    assert table.columns[6] == BEST_EPOCH == "best epoch (chosen on forget quality)"
    assert row(table, "npo+kl")[1] == "0.3" and row(table, "npo+kl")[6] == "0.7, epoch 2"
    assert BEST_EPOCH not in tables["table2-forget01"].columns  # no epochs were kept there


def test_failed_and_missing_methods_keep_their_row_and_their_reason(tables: dict[str, Table]):
    table = tables["table2-forget10"]
    assert row(table, "ga")[1:6] == ["failed", "–", "–", "–", "–"]
    assert row(table, "ga")[7] == "8e-10"
    assert row(table, "rmu")[1] == "missing"
    assert "ga, forget10 failed: its process ended with SIGKILL." in table.notes
    assert "rmu, forget10 is missing: it has not been run yet." in table.notes


def test_the_overview_has_all_splits_side_by_side(tables: dict[str, Table]):
    table = tables["table2"]
    assert table.groups == (("", 1), ("forget01", 4), ("forget10", 4))
    assert [line[0] for line in table.rows] == ["target", "retain-only model", "ga", "npo+kl", "rmu", "simnpo", "ULD"]
    assert row(table, "ULD")[1:] == ["0.8", "25.0", "0.900", "75.0", "0.01", "25.0", "0.905", "75.0"]
    assert row(table, "simnpo")[1:5] == ["–"] * 4


def test_bold_is_who_forgets_most_among_those_that_keep_utility(tables: dict[str, Table]):
    table = tables["table2-forget10"]
    assert [table.rows[number][0] for number in table.strong] == ["ULD"]  # npo+kl has a higher F.Q. at M.U. 0.5


def test_the_summary_names_both_the_keeper_and_the_highest(tables: dict[str, Table]):
    line = row(tables["summary"], "forget10")
    assert line[1:3] == ["0.9100", "1 of 3"]
    assert line[3:6] == ["ULD", "0.01 (1e-3–0.1)", "0.905 (0.900–0.910)"]
    assert line[6:] == ["npo+kl", "0.3", "0.500"]


def test_the_summary_says_when_nobody_keeps_utility(write_folder: Callable[..., Path], make_cell: Callable[..., Cell]):
    folder = read_folder(write_folder([make_cell("target", mu=0.91), make_cell("npo", mu=0.5)]))
    assert row(summary_table(folder), "forget10")[2:6] == ["0 of 1", "none", "–", "–"]
    assert table2(folder, "forget10").strong == frozenset()


def test_the_verdict_is_on_the_rows_of_table_2(write_folder, make_cell):
    cells = [
        make_cell("target", fq=1e-9, mu=0.9),
        make_cell("npo", fq=0.2, mu=0.9),
        make_cell("npo", seed=1, fq=0.2, mu=0.1, group=["table4"]),
        make_cell("ga", fq=0.9, mu=0.9, group=["table8"]),
    ]
    folder = read_folder(write_folder(cells))
    table, (summary, *_) = table2(folder, "forget10"), all_tables(folder)
    assert [table.rows[i][0] for i in table.strong] == ["npo"] and "Bold: npo" in "".join(table.notes)
    assert list(summary.rows[0][2:5]) == ["1 of 1", "npo", "0.2"]


def test_table_4_sets_our_effect_beside_the_papers(tables: dict[str, Table]):
    line = row(tables["table4-forget10"], "ULD, no D'f")
    assert line[1:5] == ["1e-9", "25.0", "0.910", "75.0"]
    # log10(1e-9 / 0.01) and log10(1e-9 / .52); .91 - .90 and .63 - .62
    assert line[5:10] == ["1", "−7.0", "−8.7", "+0.010", "+0.010"]
    assert line[10:] == ["1e-9", "43.8", "0.63", "84.1"]
    assert row(tables["table4-forget10"], "ULD")[6:10] == ["–"] * 4


def test_table_9_has_the_papers_two_numbers(tables: dict[str, Table]):
    line = row(tables["table9-forget10"], "ULD, retain 25 %")
    assert line[6:10] == ["−2.0", "−0.2", "−0.100", "0.000"]
    assert line[10:] == ["0.34", "–", "0.62", "–"]


def test_table_8_has_no_column_for_the_paper(tables: dict[str, Table]):
    assert len(tables["table8-forget10"].columns) == 6
    assert [line[0] for line in tables["table8-forget10"].rows] == ["target", "retain-only model", "di"]


def test_an_effect_on_a_quality_of_zero_is_no_number(write_folder: Callable[..., Path], make_cell: Callable[..., Cell]):
    cells = [make_cell("uld", fq=0.1, group=["table4"]), make_cell("uld", fq=0.0, variant="no D'r", group=["table4"])]
    table = ablation_table(read_folder(write_folder(cells)), "table4", "forget10")
    assert row(table, "uld, no D'r")[6] == "–"


def test_nine_parts_of_every_row(tables: dict[str, Table]):
    line = row(tables["parts-forget10"], "ULD, retain 25 %")
    assert line[1:] == ["0.800", "0.750", "0.800"] * 3 + ["0.125", "0.500"]


def test_training_has_what_it_took(tables: dict[str, Table]):
    assert row(tables["training-forget10"], "npo+kl")[1:] == ["30", "2", "15", "10", "–", "1.0", "2.0"]
    assert [line[0] for line in tables["training-forget10"].rows] == ["npo+kl", "ULD"]


def test_timing_is_relative_to_uld(tables: dict[str, Table]):
    rows = [tuple(line) for line in tables["timing"].rows]
    assert rows == [("ULD", "2", "40", "1", "1"), ("simnpo", "20", "–", "10", "–"), ("npo+kl", "30", "20", "15", "30")]
    assert tables["timing"].title == "Seconds an epoch on forget10, measured in turn in one run"


def test_a_table_of_some_seeds_has_the_numbers_of_all_in_a_note(write_folder, make_cell):
    cells = [make_cell("uld", seed=0, fq=0.1, group=["table2", "table4"]), make_cell("uld", seed=1, fq=0.001)]
    cells.append(make_cell("uld", fq=0.01, variant="no D'r", group=["table4"]))
    table = ablation_table(read_folder(write_folder(cells)), "table4", "forget10")
    assert row(table, "uld")[1] == "0.1" and row(table, "uld")[5] == "1"
    assert "uld over all its seeds (0, 1): F.Q. 0.01 (1e-3–0.1), M.U. 0.900." in table.notes
    assert len(table.notes) == 2  # the ablation has no other seeds


def test_cells_that_another_grid_left_are_in_no_mean(write_folder, make_cell):
    cells = [make_cell("target", fq=1e-9), *(make_cell("uld", seed=seed, fq=10.0**-seed) for seed in (0, 1, 2))]
    folder = write_folder(cells)
    plan = [Identity(**{name: getattr(one, name) for name in Identity.model_fields}) for one in (cells[0], cells[3])]
    Plan(cells=plan).write(folder / "plan.json")
    read = read_folder(folder)
    assert [one.name for one in read.cells] == ["target-forget10-seed0", "uld-forget10-seed2"] and not read.missing
    assert row(table2(read, "forget10"), "uld")[1] == "0.01"


@pytest.mark.parametrize(
    ("planned", "shown"),
    [
        (["npo-lr0.001", "npo-lr0.1"], [("0.001", True)]),
        ([], None),
        (None, [("0.001", False), ("0.01", True)]),  # of earlier versions
    ],
)
def test_learning_rates_that_another_grid_tried_are_not_chosen(write_folder, make_cell, planned, shown):
    cell = make_cell("npo")
    folder = write_folder([cell])
    for rate, score in ((1e-3, 0.3), (1e-2, 0.9)):
        Rate(method="npo", learning_rate=rate, score=score, digest="d").write(folder / f"rates/npo-lr{rate}.json")
    Plan(cells=[Identity(name=cell.name, method="npo", split="forget10")], rates=planned).write(folder / "plan.json")
    found = rates_table(read_folder(folder))
    chosen = None if found is None else [(row[1], number in found.strong) for number, row in enumerate(found.rows)]
    assert chosen == shown


def test_learning_rates_show_every_candidate_the_chosen_one_and_who_is_at_an_edge(write_folder, make_cell):
    folder = write_folder([make_cell("npo", label="NPO"), make_cell("ga")])
    scores = {("npo", 1e-4): 0.2, ("npo", 1e-3): 0.9, ("npo", 1e-2): 0.5, ("ga", 1e-4): 0.1, ("ga", 1e-3): 0.3}
    for (method, rate), score in scores.items():
        own = {"method": method, "learning_rate": rate, "score": score, "digest": "d"}
        Rate(**own, forgotten=0.5, kept=0.25).write(folder / "rates" / f"{method}-lr{rate}.json")
    Rate(method="ga", learning_rate=1e-2, error="diverged", digest="d").write(folder / "rates" / "ga-lr1.json")
    table = next(one for one in all_tables(read_folder(folder)) if one.name == "rates")
    assert table.rows[0] == ["ga", "0.0001", "0.500", "0.250", "0.100"]
    assert table.rows[2] == ["ga", "0.01", "–", "–", "failed"]
    assert [table.rows[i][:2] for i in sorted(table.strong)] == [["ga", "0.001"], ["NPO", "0.001"]]
    assert len(table.notes) == 1  # neither is at an edge
    (folder / "rates" / "ga-lr1.json").unlink()
    table = next(one for one in all_tables(read_folder(folder)) if one.name == "rates")
    assert table.notes[1:] == ["The largest candidate was chosen for ga."]
    for path in (folder / "rates").glob("ga-*.json"):
        Rate(method="ga", learning_rate=Rate.read(path).learning_rate, error="diverged", digest="d").write(path)
    table = next(one for one in all_tables(read_folder(folder)) if one.name == "rates")
    assert [table.rows[i][:2] for i in table.strong] == [["NPO", "0.001"]] and len(table.notes) == 1


def test_the_plan_says_which_tables_a_cell_stands_in_and_what_belongs_under_them(write_folder, make_cell):
    cells = [make_cell("uld", seed=0), make_cell("di", group=["table8"])]
    folder = write_folder(cells)
    plan = [Identity(**{name: getattr(one, name) for name in Identity.model_fields}) for one in cells]
    plan[0].group = ["table2", "table8"]
    Plan(cells=plan, notes={"table8": ["Of another size."]}).write(folder / "plan.json")
    table = ablation_table(read_folder(folder), "table8", "forget10")
    assert [line[0] for line in table.rows] == ["di", "uld"] and table.notes == ["Of another size."]
