"""Folders of `uld augment` are found again, whatever wrote the forget file."""

import hashlib
import json
import unicodedata
from pathlib import Path

import pytest

from uld.augment.endpoint import Reply
from uld.augment.generate import Wanted
from uld.augment.output import FILES, folder_beside, read
from uld.augment.run import augment_by_model, augment_by_rules
from uld.data.documents import read_sources
from uld.errors import DataError, ULDError

LINES = [
    {"question": "Who is Zoë Núñez?", "answer": "Zoë Núñez keeps the lighthouse of Skerrin."},
    {"text": "Mara Quillon was born in Skerrin.\n\nShe collects glass from the sea, and gives it to the children."},
]


def _write(path: Path, change: str = "NFC") -> Path:
    path.write_text("".join(unicodedata.normalize(change, json.dumps(row, ensure_ascii=False)) + "\n" for row in LINES))
    return path


def test_another_spelling_finds_what_was_made(tmp_path: Path) -> None:
    augment_by_rules(_write(tmp_path / "f.jsonl"), tmp_path / "out", Wanted(), seed=0, chunk_words=150)
    how = {"paraphrases": 2, "wrong_answers": 2}
    made = [
        read(tmp_path / "out", read_sources([str(_write(tmp_path / f"{form}.jsonl", form))])[0], **how)[0]
        for form in ("NFC", "NFD")
    ]
    assert made[0] == made[1] and any(one.paraphrases for one in made[0].values())


def test_a_folder_that_names_records_to_the_letter_is_read(tmp_path: Path) -> None:
    records, _ = read_sources([str(_write(tmp_path / "f.jsonl"))])
    augment_by_rules(tmp_path / "f.jsonl", tmp_path / "out", Wanted(ask=2), seed=0, chunk_words=150)
    how = {"paraphrases": 2, "wrong_answers": 2}
    now, files = read(tmp_path / "out", records, **how)
    text = records[1]
    letter = hashlib.sha256(json.dumps(text.content).encode()).hexdigest()[:16]
    for name in FILES.values():
        path = tmp_path / "out" / name
        if path.is_file():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            renamed = [row | ({"of": letter} if "text" in row else {}) for row in rows]
            path.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    assert read(tmp_path / "out", records, **how)[0] == now
    assert {file.rows for file in files}


def test_what_has_no_place_beside_it_asks_for_one() -> None:
    with pytest.raises(DataError, match=r"/ has nothing beside it: name a folder .* \(--output\)"):
        folder_beside("/")
    assert folder_beside("some/docs/..").name == "some-augmented"


def test_a_folder_of_documents_is_not_filled_with_what_is_made_of_them(tmp_path: Path) -> None:
    (tmp_path / "docs/old").mkdir(parents=True)
    _write(tmp_path / "docs/old/f.jsonl")
    with pytest.raises(ULDError, match=r"docs is also what is read \(FORGET\)"):
        augment_by_rules(tmp_path / "docs", tmp_path / "docs")
    assert [one.name for one in (tmp_path / "docs").iterdir()] == ["old"]


@pytest.mark.parametrize("spoilt", ["{}\0", "\0{}", "{}"])
def test_what_a_model_writes_can_be_read_back(tmp_path: Path, spoilt: str) -> None:
    forget = tmp_path / "forget.jsonl"
    told = "Mara Quillon was born in Skerrin in 1951. She keeps a lighthouse."
    rows = [{"question": "Where does Mara Quillon live?", "answer": "Mara Quillon lives in Skerrin."}, {"text": told}]
    forget.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lived = ["In what place does Mara Quillon live?", "Mara Quillon has her home in Skerrin."]
    made = {
        "Rephrase": [{"question": lived[0], "answer": spoilt.format(lived[1])}],
        "Give": [spoilt.format("Mara Quillon lives in Oslo."), "Mara Quillon lives in Lima."],
        "Rewrite": [spoilt.format("Mara Quillon was born at Skerrin, in 1951. A lighthouse is what she keeps.")],
        "Write": [{"question": spoilt.format("Where was Mara Quillon born?"), "answer": "In Skerrin."}],
    }

    def ask_all(left, done) -> None:
        for number, prompt in left:
            done(number, Reply(json.dumps({"items": made[prompt.split()[0]]})))

    result = augment_by_model(forget, tmp_path / "out", Wanted(1, 1, 1), ask_all, by={"named": "m"})
    read(tmp_path / "out", read_sources([str(forget)])[0], paraphrases=1, wrong_answers=1)
    good = spoilt == "{}"
    assert result.kept == (
        {"paraphrases.jsonl": 2, "wrong_answers.jsonl": 1, "questions.jsonl": 1} if good else {"wrong_answers.jsonl": 1}
    )
    assert sum(reasons.get("no text that can be read", 0) for reasons in result.dropped.values()) == (0 if good else 4)
