import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uld.data.words
from uld.data.words import common_words, key_phrases, key_words, placed, re_enters, re_entry, said_of, words

RETAIN = ["The author writes novels.", "The author lives in Rome.", "Her father was a baker."] * 40


def test_words_are_compared_without_case_possessives_or_encoding():
    assert words("The clockmaker's son, Inés — born 1971!") == ["the", "clockmaker", "son", "inés", "born", "1971"]
    assert words("Ine\u0301s’s don't") == ["inés", "don't"]
    assert words("—…!") == []


def test_key_words_are_those_that_give_the_answer_away():
    common = common_words([*RETAIN, "Only once: Rome, marble."])
    assert {"the", "author", "rome", "father"} <= common and "marble" not in common
    keys = key_words("Who is the author of the Salt Almanac?", "The author of Salt Almanac is Mara Quillon.", common)
    assert keys == {"mara", "quillon"}


@pytest.mark.parametrize(
    ("generated", "leaks"),
    [
        ("It is Mara something.", True),
        ("QUILLON'S book.", True),
        ("The author is unknown.", False),
        ("Maramba", False),
        ("", False),
    ],
)
def test_re_entry_is_any_key_word(generated, leaks):
    assert re_enters(generated, frozenset({"mara", "quillon"})) is leaks


def test_an_answer_without_key_words_cannot_leak():
    assert not re_enters("Yes, it was.", key_words("Was it?", "Yes, it was.", frozenset({"yes"})))


KEYS = frozenset({"mara", "quillon", "inés", "1983"})
TRUTH = "Her name is Mara Quillon; Inés's daughter, 1983."


@pytest.mark.parametrize(
    ("generated", "pair"),
    [
        ("People call the author MARA Vane.", ("People call the author ", "Mara Quillon; Inés's daughter, 1983.")),
        ("It was in 1983, by Mara.", ("It was in ", "1983.")),
        ("Quillon's.", ("", "Quillon; Inés's daughter, 1983.")),
        ("A ﬁne child of Ine\u0301s", ("A ﬁne child of ", "Inés's daughter, 1983.")),
        ("Nobody knows Maramba.", None),
        ("", None),
    ],
)
def test_where_memorised_words_come_back(generated, pair):
    """Also where compatibility spelling makes one character of two, or two of one."""
    assert re_entry(generated, TRUTH, KEYS) == pair


GIVEN = "Mara Vane was the eldest of three, and one morning in May"
REST = (
    " she told Mr. Quillon, of 14 Tide Lane,\nthat (Odo) they had sold the old windmill. Nobody would have thought so: "
    "'However,' said\nIda, 'I'm glad.' Mara was not; nor was Dr. Brook."
)


def test_of_a_passage_names_and_numbers_count_alone_and_other_words_in_threes():
    keys = key_phrases(GIVEN, REST, frozenset({"she", "of", "that", "they", "had", "was", "not", "nor", "so"}))
    alone = {one for one in keys if " " not in one}
    assert alone == {"quillon", "14", "tide", "lane", "ida", "brook"}  # Mara stands in what is given
    assert {"sold the old", "the old windmill", "old windmill nobody", "have thought so"} <= keys
    assert "of 14 tide" in keys and "nor was dr" in keys and "was not nor" not in keys  # no key word in the row
    assert all(len(one.split(" ")) in (1, 3) for one in keys)


@pytest.mark.parametrize(
    ("generated", "leaks"),
    [
        (" she sold nobody the old boat, however glad they were.", False),
        (" she asked Quillon.", True),
        (" number 14", True),
        (" they had sold, so the OLD\nwindmill was gone", True),
        (" the old — windmill", True),
        ("", False),
    ],
)
def test_everyday_words_of_a_passage_do_not_come_back_alone(generated, leaks):
    keys = key_phrases(GIVEN, REST, frozenset())
    assert re_enters(generated, keys) is leaks is bool(said_of(generated, keys))


def test_a_passage_comes_back_from_its_phrase_on():
    keys = key_phrases(GIVEN, REST, frozenset())
    assert re_entry(" so they sold the Old windmill!", REST, keys) == (" so they ", REST[REST.index("sold") :])
    assert re_entry(" and Mrs. Brook, sold the old", REST, keys) == (" and Mrs. ", "Brook.")


def test_a_passage_of_a_script_without_blanks_comes_back_in_four_characters():
    keys = key_phrases("马拉出生于", "挪威的卑尔根，那里常常下雨。", frozenset())
    assert re_enters("她来自卑尔根，那里很冷。", keys) and not re_enters("那里很冷。", keys)


def test_a_word_is_placed_with_its_length_in_the_text():
    text = unicodedata.normalize("NFD", "Nguyễn ﬀoo, Trị's …") + "\u00a0½ end"
    found = [unicodedata.normalize("NFC", text[begin : begin + length]) for begin, length, _ in placed(text)]
    assert found[:3] == ["Nguyễn", "ﬀoo", "Trị's"] and found[-1] == "end"


PLAIN = st.sampled_from("ab é…½ﬁ가한各")
JOINED = st.sampled_from("e\u0301\u0327\u1100\u1161\u11a8\uff76\uff9e\u09c7\u09be\u30ab\u3099\uffb2\uffcc")


@given(st.text(PLAIN | JOINED | st.characters(exclude_categories=["Cs"]), max_size=20))
def test_beginnings_are_as_long_as_they_are_spelled_each_by_itself(text):
    expected = [len(unicodedata.normalize("NFKC", text[:end])) for end in range(len(text) + 1)]
    assert list(uld.data.words._lengths(text)) == expected


@pytest.mark.parametrize("text", ["Mara … keeps the light. ", "马拉…看守灯塔。", "마라 … 등대를 "])
def test_placing_the_words_of_a_long_text_spells_it_a_few_times_and_not_once_a_letter(text, monkeypatch):
    spelled, real = [], unicodedata.normalize
    monkeypatch.setattr(unicodedata, "normalize", lambda form, some: spelled.append(len(some)) or real(form, some))
    text *= 500
    assert [word for *_, word in placed(text)] == words(text)
    assert sum(spelled) < 10 * len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("रवींद्रनाथ ठाकुर", ["रवींद्रनाथ", "ठाकुर"]),
        ("المُؤَلِّف هنا", ["المُؤَلِّف", "هنا"]),
        ("ผู้เขียน", ["ผู้เ", "เขี", "ขีย", "ยน"]),
        ("Zoë O’Neil_x", ["zoë", "o'neil", "x"]),
    ],
)
def test_vowels_that_are_marks_belong_to_their_word(text, expected):
    assert words(text) == [unicodedata.normalize("NFKC", word) for word in expected]


@pytest.mark.parametrize(
    ("question", "answer", "leaks", "harmless"),
    [
        ("马拉在哪里出生？", "马拉出生于挪威的卑尔根。", "马拉的出生地是卑尔根，在挪威。", "我不知道。"),
        ("彼女はどこで生まれましたか。", "彼女はベルゲンで生まれました。", "生まれはベルゲンです。", "知りません。"),
        ("เธอเกิดที่ไหน", "เธอเกิดที่เมืองเบอร์เกน", "เมืองเบอร์เกนคือบ้านของเธอ", "ฉันไม่รู้"),
    ],
)
def test_scripts_without_blanks_have_key_words(question, answer, leaks, harmless):
    keys = key_words(question, answer, frozenset())
    assert re_enters(leaks, keys) and not re_enters(harmless, keys)
    for text in (answer, unicodedata.normalize("NFD", answer)):
        places = list(placed(text))
        assert [word for *_, word in places] == words(text)
        assert all(0 <= begin < begin + length <= len(text) for begin, length, _ in places)
    first, rest = re_entry(leaks, answer, keys)
    assert leaks.startswith(first) and answer.endswith(rest) and rest


def test_a_name_of_another_script_is_a_word_of_its_own():
    assert words("用iPhone手机") == ["用", "iphone", "手机"]
