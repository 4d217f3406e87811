import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from uld.report.cells import Cell, Folder, read_folder
from uld.report.figures import Figure, all_figures
from uld.report.tables import table2
from uld.text.table import Table


@pytest.fixture
def figures(shared_figures: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in shared_figures}


def marks(svg: str, colour: str) -> list[tuple[float, float]]:
    """Places of the markers of a colour."""
    found = re.findall(r'<use xlink:href="[^"]+" x="([\d.]+)" y="([\d.]+)" style="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y, style in found if f"stroke: {colour}" in style]


def row(table: Table, name: str) -> Sequence[str]:
    return next(one for one in table.rows if one[0] == name)


def words(svg: str) -> str:
    return re.findall(r'aria-label="([^"]*)"', svg)[0]


def test_figures_are_those_that_there_are_numbers_for(figures: dict[str, Figure]):
    assert list(figures) == ["figure3-forget10", "figure4-forget10", "figure5"]
    assert [panel.title for panel in figures["figure5"].panels] == ["forget10"]  # where the seconds were measured


def test_figure_3_draws_each_epoch_of_both_losses(figures: dict[str, Figure]):
    forget, held_out = figures["figure3-forget10"].panels
    points = marks(forget.svg, "var(--npo)")
    assert len(points) == 3 and points[0][1] > points[1][1] > points[2][1]  # the loss rises, and y points down
    assert len({y for _, y in marks(held_out.svg, "var(--npo)")}) == 1  # a constant
    assert words(forget.svg).endswith("After the last epoch: npo+kl 3.")
    assert [label for label, _ in figures["figure3-forget10"].legend] == ["npo+kl"]


def test_figure_4_goes_from_epoch_to_epoch_and_has_the_others_end(figures: dict[str, Figure]):
    figure = figures["figure4-forget10"]
    assert [label for label, _ in figure.legend] == ["target", "retain-only model", "npo+kl", "simnpo", "ULD"]
    path = marks(figure.panels[0].svg, "var(--npo)")
    assert len(path) == 4  # three epochs, and what all seeds end at, larger
    assert path[0][0] > path[1][0] > path[2][0]  # utility falls
    assert path[1][1] < path[2][1] < path[0][1]  # F.Q.: 0.7 above 1e-4 above 1e-6
    assert path[3][0] < path[2][0]  # M.U. without ROUGE of the result is 0.5
    assert "npo+kl: 0.3 at 0.500" in words(figure.panels[0].svg)
    assert not any("alone" in note for note in figure.notes)


def test_a_curve_of_one_seed_says_so_and_ends_where_all_seeds_do(write_folder, make_cell):
    epochs = [{"epoch": e, "forget_quality": 0.1 * e, "utility_without_rouge": 0.9, "forget_loss": e} for e in (1, 2)]
    cells = [make_cell("uld", seed=seed, fq=fq, epochs=kept) for seed, fq, kept in ((0, 0.1, epochs), (1, 0.001, []))]
    folder = read_folder(write_folder(cells))
    drawn = {figure.name: figure for figure in all_figures(folder)}
    for name in ("figure3-forget10", "figure4-forget10"):
        assert "Epochs of uld: of seed 0 alone." in drawn[name].notes
    assert "uld: 0.01 at 0.900" in words(drawn["figure4-forget10"].panels[0].svg)
    assert row(table2(folder, "forget10"), "uld")[6] == "0.2, epoch 2, seed 0"


def test_a_quality_too_small_to_be_drawn_is_named(write_folder, make_cell):
    taken = {"epochs": 1, "seconds": 2.0}
    cells = [make_cell(name, fq=fq, training=taken) for name, fq in (("uld", 0.1), ("ga", 1e-60))]
    (figure,) = all_figures(read_folder(write_folder(cells)))
    assert figure.notes[-1] == "F.Q. below 1e-30 is drawn there."


def test_figure_5_is_relative_to_uld_and_takes_measured_seconds(figures: dict[str, Figure]):
    text = words(figures["figure5"].panels[0].svg)
    assert text.endswith("npo+kl: 0.3 at 15; simnpo: 0 at 10; ULD: 0.01 at 1.")
    assert "timing.json" in figures["figure5"].notes[0]


def test_figure_5_falls_back_on_the_cells_own_seconds(comparison: Path):
    (comparison / "timing.json").unlink()
    figure = next(one for one in all_figures(read_folder(comparison)) if one.name == "figure5")
    assert words(figure.panels[0].svg).endswith("npo+kl: 0.3 at 1; ULD: 0.01 at 1.")  # both 15 seconds an epoch
    assert "as each cell measured them" in figure.notes[0]


def test_there_is_no_figure_without_epochs_and_seconds(
    write_folder: Callable[..., Path], make_cell: Callable[..., Cell]
):
    assert all_figures(read_folder(write_folder([make_cell("target"), make_cell("npo"), make_cell("uld")]))) == []


def test_a_users_own_matplotlib_settings_change_nothing(shared: Folder, shared_figures: list[Figure]):
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert all_figures(shared) == shared_figures
