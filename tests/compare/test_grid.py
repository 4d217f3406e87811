"""Grids as they are read, and the cells that they come to."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from uld.compare.grid import config, grid_presets, rate_specs, read_grid, specs
from uld.errors import ULDError

PLACES = {"target": "MODEL", "retain_only": {split: "RETAIN" for split in ("forget01", "forget05", "forget10")}}
GRID: dict[str, Any] = {
    "settings": {"max_length": 64},
    "methods": {"npo+kl": {"epochs": 3}},
    "learning_rates": [{"candidates": [1e-4, 1e-3], "split": "forget01", "families": {"npo+kl": ["npo", "npo+kl"]}}],
    "cells": [
        {
            "tables": ["table2"],
            "methods": ["uld", "npo", "npo+kl"],
            "splits": ["forget10", "forget01"],
            "seeds": [0, 1],
        },
        {"tables": ["table4"], "methods": ["uld"], "splits": ["forget10"], "seeds": [0]},
        {
            "tables": ["table4"],
            "methods": ["uld"],
            "splits": ["forget10"],
            "seeds": [0],
            "variant": "no D'f",
            "settings": {"paraphrases": 0},
        },
    ],
}


def write(folder: Path, **changes: Any) -> str:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID | changes))
    return str(path)


def refused(path: str, **places: Any) -> str:
    with pytest.raises(ULDError) as caught:
        read_grid(path, PLACES | places)
    return str(caught.value)


def test_cells_of_a_grid(tmp_path):
    grid = read_grid(write(tmp_path), PLACES)
    cells = {spec.name: spec for spec in specs(grid, {"npo+kl": 1e-3})}
    assert len(cells) == 2 * 2 + 3 * 2 * 2 + 1
    assert list(cells)[:4] == ["retain-only-forget10", "target-forget10", "retain-only-forget01", "target-forget01"]
    assert cells["uld-forget10-seed0"].tables == ("table2", "table4")
    assert cells["uld-no-d-f-forget10-seed0"].variant == "no D'f"
    settings = config(cells["npo+kl-forget01-seed1"], grid, "OUT")
    assert (settings.learning_rate, settings.epochs, settings.max_length, settings.seed) == (1e-3, 3, 64, 1)
    assert (settings.method, settings.split, settings.target, settings.output) == ("npo+kl", "forget01", "MODEL", "OUT")
    assert (
        config(cells["npo-forget01-seed1"], grid, "").epochs == 10
    )  # settings belong to one method, rates to a family
    assert config(cells["npo-forget01-seed1"], grid, "").learning_rate == 1e-3
    assert [spec.name for spec in rate_specs(grid)] == ["npo+kl-lr0.0001", "npo+kl-lr0.001"]


@pytest.mark.parametrize("name", grid_presets())
def test_grids_that_ship_are_whole(name):
    grid = read_grid(name, PLACES)
    rates = {str(spec.method): 1e-4 for spec in rate_specs(grid)}
    found = specs(grid, rates)
    methods = {spec.method for spec in found} - {None}
    assert {"uld", "ga", "dpo+gd", "npo+kl", "offset-npo+kl"} <= methods
    assert {table for spec in found for table in spec.tables} == {"table2", "table4", "table8", "table9"}
    assert all(method in grid.labels for method in methods)
    if name == "tofu-4m":
        settings = config(next(spec for spec in found if spec.name == "uld-forget10-seed0"), grid, "")
        assert (settings.num_layers, settings.epochs, settings.weight, settings.margin) == (3, 14, 20.0, 5.5)
        seeds = {m: sum(s.method == m and s.split == "forget10" and not s.variant for s in found) for m in methods}
        assert all(seeds[m] == 3 for m in ("uld", "ga+kl", "npo+gd", "npo+kl", "offset-npo+kl")) and seeds["ga"] == 1


def test_wrong_grids_are_refused_in_one_sentence(tmp_path):
    assert "no grid 'nope'" in refused("nope")
    assert "there is no key 'cell_': did you mean 'cells'?" in refused(write(tmp_path, cell_=[]))
    assert "cells: " in refused(write(tmp_path, cells=[]))
    one = {"tables": ["table2"], "methods": ["uld"], "splits": ["forget10"], "seeds": [0]}
    assert "did you mean 'npo+kl'" in refused(write(tmp_path, cells=[one | {"methods": ["npo+lk"]}]))
    assert "not a forget split" in refused(write(tmp_path, cells=[one | {"splits": ["forget11"]}]))
    assert "no setting 'epoch'" in refused(write(tmp_path, cells=[one | {"settings": {"epoch": 1}}]))
    assert "seed is decided by the grid" in refused(write(tmp_path, cells=[one | {"settings": {"seed": 1}}]))
    twice = [one, one | {"settings": {"epochs": 1}}]
    assert "two cells uld-forget10-seed0 with different settings" in refused(write(tmp_path, cells=twice))
    block = {"candidates": [1e-4], "families": {"npo+kl": ["npo+gd", "npo+kl"]}}
    other = block | {"candidates": [1e-3], "families": {"npo+kl": ["npo"]}}
    said = refused(write(tmp_path, learning_rates=[block, other]))
    assert "npo+kl chooses a rate in another block too" in said
    assert "names no target" in refused(write(tmp_path), target="")
    assert "no retain-only model for forget01" in refused(write(tmp_path), retain_only={"forget10": "RETAIN"})
