"""Records of other tools: each read in full, or refused in one sentence with its place."""

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from uld.data.documents import read_sources
from uld.data.formats import FORMATS, read_row
from uld.data.record import Record
from uld.errors import DataError

WHO, ANN = "Who keeps the mill?", "Ann Ferris keeps it."
TALK = (("user", WHO), ("assistant", ANN))
ALPACA = {"instruction": WHO, "input": "", "output": ANN}
TOFU = {"question": WHO, "answer": ANN, "perturbed_answer": ["Bob keeps it."]}


def turns(*texts: str, keys: tuple[str, str] = ("from", "value"), roles: tuple[str, ...] = ("human", "gpt")) -> Any:
    return [{keys[0]: roles[i % len(roles)], keys[1]: text} for i, text in enumerate(texts)]


def said(row: Any) -> Record:
    return read_row(row, "f:1")[0]


@pytest.mark.parametrize(
    ("row", "expected", "aside"),
    [
        (ALPACA, Record(messages=TALK), []),
        (
            {**ALPACA, "input": "The mill of Orle."},
            Record(messages=(("user", f"{WHO}\n\nThe mill of Orle."), TALK[1])),
            [],
        ),
        ({**ALPACA, "text": f"### Instruction:\n{WHO}\n\n### Response:\n{ANN}"}, Record(messages=TALK), ["text"]),
        ({"id": "x_1", "conversations": turns(WHO, ANN)}, Record(messages=TALK), ["id"]),
        (
            {"conversations": turns(WHO, ANN), "system": "Be brief."},
            Record(messages=(("system", "Be brief."), *TALK)),
            [],
        ),
        (
            {"conversations": turns("Be brief.", WHO, ANN, roles=("system", "user", "assistant"))},
            Record(messages=(("system", "Be brief."), *TALK)),
            [],
        ),
        (
            {"conversations": turns(WHO, ANN, keys=("role", "content"), roles=("user", "assistant"))},
            Record(messages=TALK),
            [],
        ),
        ({"text": WHO, "labels": ANN}, Record(messages=TALK), []),
        ({"prompt": "Ann keeps", "gt": "the mill."}, Record(prompt="Ann keeps", completion="the mill."), []),
        (
            {"subject": "Ann Ferris", "query": WHO, "answer": ANN, "level": "2", "type": "simple question"},
            Record(messages=TALK),
            ["subject", "level", "type"],
        ),
        ({"subject": "Ferris, Ann", "text": ANN}, Record(text=ANN), []),
        (
            TOFU | {"paraphrased_answer": "It is kept by Ann Ferris.", "paraphrased_question": "Whose is the mill?"},
            Record(messages=TALK),
            ["perturbed_answer", "paraphrased_answer", "paraphrased_question"],
        ),
        (
            {"question": WHO, "answer": ANN, "alternate": "Bob keeps it."},
            Record(messages=TALK, alternative="Bob keeps it."),
            [],
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "Be brief."},
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "Who keeps "}, {"type": "text", "text": "it?"}],
                    },
                    {"role": "assistant", "content": ANN, "weight": 1, "name": None},
                ],
                "parallel_tool_calls": False,
                "tools": [],
            },
            Record(messages=(("system", "Be brief."), ("user", "Who keeps it?"), TALK[1])),
            ["parallel_tool_calls", "tools"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_row_of_another_tool_says_what_it_says_there(row: Any, expected: Record, aside: list[str]) -> None:
    record, left = read_row(row, "f:1")
    assert (record.content, record.alternative) == (expected.content, expected.alternative)
    assert left == aside and record.source == "f:1"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"instruction": WHO}, "has 'instruction' but no 'output': a record of Alpaca has 'instruction' and 'output'"),
        ({"instruction": WHO, "output": " "}, "has 'instruction' but its 'output' is empty"),
        ({"input": WHO, "output": ANN}, "has 'output' but no 'instruction'"),
        ({**ALPACA, "output": ["a"]}, "'output' must be a string, not list"),
        ({**ALPACA, "history": [["a", "b"]]}, "the key 'history' is not read"),
        ({**ALPACA, "text": "Something else."}, "has 'text' beside 'instruction' and 'output' of Alpaca"),
        ({**ALPACA, "question": "Whose?"}, "has 'instruction' as in Alpaca and 'question'"),
        ({**ALPACA, "conversations": turns(WHO, ANN)}, "'instruction' as in Alpaca and 'conversations' as in ShareGPT"),
        ({"conversations": "a text"}, "'conversations' must be a list of"),
        ({"conversations": turns(WHO, ANN, "And when?")}, "ends in a user turn that nothing answers"),
        ({"conversations": turns(WHO, roles=("observation",))}, "'from' must be one of human, user, gpt"),
        ({"conversations": [{"from": "human", "value": 3}]}, "'value' must be a string, not int"),
        ({"conversations": [{"from": "gpt", "role": "user", "value": WHO}]}, "leave one of them"),
        ({"conversations": [{"from": "gpt", "value": ANN, "weight": 0}]}, "has the 'weight' 0"),
        ({"conversations": turns(WHO, ANN), "tools": "[{}]"}, "the key 'tools' is not read"),
        ({"text": WHO, "labels": [1, 0]}, "'labels' must be a string, not list"),
        ({"labels": ANN}, "has 'labels' but no 'text': a record of KnowUnDo has 'text' and 'labels'"),
        ({"text": WHO, "label": "politics"}, "the key 'label' is not read"),
        ({"prompt": "Ann", "completion": "keeps", "gt": "it"}, "has 'gt' as in MUSE and 'completion'"),
        ({"prompt": "Ann", "gt": None}, "has 'prompt' but no 'completion'"),
        ({"query": WHO}, "has 'query' but no 'answer': a record of RWKU has 'query' and 'answer'"),
        ({"subject": "Invoices of May", "text": ANN}, "the key 'subject' is not read"),
        ({"question": WHO, "answer": ANN, "paraphrased_answer": "So."}, "the key 'paraphrased_answer' is not read"),
        ({**TOFU, "options": ["a"]}, "the key 'options' is not read"),
        ({"input": {"messages": []}, "preferred_output": [{"role": "assistant"}]}, "has 'input' but no 'instruction'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "must be one of system, user, assistant, not 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part of the type 'image_url'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path: Path, row: Any, told: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        read_sources([str(path)])
    assert str(caught.value).startswith(f"{path}:2: ") and told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_with_the_keys_of_two_formats_is_refused() -> None:
    texts: dict[str, Any] = {key: f"The {key} of Ann." for one in FORMATS for key in one.needs}
    texts |= {"conversations": turns(WHO, ANN), "perturbed_answer": ["Wrong."], "subject": "Ann"}
    for one, other in itertools.combinations(FORMATS, 2):
        assert said({key: texts[key] for key in one.needs})
        if not set(other.needs) <= set(one.keys) and not set(one.needs) <= set(other.keys):
            with pytest.raises(DataError):
                said({key: texts[key] for key in (*one.needs, *other.needs)})


def test_files_of_every_kind_hold_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "alpaca.json").write_text(json.dumps([ALPACA, {**ALPACA, "instruction": "Whose?"}]))
    (tmp_path / "muse.json").write_text(json.dumps(["A first passage.", "A second one."]))
    (tmp_path / "shared.csv").write_text(
        "id,conversations\n" + '1,"' + json.dumps(turns(WHO, ANN)).replace('"', '""') + '"\n'
    )
    (tmp_path / "tofu.jsonl").write_text(json.dumps(TOFU) + "\n")
    with caplog.at_level(logging.INFO):
        records, files = read_sources([str(tmp_path)])
    assert [file.rows for file in files] == [2, 2, 1, 1]
    assert [record.text for record in records[2:4]] == ["A first passage.", "A second one."]
    assert records[4].messages == records[5].messages == TALK
    assert "'perturbed_answer' (1 rows)" in caplog.text and "'conversations'" not in caplog.text
    (tmp_path / "mixed.json").write_text(json.dumps(["A passage.", {"text": "Another."}]))
    with pytest.raises(DataError, match=r"mixed.json record 1: expected a JSON object"):
        read_sources([str(tmp_path / "mixed.json")])


def test_the_real_files_are_read_as_they_are(data_dir: Path) -> None:
    sizes = {"knowundo_privacy/unlearn_val.json": 110, "tofu/forget10_perturbed.json": 400}
    for name, number in sizes.items():
        records, _ = read_sources([str(data_dir / name)])
        assert len(records) == number and all(len(record.messages) == 2 for record in records)
