import pytest

from uld.compare.plan import GridPlan
from uld.errors import ConfigError

HOUR = 3600.0
PLAN = GridPlan({"target-forget10": 0.5 * HOUR, "uld-forget10-seed0": 2 * HOUR, "npo+kl-forget10-seed0": HOUR})


def test_what_fits_is_counted_from_the_first_cell_on():
    assert [PLAN.within(hours) for hours in (0.4, 0.5, 2.4, 2.5, 3.5)] == [0, 1, 1, 2, 3]
    assert PLAN.within(1.25, jobs=2) == 2 and PLAN.total(2) == 1.75 * HOUR


@pytest.mark.parametrize(
    ("hours", "jobs", "said"),
    [
        (
            3,
            1,
            "takes about 3.5 h, and --hours is 3: the first 2 of 3 cells and trials, up to uld-forget10-seed0, would",
        ),
        (0.25, 1, "--hours is 0.25: none would fit; take splits, seeds or methods out of the grid, from the end"),
        (
            1,
            2,
            "takes about 1.8 h, and --hours is 1: the first 1 of 3 cells and trials, up to target-forget10, would fit",
        ),
    ],
)
def test_a_longer_grid_is_refused_in_a_sentence(hours, jobs, said):
    with pytest.raises(ConfigError) as refused:
        PLAN.refuse_longer(hours, jobs)
    assert said in str(refused.value)


def test_a_shorter_one_is_not():
    PLAN.refuse_longer(3.5)
    PLAN.refuse_longer(1.75, jobs=2)
    GridPlan({}).refuse_longer(0.001)


def test_every_cell_is_told():
    assert str(PLAN).splitlines() == [
        "target-forget10        about 30 min",
        "uld-forget10-seed0     about 2.0 h",
        "npo+kl-forget10-seed0  about 60 min",
        "in all: about 3.5 h in one process, give or take a half",
    ]
