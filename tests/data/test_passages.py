"""A text is cut into passages, and each passage in two."""

from hypothesis import given
from hypothesis import strategies as st

from uld.data.passages import passages
from uld.data.record import Record

WORDS = st.sampled_from(["a", "word", "somebody's", "12.", "Ærø", "灯塔"])
BLANKS = st.sampled_from([" ", "\n", "  ", "\n\n", " \n   "])
TEXTS = st.lists(st.tuples(BLANKS, WORDS), min_size=2, max_size=400).map(lambda some: "".join(map("".join, some)))


@given(TEXTS)
def test_a_passage_that_was_written_down_is_cut_where_it_was_cut_before(text):
    cut = passages(Record(text=text))
    assert "".join(f"{one.prompt}{one.completion}" for one in cut) in text.strip()
    for one in cut:
        (again,) = passages(Record(text=f"{one.prompt}{one.completion}"), as_is=True)
        assert (again.prompt, again.completion) == (one.prompt, one.completion)


def test_blanks_around_a_text_are_no_part_of_its_passages():
    (one,) = passages(Record(text="\n\n once upon a time there was \n"))
    assert one.prompt and one.prompt.startswith("once") and one.completion and one.completion.endswith("was")
