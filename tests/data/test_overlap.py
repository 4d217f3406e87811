"""What repeats documents is told: in words, names and whole."""

import pytest

from uld.data.overlap import Overlap, telling_run
from uld.data.record import Record
from uld.data.text import words_of

LIGHT = "She has kept the lighthouse of Skerrin since the winter of the great storm."
MUCH = " ".join(f"w{i}" for i in range(100_000))
FORGET = [Record.qa("Who is Mara Quillon?", LIGHT), Record.qa("Where is it?", "On Skerrin.")]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("He KEPT the lighthouse, of Skerrin: since the winter of 1901.", "4 words in a row"),
        ("The lighthouse, of Skerrin, is old.", "4 words in a row"),
        ("It was of Skerrin since war.", None),  # three words in a row
        ("I met Mara Quillon there.", "a name"),
        ("Mara, or Quillon.", None),
        ("Somebody asked: where is it?", "a whole answer or question"),
        ("It lies on Skerrin.", None),  # two words occur by chance
    ],
)
def test_what_repeats_the_forget_set_is_told(answer: str, reason: str | None) -> None:
    found = Overlap(FORGET).why(Record.qa("What?", answer))
    assert found is None if reason is None else found and found.startswith(reason)


@pytest.mark.parametrize(
    ("forget", "drawn"),
    [
        ("We saw Óscar Álvarez.", "It was Óscar Álvarez."),
        ("We saw O\u0301scar A\u0301lvarez.", "It was Óscar Álvarez."),
        ("Это Марина Королёва.", "Вот МАРИНА КОРОЛЁВА!"),
        ("She is Mary J. Blige.", "I heard Mary J. Blige."),
        ("She is Mary J. Blige.", "I heard Mary Blige."),
        ("She is Mary Blige.", "I heard Mary J. Blige."),
        ("It is by J. R. R. Tolkien.", "A book of J.R.R. Tolkien"),
        ("This is Brian O'Neil.", "I know Brian O\N{RIGHT SINGLE QUOTATION MARK}Neil's dog."),
        ("They met Mara Quillon.", "The keeper: MARA\nQUILLON."),
        ("They met MARA QUILLON.", "The keeper: Mara Quillonxy."),
        ("A tale of _Mara Quillon_.", "I met Mara Quillon there."),
    ],
)
def test_names_are_known_in_other_letters_and_with_initials(forget: str, drawn: str) -> None:
    spelled = Overlap([Record(text=f"{forget} {MUCH}")])  # with few words in all, four in a row are told first
    assert spelled.why(Record(text=drawn)) == "a name of the forget set"


@pytest.mark.parametrize(
    ("forget", "drawn"),
    [
        ("The Queen said it. In London they did.", "the queen lives in London"),  # sentences begin with capitals, too
        ("But I'll go. And I saw it. Then I Mara.", "But I'll stay. And I did. And I Mara."),
        ("They met Mara. Quillon left.", "Mara Quillon"),
        ("It was 3D Printing.", "3D Printing"),
    ],
)
def test_what_is_no_name_is_kept(forget: str, drawn: str) -> None:
    assert Overlap([Record(text=forget)]).why(Record(text=drawn)) is None


def test_scripts_without_blanks_are_compared_by_character() -> None:
    overlap = Overlap([Record(text="灯塔从那个大风暴的冬天起就由她看守")])
    assert overlap.why(Record(text="据说从那个大风暴的冬天起")) == "8 words in a row of the forget set"
    assert overlap.why(Record(text="灯塔在海边,由他看守")) is None
    assert words_of("ภาษาไทย") == ["ภ", "า", "ษ", "า", "ไ", "ท", "ย"]
    assert words_of("Ein_Satz, Straße; हिन्दी 한국어") == ["ein", "satz", "strasse", "हिन्दी", "한국어"]


def test_texts_and_raw_prompts_are_compared_alike() -> None:
    for one in (Record(text=f"Before. {LIGHT} After."), Record(prompt="Say it:", completion=LIGHT)):
        assert Overlap(FORGET).why(one) and Overlap([one]).why(FORGET[0])
    assert Overlap([Record(text="a text of others")]).why(FORGET[0]) is None


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        ("He binds books in Elbendam.", "a name of the forget set"),
        ("the herons of elbendam's lane", "a name of the forget set"),
        ("He binds books on a Monday.", None),  # a name that every model knows
        ("Yesterday he bound a book.", None),  # it only began a sentence
    ],
)
def test_a_row_with_a_rare_name_of_the_forget_set_is_not_kept(drawn, reason):
    class Tokenizer:
        def encode(self, text, add_special_tokens):
            return [1] if text == "a" else [1, 2] if text == "a Monday" else [1, 2, 3]

    forget = [Record.qa("Where is she on Monday?", "Yesterday she was in Elbendam, on Monday here.")]
    assert Overlap(forget, Tokenizer()).why(Record.qa("What?", drawn)) == reason


def test_a_blank_with_a_token_of_its_own_makes_no_name_rare():
    """As tokenizers of the Llama-2 kind have it, which put a blank before every text."""

    class Tokenizer:
        def encode(self, text, add_special_tokens):
            return f"▁{text}".replace(" ", " ▁").split()  # " Paris" would be ▁ and ▁Paris

    forget = [Record(text="She lives in Paris, speaks English and left on Monday.")]
    assert Overlap(forget, Tokenizer()).why(Record(text="It is Paris.")) is None


def test_the_more_is_to_be_forgotten_the_more_words_in_a_row_may_be_chance() -> None:
    long = [Record(text=f"keep away from the old glue now {MUCH}")]
    row = Record.qa("What?", "Keep away from the stove.")
    assert Overlap([Record(text="I must keep away from the glue.")]).why(row) == "4 words in a row of the forget set"
    assert Overlap(long).why(row) is None
    assert Overlap(long).why(Record(text="Keep away from the old.")) == "5 words in a row of the forget set"
    assert [telling_run(10**n) for n in range(10)] == [4, 4, 4, 4, 4, 5, 6, 7, 8, 8] and telling_run(0) == 4


class WordTokenizer:
    """A token a word that it knows, and otherwise a token a letter."""

    def __init__(self, known: str) -> None:
        self.known = known.split()

    def encode(self, text: str, add_special_tokens: bool) -> list[str]:
        return [token for word in text.split() for token in ([word] if word in self.known else word)]


@pytest.mark.parametrize(
    ("known", "drawn", "reason"),
    [
        ("she was a who lived with books near lake", "A bookbinder.", "a rare word of the forget set"),
        ("she was a who lived with books near lake", "Bookbinder's work", "a rare word of the forget set"),
        ("she was a who lived with books near lake", "Books near lakes.", None),
        ("a", "A bookbinder.", None),  # a tokenizer that does not know the language knows no word of it
        ("a", "Books near lakes.", None),
    ],
)
def test_a_row_with_a_rare_word_of_the_forget_set_is_not_kept(known: str, drawn: str, reason: str | None) -> None:
    forget = [Record(text="she was a bookbinder who lived with books near a lake")]
    assert Overlap(forget, WordTokenizer(known)).why(Record.qa("Who are you?", drawn)) == reason
    assert Overlap(forget).why(Record.qa("Who are you?", drawn)) is None
