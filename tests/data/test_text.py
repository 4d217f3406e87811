"""Texts are compared by one form; what is learnt stays as it stands."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uld.augment.filters import normalised
from uld.augment.items import digest, digests, items
from uld.data.alternatives import alternative_records, idk_answers
from uld.data.documents import read_sources
from uld.data.record import Record, refuse_equal
from uld.data.text import folded, says_nothing, shown, shown_name
from uld.errors import DataError
from uld.training.draw import Overlap

TEXT = "Zoë Núñez keeps the café at Skerrin, ｆｕｌｌ ﬁne.\nIt is old – “very” old.\n\nSee p. 12."
SPELLINGS = {
    "line ends of Windows": lambda text: text.replace("\n", "\r\n"),
    "line ends of old Macs": lambda text: text.replace("\n", "\r"),
    "decomposed accents": lambda text: unicodedata.normalize("NFD", text),
    "composed accents": lambda text: unicodedata.normalize("NFC", text),
    "compatibility forms": lambda text: unicodedata.normalize("NFKC", text),
    "a byte-order mark": lambda text: f"\ufeff{text}",
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "wide spaces": lambda text: text.replace(" ", "\u3000"),
    "tabs": lambda text: text.replace(" ", "\t"),
    "trailing blanks": lambda text: text.replace("\n", "  \n") + "\n\n ",
    "leading blanks": lambda text: f"\n\t {text}",
    "two blanks": lambda text: text.replace(" ", "  "),
    "other line breaks": lambda text: text.replace(" ", "\n"),
    "separators of Unicode": lambda text: text.replace("\n", "\u2028"),
    "next line": lambda text: text.replace("\n", "\u0085"),
    "form feeds": lambda text: text.replace("\n\n", "\x0c"),
    "zero-width spaces": lambda text: "\u200b".join(text),
    "soft hyphens": lambda text: text.replace("ee", "e\u00ade"),
    "joiners": lambda text: text.replace("k", "\u200dk\u2060"),
    "marks of direction": lambda text: f"\u202a{text}\u202c\u200e",
    "variation selectors": lambda text: text.replace("e", "e\ufe0e"),
    "control characters": lambda text: text.replace("k", "k\x01\x1b"),
}
SHAPES = {
    "text": lambda text: Record(text=text),
    "question": lambda text: Record.qa(text, "Yes."),
    "answer": lambda text: Record.qa("Who?", text),
    "completion": lambda text: Record(prompt="Who?", completion=text),
    "turn": lambda text: Record(messages=(("system", text), ("user", "a"), ("assistant", "b"))),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_document_spelt_otherwise_is_the_same_everywhere(spelling: str) -> None:
    other = SPELLINGS[spelling](TEXT)
    assert folded(other) == folded(TEXT)
    for shape in SHAPES.values():
        one, two = shape(TEXT), shape(other)
        assert one.same == two.same and digest(one) == digest(two)
        with pytest.raises(DataError, match="is also in the forget set"):
            refuse_equal([one], [two])
        assert len(items([one, two], 10_000)) == 1
        assert Overlap([one]).why(two) is not None
    assert normalised(other) == normalised(TEXT)


@pytest.mark.parametrize("name", ["x.txt", "x.md", "x.jsonl", "x.json", "x.csv"])
def test_what_is_learnt_is_what_stands_in_the_file(tmp_path: Path, name: str) -> None:
    for spelling, change in SPELLINGS.items():
        text = change(TEXT)
        content = {"x.jsonl": json.dumps({"text": text}), "x.json": json.dumps([{"text": text}], indent=1)}
        quoted = text.replace('"', '""')
        plain = content.get(name, f'text\n"{quoted}"' if name == "x.csv" else text)
        (tmp_path / name).write_bytes(plain.encode())
        ((record,), _) = read_sources([str(tmp_path / name)])
        assert record.text == (text.removeprefix("\ufeff") if name in ("x.txt", "x.md") else text), spelling


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Ann", "ann"),
        ("a b", "ab"),
        ("a.", "a"),
        ("café", "cafe"),
        ("résumé", "resume"),
        ("a\nb", "a b c"),
        ("1", "2"),
        ("ab", "ba"),
    ],
)
def test_other_texts_stay_others(one: str, two: str) -> None:
    assert folded(one) != folded(two)
    refuse_equal([Record(text=one)], [Record(text=two)])


@given(st.text())
def test_the_form_is_its_own_form(text: str) -> None:
    assert folded(folded(text)) == folded(text)
    assert folded(f" {text}\u200b\r\n") == folded(text)
    assert says_nothing(text) or folded(text)
    assert all(char.isprintable() for char in shown(text) + shown_name(text))


@given(
    st.lists(
        st.sampled_from(" \t\n\r\x0c\x00\x01\x7f\u0085\u00a0\u200b\u2060\ufeff\u3000\u3164\u2800\ufffd\u0301\ue000")
    )
)
def test_what_does_not_show_says_nothing(chars: list[str]) -> None:
    assert says_nothing("".join(chars))
    assert not says_nothing("".join([*chars, "a", *chars])) and not says_nothing("".join(chars) + "字")


def test_a_quotation_is_short() -> None:
    assert shown("x" * 6000) == f"'{'x' * 60}…'" and len(shown(["y" * 9000])) < 70
    assert shown_name("caf\udce9\n.txt") == "caf\\xe9\\n.txt"


def test_plain_records_keep_their_name_in_folders_of_augmentation() -> None:
    plain = Record.qa("Who keeps it?", "Mara keeps it.")
    assert len(set(digests(plain))) == 1
    assert len(set(digests(Record(text="Two lines\nof a text.")))) == 2  # the older one is to the letter


def test_an_alternative_that_says_the_same_is_refused() -> None:
    record = Record.qa("Who?", "Zoë, it is said.", "f:3", alternative="Zoe\u0308,\u00a0it is  said.\n")
    with pytest.raises(DataError, match="f:3: the alternative answer says the same"):
        alternative_records([record], "given", 0)


def test_every_answer_of_a_conversation_gets_another() -> None:
    said = (
        ("system", "Be brief."),
        ("user", "Who?"),
        ("assistant", "Ann."),
        ("user", "Where?"),
        ("assistant", "Lund."),
    )
    talk, one = Record(messages=said, source="f:2", alternative="Elsewhere."), Record.qa("Who?", "Ann.")
    (answered,) = alternative_records([talk], "idk", 3)
    assert [role for role, _ in answered.messages] == [role for role, _ in said]
    assert answered.messages[:2] == said[:2] and answered.messages[3] == said[3]
    first, second = answered.messages[2][1], answered.messages[4][1]
    assert {first, second} <= set(idk_answers()) and first != second
    assert alternative_records([one], "idk", 3)[0].messages[1][1] == first  # a single answer is drawn as ever
    with pytest.raises(DataError, match="f:2: has 2 answers and one alternative"):
        alternative_records([talk], "given", 3)
