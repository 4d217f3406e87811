"""MUSE and KnowUnDo from folders: both layouts, missing parts, and bad files in one sentence."""

import json

import pytest

from uld.data.knowundo import load_knowundo
from uld.data.muse import load_muse
from uld.data.record import DataError

QA = [{"question": "who?", "answer": "she", "more": 1}]


def write(folder, files):
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_the_layout_of_the_release(tmp_path):
    write(
        tmp_path,
        {
            "knowmem/forget_qa.json": QA,
            "knowmem/retain_qa.json": QA,
            "knowmem/forget_qa_icl.json": QA,
            "knowmem/retain_qa_icl.json": QA,
            "verbmem/forget.json": [{"prompt": "a", "gt": "b"}, "c d", {"text": "e"}],
            "privleak/forget.json": ["x"],
            "privleak/holdout.json": [{"text": "y"}],
        },
    )
    parts = load_muse(data=tmp_path)
    assert parts["forget_qa"] == [{"question": "who?", "answer": "she"}]
    assert parts["verbmem"] == [{"prompt": "a", "gt": "b"}, {"text": "c d"}, {"text": "e"}]
    assert parts["forget"] == [{"text": "x"}] and parts["holdout"] == [{"text": "y"}]
    assert len(parts) == 7


def test_files_side_by_side_and_parts_that_are_not_there(tmp_path):
    parts = load_muse(data=write(tmp_path, {"forget_qa.json": QA, "retain2_qa.json": QA, "retain2_qa_icl.json": QA}))
    assert set(parts) == {"forget_qa", "retain_qa", "retain_qa_icl"}


@pytest.mark.parametrize("corpus", ["books", "news"])
def test_the_real_questions(data_dir, corpus):
    parts = load_muse(data=data_dir / f"muse_{corpus}_qa")
    sizes = {"forget_qa": 100, "forget_qa_icl": 10, "retain_qa": 100, "retain_qa_icl": 10}
    assert {name: len(rows) for name, rows in parts.items()} == sizes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "forget_qa.json: the file is empty"),
        ("{}", "forget_qa.json:1: expected an object with question and answer"),
        ([], "forget_qa.json: there is no row in it: the list is empty"),
        ([{"question": "who?"}], "forget_qa.json record 1: expected an object with question and answer"),
        ([*QA, {"question": "who?", "answer": " "}], "forget_qa.json record 2: 'answer' is empty"),
        (
            [*QA, {"question": ["who?"], "answer": "a"}],
            "forget_qa.json record 2: 'question' must be a string, not list",
        ),
        ([7], "forget_qa.json record 1: expected an object"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, content, said):
    with pytest.raises(DataError, match=said.replace("?", r"\?")):
        load_muse(data=write(tmp_path, {"forget_qa.json": content}))


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no part of MUSE"):
        load_muse(data=tmp_path)
    with pytest.raises(DataError, match="holds no part of MUSE"):
        load_muse(data=tmp_path / "nowhere")
    with pytest.raises(DataError, match="no corpus 'book': choose one of news, books"):
        load_muse("book")
    with pytest.raises(DataError, match="cannot read knowmem/forget_qa of muse-bench/MUSE-News from the Hub"):
        load_muse("news")
    for both in ((None, None), ("news", tmp_path)):
        with pytest.raises(DataError, match="give either --corpus"):
            load_muse(*both)


def test_knowundo(tmp_path):
    rows = [{"text": "where?", "labels": "here"}]
    write(tmp_path, {"unlearn_val.json": rows, "retention_val.json": rows * 2})
    sets = load_knowundo(tmp_path)
    assert [len(records) for records in sets.values()] == [1, 2]
    assert sets["unlearn"][0].messages == (("user", "where?"), ("assistant", "here"))
    for part, said in (("train", "has no unlearn_train.json"), ("test", "no part 'test': choose one of val, train")):
        with pytest.raises(DataError, match=said):
            load_knowundo(tmp_path, part)
    write(tmp_path, {"unlearn_val.json": [*rows, {"text": "where?"}]})
    with pytest.raises(DataError, match=r"unlearn_val.json record 2: expected an object with text and labels"):
        load_knowundo(tmp_path)
    write(tmp_path, {"unlearn_val.json": []})
    with pytest.raises(DataError, match="the list is empty"):
        load_knowundo(tmp_path)


@pytest.mark.parametrize(("part", "sizes"), [("val", [110, 108]), ("train", [400, 441])])
def test_the_real_people(data_dir, part, sizes):
    assert [len(records) for records in load_knowundo(data_dir / "knowundo_privacy", part).values()] == sizes
