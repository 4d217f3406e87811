"""Each number against counting by hand."""

import math

import numpy as np
import pytest

from uld.checking.measures import Side, is_known, key_words, measured, same_words
from uld.checking.questions import Item
from uld.data.record import Record

KEPT = ["the baker bakes bread every day."] * 3
ITEMS = [
    Item(Record.qa("where was Mara born?", "Mara was born in Skerrin.")),
    Item(Record.qa("who taught Mara?", "Odo taught Mara every day.")),
    Item(Record.qa("does Mara teach?", "the baker does.")),
]
KEYS = [frozenset({"was", "born", "in", "skerrin"} - {"was", "born"}), frozenset({"odo"}), frozenset()]


def row(text: str, loss: float = 1.0, tokens: int = 2, unknown: int = 0) -> dict:
    more = {"memorization": 0.5, "extraction": 0.25, "unknown_words": unknown}
    return {"generated": text, "loss": loss, "tokens": tokens, **more}


def side(said: list[str], **changes) -> Side:
    rows = [row(text) for text in said]
    judged = [{"judged_loss": 2.0, "judged_tokens": 4}, {"judged_loss": 0.0, "judged_tokens": 0}] + [
        {"judged_loss": 4.0, "judged_tokens": 2}
    ] * (len(said) - 2)
    given = {"items": ITEMS, "rows": rows, "before": rows, "judged": judged, "kl": None, "keys": KEYS} | changes
    return Side(**given)


def test_key_words_are_those_that_give_away():
    assert key_words(ITEMS, KEPT) == KEYS


def test_of_a_passage_a_word_of_every_day_gives_nothing_away():
    passage = Item(Record(prompt="Mara was born", completion=" in the port of Skerrin, where she taught"), passage=True)
    (keys,) = key_words([passage], KEPT)
    found = [
        measured({"forget": side([text], items=[passage], judged=[], keys=[keys])})["forget_re_entry"].value
        for text in (" in a house where she sang", " of Skerrin", " where she taught")
    ]
    assert found == [0, 1, 1]
    assert is_known(passage, row(passage.answer), keys) and not is_known(passage, row(" of Skerrin, where she"), keys)


def test_numbers_of_what_is_to_be_forgotten():
    said = ["I say: mara WAS born in Skerrin!", "", "the baker does."]
    found = {name.removeprefix("forget_"): one for name, one in measured({"forget": side(said)}).items()}
    assert found["rouge"].value == pytest.approx((1 + 0 + 1) / 3)
    assert found["exact"].value == pytest.approx(1 / 3) and found["exact"].rows == 3
    assert found["run"].value == pytest.approx((5 + 0 + 3) / 3) and found["longest_run"].value == 5
    assert found["re_entry"].value == pytest.approx(1 / 2) and found["re_entry"].rows == 2  # the third has no key word
    assert found["degenerate"].value == pytest.approx(1 / 3)  # empty
    assert found["loss"].value == 0.5 and found["probability"].value == pytest.approx(math.exp(-0.5))
    assert found["perplexity"].value == pytest.approx(math.exp((2 + 0 + 4) / (4 + 0 + 2)))
    assert found["perplexity"].rows == 2  # nothing was said the second time
    assert (found["memorization"].value, found["extraction"].value) == (0.5, 0.25)
    assert "kl" not in found and "same" not in found


def test_numbers_of_what_is_kept():
    before = [row("the baker bakes."), row("Odo did."), row("no.")]
    kl = [{"kl": 1.0, "tokens": 2}, {"kl": 0.0, "tokens": 5}, {"kl": math.inf, "tokens": 1}]
    found = measured({"retain": side(["The baker, bakes", "Odo did not.", "no."], before=before, kl=kl)})
    assert found["retain_same"].value == pytest.approx(2 / 3)
    assert found["retain_kl"].value == math.inf and found["retain_kl"].low is None
    assert "retain_re_entry" not in found


def test_a_model_that_says_nothing_has_no_fluency():
    silent = side(["", "", ""], judged=[{"judged_loss": 0.0, "judged_tokens": 0}] * 3)
    assert "forget_perplexity" not in measured({"forget": silent})


def test_an_interval_is_that_of_many_draws():
    rows = [row("x", loss=2.0 * i) for i in range(40)]
    many = side(["x", "x"], items=[ITEMS[0]] * 40, rows=rows, before=rows, judged=[], keys=[frozenset()] * 40)
    found = measured({"forget": many})["forget_loss"]
    rng = np.random.default_rng(1)
    means = [rng.choice(np.arange(40.0), 40).mean() for _ in range(4000)]
    assert found.value == 19.5 and found.low is not None and found.high is not None
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.4)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.4)


def test_broken_words_loops_and_cut_answers_are_none():
    said = ["Mara was born in Skerrin and", "he said no to it, he said no to it, he said no to it, yes.", "zzz qqq."]
    rows = [row(said[0]), row(said[1]), row(said[2], unknown=2)]
    assert measured({"forget": side(said, rows=rows)})["forget_degenerate"].value == 1
    passage = Item(Record(prompt="Mara", completion=" was born"), passage=True)  # ends where it is cut
    cut = side(said[:1], items=[passage], rows=rows[:1], before=rows[:1], judged=[], keys=[frozenset()])
    assert measured({"forget": cut})["forget_degenerate"].value == 0


@pytest.mark.parametrize(
    ("text", "known"),
    [("Mara was born in Skerrin", True), ("It was Skerrin.", True), ("Mara was born at home.", False), ("", False)],
)
def test_known_is_what_says_half_of_the_key_words(text, known):
    assert is_known(ITEMS[0], row(text), frozenset({"in", "skerrin"})) is known


def test_an_answer_without_key_words_is_known_word_for_word():
    assert is_known(ITEMS[2], row("The baker does"), frozenset())
    assert not is_known(ITEMS[2], row("the baker"), frozenset())


def test_an_answer_without_a_word_is_no_other_than_itself():
    assert same_words("😀", " 😀") and same_words("", " ") and same_words("It is so.", "it is so!")
    assert not same_words("", "😀") and not same_words("😀", "42") and not same_words("It.", "")
