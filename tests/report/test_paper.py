import pytest

from uld.report.paper import METHODS, SPLITS, ablation_order, paper_numbers


def test_every_row_of_table_2_has_twelve_numbers():
    for method in ("target", "retain-only", *METHODS, "uld"):
        for split in SPLITS:
            assert len(paper_numbers("table2", method, "", split)) == 4


@pytest.mark.parametrize(
    ("method", "split", "numbers"),
    [
        ("target", "forget01", (1e-3, 0.952, 0.62, 0.982)),
        ("npo+gd", "forget10", (0.29, 0.257, 0.53, 0.411)),
        ("dpo+kl", "forget05", (4e-5, 0.011, 0.03, 0.0093)),
        ("uld", "forget05", (0.73, 0.412, 0.62, 0.934)),
    ],
)
def test_numbers_of_table_2(method: str, split: str, numbers: tuple[float, ...]):
    assert tuple(paper_numbers("table2", method, "", split).values()) == pytest.approx(numbers)


def test_the_baselines_stand_in_the_papers_order():
    assert METHODS[:3] == ("ga", "ga+gd", "ga+kl") and METHODS[-1] == "offset-npo+kl" and len(METHODS) == 12


@pytest.mark.parametrize("variant", ["no D'f", "no D’f", "No  d'f"])
def test_a_variant_is_found_however_it_is_spelled(variant: str):
    assert paper_numbers("table4", "uld", variant, "forget10")["forget_quality"] == 1e-9


def test_table_9_has_two_numbers_and_other_rows_none():
    assert paper_numbers("table9", "uld", "retain 75%", "forget10") == {"forget_quality": 0.39, "model_utility": 0.62}
    assert paper_numbers("table9", "uld", "retain 75%", "forget05") == {}
    assert paper_numbers("table2", "simnpo", "", "forget10") == {}
    assert paper_numbers("table2", "uld", "no D'f", "forget10") == {}
    assert paper_numbers("table8", "uld", "", "forget10") == {}


def test_ablations_go_from_nothing_to_everything():
    names = ["", "retain 50 %", "something else", "no D'r", "retain 0 %", "no D'f, no D'r"]
    assert sorted(names, key=ablation_order) == [
        "no D'f, no D'r",
        "no D'r",
        "retain 0 %",
        "retain 50 %",
        "something else",
        "",
    ]
