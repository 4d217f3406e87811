"""One pipe: the worked example runs through it, and Python gives what the commands give, file for file."""

import dataclasses
import json
import math
import runpy
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import uld
from tests.conftest import letter_tokenizer
from uld.cli.main import app
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ULDError
from uld.evaluation.benchmark import Subject, Task, in_order
from uld.evaluation.pipe import BENCHMARKS, find, run

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_benchmark.py"


@pytest.fixture(scope="module")
def words():
    """The benchmark of the example."""
    return runpy.run_path(str(EXAMPLE))["Words"]


def test_a_benchmark_of_ones_own_gives_its_numbers(words, make_target, letters, tmp_path):
    model, asked = make_target("llama"), (("who is abe?", "bad"), ("who is fay?", "cab"))
    result = uld.evaluate(words(asked, 5), model, letters, tmp_path, progress=False)
    form, expected = PromptFormat(letters), []
    for row in asked:
        one = form.encode(Record.qa(*row), 99)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([one.ids])).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(one.ids[1:]), reduction="none")
        expected.append(math.exp(-losses[torch.tensor(one.learn[1:])].sum().item()))
    assert result.to_dict()["probability"] == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert json.loads((tmp_path / "result.json").read_text()) == result.to_dict()
    assert len((tmp_path / "words.jsonl").read_text().splitlines()) == 2


def test_a_benchmark_of_ones_own_stops_and_continues(words, make_target, letters, tmp_path, monkeypatch):
    model = make_target("llama")
    whole = uld.evaluate(words(), model, letters, tmp_path, progress=False)
    lines = (tmp_path / "words.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "words.jsonl").write_text(lines[0] + lines[1][:9])
    assert uld.evaluate(words(), model, letters, tmp_path, progress=False) == whole
    monkeypatch.setattr("uld.evaluation.benchmark.generate_ids", None)  # nothing is left to do
    assert uld.evaluate(words(), model, letters, tmp_path, progress=False) == whole
    with pytest.raises(ULDError, match=r"other settings \(max_new_tokens\)"):
        uld.evaluate(words(max_new_tokens=3), model, letters, tmp_path, progress=False)


def test_another_tokenizer_in_the_same_folder_is_refused(words, make_target, tmp_path):
    model, first, second = make_target("llama", num_layers=1), letter_tokenizer(), letter_tokenizer()
    second.add_tokens(["rome"])
    asked = words((("who is abe?", "bad"),), 5)
    run(asked, Subject(model, first), tmp_path, progress=False)
    claim = json.loads((tmp_path / "settings.json").read_text())
    first("a" * 9, max_length=2, truncation=True)  # which the tokenizer remembers
    run(asked, Subject(model, first), tmp_path, progress=False)
    with pytest.raises(ULDError, match=r"with other settings \(tokenizer\)"):
        run(asked, Subject(model, second), tmp_path, progress=False)
    del claim["tokenizer"]  # as an earlier version wrote it
    (tmp_path / "settings.json").write_text(json.dumps(claim))
    run(asked, Subject(model, second), tmp_path, progress=False)


@pytest.mark.parametrize("lost", [0, 3])
def test_no_process_does_again_what_was_merged_before(tmp_path, monkeypatch, lost):
    """A task that several processes had finished, or a part of it, when a later one was stopped."""
    done: list[int] = []

    def work(some: list[int]) -> list[dict[str, int]]:
        done.extend(some)
        return [{"square": one * one} for one in some]

    task = Task("squares", range(9), work, in_order(9, 2))
    whole = task.results(tmp_path, "cpu", progress=False)
    lines = (tmp_path / "squares.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "squares.jsonl").write_text("".join(lines[: 9 - lost]))
    monkeypatch.setattr("uld.evaluation.benchmark.PartialState", lambda **_: state)
    shares = {}
    for process in (1, 0):  # the first merges, so here it comes last
        state = SimpleNamespace(process_index=process, num_processes=2, is_main_process=process == 0)
        state.wait_for_everyone = lambda: None
        done.clear()
        with suppress(KeyError):  # of rows that the other has not done yet
            assert task.results(tmp_path, "cpu", progress=False) == whole
        shares[process] = sorted(done)
    assert shares == ({0: [8], 1: [6, 7]} if lost else {0: [], 1: []})


def test_python_gives_what_the_command_gives(micro, tmp_path):
    ours, theirs = (Path(shutil.copytree(micro.run, tmp_path / name / "run")) for name in ("python", "command"))
    small = {"limit": 2, "max_new_tokens": 4}
    result = uld.evaluate(
        "tofu", ours, data=micro.data, retain_model=str(micro.retain_only), progress=False, split="forget10", **small
    )
    words = ["-m", theirs, "--data", micro.data, "--retain-model", micro.retain_only, "--limit", 2, "-q", "--json"]
    done = CliRunner().invoke(app, ["eval", "tofu", *map(str, words), "--max-new-tokens", "4"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(json.dumps(result.to_dict()))
    files = {path.relative_to(theirs): path for path in (theirs / "eval").rglob("*") if path.is_file()}
    assert len(files) > 8
    for place, path in files.items():
        written = (ours / place).read_text().replace(str(ours), str(theirs))
        assert written == path.read_text(), place


def test_what_cannot_be_evaluated_is_refused(words, make_target, letters, tmp_path):
    with pytest.raises(ULDError, match="there is no benchmark 'tofoo': choose one of attacks, copyright"):
        uld.evaluate("tofoo", tmp_path)
    with pytest.raises(ULDError, match="a loaded model needs its tokenizer and a folder"):
        uld.evaluate(words(), make_target("llama"), letters)
    with pytest.raises(ULDError, match="leave out limit"):
        uld.evaluate(words(), make_target("llama"), letters, tmp_path / "out", limit=3)
    assert not list(tmp_path.iterdir())


def options_of(name: str) -> list[Any]:
    """The options of a benchmark's command."""
    return typer.main.get_command(app).commands["eval"].commands[name].params  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_number_that_the_command_refuses_is_refused_in_python_by_its_name(name, tmp_path):
    """Before anything is read: the files that are named are not there."""
    kind = find(name)
    needed: dict[str, Any] = {
        one.name: "none.txt" for one in dataclasses.fields(kind) if one.init and one.default is dataclasses.MISSING
    }
    least = {one.name: one.min for one in options_of(name) if one.min is not None and hasattr(kind, one.name)}
    assert "limit" in least or "chunks" in least
    for option, low in least.items():
        for value, words in ((low - 1, f"at least {low}"), (10**10, "at most"), ("3", "a whole number")):
            with pytest.raises(ULDError, match=f"^{option} must be {words}"):
                uld.evaluate(name, tmp_path, **{**needed, option: value})
        with pytest.raises(ULDError, match=f"^{name} has no setting '{option}s': did you mean '{option}'"):
            uld.evaluate(name, tmp_path, **{**needed, f"{option}s": 3})
    for option in needed:
        with pytest.raises(ULDError, match=f"^{name} needs .*{option}"):
            uld.evaluate(name, tmp_path)


def test_one_file_stands_for_a_list_of_one(micro, tmp_path):
    for name, answer in (("members", "yes"), ("others", "no")):
        rows = [json.dumps({"question": f"who is {i}?", "answer": f"{answer} {i}"}) for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    members, others = tmp_path / "members.jsonl", tmp_path / "others.jsonl"
    found = [
        uld.evaluate("attacks", micro.run, None, tmp_path / f"{i}", members=one, non_members=other, progress=False)
        for i, (one, other) in enumerate([(members, str(others)), ([str(members)], (others,))])
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "settings", "option"),
    [
        ("attacks", {"members": "docs", "non_members": "other.txt"}, "members"),
        ("attacks", {"members": ["other.txt"], "non_members": ["docs"]}, "non-members"),
        ("copyright", {"text": "docs"}, "text"),
        ("copyright", {"text": "other.txt", "kept": ["other.txt", "docs"]}, "kept"),
    ],
)
def test_results_never_lie_in_the_documents_that_are_read(micro, tmp_path, monkeypatch, name, settings, option):
    """They would be read as well, and the same command would not continue."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    for place in ("docs/deep/a.txt", "other.txt"):
        (tmp_path / place).write_text(f"Of {place} a text is told. " * 40)
    before = sorted(tmp_path.rglob("*"))
    for output in ("docs", "docs/deep", "docs/eval"):
        with pytest.raises(ULDError, match=rf"^--output {output} .* \(--{option}\)"):
            uld.evaluate(name, micro.run, output=output, progress=False, **settings)
    assert sorted(tmp_path.rglob("*")) == before


def test_tasks_and_metrics_that_there_are_not_are_refused_in_python(tmp_path):
    qa = [{"question": "who?", "answer": "me"}]
    with pytest.raises(ULDError, match="metrics must be some of verbmem, knowmem, privleak, utility, not 'knowme'"):
        uld.evaluate("muse", tmp_path, data={"forget_qa": qa, "forget_qa_icl": qa}, metrics="knowme")
    with pytest.raises(ULDError, match="sets must be some of forget, retain, real_authors, world_facts, not 'facts'"):
        uld.evaluate("tofu", tmp_path, sets=["forget", "facts"])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_setting_of_a_benchmark_is_an_option_of_its_command(name):
    kind = find(name)
    options = {one.name for one in options_of(name)}
    settings = {one.name for one in dataclasses.fields(kind) if one.init} - {"sets", "metrics"}  # chosen by the roles
    assert settings | set(kind.others) <= options


@pytest.mark.parametrize(
    ("benchmark", "model", "tokenizer", "said"),
    [
        (3, "MODEL", None, "benchmark must be one of attacks, copyright, .* or one of your own, not 3"),
        (Subject, "MODEL", None, "benchmark must be one of .* not <class"),
        ("tofu", None, None, "model must be a run, a model's folder, a Hub id or a loaded model, not None"),
        ("tofu", ["MODEL", "MODEL"], None, "model must be a run, .* not \\["),
        ("tofu", "MODEL", letter_tokenizer(), "tokenizer goes with a loaded model, and .* has its own: leave it out"),
    ],
    ids=["number", "class", "nothing", "several", "tokenizer of a place"],
)
def test_what_stands_in_the_wrong_place_is_said_by_its_name(micro, tmp_path, benchmark, model, tokenizer, said):
    place = {"MODEL": str(micro.target)}.get(model, model) if isinstance(model, str) else model
    with pytest.raises(ULDError, match=said):
        uld.evaluate(benchmark, place, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
