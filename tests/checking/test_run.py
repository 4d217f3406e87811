"""The gate on models of which it is known what they know; numbers against naive ones; stops; bad input."""

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import uld
import uld.checking.asked as asked
import uld.checking.run as running
import uld.evaluation.benchmark as benchmark
from uld.checking.questions import Questions
from uld.checking.result import CheckResult
from uld.checking.run import origin_of
from uld.checking.work import refuse_unknown
from uld.data.record import Record
from uld.data.text import words_of
from uld.errors import ArtifactError, ConfigError, DataError, ULDError
from uld.evaluation.benchmark import Subject
from uld.evaluation.pipe import run
from uld.model.causal_lm import load_target
from uld.model.load import load
from uld.runs.card import CHECK, check_of
from uld.runs.manifest import Manifest, fingerprint

BRIEF = {"max_new_tokens": 16, "progress": False}
RUNS = ("run", "target", "retain_only", "without_ivo", "reworded", "harmed")


@pytest.fixture(scope="module")
def places(village) -> list[str]:
    return [getattr(village, name) for name in RUNS]


@pytest.fixture(scope="module")
def alone(village, places, tmp_path_factory) -> CheckResult:
    files = {**village.files, "held_out": village.held_out}
    output = tmp_path_factory.mktemp("check") / "out"
    return uld.check(places, target=village.target, **files, output=output, **BRIEF)


@pytest.fixture(scope="module")
def beside(village, places, alone) -> CheckResult:
    """The same folder, and a retain-only model."""
    files = {**village.files, "held_out": village.held_out, "retain_model": village.retain_only}
    return uld.check(places, target=village.target, **files, output=alone.folder, **BRIEF)


FAILS = {
    "run": {"forget_rouge", "forget_re_entry", "forget_exact", "held_out_re_entry"},  # α = 0
    "target": {"forget_probability", "forget_extraction", "held_out_exact"},
    "without_ivo": {"forget_rouge", "forget_re_entry", "held_out_rouge"},  # another person's
    "reworded": {"forget_re_entry"},  # the names come back in other sentences
    "harmed": {"retain_rouge", "retain_probability", "retain_kl"},
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", ["alone", "beside"])
def test_only_what_never_knew_passes(kind, name, request):
    result: CheckResult = request.getfixturevalue(kind)
    run = result.runs[RUNS.index(name)]
    failed = {one.name for one in run.verdicts if not one.passed}
    assert run.passed == (name == "retain_only") and failed >= FAILS.get(name, set())
    if name == "reworded":
        assert failed == {"forget_re_entry"}
    if name == "harmed":
        assert {one.split("_")[0] for one in failed} == {"retain"}
    if name in ("run", "target", "without_ivo"):
        assert {one for one in failed if one.startswith("retain")} == set()
    assert not result.passed


def test_with_alpha_zero_a_run_is_its_target(alone):
    run, target = (alone.runs[RUNS.index(name)].values for name in ("run", "target"))
    assert run.keys() == target.keys() == alone.others["target"].keys()
    for name in run:
        assert run[name].value == pytest.approx(target[name].value, abs=1e-5), name
    assert run["retain_kl"].value == pytest.approx(0, abs=1e-6) and run["retain_same"].value == 1


@torch.no_grad()
def test_numbers_are_those_of_a_naive_evaluation(village, alone):
    target, tokenizer = load(village.target)
    model, _ = load(village.harmed)
    losses, distances = [], []
    for line in Path(village.retain).read_text().splitlines():
        row = json.loads(line)
        chat = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False).input_ids
        prompt = len(tokenizer(f"<s>q: {row['question']} a:", add_special_tokens=False).input_ids)
        ours, theirs = (one(torch.tensor([ids])).logits[0, prompt - 1 : -1].log_softmax(-1) for one in (model, target))
        losses.append(-ours.gather(-1, torch.tensor(ids[prompt:])[:, None]).mean().item())
        distances.append((theirs.exp() * (theirs - ours)).sum(-1).mean().item())
    found = alone.runs[RUNS.index("harmed")].values
    assert found["retain_loss"].value == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert found["retain_probability"].value == pytest.approx(sum(math.exp(-x) for x in losses) / len(losses), rel=1e-4)
    assert found["retain_kl"].value == pytest.approx(sum(distances) / len(distances), rel=1e-3)
    assert found["retain_kl"].low < found["retain_kl"].value < found["retain_kl"].high


def test_answers_stand_side_by_side(beside):
    one = beside.answers["forget"][0]
    assert (one.question, one.truth, one.before) == ("where was Mara born?", *["Mara was born in Skerrin."] * 2)
    assert "Skerrin" not in str(one.never) and one.now[RUNS.index("run")] == one.before
    assert "Skerrin" in one.now[RUNS.index("reworded")] and one.changed[RUNS.index("reworded")]
    never = beside.others["retain-only"]
    assert never["forget_re_entry"].value == 0 and never == beside.runs[RUNS.index("retain_only")].values


def test_the_same_check_again_asks_no_model(village, places, alone, beside, monkeypatch):
    def fails(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(benchmark, "generate_ids", fails)
    files = {**village.files, "held_out": village.held_out, "output": alone.folder}
    mine = {"forget_re_entry": "<= 1", "retain_rouge": ">= 0.5 * target"}
    again = uld.check(places[:2], target=village.target, **files, thresholds=mine, **BRIEF)
    assert again.passed and [run.values for run in again.runs] == [run.values for run in alone.runs[:2]]
    assert json.loads((Path(alone.folder) / "result.json").read_text())["passed"] is True


def test_what_the_target_does_not_know_does_not_dilute(village, tmp_path):
    unknown = [Record.qa(f"who is number {i}?", f"number {i} is Zebulon.") for i in range(20)]
    known = [
        Record.qa(row["question"], row["answer"])
        for row in map(json.loads, Path(village.forget).read_text().splitlines())
    ]
    result = uld.check(
        village.reworded,
        target=village.target,
        forget=known + unknown,
        retain=village.retain,
        output=tmp_path / "out",
        **BRIEF,
    )
    assert result.asked["forget"].counted == len(known) == result.runs[0].values["forget_rouge"].rows
    assert result.runs[0].values["forget_re_entry"].value == 1
    assert any("20 of 26 questions" in sentence for sentence in result.untested)


def test_a_text_is_continued_as_far_as_it_goes(village, tmp_path, monkeypatch):
    monkeypatch.setattr(asked, "is_known", lambda *_: True)
    text = Record(text="Mara was born in Skerrin. the teacher of Mara was Odo.")
    how = {"retain": village.retain, "target": village.target, "output": tmp_path / "out", **BRIEF}
    result = uld.check(village.harmed, forget=text, **how)
    (one,) = result.answers["forget"]
    assert one.question + one.truth == text.text and one.truth.startswith(" ")
    assert all(len(words_of(said)) <= len(words_of(one.truth)) for said in (one.before, *one.now))
    row = json.loads((tmp_path / "out" / "target" / "forget.jsonl").read_text())
    assert row["tokens"] == len(load(village.target)[1](one.truth, add_special_tokens=False).input_ids)


def test_a_question_is_not_refused_for_a_passage_in_the_same_batch(letters, tmp_path):
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=34, n_positions=512, n_embd=8, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=2)
    )
    question = Record.qa("a" * 360 + "?", "b" * 80, "q")
    text = Record(text="word " * 80, source="t")  # 200 letters are given, and 200 asked for
    check = asked.Asked(Questions.read([question, text], [Record.qa("who?", "me", "k")]), 128)
    found = run(check, Subject(model.eval(), letters), tmp_path / "out", progress=False)
    written = [len(row["ids"]) for row in found["forget"]]
    assert len(written) == 2 and written[0] <= 128 and written[1] <= 200


def test_a_stop_changes_nothing(village, tmp_path, monkeypatch, alone):
    true, calls = benchmark.generate_ids, []

    def stops(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return true(*arguments, **options)

    how = {**village.files, "held_out": village.held_out, "target": village.target, "output": tmp_path / "out", **BRIEF}
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "generate_ids", stops)
        with pytest.raises(KeyboardInterrupt):
            uld.check(village.reworded, **how)
    assert (tmp_path / "out" / "target" / "retain.jsonl").stat().st_size
    assert not (tmp_path / "out" / "result.json").exists()
    result = uld.check(village.reworded, **how)
    assert result.runs[0].values == alone.runs[RUNS.index("reworded")].values


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (
            {"target": None},
            ULDError,
            "is an ordinary model, not a run: name the model that it was made of with --target",
        ),
        ({"runs": []}, ULDError, "name at least one run"),
        ({"forget": []}, DataError, "the forget set is empty"),
        ({"retain": "forget"}, DataError, "this retain record is also in the forget set"),
        ({"held_out": "forget"}, DataError, "the held-out set asks what the forget set asks"),
        (
            {"thresholds": {"forget_rogue": "<= 1"}},
            ConfigError,
            "no measure 'forget_rogue': did you mean 'forget_rouge'",
        ),
        ({"thresholds": {"forget_rouge": "<= retain-only"}}, ConfigError, "name one"),
        ({"target": "retain_only"}, DataError, "nothing to forget: the target .* knows the answers to 0 of 6"),
    ],
)
def test_bad_input_leaves_nothing(village, tmp_path, change, error, sentence):
    change = {name: getattr(village, one) if isinstance(one, str) else one for name, one in change.items()}
    given = {"runs": village.harmed, "target": village.target, **village.files, **change}
    with pytest.raises(error, match=sentence):
        uld.check(given.pop("runs"), **given, output=tmp_path / "out", **BRIEF)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("known", "refused"),
    [
        ([20], False),  # one of two passages
        ([0, 1], False),  # two of twenty questions
        ([0], True),
        ([], True),
    ],
)
def test_one_kind_that_the_target_knows_is_something_to_forget(known, refused):
    questions = [Record.qa(f"what is number {i}?", f"it is {i}") for i in range(20)]
    text = Record(text="the miller carried the copper kettle across the marsh and hid it. " * 18, source="book")
    both = asked.Asked(Questions.read([*questions, text], [Record.qa("who?", "nobody")]))
    assert len(both.questions.sets["forget"]) == 22
    with pytest.raises(DataError, match="nothing to forget") if refused else nullcontext():
        refuse_unknown(both, {"forget": known}, "target")


def test_other_questions_in_the_same_folder_are_refused(village, alone):
    with pytest.raises(ArtifactError, match=r"other settings \(data\)"):
        uld.check(village.run, **village.files, output=alone.folder, **BRIEF)


def test_python_writes_over_nothing_that_is_read_either(village, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "load", lambda *_, **__: pytest.fail("something was loaded"))
    forget = tmp_path / "folder" / "forget.jsonl"
    forget.parent.mkdir()
    forget.write_bytes(Path(village.files["forget"]).read_bytes())
    before = forget.read_bytes()
    mine = tmp_path / "mine.yaml"
    mine.write_text('forget_rouge: "<= 0.25"\n')
    for change, output, what in (
        ({"forget": forget}, forget, r"is also what is read \(forget\)"),
        ({"forget": [forget.parent]}, forget.parent / "out", r"lies in .*, which is read \(forget\)"),
        ({"ordinary": str(forget)}, forget, r"is also what is read \(ordinary\)"),
        ({"thresholds": mine}, mine, r"is also what is read \(thresholds\)"),
    ):
        with pytest.raises(ULDError, match=what):
            uld.check(village.run, **{**village.files, **change}, output=output, **BRIEF)
    assert forget.read_bytes() == before and not (forget.parent / "out").exists() and mine.is_file()


def dated(run: str, folder: Path, date: str) -> str:
    copy = shutil.copytree(run, folder)
    Manifest.read(copy).model_copy(update={"date": date}).write(copy)
    return str(copy)


def test_every_model_is_asked_on_the_date_of_the_run(village, tmp_path, monkeypatch):
    run, dates = dated(village.run, tmp_path / "dated", "2025-01-31"), {}

    def spy(place, *, date=None, **how):
        dates[place] = date
        return load(place, date=date, **how)

    monkeypatch.setattr(running, "load", spy)
    how = {**village.files, "retain_model": village.retain_only, "output": tmp_path / "out", "limit": 2}
    uld.check(run, **how, **BRIEF)
    assert dates == dict.fromkeys([village.target, village.retain_only, run], "2025-01-31")


def test_what_is_to_be_checked_is_looked_at_before_anything_is_loaded(village, tmp_path):
    runs = [dated(village.run, tmp_path / date, date) for date in ("2025-01-31", "2025-02-28")]
    with pytest.raises(ULDError, match=r"02-28 was trained on another date than .*01-31: .*--date"):
        origin_of(runs)
    found = origin_of([*runs, village.harmed], date="2025-03-31")
    assert (found.date, found.target, found.target_of(village.harmed)) == ("2025-03-31", village.target, None)
    (tmp_path / "x-request").mkdir()
    with pytest.raises(ULDError, match="x-request is neither a finished run nor a model: leave it out"):
        origin_of([village.run, str(tmp_path / "x-request")])


def test_a_run_that_is_combined_otherwise_is_another_model(village, tmp_path):
    run = Path(shutil.copytree(village.run, tmp_path / "run"))
    (run / CHECK).unlink(missing_ok=True)
    how = {**village.files, "limit": 2, **BRIEF}
    found = uld.check(run, weight=1.0, floor=0.01, thresholds={"retain_degenerate": "<= 1"}, **how)
    (one,) = found.runs
    assert one.passed and one.changed == {"weight": 1.0, "floor": 0.01}
    assert found.table().endswith(f"{run} (with weight 1.0, floor 0.01): {one.verdict}\n")
    assert check_of(run) is None and Path(found.folder).parent == run / "eval"
    page = (Path(found.folder) / "report.html").read_text()
    assert f"{run} (with weight 1.0, floor 0.01)" in page
    plain = uld.check(run, **how)
    assert plain.runs[0].changed == {} and check_of(run) is not None and plain.folder != found.folder


def test_runs_of_several_targets_are_refused(village, tmp_path):
    other = shutil.copytree(village.run, tmp_path / "other")
    Manifest.read(other).model_copy(update={"target_fingerprint": "sha256:0"}).write(other)
    with pytest.raises(ULDError, match="other belongs to another target than"):
        uld.check([village.run, other], **village.files, output=tmp_path / "out", **BRIEF)
    with pytest.raises(ULDError, match="another target"):
        uld.check(village.run, target=village.harmed, **village.files, output=tmp_path / "more", **BRIEF)
    whole = shutil.copytree(village.reworded, tmp_path / "whole")
    manifest = Manifest.read(village.run)
    manifest.model_copy(
        update={"trains": "target", "method": "npo", "weights": {}, "target_fingerprint": "sha256:1"}
    ).write(whole)
    with pytest.raises(ArtifactError, match="belongs to another target"):
        uld.check(whole, **village.files, output=tmp_path / "third", **BRIEF)


def test_a_run_of_whole_weights_is_known_in_half_precision(village, tmp_path):
    whole = shutil.copytree(village.reworded, tmp_path / "whole")
    stored = fingerprint(load_target(village.target).named_parameters())
    manifest = Manifest.read(village.run)
    manifest.model_copy(
        update={"trains": "target", "method": "npo", "weights": {}, "target_fingerprint": stored}
    ).write(whole)
    found = uld.check(whole, **village.files, output=tmp_path / "out", dtype="fp16", **BRIEF)
    assert [one.name for one in found.runs] == [str(whole)]


def test_wordings_that_the_target_does_not_know_are_left_out_and_the_report_says_so(village, alone):
    strange = [Record.qa(f"what is number {i}?", f"number {i} is zyx{i}.") for i in range(3)]
    place = Path(alone.folder).parent / "strange"
    found = uld.check(
        village.retain_only, target=village.target, **village.files, held_out=strange, output=place, **BRIEF
    )
    assert (found.asked["held_out"].questions, found.asked["held_out"].counted) == (3, 0)
    assert not [one.name for one in found.runs[0].verdicts if one.name.startswith("held_out")]
    assert any("held_out_re_entry" in one for one in found.untested)
    assert any("3 of 3 questions (the same in other words)" in one for one in found.untested)
    assert found.passed and "The same in other words" in (place / "report.html").read_text()


def test_a_retain_only_model_has_its_own_tokenizer(village, tmp_path, monkeypatch):
    asked = {}

    def loading(place, **how):
        asked[str(place)] = how.get("tokenizer")
        return load(place, **how)

    monkeypatch.setattr(running, "load", loading)
    given = {**village.files, "retain_model": village.retain_only, "tokenizer": village.target}
    uld.check(village.run, **given, output=tmp_path / "out", limit=2, **BRIEF)
    assert asked == {village.run: village.target, village.target: village.target, village.retain_only: None}


def test_runs_whose_names_are_one_as_files_have_folders_of_their_own(village, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    for name in ("x", "here/x"):
        shutil.copytree(village.run, tmp_path / name)
    monkeypatch.chdir(tmp_path / "here")
    found = uld.check(["../x", "x"], **village.files, output=tmp_path / "out", limit=2, **BRIEF)
    assert [run.name for run in found.runs] == ["../x", "x"]
    assert sorted(path.name for path in (tmp_path / "out").glob("run-*")) == ["run-x", "run-x-again-1"]
