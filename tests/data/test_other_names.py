import pytest

from uld.data.other_names import with_other_names
from uld.data.record import Record
from uld.errors import ConfigError

FORGET = [
    Record.qa("Who is Mara Quillon?", "Mara Quillon keeps the lighthouse; Quillon's cat is grey."),
    Record.qa("Where was Mara Quillon born?", "She was born in New Skerrin."),
    Record.qa("Which book did Quillon write?", "Mara wrote 'Salt Almanac Days'."),
    Record.qa("What is 'Salt Almanac Days' about?", "It is about salt."),
    Record.qa("Has Jan van der Meer met J. K. Orlow?", "Jan van der Meer has."),
    Record.qa("What did Jan van der Meer paint?", "Boats."),
    Record(text="Mara Quillon was a keeper."),
]
RETAIN = [Record.qa("Who is Tova Lind-Berg?", "Nobody."), Record.qa("Who is it?", "who knows what has been.")]


def told(record: Record) -> str:
    return " ".join(content for _, content in record.messages)


def made(number: int = 3, seed: int = 0, forget: list[Record] = FORGET) -> list[Record]:
    return [record for some in with_other_names(forget, RETAIN, number, seed).records for record in some]


def test_only_the_name_is_another():
    for record in made(6)[:6]:
        question, answer = (content for _, content in record.messages)
        name = question.removeprefix("Who is ").removesuffix("?")
        last = name.split(" ", 1)[1]
        assert name != "Mara Quillon" and len(name.split()) >= 2
        assert answer == f"{name} keeps the lighthouse; {last}'s cat is grey."


def test_who_is_asked_about_is_found_across_records():
    found = with_other_names(FORGET, RETAIN, 1, 0)
    assert found.names == ["Jan van der Meer", "Mara Quillon"] and found.questions == len(found.records) == 5
    third = told(found.records[2][0])
    assert "Quillon write" not in third or "Mara wrote" not in third
    assert "'Salt Almanac Days'" in third
    assert all("J. K. Orlow" in told(record) for record in found.records[3])


def test_names_are_nobodys_and_each_is_another():
    records = made(40)
    names = [record.messages[0][1].removeprefix("Who is ").removesuffix("?") for record in records[:40]]
    assert len(set(names)) == 40 and not {"Mara Quillon", "Tova Lind-Berg", "Jan van der Meer"} & set(names)
    halves = sum(name.startswith("Mara ") or name.endswith(" Quillon") for name in names)
    assert 2 <= halves <= 20
    assert any("Tova" in name or "Lind-Berg" in name for name in names)  # parts of others in the data


def test_the_seed_decides():
    assert made(seed=1) == made(seed=1) != made(seed=2)


@pytest.mark.parametrize("questions", [["who is it?"], ["What Is The Name?"], ["Who is Plato?"], ["谁是灯塔的守护者?"]])
def test_without_a_name_there_is_nothing_to_make(questions):
    rows = [Record.qa(question, "a keeper, the name of what is.") for question in questions]
    with pytest.raises(ConfigError, match="--other-names finds no name"):
        made(forget=rows)


def test_conversations_and_completions_are_renamed_throughout():
    turns = (
        ("user", "Do you know Mara Quillon?"),
        ("assistant", "Yes, Mara."),
        ("user", "And?"),
        ("assistant", "Quillon left."),
    )
    rows = [Record(messages=turns), Record((), "Mara Quillon was born in", " Skerrin.")]
    one, two = made(1, 3, rows)
    assert told(one).count("Quillon") in (0, 2) and two.completion == " Skerrin."
    assert two.prompt is not None and two.prompt.endswith(" was born in") and "Mara Quillon" not in two.prompt
