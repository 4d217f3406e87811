import hashlib
import json
import logging
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pytest

from uld.data.record import DataError, refuse_equal
from uld.data.tofu import FORGET_SPLITS, SPLITS, check_split, held_out, load_tofu, training_set

RETAINED, EVALUATED = 30, 6


def row(name: str, **more: Any) -> dict[str, Any]:
    return {"question": f"Who is {name}?", "answer": f"{name} is a person.", **more}


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


@pytest.fixture
def tofu(tmp_path: Path) -> Path:
    """A small TOFU: 30 people to keep, the first 6 of them evaluated, and 4 to forget, the last 2 also by forget05."""
    kept, gone = [row(f"K{i}") for i in range(RETAINED)], [row(f"F{i}") for i in range(4)]
    perturbed = {"paraphrased_answer": "p", "perturbed_answer": ["w"]}
    write(tmp_path / "full.json", kept + gone)
    write(tmp_path / "forget10.json", gone)
    write(tmp_path / "retain90.json", kept)
    write(tmp_path / "forget05.json", gone[2:])
    write(tmp_path / "retain95.json", kept + gone[:2])
    write(tmp_path / "forget10_perturbed.json", [one | perturbed for one in gone])
    write(tmp_path / "retain_perturbed.json", [one | perturbed for one in kept[:EVALUATED]])
    write(tmp_path / "real_authors_perturbed.json", [row("R") | {"perturbed_answer": ["w"]}])
    return tmp_path


@pytest.fixture
def augmented(tofu: Path) -> Path:
    folder = tofu / "augmented"
    folder.mkdir()
    gone = load_tofu("forget10", tofu)
    for split, rows in (("forget10", gone), ("forget05", gone[2:])):
        paraphrased = [
            one
            | {"paraphrased_questions": [f"{one['question']} {n}" for n in range(3)]}
            | {"paraphrased_answers": [f"{one['answer']} {n}" for n in range(4)]}
            for one in rows
        ]
        write(folder / f"{split}_paraphrased.jsonl", paraphrased)
    write(folder / "forget10_perturbed.jsonl", [one | {"perturbed_answers": list("xyz")} for one in gone])
    return folder


def pairs(records: list[Any]) -> list[tuple[str, str]]:
    return [(record.messages[0][1], record.messages[1][1]) for record in records]


def test_splits_are_read_as_they_stand(tofu: Path) -> None:
    assert load_tofu("forget10", tofu) == [row(f"F{i}") for i in range(4)]
    assert load_tofu("forget10_perturbed", str(tofu))[0] == row("F0", paraphrased_answer="p", perturbed_answer=["w"])
    assert load_tofu("real_authors_perturbed", tofu) == [row("R", perturbed_answer=["w"])]  # no paraphrase there


def test_d_f_is_the_forget_set_and_its_first_paraphrases_in_file_order(tofu: Path, augmented: Path) -> None:
    made = training_set("forget10", tofu, augmented)
    plain = [(f"Who is F{i}?", f"F{i} is a person.") for i in range(4)]
    assert pairs(made.forget) == plain + [(f"{q} {n}", f"{a} {n}") for q, a in plain for n in range(2)]
    assert [r.source for r in made.forget[:2]] == ["forget10:1", "forget10:2"]
    assert made.forget[-1].source == f"{augmented}/forget10_paraphrased.jsonl:4"
    assert len(training_set("forget10", tofu, augmented, paraphrases=9).forget) == 4 + 4 * 3  # pairs, not halves


def test_d_r_is_rows_that_are_not_evaluated_and_wrong_answers(tofu: Path, augmented: Path) -> None:
    made = training_set("forget10", tofu, augmented)
    number = len(made.forget)  # the paper's: as many as D'f
    assert len(made.retain) == number + 8
    expected = [EVALUATED + k * (RETAINED - EVALUATED) // number for k in range(number)]
    assert [r.messages[0][1] for r in made.retain[:number]] == [f"Who is K{i}?" for i in expected]
    assert [r.source for r in made.retain[:number]] == [f"retain90:{i + 1}" for i in expected]  # the line in its file
    assert pairs(made.retain[number:]) == [(f"Who is F{i}?", answer) for i in range(4) for answer in "xy"]
    refuse_equal(made.forget, made.retain)


@pytest.mark.parametrize("number", [0, 1, 7, 24])
def test_retain_rows_are_distinct_evenly_spaced_and_never_evaluated(tofu: Path, number: int) -> None:
    made = training_set("forget10", tofu, retain_rows=number)
    chosen = pairs(made.retain)
    assert len(set(chosen)) == number
    assert not set(chosen) & {(one["question"], one["answer"]) for one in load_tofu("retain_perturbed", tofu)}
    places = [int(r.source.partition(":")[2]) for r in made.retain]
    gaps = {b - a for a, b in pairwise(places)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_row_with_an_evaluated_question_but_another_answer_may_be_used(tofu: Path) -> None:
    kept = load_tofu("retain90", tofu)
    kept[20]["question"] = kept[0]["question"]  # as happens once in TOFU
    write(tofu / "retain90.json", kept)
    used = pairs(training_set("forget10", tofu, retain_rows=24).retain)
    assert ("Who is K0?", "K20 is a person.") in used and ("Who is K0?", "K0 is a person.") not in used


def test_rows_that_only_a_larger_split_forgets_may_be_retained(tofu: Path) -> None:
    """Forgetting forget05 keeps the rest of forget10: it is in retain95 and is not evaluated."""
    used = pairs(training_set("forget05", tofu, retain_rows=26).retain)
    assert ("Who is F0?", "F0 is a person.") in used and ("Who is F2?", "F2 is a person.") not in used


def test_more_retain_rows_than_there_are_is_refused(tofu: Path, augmented: Path) -> None:
    with pytest.raises(DataError, match=r"25 retain rows are wanted, but retain90 has only 24 .*--retain-rows"):
        training_set("forget10", tofu, retain_rows=25)


def test_without_augmentation_nothing_is_augmented(tofu: Path, augmented: Path) -> None:
    for made in (
        training_set("forget10", tofu),
        training_set("forget10", tofu, augmented, paraphrases=0, wrong_answers=0),
    ):
        assert (len(made.forget), len(made.retain)) == (4, 4)
        assert [Path(file.path).name for file in made.files] == [
            "forget10.json",
            "retain90.json",
            "retain_perturbed.json",
        ]


def test_digests_name_every_file_with_its_true_rows(tofu: Path, augmented: Path) -> None:
    files = training_set("forget05", tofu, augmented).files
    assert [(Path(file.path).name, file.rows) for file in files] == [
        ("forget05.json", 2),
        ("retain95.json", RETAINED + 2),
        ("retain_perturbed.json", EVALUATED),
        ("forget05_paraphrased.jsonl", 2),
        ("forget10_perturbed.jsonl", 4),  # the larger split's wrong answers serve the smaller one
    ]
    for file in files:
        assert file.sha256 == hashlib.sha256(Path(file.path).read_bytes()).hexdigest()
        assert file.rows == len(Path(file.path).read_text().splitlines())


def test_wrong_answers_are_never_right_repeated_or_blank(tofu: Path, augmented: Path) -> None:
    gone = load_tofu("forget10", tofu)
    lists = [[gone[0]["answer"], f" {gone[0]['answer']}\n", "x"], ["x", "x ", "y", "z"], ["", " ", "x"], []]
    rows = [one | {"perturbed_answers": wrong} for one, wrong in zip(gone, lists, strict=True)]
    write(augmented / "forget10_perturbed.jsonl", rows)
    wrong = pairs(training_set("forget10", tofu, augmented, retain_rows=0).retain)
    questions = [one["question"] for one in gone]
    assert wrong == [(questions[0], "x"), (questions[1], "x"), (questions[1], "y"), (questions[2], "x")]


def test_wrong_answers_of_the_split_itself_come_first(tofu: Path, augmented: Path) -> None:
    rows = [one | {"perturbed_answers": ["own"]} for one in load_tofu("forget05", tofu)]
    write(augmented / "forget05_perturbed.jsonl", rows)
    wrong = training_set("forget05", tofu, augmented, retain_rows=0).retain
    assert [answer for _, answer in pairs(wrong)] == ["own", "own"]


def test_augmentation_is_matched_by_question_and_answer(tofu: Path, augmented: Path) -> None:
    """Whatever the order of the file, with a question that occurs twice, and with a row repeated: its first counts."""
    gone = load_tofu("forget10", tofu)
    gone[1]["question"] = gone[0]["question"]
    write(tofu / "forget10.json", gone)
    rows = [one | {"paraphrased_questions": ["q"], "paraphrased_answers": [f"para {i}"]} for i, one in enumerate(gone)]
    repeated = rows[0] | {"paraphrased_answers": ["a second time"]}
    write(augmented / "forget10_paraphrased.jsonl", [*rows[::-1], repeated])
    made = training_set("forget10", tofu, augmented, wrong_answers=0)
    assert [answer for _, answer in pairs(made.forget[4:])] == [f"para {i}" for i in range(4)]


def test_what_is_taken_and_what_is_missing_goes_to_the_log(
    tofu: Path, augmented: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = augmented / "forget10_paraphrased.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with caplog.at_level(logging.INFO):
        training_set("forget10", tofu, augmented)
    assert f"{path} augments only 3 of 4 rows to forget" in caplog.messages
    assert caplog.messages[-1] == (
        "forget10: to forget 4 rows and 6 paraphrases; "
        "to retain 10 of 24 rows that are not evaluated and 8 wrong answers"
    )


QA = '{"question": "q", "answer": "a"'


@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        (
            "forget10.json",
            ['{"question": "q"}'],
            ":1: expected a JSON object with question, answer, but 'answer' is miss",
        ),
        ("forget10.json", ['{"question": "q", "answer": 3}'], "'answer' is not a text"),
        ("forget10.json", [], "forget10.json: the file is empty"),
        ("retain90.json", [QA + "}", "", "[]"], "retain90.json:3: expected a JSON object"),
        ("retain_perturbed.json", [QA + "}"], "'perturbed_answer' is missing"),
        ("retain_perturbed.json", [QA + ', "perturbed_answer": ["w"]}'], "'paraphrased_answer' is missing"),
        ("retain_perturbed.json", [QA + ', "perturbed_answer": "w"}'], "'perturbed_answer' is not a list of texts"),
        (
            "augmented/forget10_paraphrased.jsonl",
            [QA + "}"],
            ".jsonl:1: expected a JSON object with question, answer, p",
        ),
        ("augmented/forget10_perturbed.jsonl", [QA + ', "perturbed_answers": [1]}'], "is not a list of texts"),
        ("augmented/forget10_perturbed.jsonl", [QA + ', "perturbed_answers": ["w"]}'], "belongs to other data"),
    ],
)
def test_a_wrong_file_is_reported(tofu: Path, augmented: Path, name: str, lines: list[str], expected: str) -> None:
    (tofu / name).write_text("".join(line + "\n" for line in lines))
    with pytest.raises(DataError) as caught:
        training_set("forget10", tofu, augmented)
    assert expected in str(caught.value) and str(caught.value).startswith(str(tofu))


def test_a_missing_file_is_reported_with_its_flag(tofu: Path, augmented: Path) -> None:
    for name, flag in (
        ("augmented/forget10_paraphrased.jsonl", "--augmented"),
        ("augmented/forget10_perturbed.jsonl", "--augmented"),
        ("retain90.json", "--data"),
    ):
        text = (tofu / name).read_text()
        (tofu / name).unlink()
        with pytest.raises(DataError, match=f"has no {Path(name).name}: {flag} must name a folder"):
            training_set("forget10", tofu, augmented)
        (tofu / name).write_text(text)


@pytest.mark.parametrize("split", ["forget20", "full", "retain90", ""])
def test_a_name_that_is_no_forget_split_is_refused(tofu: Path, split: str) -> None:
    with pytest.raises(DataError, match=r"choose one of forget01, forget05, forget10 \(--split\)"):
        training_set(split, tofu)
    with pytest.raises(DataError):
        check_split(split)


def test_a_name_that_is_no_split_is_refused(tofu: Path) -> None:
    with pytest.raises(DataError, match="TOFU has no split 'forget20': choose one of full, forget01"):
        load_tofu("forget20", tofu)


def test_an_unreachable_hub_is_reported_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub\nand a second line")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError) as caught:
        load_tofu("forget10")
    assert str(caught.value) == "cannot read locuslab/TOFU from the Hub (ConnectionError): name a folder with --data"


def test_the_hub_gives_the_same_training_set_as_a_folder(
    tofu: Path, augmented: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hub(name: str, config: str, split: str) -> Any:
        assert (name, split) == ("locuslab/TOFU", "train")
        return datasets.Dataset.from_list(load_tofu(config, tofu))

    monkeypatch.setattr(datasets, "load_dataset", hub)
    online, offline = training_set("forget10", None, augmented), training_set("forget10", tofu, augmented)
    assert (online.forget, online.retain) == (offline.forget, offline.retain)
    assert [(file.path, file.rows) for file in online.files[:3]] == [
        ("locuslab/TOFU/forget10", 4),
        ("locuslab/TOFU/retain90", RETAINED),
        ("locuslab/TOFU/retain_perturbed", EVALUATED),
    ]
    assert len({file.sha256 for file in online.files}) == 5
    before = online.files[0].sha256
    write(tofu / "forget10.json", [row("F0"), row("F1"), row("F2"), row("other")])
    assert training_set("forget10", None, augmented).files[0].sha256 != before


def test_what_is_held_out_is_neither_trained_on_nor_evaluated(tofu: Path, augmented: Path) -> None:
    for number in (None, 0, 5):
        made = training_set("forget10", tofu, augmented, retain_rows=number)
        probes, rest = held_out("forget10", tofu, augmented, retain_rows=number)
        assert [(q, a) for q, a, *_ in probes] == [(f"Who is F{i}? 2", f"F{i} is a person. 2") for i in range(4)]
        assert not {(q, a) for q, a, *_ in probes} & set(pairs(made.forget))
        assert [learnt for *_, learnt in probes] == pairs(made.forget)[:4]
        assert all(wrong == ["z"] for _, _, wrong, _ in probes)
        kept = pairs(made.retain)[: -4 * 2]
        pool = {(one["question"], one["answer"]) for one in load_tofu("retain90", tofu)[EVALUATED:]}
        assert len(kept) + len(rest) == len(pool) and {*kept, *pairs(rest)} == pool


def test_where_no_wrong_answer_is_to_spare_those_trained_on_serve(tofu: Path, augmented: Path) -> None:
    assert held_out("forget10", tofu, augmented, wrong_answers=3)[0][0][2] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"paraphrases": 3}, "every paraphrase .*--paraphrases"),
        ({"retain_rows": 24}, "every retain row .*--retain-rows"),
    ],
)
def test_nothing_to_hold_out_is_refused(tofu: Path, augmented: Path, settings: dict[str, int], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        held_out("forget10", tofu, augmented, **settings)


def test_the_choice_does_not_depend_on_the_hash_seed(tofu: Path, augmented: Path) -> None:
    code = (
        "import sys; from uld.data.tofu import training_set;"
        "s = training_set('forget10', sys.argv[1], sys.argv[2]); print(s.forget, s.retain)"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, str(tofu), str(augmented)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("0", "1")
    ]
    assert outputs[0] == outputs[1] != b""


def test_the_real_splits_fit_together(data_dir: Path) -> None:
    rows = {name: load_tofu(name, data_dir / "tofu") for name in SPLITS}
    assert len(rows["full"]) == 4000
    for (forget, retain), number in zip(FORGET_SPLITS.items(), (40, 200, 400), strict=True):
        assert len(rows[forget]) == number == len(rows[f"{forget}_perturbed"])
        assert rows[retain] + rows[forget] == rows["full"]
        assert [(r["question"], r["answer"]) for r in rows[f"{forget}_perturbed"]] == [
            (r["question"], r["answer"]) for r in rows[forget]
        ]


@pytest.mark.parametrize(("split", "wrong"), [("forget01", 80), ("forget05", 399), ("forget10", 797)])
def test_the_real_training_sets(data_dir: Path, split: str, wrong: int) -> None:
    made = training_set(split, data_dir / "tofu", data_dir / "tofu_augmented")
    forget = load_tofu(split, data_dir / "tofu")
    assert len(made.forget) == 3 * len(forget)
    assert len(made.retain) == len(made.forget) + wrong
    evaluated = {(r["question"], r["answer"]) for r in load_tofu("retain_perturbed", data_dir / "tofu")}
    assert not evaluated & set(pairs(made.retain)) and len(set(pairs(made.retain))) == len(made.retain)
    refuse_equal(made.forget, made.retain)
    right = {r["question"]: r["answer"] for r in forget}
    for question, answer in pairs(made.retain[len(made.forget) :]):
        assert answer != right[question]
    asked = {r["question"]: r for r in load_tofu(f"{split}_perturbed", data_dir / "tofu")}
    for question, answer in pairs(made.retain[len(made.forget) :]):  # the benchmark's own wrong answers stay unseen
        assert answer not in asked[question]["perturbed_answer"]
    probes, rest = held_out(split, data_dir / "tofu", data_dir / "tofu_augmented")
    assert len(probes) > 0.95 * len(forget) and not set(pairs(rest)) & (evaluated | set(pairs(made.retain)))
    assert not {(q, a) for q, a, *_ in probes} & set(pairs(made.forget))
    scored = {r["paraphrased_answer"] for r in asked.values()} | {
        w for r in asked.values() for w in r["perturbed_answer"]
    }
    assert not scored & {text for _, a, wrong, _ in probes for text in (a, *wrong)}
