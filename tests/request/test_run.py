"""A whole request, from documents to a checked run."""

import json
import os
import re
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner

import uld
from uld.cli.main import app
from uld.data.record import Record
from uld.errors import ArtifactError, DataError, ULDError
from uld.evaluation.choosing import OverBudget
from uld.model.causal_lm import load_config
from uld.request import plan as planning
from uld.request import run as running
from uld.request.material import RETAIN
from uld.request.settings import Request
from uld.request.steps import CHECK


@pytest.fixture(scope="module")
def done(village, small, tmp_path_factory):
    """Words of the command, the run that it made, and what it said."""
    output = tmp_path_factory.mktemp("done") / "run"
    words = [
        "forget",
        "--target",
        village.target,
        "--documents",
        village.forget,
        "--retain",
        village.retain,
        "--draw",
        "0",
    ]
    settings = [word for name, value in small.items() for word in ("--set", f"{name}={value}")]
    words += ["--output", str(output), *settings, "--set", "max_length=64"]
    transformers.utils.logging.enable_progress_bar()  # another test may have taken it away
    return words, output, CliRunner().invoke(app, words)


def test_the_command_goes_from_documents_to_a_report(done):
    words, output, said = done
    assert said.exit_code in (0, 1), said.output
    work = output.with_name("run-request")
    found = json.loads((work / CHECK / "result.json").read_text())
    assert f"report: {work / CHECK / 'report.html'}" in said.output
    assert (work / CHECK / "report.html").is_file()
    assert [one["name"] for one in found["runs"]] == [str(output)]
    assert said.exit_code == int(not found["passed"])
    assert json.loads((output / "uld.json").read_text())["combination"]["margin"] > 0  # tuned
    for name in ("augment", "train", "tune", "check"):
        assert f" left): uld {name} " in said.output
    for name in ("tune", "check"):  # key words are no common ones of what was trained on
        assert re.search(rf" left\): uld {name} .*--ordinary {re.escape(str(work / RETAIN))} ", said.output)
    assert f": {json.loads((output / 'tune.json').read_text())['reason']} (" in said.output  # and within which budget
    assert "Loading weights" not in said.output
    again = CliRunner().invoke(app, [*words, "--quiet"])  # nothing is left but the check, whose rows are there
    assert again.exit_code == said.exit_code, again.output


def test_what_is_done_is_not_done_again(done, village, small, monkeypatch):
    monkeypatch.setattr(running, "check", lambda *_, **__: None)
    told = []
    settings = {"retain": village.retain, "draw": 0, "settings": small | {"max_length": 64}, "progress": False}
    uld.forget(village.target, village.forget, done[1], **settings, tell=told.append)
    plan, *lines, check = told
    assert plan.startswith("target: ") and ". check (less than a minute left): uld check " in check
    assert len(lines) > 4 and all(line.endswith(": done before") for line in lines)


def test_that_nothing_can_be_tuned_is_told(village, small, tmp_path):
    retain, told = tmp_path / "retain.jsonl", list[str]()
    retain.write_text("".join(Path(village.retain).read_text().splitlines(keepends=True)[:3]) * 4)  # few, four times
    settings = {"retain": retain, "draw": 0, "settings": small | {"max_length": 64}, "progress": False}
    uld.forget(village.target, village.forget, tmp_path / "run", **settings, tell=told.append)
    assert (
        "choose margin, floor and α is left out: no row that must stay is held back: that takes 5 different ones"
        in told[-2]
    )
    assert re.match(r"\d+\. check ", told[-1]) and not (tmp_path / "run/tune.json").exists()


def test_an_assistant_that_takes_what_stays_along_is_told_of_with_what_helps(village, small, tmp_path, monkeypatch):
    shown = []

    def over(*_: object, progress: bool, **__: object):
        shown.append(progress)
        raise OverBudget("every α loses more than 40%")

    monkeypatch.setattr("uld.request.steps.tune", over)
    settings = {"retain": village.retain, "draw": 0, "settings": small | {"max_length": 64}, "progress": False}
    with pytest.raises(ULDError, match=r"^every α .* 40%: .*--set epochs=N.* uld tune .*--budget 0.01") as told:
        uld.forget(village.target, village.forget, tmp_path / "x", **settings)
    assert "raise --budget" not in str(told.value) and shown == [False]


def test_another_request_is_refused_in_the_same_place(done, village, small):
    settings = {"retain": village.retain, "draw": 0, "settings": small | {"max_length": 64}}
    with pytest.raises(ArtifactError, match=r"run-request holds a request .*\(seed\)"):
        uld.forget(village.target, village.forget, done[1], **settings, seed=5)


def test_what_must_stay_may_not_change_under_a_request_but_thresholds_may(done, village, small, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(Path(village.retain).read_text().replace("Pia", "Ulla"))
    settings = {"draw": 0, "settings": small | {"max_length": 64}, "progress": False}
    with pytest.raises(ArtifactError, match=r"holds a request .*\(files, retain\)"):
        uld.forget(village.target, village.forget, done[1], retain=other, **settings)
    lax = tmp_path / "lax.yaml"
    lax.write_text("forget_loss: '>= 0'\n")
    assert uld.forget(village.target, village.forget, done[1], retain=village.retain, thresholds=lax, **settings).passed


@pytest.mark.parametrize("changed", ["facts.jsonl", "retain.jsonl"])
def test_what_changes_while_a_request_is_carried_out_is_told_of(changed, micro, small, tmp_path):
    rows = (micro.data / "forget10.json").read_text().splitlines(keepends=True)[:3]
    (tmp_path / "facts.jsonl").write_text("".join(rows))
    (tmp_path / "retain.jsonl").write_text('{"question": "and who?", "answer": "Pia."}\n')

    def edit(line: str) -> None:
        if line.startswith("2. find other words"):
            with (tmp_path / changed).open("a") as file:
                file.write('{"question": "who else?", "answer": "Odo."}\n')

    given = {"retain": tmp_path / "retain.jsonl", "draw": 0, "settings": small, "progress": False}
    with pytest.raises(DataError, match=rf"{changed}.*: changed while the request was carried out, .* put it back"):
        uld.forget(micro.target, tmp_path / "facts.jsonl", tmp_path / "x", **given, tell=edit)
    assert not (tmp_path / "x").exists() and not (tmp_path / "x-request" / RETAIN).exists()


def test_a_model_that_knows_nothing_of_it_is_not_trained(micro, small, tmp_path):
    facts = tmp_path / "facts.jsonl"
    rows = [
        (f"Where does Zyx{i} Qorl{i} live?", f"Zyx{i} Qorl{i} lives in Vlantesk{i} on the Grumbly{i}.") for i in "abcd"
    ]
    facts.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    with pytest.raises(DataError, match="nothing to forget"):
        uld.forget(micro.target, facts, tmp_path / "x", draw=10, settings=small, progress=False)
    assert not (tmp_path / "x").exists()


def test_a_folder_that_is_in_use_is_left_alone(micro, documents, small, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="choose another folder"):
        uld.forget(micro.target, documents, tmp_path / "x", draw=10, settings=small)
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "mine.txt"]


def test_what_must_stay_cannot_be_what_must_go(micro, documents, small, tmp_path):
    with pytest.raises(DataError, match=r"facts\.jsonl:1: this retain record is also in the forget set"):
        uld.forget(micro.target, documents, tmp_path / "x", retain=documents / "facts.jsonl", settings=small)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "epochs=["], "--set epochs=["),
        (["--thresholds", "{wrong}"], "forget_roug"),
        (["--retain-model", "/no/such/model"], "/no/such/model"),
        (["--local", "/no/such/model"], "/no/such/model"),
        (["--model", "x", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY holds no key"),
        (["--set", "epoch"], "expected NAME=VALUE"),
        (["--set", "epochs=null"], "--set epochs=null: epochs has no value there: give one, or leave it out"),
        (["--set", "date=someday"], "--date"),
        (["--set", "epoch=3"], "epoch is not a setting of uld train that can be chosen here: did you mean 'epochs'?"),
        (["--set", "epochs=many"], "--set: epochs must be a whole number"),
        (["--set", "output=x"], "output is not a setting"),
        (["--set", "paraphrases=5"], "paraphrases is not a setting of uld train that can be chosen here"),
        (["--set", "weight=5"], "--set weight would not be kept"),
        (["--set", "lora_layers=99"], "--lora-layers is 99, but the assistant has"),
        (["--set", "num_layers=2", "--set", "lora_layers=3"], "--lora-layers is 3, but the assistant has 2 layers"),
        (["--set", "num_layers=99"], "99"),
        (["--set", "lora_rank=9999"], "--lora-rank 9999 is more than"),
    ],
)
def test_wrong_settings_are_refused_by_name(done, words, told, tmp_path):
    (wrong := tmp_path / "wrong.yaml").write_text("forget_roug: '<= 0.5'\n")
    given = [*done[0], *(word.replace("{wrong}", str(wrong)) for word in words)]
    given[given.index("--output") + 1] = str(tmp_path / "x")
    said = CliRunner().invoke(app, given)
    assert said.exit_code == 2
    assert told in said.output
    assert list(tmp_path.iterdir()) == [wrong]


def test_something_has_to_stay(micro, documents, tmp_path):
    words = ["forget", "--target", str(micro.target), "--documents", str(documents), "--output", str(tmp_path / "x")]
    said = CliRunner().invoke(app, [*words, "--draw", "0"])
    assert said.exit_code == 2 and "--draw 0 needs a retain set (--retain)" in said.output
    assert list(tmp_path.iterdir()) == []


def test_the_last_layers_are_those_of_the_whole_target(micro, documents, tmp_path):
    total = load_config(micro.target).num_hidden_layers
    place = {"target": str(micro.target), "documents": (str(documents),), "output": str(tmp_path / "x")}
    running.refuse_unusable(Request(**place, settings={"lora_layers": total}))
    with pytest.raises(ULDError, match=f"--lora-layers is {total + 1}, but the assistant has {total} layers"):
        running.refuse_unusable(Request(**place, settings={"lora_layers": total + 1}))


def test_a_plan_does_nothing(done, tmp_path):
    given = [*done[0], "--plan"]
    given[given.index("--output") + 1] = str(tmp_path / "x")
    said = CliRunner().invoke(app, given)
    assert said.exit_code == 0, said.output
    assert "memory: about" in said.output
    assert list(tmp_path.iterdir()) == []


def test_texts_of_settings_are_taken_as_they_stand(done, tmp_path, monkeypatch):
    given = {
        "describe": "Request #4711: all of Mara's letters",
        "date": "2024-12-31",
        "template": "Question: {question} Answer: {answer}",
        "dtype": "fp32",
        "rounds": 0,
        "gate": False,
    }
    asked = []
    monkeypatch.setattr(planning, "plan", lambda request: asked.append(request.settings) or "a plan")
    words = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    said = CliRunner().invoke(app, [*done[0], "--output", str(tmp_path / "x"), *words, "--plan"])
    assert said.exit_code == 0, said.output
    assert given.items() <= asked[0].items()


def test_an_output_within_the_documents_is_refused_before_anything_is_written(micro, documents, small):
    before = sorted(documents.rglob("*"))
    with pytest.raises(ULDError, match=r"--output .* lies in .*, which is read \(--documents\)"):
        uld.forget(micro.target, documents, documents / "new" / "run", draw=10, settings=small)
    assert sorted(documents.rglob("*")) == before


def test_documents_where_the_work_would_go_are_refused(micro, documents, small, tmp_path):
    place = tmp_path / "mine-request"
    place.mkdir()
    (place / "facts.jsonl").write_bytes((documents / "facts.jsonl").read_bytes())
    with pytest.raises(ULDError, match=r"mine-request is also what is read \(--documents\)"):
        uld.forget(micro.target, place, tmp_path / "mine", draw=10, settings=small)
    assert [one.name for one in place.iterdir()] == ["facts.jsonl"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "subtract"}, "--set rule is subtract"),
        ({"weight": 5.0}, "--set weight would not be kept: .* load the run with --weight"),
        ({"margin": 0.0}, "--set margin would not be kept"),
        ({"floor": 0.1}, "--set floor would not be kept"),
        ({"paraphrases": 5}, "--set paraphrases is what uld forget sees to itself"),
        ({"wrong_answers": 0}, "--set wrong_answers is what uld forget sees to itself"),
        ({"small": "somewhere"}, "--small"),
        ({"option": ("alpha=1",)}, "alpha"),
        ({"report_to": "abacus"}, "--report-to abacus"),
        ({"micro_batch_size": 3}, "--micro-batch-size 3"),
        ({"max_length": 4}, "--max-length"),
        ({"tokenizer": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"template": "no fields"}, "template"),
        ({"revision": "v1"}, "--revision v1"),
    ],
)
def test_settings_that_a_later_step_would_refuse_are_refused_first(
    micro, documents, small, tmp_path, settings, message
):
    with pytest.raises(ULDError, match=message) as caught:
        uld.forget(micro.target, documents, tmp_path / "x", draw=10, settings=small | settings)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "and so? " * 200, "answer": "yes"}, "retain.jsonl:2: the prompt is .* leaves no room"),
        (
            {"messages": [{"role": role, "content": "b"} for role in ("system", "user", "assistant")]},
            "retain.jsonl:2: .*user and assistant turns in alternation",
        ),
    ],
)
def test_rows_that_must_stay_and_cannot_be_trained_on_are_refused_first(
    micro, documents, small, tmp_path, row, message
):
    retain = tmp_path / "retain.jsonl"
    retain.write_text("".join(json.dumps(one) + "\n" for one in ({"question": "a?", "answer": "b"}, row)))
    settings = small | {"template": "plain"}
    with pytest.raises(ULDError, match=message):
        uld.forget(micro.target, documents, tmp_path / "x", retain=retain, draw=10, settings=settings)
    assert list(tmp_path.iterdir()) == [retain]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"draw": -1}, "draw must be at least 0"),
        ({"questions": 0}, "questions must be at least 1"),
        ({"target": None}, "no target"),
        ({"output": None}, "no output"),
        ({"documents": None}, "no documents"),
        ({"documents": 3}, "expected a file, a folder, a Hub data set or a record, or a list of them, not 3"),
        ({"documents": [Record.qa("who?", "me")]}, "documents must be files, folders or Hub data sets, not Record"),
        ({"retain": [None]}, "or a list of them, not None"),
        ({"local": 3}, "local must be a text, not 3"),
        ({"settings": ["epochs=3"]}, "settings must be values by their names"),
        ({"settings": "epochs=3"}, "settings must be values by their names"),
    ],
)
def test_what_python_may_hand_over_is_held_to_its_kind(micro, documents, small, tmp_path, given, message):
    usual = {"target": micro.target, "documents": documents, "output": tmp_path / "x"}
    with pytest.raises(ULDError, match=message):
        uld.forget(**(usual | {"settings": small} | given))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["documents", "retain", "thresholds"])
def test_what_can_be_read_only_once_is_refused(name, micro, documents, small, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    given = {"documents": documents, name: tmp_path / "pipe"}
    with pytest.raises(ULDError, match=rf"pipe is no ordinary file, .* save it as a file and name that \(--{name}\)"):
        uld.forget(micro.target, output=tmp_path / "x", draw=10, settings=small, **given)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_question_cannot_be_kept_and_forgotten_at_once(micro, documents, small, tmp_path):
    row = json.loads((documents / "facts.jsonl").read_text().splitlines()[0])
    kept = tmp_path / "kept.jsonl"
    kept.write_text(json.dumps(row | {"answer": "Another answer."}) + "\n")
    with pytest.raises(DataError, match="would have to be kept and to be forgotten"):
        uld.forget(micro.target, documents, tmp_path / "x", retain=kept, settings=small)
    assert list(tmp_path.iterdir()) == [kept]
