"""Every step does what its command does alone, and is not done twice."""

import contextlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from uld.checking import run as checking
from uld.cli.main import app
from uld.data.documents import read_sources
from uld.data.passages import passages
from uld.errors import ConfigError, ULDError
from uld.request import material
from uld.request import plan as planning
from uld.request import steps as stepping
from uld.request.plan import plan
from uld.request.settings import PRETRAINED, Source, known_settings
from uld.request.steps import (
    ASKING,
    CHECKING,
    DRAWING,
    KNOWING,
    LEAST_DRAWN,
    REWORDING,
    TRAINING,
    TUNING,
    loading,
    model_words,
    steps,
    to_draw,
)
from uld.request.training import form_of, rows_of, settings_of, train_settings
from uld.runs.manifest import Manifest
from uld.runs.rows import claim
from uld.text.progress import duration

COMMANDS = typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]


def uld(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def changed(words: tuple[str, ...], flag: str, value: str) -> list[str]:
    place = words.index(flag) + 1
    return [*words[:place], value, *words[place + 1 :]]


def test_each_step_gives_what_its_command_gives(request_of, tmp_path, monkeypatch):
    request = request_of(seed=3)
    claim(request.work, request.about(), "request")
    words = {}
    monkeypatch.setattr(checking, "refuse_unknown", lambda *_: None)  # the micro world's model knows next to nothing
    asked = []

    def ask(questions, *args, **how):
        asked.extend(questions.questions.sets["forget"])
        return checking.ask_target(questions, *args, **how) | {"forget": list(range(len(asked)))}

    monkeypatch.setattr(stepping, "ask_target", ask)
    for step in steps(request, progress=False):
        assert not step.done(), step.name
        assert step.run()
        assert step.done(), step.name
        words[step.name] = step.command
    asking, rewording, drawing, training, tuning = (command for command in words.values() if command)
    for command in (asking, rewording):  # into a folder of its own, byte for byte
        made, again = Path(command[command.index("--output") + 1]), tmp_path / f"again-{len(command)}"
        uld(*changed(command, "--output", str(again)))
        for path in made.glob("*.jsonl"):
            assert (again / path.name).read_bytes() == path.read_bytes()
    uld(*changed(drawing, "--output", str(tmp_path / "drawn.jsonl")))
    assert (tmp_path / "drawn.jsonl").read_bytes() == (request.work / material.DRAWN).read_bytes()
    uld(*changed(training, "--output", str(tmp_path / "alone")))
    adapters = [folder / "adapter/adapter_model.safetensors" for folder in (tmp_path / "alone", tmp_path / "run")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    settings = [yaml.safe_load((path.parents[1] / "train.yaml").read_text()) | {"output": ""} for path in adapters]
    assert settings[0] == settings[1]
    assert settings[0]["gate"] is True
    known = read_sources([tuning[tuning.index("--trained") + 1]])[0]
    again = [part for one in known for part in ([one] if one.text is None else passages(one, as_is=True))]
    assert [(one.asked, one.answer) for one in again] == [(one.question, one.answer) for one in asked]
    is_passage = [one.passage for one in asked]  # written as a text, to be cut in two again
    assert [one.text is not None for one in known] == is_passage and any(is_passage)
    uld(*(str(tmp_path / "alone") if word == str(tmp_path / "run") else word for word in tuning))
    chosen = [json.loads((path.parents[1] / "tune.json").read_text())["point"] for path in adapters]
    assert chosen[0] == chosen[1]
    assert all(step.done() for step in steps(request))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"num_layers": None, "lora_layers": 1, "remember": "key-words", "rounds": 1, "least": 64}),
        ({"num_layers": 2}, {"num_layers": 2, "lora_layers": None, "remember": "all", "rounds": 0, "least": 200}),
        ({"lora_layers": 2}, {"lora_layers": 2, "remember": "key-words", "least": 64}),
        ({"lora_layers": 2, "remember": "all"}, {"lora_layers": 2, "remember": "all", "least": 64}),
        ({"epochs": 1}, {"epochs": 1}),
    ],
)
def test_what_is_trained_follows_from_the_target_and_the_documents(request_of, settings, expected):
    request = request_of(settings=settings | {"max_length": 128}, retain=(), draw=10)
    for step in steps(request, progress=False):
        if step.name == KNOWING:  # it knows nothing, which is nothing to these settings
            break
        if not step.done():
            step.run()
    found = vars(train_settings(request))
    least = expected.pop("least", None)
    assert {name: found[name] for name in expected} == expected
    if least is not None:
        per_epoch = math.ceil(rows_of(request) / found["batch_size"])
        assert found["epochs"] == max({64: 3, 200: 5}[least], math.ceil(least / per_epoch))


def test_what_was_made_and_cannot_be_used_is_left_out_and_counted(request_of, micro, tmp_path):
    facts, letter, kept = tmp_path / "facts.jsonl", tmp_path / "letter.txt", tmp_path / "kept.jsonl"
    facts.write_text("".join((micro.data / "forget10.json").read_text().splitlines(keepends=True)[:4]))
    letter.write_text("Mara Quillon wrote this letter in Tarvel in 1987. She moved to Brankt in 1991.\n")
    asked = [f"what happened in\u00a0{year}?" for year in (1987, 1991)]  # the same, but for a blank and a capital
    kept.write_text(json.dumps({"question": asked[0].capitalize(), "answer": "A comet was seen."}) + "\n")
    places = {"documents": (str(facts), str(letter)), "retain": (str(kept),)}
    form = form_of(request_of())
    longest = max(len(form.prompt_ids(one.asked)) for one in read_sources([str(facts)])[0])
    request = request_of(**places, settings=request_of().settings | {"max_length": longest + 1})
    claim(request.work, request.about(), "request")
    told = {}
    for step in steps(request, progress=False):
        if step.name == DRAWING:
            break
        told[step.name] = step.run()
    assert told[ASKING].endswith(" questions (left out: 1 asked in what must stay)")
    number = re.fullmatch(r"\d+ paraphrases, \d+ wrong answers \(left out: (\d+) too long for .*\)", told[REWORDING])
    assert number and int(number[1]) > 0
    report = json.loads((request.work / material.REWORDED / "report.json").read_text())
    assert report["dropped"]["paraphrase"][f"too long for max_length {longest + 1}"] == int(number[1])
    made = [
        request.work / folder / f"{name}.jsonl"
        for folder, name in (("asked", "questions"), ("reworded", "paraphrases"))
    ]
    rows = [one for one in read_sources([str(path) for path in made])[0] if one.text is None]
    assert {"What happened in 1987?"}.isdisjoint(one.asked for one in rows)
    assert "What happened in 1991?" in {one.asked for one in rows}
    assert all(len(form.prompt_ids(one.asked)) <= longest for one in rows)


def test_no_setting_that_is_taken_is_replaced_by_another_without_a_word(request_of):
    taken = {"num_layers": 1, "lora_rank": 3, "chunks": 7, "other_names": 5, "rounds": 0, "epochs": 2, "max_length": 99}
    taken |= {"gate": False, "uniform_on": "all", "learning_rate": 1e-4, "batch_size": 3, "describe": "ours"}
    request = request_of(settings=taken)
    request.work.mkdir(parents=True)
    for name in (material.FORGET, material.RETAIN):
        (request.work / name).write_text('{"question": "who?", "answer": "Mara."}\n')
    assert taken.items() <= vars(train_settings(request)).items()
    usual = vars(train_settings(request_of(settings={"num_layers": 1, "epochs": 1})))
    for name in set(known_settings()) - {"weight", "margin", "floor", "small", "rule", "method"}:
        with contextlib.suppress(ULDError):  # not a value for it
            changed = request_of(settings={"num_layers": 1, "epochs": 1, name: (value := other_than(usual[name]))})
            assert vars(train_settings(changed))[name] == value, name


def other_than(value: object) -> object:
    """Another value of the kind."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 if isinstance(value, float) else 1


@pytest.mark.parametrize(
    "rows, rounds", [([{"text": "Mara was born."}], 0), ([{"question": "who?", "answer": "Mara."}], 1)]
)
def test_only_questions_are_asked_in_rounds(request_of, rows, rounds):
    request = request_of(settings={"max_length": 128}, retain=(), draw=10)
    request.work.mkdir(parents=True)
    for name, some in ((material.FORGET, rows), (material.RETAIN, [{"question": "where?", "answer": "here."}])):
        (request.work / name).write_text("".join(f"{json.dumps(row)}\n" for row in some))
    assert train_settings(request).rounds == rounds


def test_how_models_are_loaded_is_the_same_in_every_step_and_command(request_of, monkeypatch):
    asked = []
    monkeypatch.setattr(stepping, "load", lambda place, **how: asked.append((place, how)) or (torch.nn.Module(), None))
    chosen = {"dtype": "fp32", "tokenizer": "words", "date": "2024-01-02", "template": "qa", "trust_remote_code": True}
    request = request_of(settings=chosen | {"revision": "v2"}, source=Source(local="other"))
    stepping._target(request)
    shared = {"dtype": "float32", "tokenizer": "words", "date": "2024-01-02", "trust_remote_code": True}
    assert asked.pop() == (request.target, shared | {"revision": "v2"})
    assert loading(request) == shared  # of a run, which knows its target's revision
    flags = ["--dtype", "fp32", "--tokenizer", "words", "--template", "qa", "--date", "2024-01-02"]
    assert model_words(request) == [*flags, "--trust-remote-code"]
    for flag in flags[::2]:  # each of these commands takes them
        for name in ("draw", "tune", "check"):
            assert flag in [word for one in dict(COMMANDS)[name].params for word in one.opts], (name, flag)


def test_a_model_that_asks_is_not_loaded_as_the_target_is(request_of, monkeypatch):
    asked = []

    class Enough(Exception):
        pass

    def load(place, **how):
        asked.append((place, how))
        raise Enough

    monkeypatch.setattr(stepping, "load", load)
    request = request_of(settings={"tokenizer": "words", "revision": "v2"}, source=Source(local="other"))
    with pytest.raises(Enough):
        next(steps(request)).run()
    assert asked == [("other", {"trust_remote_code": False})]


def test_what_must_stay_is_not_drawn_where_it_is_given(request_of, micro):
    request = request_of(retain=(str(micro.data / "retain90.json"),), draw=0)
    claim(request.work, request.about(), "request")
    names = []
    for step in steps(request, progress=False):
        names.append(step.name)
        if step.name.startswith("ask the model"):
            break
        step.run()
    assert not any("draw" in name for name in names)
    trained, held = (
        (request.work / name).read_text().splitlines() for name in (material.RETAIN, material.RETAIN_HELD_OUT)
    )
    assert len(trained) + len(held) == len((micro.data / "retain90.json").read_text().splitlines())


def test_a_plan_counts_with_what_is_asked_for_and_writes_nothing(request_of, small, tmp_path):
    short, long = plan(request_of()), plan(request_of(settings=small | {"epochs": 200}))
    assert set(short.seconds) == {
        DRAWING,
        KNOWING,
        TRAINING,
        TUNING,
        CHECKING,
    }
    assert long.seconds[TRAINING] > 20 * short.seconds[TRAINING]
    assert short.memory > 0
    assert "about" in str(short)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_counts_with_a_round_and_with_layers_that_are_passed_once(request_of, monkeypatch):
    monkeypatch.setattr(planning, "rates", lambda dtype, device: (1e9, 1e9))  # those of a machine change with its load

    def training(**settings):
        return plan(request_of(settings=settings)).seconds[TRAINING]

    assert training(rounds=0) < training() == training(rounds=1) < training(rounds=2)
    assert training(rounds=0, epochs=8) < 2 * training(rounds=0, epochs=4)  # what lies below is passed in the first
    first = {"num_layers": 2, "rounds": 0}
    assert training(**first, epochs=8) == pytest.approx(2 * training(**first, epochs=4))


def test_durations_are_told_as_people_tell_them():
    assert [duration(one) for one in (3, 100, 3600, 7000)] == [
        "less than a minute",
        "about 2 min",
        "about 60 min",
        "about 1.9 h",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"documents": ()}, "no documents: name them with --documents"),
        ({"output": ""}, "no output: name one with --output"),
        ({"source": Source(local="a", model="b")}, "leave out --local or --model"),
        ({"source": Source(api_base="http://x")}, "--api-base needs"),
        ({"settings": {"forget": ("a",)}}, "--set forget"),
        ({"settings": {"method": "npo"}}, "use uld train, and then uld check"),
        ({"settings": {"epochs": 0}}, "epochs"),
        ({"output": "."}, r"--output \. is no folder to make"),
        ({"output": "/"}, "--output / is no folder to make"),
        ({"output": "runs/.."}, r"--output runs/\.\. is no folder to make"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_refused(request_of, changes, told):
    with pytest.raises(ConfigError, match=told):
        request_of(**changes)


def test_rows_are_drawn_beside_what_is_given_to_stay(request_of, micro, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join((micro.data / "retain90.json").read_text().splitlines()[:3]) + "\n")
    request = request_of(retain=(str(few),), draw=None)
    (request.work).mkdir()
    (request.work / material.FORGET).write_text(few.read_text())
    assert to_draw(request) == LEAST_DRAWN  # what is given protects what is like it
    assert to_draw(request_of(retain=(str(few),), draw=7)) == 7
    (request.work / material.FORGET).write_text("".join(f'{{"text": "Text {i}."}}\n' for i in range(500)))
    assert to_draw(request) == 497


def test_none_is_the_default_and_a_path_is_a_text(request_of, small, tmp_path):
    changed = request_of(settings=small | {"batch_size": None, "dtype": None, "tokenizer": tmp_path})
    assert changed.about() == request_of(settings={**small, "tokenizer": str(tmp_path)}).about() | {
        "settings": {name: one for name, one in small.items() if name != "batch_size"} | {"tokenizer": str(tmp_path)}
    }
    json.dumps(changed.about())
    assert settings_of(changed)["batch_size"] == PRETRAINED["batch_size"]


def test_other_line_ends_within_a_text_are_no_rows(request_of):
    request = request_of()
    request.work.mkdir()
    for name in (material.FORGET, material.RETAIN):
        (request.work / name).write_text('{"text": "One.\u2028Two.\x85Three."}\n', encoding="utf-8")
    assert rows_of(request) == 2


def test_a_tuning_counts_once_the_run_has_what_was_chosen(make_run, tmp_path):
    run = make_run(tmp_path)
    assert not stepping.is_tuned(run)
    point = Manifest.read(run).combination.model_dump()
    (run / "tune.json").write_text(json.dumps({"point": point | {"margin": point["margin"] + 1}}))
    assert not stepping.is_tuned(run)  # the disk was full before the run was written
    (run / "tune.json").write_text(json.dumps({"point": point}))
    assert stepping.is_tuned(run)
    (run / "tune.json").write_text('{"point": {')
    assert not stepping.is_tuned(run)
