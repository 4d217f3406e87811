"""What a message says of a name that there is not."""

import pytest

from uld.errors import guess

KNOWN = ("learning_rate", "epochs", "npo", "npo+kl", "npo+gd", "Truthful_QA", "qa")


@pytest.mark.parametrize(
    ("name", "most", "meant"),
    [
        ("epoch", 1, ["epochs"]),
        ("EPOCHS", 1, ["epochs"]),
        ("npo+lk", 1, ["npo+kl"]),  # as long as what was typed, before another that is as close
        ("npo+k", 3, ["npo+kl", "npo+gd", "npo"]),
        ("rate", 1, ["learning_rate"]),  # a part of one
        ("truthful", 3, ["Truthful_QA"]),
        ("in", 3, []),  # of hardly any letters: a part of too much
        ("xyz", 3, []),
        (3, 1, []),
    ],
)
def test_names_that_are_close_are_offered_and_else_those_that_hold_it(name, most, meant):
    said = ": did you mean " + ", ".join(map(repr, meant)) + "?" if meant else ""
    assert guess(name, iter(KNOWN), most) == said
