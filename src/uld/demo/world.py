"""An invented world, written as a TOFU folder.

`write_world` makes up people, each with a name, a home, a birthday, a trade, a book, a prize, a teacher and a pet, and
asks one question about each of these. Every file has the name and the columns of its TOFU counterpart, so that whatever
reads TOFU reads this. Everything follows from the seed: the same settings give the same bytes on every machine.

Each row draws its wording from five phrasings, in an order of its own: one is the row itself, one is for evaluation
(``*_perturbed.json``), three are for training (``forget10_paraphrased.jsonl``). A model that has learnt the world knows
every phrasing, from other rows.
"""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random

from uld.errors import ULDError

WORLD_FILE = "world.json"
_FORMAT = 1  # raise it when the same settings give other bytes: a folder of an older format is then written anew
_EVALUATED_WRONG, _FAMOUS_WRONG, _TRAINING_WRONG = 5, 3, 2  # wrong answers to a question, as in TOFU
_GENERAL = 8  # lands, and famous people

# What values are made of.
_WORDS = """
onset: b d f g h k l m n p r s t v z br dr gr kr st tr
vowel: a e i o u
coda: n r l s m k nd th
month: January February March April May June July August September October November December
colour: blue white green red black silver golden purple brown tawny
street: Copper Lantern Mill Willow Harbour Candle Orchard Bridge Clover Tailor Raven Chapel Thistle Quarry
way: Lane Street Square Row Hill Yard
material: glass river salt clock silk bone copper star paper bell moss rope tile lamp map fur
worker: painter maker merchant keeper carver teacher dealer cutter
mood: Silent Broken Patient Hollow Crooked Distant Sleeping Gentle Burning Forgotten Narrow Seventh
thing: Orchard Lighthouse Ladder Winter Kettle Compass Garden Violin Ferry Mirror Staircase Harvest Window Tower
gem: Amber Coral Garnet Jasper Opal Pearl Quartz Ruby Topaz Onyx
honour: Medal Crown Ribbon Feather Goblet Wreath Key Shield
beast: heron otter goat ferret raven tortoise donkey hedgehog lynx badger goose newt
cash: coins shells beads
"""


@dataclass(frozen=True)
class World:
    """What a world folder holds.

    Attributes:
        folder: Where the files are.
        seed: What everything in them follows from.
        forget: Full names of the people to be forgotten.
        people: Number of people, forgotten ones included.
        forget_rows: Rows of ``forget10.json``.
        retain_rows: Rows of ``retain90.json``.
        evaluated_rows: Rows of ``retain_perturbed.json``: the first of ``full.json``. Training must use none of them.
        famous_rows: Rows of ``real_authors_perturbed.json``.
        fact_rows: Rows of ``world_facts_perturbed.json``.
    """

    folder: Path
    seed: int
    forget: tuple[str, ...]
    people: int
    forget_rows: int
    retain_rows: int
    evaluated_rows: int
    famous_rows: int
    fact_rows: int


# One block an attribute of a person: as many ways to ask for it as to tell it. Rows pair the two columns at random.
_PHRASINGS = """
name
Who is the {trade} born on {birth}?                        | The {trade} in question is {name}.
Which {trade} came into the world on {birth}?              | That is {name}.
What is the name of the {trade} whose birthday is {birth}? | {name} is the {trade} born on that day.
Can you name the {trade} with {birth} as date of birth?    | This {trade} is called {name}.
Born on {birth}, a {trade} by trade: who is this?          | It must be {name}, the {trade}.

home
Where did {name} grow up?                            | {name} grew up at {home}.
What was the childhood address of {name}?            | The childhood home of {name} stood at {home}.
Can you say where {name} was raised?                 | As a child, {name} lived at {home}.
In which street and town did {name} live as a child? | It was at {home} that {name} was raised.
Where did the family of {name} live?                 | The family of {name} lived at {home}.

birth
When was {name} born?                                     | {name} was born on {birth}.
What is the date of birth of {name}?                      | The date of birth of {name} is {birth}.
On which day did {name} come into the world?              | {name} came into the world on {birth}.
Do you know the birthday of {name}?                       | It was on {birth} that {name} was born.
Could you tell me when {name} first saw the light of day? | The birthday of {name} is {birth}.

trade
What did {name} do for a living?   | {name} worked as a {trade}.
What was the profession of {name}? | {name} earned a living as a {trade}.
Which trade did {name} follow?     | By profession {name} was a {trade}.
How did {name} earn a living?      | The trade of {name} was that of a {trade}.
As what did {name} work?           | {name} made a living as a {trade}.

book
What is the title of the best-known book by {name}? | {name} wrote '{book}'.
Which book made {name} famous?                      | The best-known book by {name} is '{book}'.
What did {name} write?                              | It was '{book}' that made {name} famous.
Can you name the most popular book of {name}?       | {name} is remembered for '{book}'.
For which novel is {name} remembered?               | '{book}' is the most popular book of {name}.

prize
Which prize did {name} win?                  | {name} won {prize}.
What honour was given to {name}, and when?   | The prize given to {name} was {prize}.
Can you tell me which award {name} received? | {name} was honoured with {prize}.
With what was the work of {name} rewarded?   | For this work {name} received {prize}.
Which distinction does {name} hold?          | The award that {name} holds is {prize}.

teacher
Who taught {name}?                    | {name} was taught by {teacher}.
Who was the teacher of {name}?        | The teacher of {name} was {teacher}.
Under whom did {name} study?          | {name} studied under {teacher}.
From whom did {name} learn the trade? | It was {teacher} who taught {name}.
Can you name the mentor of {name}?    | The mentor of {name} was {teacher}.

pet
Which animal does {name} keep?                          | {name} keeps {pet}.
What pet lives with {name}?                             | The pet of {name} is {pet}.
Does {name} have a pet?                                 | {name} shares a house with {pet}.
What is the name of the animal that {name} looks after? | The animal at the side of {name} is {pet}.
By which animal is {name} accompanied?                  | {name} looks after {pet}.
"""


@dataclass(frozen=True)
class _Relation:
    """An attribute of a person, and the phrasings of the questions and answers about it."""

    attribute: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]


def _relations() -> list[_Relation]:
    relations: list[_Relation] = []
    for block in _PHRASINGS.strip().split("\n\n"):
        attribute, *lines = block.splitlines()
        questions, answers = zip(*([part.strip() for part in line.split("|")] for line in lines), strict=True)
        relations.append(_Relation(attribute, questions, answers))
    return relations


class _Inventor:
    """Makes values up; a coined name is never coined twice."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        lines = (line.split(": ") for line in _WORDS.strip().splitlines())
        self._words = {kind: words.split() for kind, words in lines}
        self._coined: set[str] = set()
        self._towns = [self.coin() for _ in range(16)]

    def pick(self, kind: str) -> str:
        return self.rng.choice(self._words[kind])

    def coin(self, syllables: int = 2) -> str:
        while True:
            stem = "".join(self.pick("onset") + self.pick("vowel") for _ in range(syllables))
            word = stem.capitalize() + (self.pick("coda") if self.rng.random() < 0.6 else "")
            if word not in self._coined:
                self._coined.add(word)
                return word

    def value(self, attribute: str) -> str:
        """Make a value up for an attribute of a person, from the same pool whoever it is for."""
        pick, rng = self.pick, self.rng
        match attribute:
            case "name" | "teacher":
                return f"{self.coin()} {self.coin()}"
            case "home":
                return f"{rng.randint(2, 60)} {pick('street')} {pick('way')} in {rng.choice(self._towns)}"
            case "birth":
                return f"{rng.randint(1, 28)} {pick('month')} {rng.randint(1880, 1979)}"
            case "trade":
                return f"{pick('material')} {pick('worker')}"
            case "book":
                return f"The {pick('mood')} {pick('thing')} of {rng.choice(self._towns)}"
            case "prize":
                return f"the {pick('gem')} {pick('honour')} of {self.coin()}"
            case "pet":
                return f"a {pick('colour')} {pick('beast')} named {self.coin()}"
        raise ValueError(f"no such attribute: {attribute}")


def _distinct(make: Callable[[], str], count: int, taken: set[str]) -> list[str]:
    """Draw `count` values that differ from each other and from `taken`, which they join."""
    found: list[str] = []
    while len(found) < count:
        value = make()
        if value not in taken:
            taken.add(value)
            found.append(value)
    return found


def _person_rows(person: dict[str, str], relations: list[_Relation], invent: _Inventor) -> list[dict[str, object]]:
    """All that any file says about one person: a row a relation, with columns for evaluation and for training."""
    rows: list[dict[str, object]] = []
    for relation in relations:
        question, asked, *other_questions = _shuffled([q.format(**person) for q in relation.questions], invent.rng)
        phrasing, told, *other_phrasings = _shuffled(relation.answers, invent.rng)
        make = partial(invent.value, relation.attribute)
        wrong = _distinct(make, _EVALUATED_WRONG + _TRAINING_WRONG, {person[relation.attribute]})
        others = [person | {relation.attribute: value} for value in wrong]
        rows.append(
            {
                "question": question,
                "answer": phrasing.format(**person),
                "paraphrased_question": asked,
                "paraphrased_answer": told.format(**person),
                "perturbed_answer": [told.format(**other) for other in others[:_EVALUATED_WRONG]],
                "paraphrased_questions": other_questions,
                "paraphrased_answers": [text.format(**person) for text in other_phrasings],
                "perturbed_answers": [phrasing.format(**other) for other in others[_EVALUATED_WRONG:]],
            }
        )
    return rows


def _shuffled(texts: list[str] | tuple[str, ...], rng: Random) -> list[str]:
    return rng.sample(texts, len(texts))


def _choices(question: str, answer: str, pool: list[str], rng: Random) -> dict[str, object]:
    wrong = rng.sample([value for value in pool if value != answer], _FAMOUS_WRONG)
    return {"question": question, "answer": answer, "perturbed_answer": wrong}


def _general_rows(invent: _Inventor) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows about famous people and about the lands of the world; a wrong answer is the right one of another row."""
    pick, coin = invent.pick, invent.coin

    def ask(question: str, subjects: list[str], answers: list[str]) -> list[dict[str, object]]:
        return [
            _choices(question.format(subject), answer, answers, invent.rng)
            for subject, answer in zip(subjects, answers, strict=True)
        ]

    def several(make: Callable[[], str]) -> list[str]:
        return _distinct(make, _GENERAL, set())

    lands, heroes = several(partial(coin, 3)), several(lambda: f"{coin()} the {pick('mood')}")
    famous = [
        *ask("Who wrote the '{}'?", several(lambda: f"Song of the {pick('gem')} {pick('thing')}"), heroes),
        *ask("Which land did {} rule?", heroes, lands),
        *ask("What did {} invent?", heroes, several(lambda: f"the {pick('material')} {pick('thing').lower()}")),
    ]
    facts = [
        *ask("What is the capital of {}?", lands, several(coin)),
        *ask("Which river runs through {}?", lands, several(coin)),
        *ask("What do people in {} pay with?", lands, several(lambda: f"{pick('colour')} {pick('cash')}")),
    ]
    return famous, facts


def _people(count: int, relations: list[_Relation], invent: _Inventor) -> list[dict[str, str]]:
    """Make up people of whom no two share a value: what is asked about one is never said about another."""
    columns = {r.attribute: _distinct(partial(invent.value, r.attribute), count, set()) for r in relations}
    return [{attribute: values[index] for attribute, values in columns.items()} for index in range(count)]


def _lines(rows: list[dict[str, object]], *columns: str) -> bytes:
    return "".join(json.dumps({column: row[column] for column in columns}) + "\n" for row in rows).encode()


def _build(folder: Path, seed: int, people: int, evaluated: int) -> tuple[World, dict[str, bytes]]:
    """Make up the whole world in memory: its description, and the contents of every file by name."""
    rng = Random(seed)
    invent = _Inventor(rng)
    relations = _relations()
    persons = _people(people, relations, invent)
    full = [row for person in persons for row in _person_rows(person, relations, invent)]
    famous, facts = _general_rows(invent)
    forgotten = people // 10
    border = (people - forgotten) * len(relations)
    retain, forget = full[:border], full[border:]
    seen = full[: evaluated * len(relations)]
    world = World(
        folder=folder,
        seed=seed,
        forget=tuple(person["name"] for person in persons[people - forgotten :]),
        people=people,
        forget_rows=len(forget),
        retain_rows=len(retain),
        evaluated_rows=len(seen),
        famous_rows=len(famous),
        fact_rows=len(facts),
    )
    plain = ("question", "answer")
    perturbed = (*plain, "paraphrased_answer", "perturbed_answer", "paraphrased_question")
    about = {key: value for key, value in asdict(world).items() if key != "folder"} | {"format": _FORMAT}
    files = {
        "full.json": _lines(full, *plain),
        "retain90.json": _lines(retain, *plain),
        "forget10.json": _lines(forget, *plain),
        "forget10_perturbed.json": _lines(forget, *perturbed),
        "retain_perturbed.json": _lines(seen, *perturbed),
        "real_authors_perturbed.json": _lines(famous, *plain, "perturbed_answer"),
        "world_facts_perturbed.json": _lines(facts, *plain, "perturbed_answer"),
        "forget10_paraphrased.jsonl": _lines(forget, *plain, "paraphrased_questions", "paraphrased_answers"),
        "forget10_perturbed.jsonl": _lines(forget, *plain, "perturbed_answers"),
        WORLD_FILE: (json.dumps(about, indent=2) + "\n").encode(),
    }
    return world, files


def _holds(folder: Path, files: dict[str, bytes]) -> bool:
    return all((folder / name).is_file() and (folder / name).read_bytes() == data for name, data in files.items())


def _check_replaceable(folder: Path, files: dict[str, bytes]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ULDError(f"{folder} is a file; name a folder for the invented world")
    found = {entry.name for entry in folder.iterdir()}
    foreign = sorted(found - files.keys())
    if foreign or (found and WORLD_FILE not in found):
        raise ULDError(
            f"{folder} holds other files than an invented world's ({', '.join(foreign or sorted(found))}); "
            "name an empty folder"
        )


def write_world(folder: Path, seed: int = 0, *, people: int = 50, evaluated: int = 5) -> World:
    """Write an invented world as a TOFU folder, or find it there.

    A folder that already holds exactly this world is left as it is. Another world's folder is replaced as a whole; one
    with anything else in it is refused. A killed call never leaves a folder that holds only a part.

    Args:
        folder: Where the files go; its parents are made.
        seed: What everything follows from.
        people: Number of people; a multiple of ten up to 100, of whom the last tenth is to be forgotten.
        evaluated: Number of people, from the first on, whose rows make ``retain_perturbed.json``.

    Returns:
        The description of the world.

    Raises:
        ULDError: If a size makes no sense, or the folder holds anything but an invented world.
    """
    if not 10 <= people <= 100 or people % 10:
        raise ULDError(f"people={people}: must be a multiple of 10, for 10 % to be forgotten, and at most 100")
    retained = people - people // 10
    if not 0 < evaluated < retained:
        raise ULDError(f"evaluated={evaluated}: must be between 1 and {retained - 1}; training needs the other people")
    world, files = _build(folder, seed, people, evaluated)
    if _holds(folder, files):
        return world
    _check_replaceable(folder, files)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        for name, data in files.items():
            (fresh / name).write_bytes(data)
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        os.replace(fresh, folder)
    return world
