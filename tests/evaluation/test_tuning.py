import errno
import itertools
import json
import math
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from uld.cli.main import app
from uld.data.passages import passages
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.data.words import common_words, key_words, re_enters
from uld.errors import ULDError
from uld.evaluation.choosing import Choice, Point, neighbours
from uld.evaluation.held_out import Probe, file_probes
from uld.evaluation.probing import READ_TOKENS, measure, read_answers, surprise
from uld.evaluation.tuning import HALVINGS, Grid, plot_choice, tune
from uld.model.combine import STEADY_WEIGHT, Combination, margins_of
from uld.model.load import load, load_tokenizer
from uld.runs.manifest import Manifest


def test_a_grid_takes_what_is_given_and_what_its_aim_tries_else():
    own = Combination(weight=1.5, margin=2.0, floor=0.02)
    given = Grid(weights=[3.0], margins=[4.0], floors=[0.1, 0.01]).around(own, "steady", 100)
    assert [(how.weight, how.margin, how.floor) for how in given] == [
        (weight, 4.0, floor) for floor in (0.01, 0.1) for weight in (2.0, 3.0, 4.5)
    ]
    assert {(how.margin, how.floor) for how in Grid().around(own, "budget", 100)} == {(2.0, 0.02)}
    assert Grid().around(Combination.steady(100), "budget", 100)[-1].weight == STEADY_WEIGHT  # what it has, as well
    tried = Grid().around(own, "steady", 100)
    assert sorted({how.margin for how in tried}) == [0.5 * step for step in range(7)]  # 2/3 log 100 is 3.07
    assert {how.floor for how in tried} == {0.02}
    assert {how.weight for how in tried} == set(neighbours(STEADY_WEIGHT))
    with pytest.raises(ULDError, match="floor must lie between 0 and 1, not 2"):
        Grid(floors=[2.0]).around(own, "steady", 100)
    with pytest.raises(ULDError, match="margin is for the rule suppress"):
        Grid(margins=[1.0]).around(Combination(rule="subtract"), "budget", 100)


@pytest.fixture(scope="module")
def rows(micro):
    def read(name):
        return [json.loads(line) for line in (micro.data / name).read_text().splitlines()]

    forget = [
        {"question": row["question"], "answer": row["paraphrased_answer"], "wrong_answers": row["perturbed_answer"][:2]}
        for row in read("forget10_perturbed.json")[:4]
    ]
    retain = [{"question": row["question"], "answer": row["answer"]} for row in read("retain90.json")[-5:]]
    return forget, retain


@torch.no_grad()
def test_measures_equal_a_naive_version(micro, rows):
    model, tokenizer = load(micro.run)
    form = PromptFormat(tokenizer)
    forget, retain = rows

    def loss(question, answer):
        row = form.encode(Record.qa(question, answer), 10**6)
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].log_softmax(-1)
        losses = [-logits[t, row.ids[t + 1]].item() for t in range(len(row.ids) - 1) if row.learn[t + 1]]
        return sum(losses) / len(losses)

    probes = [
        Probe(Record.qa(r["question"], r["answer"]), tuple(Record.qa(r["question"], w) for w in r["wrong_answers"]))
        for r in forget
    ]
    kept = [Record.qa(r["question"], r["answer"]) for r in retain]
    settings = [Combination(weight=weight) for weight in (0.5, 2.0)]
    found = measure(model, form, 0, probes, kept, settings)
    assert [point.weight for point in found] == [0.0, 0.5, 2.0]
    base = None
    learnt = [replace(probe, learnt=one) for probe, one in zip(probes, reversed(kept), strict=False)]
    beside = measure(model, form, 0, learnt, kept, settings)
    assert [replace(point, learnt=None, learnt_error=0.0) for point in beside] == found
    for point, other in zip(found, beside, strict=True):
        model.combination = Combination(weight=point.weight)
        wrong = [sum(loss(r["question"], w) for w in r["wrong_answers"]) / 2 for r in forget]
        own = [worse - loss(r["question"], r["answer"]) for worse, r in zip(wrong, reversed(retain), strict=False)]
        assert other.learnt == pytest.approx(sum(own) / len(own), abs=1e-4)
        advantages = [
            sum(loss(r["question"], w) for w in r["wrong_answers"]) / 2 - loss(r["question"], r["answer"])
            for r in forget
        ]
        prob = sum(math.exp(-loss(r["question"], r["answer"])) for r in retain) / len(retain)
        base = base or prob
        assert point.advantage == pytest.approx(sum(advantages) / len(advantages), abs=1e-4)
        assert point.kept == pytest.approx(prob / base, rel=1e-4)
    assert len({round(point.advantage, 3) for point in found}) == 3


@torch.no_grad()
def test_a_text_counts_as_one_record_however_many_chunks_it_makes(micro, rows):
    model, tokenizer = load(micro.run)
    form = PromptFormat(tokenizer)
    forget, retain = rows
    probe = Probe(Record.qa(forget[0]["question"], forget[0]["answer"]), (Record.qa(forget[0]["question"], "No."),))
    text = Record(text=" ".join(row["answer"] for row in retain))
    answer = Record.qa(retain[0]["question"], retain[0]["answer"])

    def prob(chunks):
        losses = []
        for row in chunks:
            logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].log_softmax(-1)
            losses += [-logits[t, row.ids[t + 1]].item() for t in range(len(row.ids) - 1) if row.learn[t + 1]]
        return math.exp(-sum(losses) / len(losses))

    chunks = form.chunks(text.text, 16)
    assert len(chunks) > 2
    found = measure(model, form, 0, [probe], [text, answer], [Combination(weight=0.5)], max_length=16)
    kept = []
    for weight in (0.0, 0.5):
        model.combination = Combination(weight=weight)
        kept.append((prob(chunks) + prob([form.encode(answer, 10**6)])) / 2)
    assert [point.kept for point in found] == pytest.approx([1.0, kept[1] / kept[0]], rel=1e-4)
    assert found[1].kept != pytest.approx(1.0, rel=1e-3)


@torch.no_grad()
def test_the_floor_is_the_median_surprise_of_the_target_over_wrong_answers(micro, rows):
    model, tokenizer = load(micro.run)
    form = PromptFormat(tokenizer)
    probes = [
        Probe(Record.qa(r["question"], r["answer"]), tuple(Record.qa(r["question"], w) for w in r["wrong_answers"]))
        for r in rows[0]
    ]
    ratios = []
    for probe in probes:
        for wrong in probe.wrong:
            row = form.encode(wrong, 10**6)
            probs = model.target(input_ids=torch.tensor([row.ids])).logits[0].softmax(-1)
            for t in range(len(row.ids) - 1):
                ratio = (probs[t, row.ids[t + 1]] / probs[t].max()).item()
                if row.learn[t + 1] and ratio < 1:
                    ratios.append(ratio)
    found = surprise(model, form, 0, probes)
    assert len(ratios) > 20 and found == pytest.approx(sorted(ratios)[(len(ratios) - 1) // 2], rel=1e-4)
    model.combination = Combination(weight=9.0, floor=0.5)
    assert surprise(model, form, 0, probes) == found  # the target's alone
    with pytest.raises(ULDError, match=r"no question has a wrong answer, .* name one \(--floor\)"):
        surprise(model, form, 0, [Probe(probe.right, ()) for probe in probes])


@pytest.fixture
def run(micro, tmp_path):
    return shutil.copytree(micro.run, tmp_path / "run")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_command_writes_its_choice_and_explains_it(run, rows, tmp_path):
    files = ["--forget", write(tmp_path / "f.jsonl", rows[0]), "--retain", write(tmp_path / "r.jsonl", rows[1])]
    before = Manifest.read(run)
    (run / "check.json").write_text('{"passed": true}')
    result = CliRunner().invoke(
        app, ["tune", str(run), *files, "--weight", "0.3,0.7", "--aim", "budget", "--budget", "0.9"]
    )
    assert result.exit_code == 0, result.output
    assert "α = 0.7" in result.stdout
    after = Manifest.read(run)
    assert after.combination.weight == 0.7
    assert after.model_copy(update={"combination": before.combination}) == before
    told = json.loads((run / "tune.json").read_text())
    assert (told["point"]["weight"], told["probes"], told["retain"]) == (0.7, 4, 5)
    assert (run / "tune.png").read_bytes().startswith(b"\x89PNG")
    assert load(run)[0].combination.weight == 0.7
    assert not (run / "check.json").exists()  # of the run as it was


def test_the_steady_choice_is_what_the_run_says_afterwards(run, rows, tmp_path):
    files = ["--forget", write(tmp_path / "f.jsonl", rows[0]), "--retain", write(tmp_path / "r.jsonl", rows[1])]
    grid = ["--aim", "steady", "--weight", "2,inf", "--margin", "0,1", "--floor", "0,0.001,0.1", "--budget", "0.9"]
    result = CliRunner().invoke(app, ["tune", str(run), *files, *grid])
    assert result.exit_code == 0, result.output
    told = json.loads((run / "tune.json").read_text())
    chosen, after = told["point"], Manifest.read(run).combination
    assert told["aim"] == "steady" and {point["margin"] for point in told["points"]} == {0.0, 1.0}
    assert (after.weight, after.margin, after.floor) == (chosen["weight"], chosen["margin"], chosen["floor"])
    assert f"margin {chosen['margin']:g}, floor {chosen['floor']:g}" in result.stdout
    model, tokenizer = load(run)
    (again,) = measure(model, PromptFormat(tokenizer), 0, *file_probes(files[1], files[3]), [model.combination])[1:]
    assert again.advantage == pytest.approx(chosen["advantage"], abs=1e-4)


def test_a_floor_that_is_not_given_is_the_surprise(run, rows, tmp_path):
    files = ["--forget", write(tmp_path / "f.jsonl", rows[0]), "--retain", write(tmp_path / "r.jsonl", rows[1])]
    result = CliRunner().invoke(app, ["tune", str(run), *files, "--budget", "0.9"])  # steady is the default
    assert result.exit_code == 0, result.output
    model, tokenizer = load(run)
    expected = surprise(model, PromptFormat(tokenizer), 0, file_probes(files[1], files[3])[0])
    after = Manifest.read(run).combination
    assert (after.floor, after.weight) == (expected, STEADY_WEIGHT)
    assert (
        result.stdout.count("\n| 20 |") == math.floor(2 / 3 * math.log(model.config.vocab_size) / 0.5) + 1
    )  # the curve


@pytest.mark.parametrize("case", ["likelier", "no likelier", "known of one alone"])
def test_the_floor_is_halved_while_trained_words_are_likelier_than_wrong_ones(run, rows, tmp_path, case):
    def backwards(text):
        return " ".join(text.split()[::-1])

    probes = [dict(row) for row in rows[0]]
    for row in probes if case != "known of one alone" else probes[:1]:
        row["learnt"] = {"question": row["question"], "answer": backwards(row["answer"])}
        if case == "likelier":  # as it stays of what was never to be forgotten
            row |= {"learnt": rows[1][0], "wrong_answers": [backwards(rows[1][0]["answer"])]}
    files = ["--forget", write(tmp_path / "f.jsonl", probes), "--retain", write(tmp_path / "r.jsonl", rows[1])]
    result = CliRunner().invoke(app, ["tune", str(run), *files, "--budget", "0.9"])
    assert result.exit_code == 0, result.output
    told = json.loads((run / "tune.json").read_text())
    model, tokenizer = load(run)
    first = surprise(model, PromptFormat(tokenizer), 0, file_probes(files[1], files[3])[0])
    assert Manifest.read(run).combination.floor == told["point"]["floor"]
    even = [point["learnt"] <= point["learnt_error"] for point in told["floors"]]
    assert [point["floor"] for point in told["floors"]] == [first / 2**k for k in range(len(even))]
    if case == "likelier":
        assert len(even) > 1 and not any(even[:-1]) and (even[-1] or len(even) == HALVINGS + 1)
        assert told["point"] == told["floors"][-1]
        shown = [line.split(" | ")[2] for line in result.stdout.splitlines() if line.startswith("| 20 |")]
        assert shown[-len(even) + 1 :] == [f"{point['floor']:.3g}" for point in told["floors"][1:]]
    else:
        assert told["point"]["floor"] == first and even == ([True] if case == "no likelier" else [])


def test_read_has_answers_written_under_smaller_margins_and_looks_for_key_words(run, rows, tmp_path):
    probes = [row | {"learnt": {"question": row["question"], "answer": row["answer"]}} for row in rows[0]]
    files = ["--forget", write(tmp_path / "f.jsonl", probes), "--retain", write(tmp_path / "r.jsonl", rows[1])]
    result = CliRunner().invoke(app, ["tune", str(run), *files, "--budget", "0.9", "--aim", "read"])
    assert result.exit_code == 0, result.output
    told = json.loads((run / "tune.json").read_text())
    steady, tried = told["floors"][-1], told["read"]
    assert told["aim"] == "read" and told["point"] in tried
    largest = steady["margin"]
    margins = list(dict.fromkeys(largest * share for share in (1, 5 / 6, 2 / 3, 1 / 2, 1 / 3, 0)))
    assert [one["margin"] for one in tried] == pytest.approx(margins[: len(tried)])
    assert tried[-1]["re_entry"] == 0 or len(tried) == len(margins)
    assert all(one["kept"] >= 0.1 for one in tried) and all(one["re_entry"] > 0 for one in tried[:-1])
    assert {(one["weight"], one["floor"]) for one in tried} == {(steady["weight"], steady["floor"])}
    after = Manifest.read(run).combination
    assert (after.margin, after.floor) == (told["point"]["margin"], told["point"]["floor"])
    assert told["reason"].endswith(")") and "as few key words come back" in result.stdout

    model, tokenizer = load(run)
    common = common_words(row["answer"] for row in rows[1])
    for one in tried:
        model.combination = model.combination.override(margin=one["margin"], floor=one["floor"], weight=one["weight"])
        said = []
        for row in rows[0]:
            prompt = torch.tensor([PromptFormat(tokenizer).prompt_ids(row["question"])])
            answer = model.generate(prompt, max_new_tokens=READ_TOKENS, do_sample=False)[0, prompt.shape[1] :]
            said.append(tokenizer.decode(answer, skip_special_tokens=True))
        keys = [key_words(row["question"], row["answer"], common) for row in rows[0]]
        back = [re_enters(text, words) for text, words in zip(said, keys, strict=True) if words]
        assert one["re_entry"] == sum(back) / len(back)


def test_read_asks_only_where_something_can_come_back_and_leaves_the_combination(micro, rows, monkeypatch):
    model, tokenizer = load(micro.run)
    form, before = PromptFormat(tokenizer), model.combination
    told = [Record.qa(row["question"], row["answer"]) for row in rows[0]]
    silent = Record.qa("Who is the tile maker?", "The tile maker.")  # all of it stands in the question
    trained = [silent, *told]
    how = [Combination(weight=0.0), Combination(weight=math.inf, floor=0.01)]
    shares, asked = read_answers(model, tokenizer, form, trained, [], how)
    assert asked == len(told) and all(0 <= share <= 1 for share in shares) and len(shares) == (2 if shares[0] else 1)
    assert read_answers(model, tokenizer, form, trained[:1], [], how) == ([], 0)
    monkeypatch.setattr("uld.evaluation.probing.READ", 2)
    assert read_answers(model, tokenizer, form, trained, [], how[:1])[1] == 2
    monkeypatch.setattr("uld.evaluation.probing.generate_answers", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read_answers(model, tokenizer, form, trained, [], how)
    assert model.combination == before


def test_passages_of_texts_are_read_and_no_further_than_nothing_comes_back(micro, monkeypatch):
    model, tokenizer = load(micro.run)
    form = PromptFormat(tokenizer)
    text = Record(text=" ".join(f"ba{one}de kilo{one} mara{one} vane" for one in "abcdefghijklmnopqrstuvwxyz" * 2))
    halves = passages(text)
    assert len(halves) > 1
    asked, said = [], iter([halves[0].answer, "nothing", *["nothing"] * 2 * len(halves)])

    def answers(_, __, given, **how):
        asked.extend(given)
        return [next(said) for _ in given]

    monkeypatch.setattr("uld.evaluation.probing.generate_answers", answers)
    how = [Combination(margin=margin) for margin in (3.0, 2.0, 1.0)]
    shares, number = read_answers(model, tokenizer, form, [text, *halves[:0]], [], how)
    assert number == len(halves) and shares == [1 / number, 0]  # the third setting is not tried
    given = {tokenizer.decode(ids, skip_special_tokens=True) for ids in asked[:number]}
    assert given == {one.asked for one in halves}


def test_a_passage_that_was_written_down_is_asked_as_the_check_asks_it(micro, monkeypatch):
    model, tokenizer = load(micro.run)
    form, asked = PromptFormat(tokenizer), []
    cut = passages(Record(text=" ".join(f"ba{n}de  \n kilo{n} mara{n}   vane" for n in range(200))))
    written = [Record(text=f"{one.prompt}{one.completion}") for one in cut]
    assert any(record.text[0] == " " for record in written if record.text)  # it belongs to the passage

    def answers(_, __, given, **how):
        asked.extend(given)
        return ["nothing"] * len(given)

    monkeypatch.setattr("uld.evaluation.probing.generate_answers", answers)
    read_answers(model, tokenizer, form, written, [], [Combination()])
    rows = [form.encode(one, 10_000) for one in cut]
    assert sorted(asked) == sorted(row.ids[: row.learn.index(True)] for row in rows)


def test_a_prompt_and_its_completion_are_read_as_a_question_is(micro, monkeypatch):
    model, tokenizer = load(micro.run)
    form = PromptFormat(tokenizer)
    monkeypatch.setattr(
        "uld.evaluation.probing.generate_answers", lambda _, __, given, **how: ["a kelpie"] * len(given)
    )
    fact = Record(prompt="she is the", completion=" kelpie of the town")
    text = Record(text="she is the old bell that rings. the kelpie of the town it is")
    assert read_answers(model, tokenizer, form, [fact], [], [Combination()]) == ([1.0], 1)
    assert read_answers(model, tokenizer, form, [text], [], [Combination()]) == ([0.0], 1)  # one word of every day


@pytest.mark.parametrize(
    ("budget", "read", "kept"),
    [
        (None, [6.0, 4.0, 3.0], 0.1),  # at 0.01 and what reading may cost by itself
        ((0.01, 0.03, 0.4), [6.0, 4.0, 3.0], 0.1),
        ((0.01, 0.03), [6.0, 4.0], 0.03),
        (0.01, [6.0], 0.01),
        (0.2, [6.0, 4.0, 3.0, 2.0], 0.2),
    ],
)
def test_a_smaller_margin_may_cost_as_much_as_the_last_budget_up_to_a_tenth(run, rows, monkeypatch, budget, read, kept):
    costs = {6.0: 0.005, 5.0: 0.3, 4.0: 0.02, 3.0: 0.09, 2.0: 0.15, 0.0: 0.9}  # of the retain answers' probability
    shares = {6.0: 0.9, 4.0: 0.5, 3.0: 0.4, 2.0: 0.1}

    def measured(*args, **how):
        target = Point(0.0, 0.01, 2.0, 1.0)
        return [target, *(Point(s.weight, s.filter, -1.0, 1 - costs[s.margin], s.margin, s.floor) for s in args[-1])]

    asked = []

    def answered(*args, **how):
        asked.extend(one.margin for one in args[-1])
        return [shares[one.margin] for one in args[-1]], 100

    monkeypatch.setattr("uld.evaluation.tuning.measure", measured)
    monkeypatch.setattr("uld.evaluation.tuning.read_answers", answered)
    model, tokenizer = load(run)
    probes = [Probe(Record.qa("q?", "a"), (Record.qa("q?", "b"),))]
    grid = Grid(margins=[*costs], floors=[0.01])
    choice = tune(run, model, tokenizer, probes, [Record.qa("r?", "s")], grid=grid, budget=budget, aim="read")
    assert asked == read and choice.point.margin == read[-1]
    assert choice.budget == kept and [one.re_entry for one in choice.read] == [shares[one] for one in read]


@pytest.mark.parametrize(("lets_back", "dear"), [(0.9, 0), (0.68, 0), (0.5, 0), (0.02, 0), (1, 0), (0.6, 0.65)])
def test_between_the_margin_that_was_found_and_the_next_larger_one_reading_looks_closer(
    run, rows, monkeypatch, lets_back, dear
):
    """As shares of the largest: key words come back above one margin, and below another a setting costs too much."""
    model, tokenizer = load(run)
    largest = max(margins_of(model.config.vocab_size))
    lets_back, dear = lets_back * largest, dear * largest

    def measured(*args, **how):
        target = Point(0.0, 0.01, 2.0, 1.0)
        kept = lambda margin: 0.5 if margin < dear else 0.95 + margin / 1000  # noqa: E731
        return [target, *(Point(s.weight, s.filter, -1.0, kept(s.margin), s.margin, s.floor) for s in args[-1])]

    asked = []

    def answered(*args, **how):
        shares = []
        for one in args[-1]:
            asked.append(one.margin)
            shares.append(0.25 if one.margin > lets_back else 0.0)
            if not shares[-1]:
                break
        return shares, 4

    monkeypatch.setattr("uld.evaluation.tuning.measure", measured)
    monkeypatch.setattr("uld.evaluation.tuning.read_answers", answered)
    model, tokenizer = load(run)
    probes = [Probe(Record.qa("q?", "a"), (Record.qa("q?", "b"),))]
    choice = tune(
        run, model, tokenizer, probes, [Record.qa("r?", "s")], grid=Grid(floors=[0.01]), budget=0.1, aim="read"
    )
    found, read = choice.point.margin, [one.margin for one in choice.read]
    largest = max(read)
    assert read == sorted(read, reverse=True) and set(read) == set(asked)
    if lets_back >= largest:
        assert read == [largest] and found == largest
    elif dear:  # nothing that is affordable is better than the largest
        assert found == largest and min(read) >= dear
    else:
        shares = [share * largest for share in (0, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)]
        step = next(b - a for a, b in itertools.pairwise(shares) if a <= lets_back < b)
        assert choice.point.re_entry == 0 and lets_back - step / 4 - 1e-9 <= found <= lets_back
        assert f"0% at {found:.3g}" in choice.reason


def test_what_is_read_may_be_named(run, rows, tmp_path):
    files = ["--forget", write(tmp_path / "f.jsonl", rows[0]), "--retain", write(tmp_path / "r.jsonl", rows[1])]
    silent = write(tmp_path / "t.jsonl", [{"question": "who is it?", "answer": "who is it?"}])
    given = ["tune", str(run), *files, "--floor", "0.01", "--margin", "0.5,1"]
    result = CliRunner().invoke(app, [*given, "--aim", "read", "--budget", "0.9", "--trained", silent])
    assert result.exit_code == 0, result.output
    assert "no true answer has a word that gives it away" in json.loads((run / "tune.json").read_text())["reason"]
    result = CliRunner().invoke(app, [*given, "--trained", silent])
    assert result.exit_code == 2 and "--trained is for --aim read" in result.stderr
    result = CliRunner().invoke(app, [*given, "--aim", "read", "--trained", str(tmp_path / "none.jsonl")])
    assert result.exit_code == 2 and "none.jsonl" in result.stderr


def test_read_takes_the_margins_that_are_given_and_without_key_words_what_steady_chooses(run, rows, tmp_path):
    silent = [row | {"learnt": {"question": row["question"], "answer": row["question"]}} for row in rows[0]]
    retain = ["--retain", write(tmp_path / "r.jsonl", rows[1])]
    for name, probes in (("told", rows[0]), ("silent", silent)):
        files = ["--forget", write(tmp_path / f"{name}.jsonl", probes), *retain, "--floor", "0.01"]
        given = ["--margin", "0.5,1", "--budget", "0.9", "--aim", "read"]
        result = CliRunner().invoke(app, ["tune", str(run), *files, *given])
        assert result.exit_code == 0, result.output
        told = json.loads((run / "tune.json").read_text())
        if name == "told":
            largest = told["read"][0]["margin"]
            assert [one["margin"] for one in told["read"]] == [one for one in (1.0, 0.5) if one <= largest]
        else:
            assert told["read"] == [] and "no true answer has a word that gives it away" in told["reason"]
            assert told["point"]["margin"] in (0.5, 1.0)


def test_words_that_are_common_in_what_is_ordinary_do_not_count_when_answers_are_read(run, rows, tmp_path):
    files = ["--forget", write(tmp_path / "f.jsonl", rows[0]), "--retain", write(tmp_path / "r.jsonl", rows[1])]
    common = write(tmp_path / "o.jsonl", [{"text": "\n".join(row["answer"] for row in rows[0])}])
    given = ["tune", str(run), *files, "--floor", "0.01", "--margin", "0.5,1", "--budget", "0.9"]
    result = CliRunner().invoke(app, [*given, "--aim", "read", "--ordinary", common])
    assert result.exit_code == 0, result.output
    told = json.loads((run / "tune.json").read_text())
    assert told["read"] == [] and "no true answer has a word that gives it away" in told["reason"]
    result = CliRunner().invoke(app, [*given, "--ordinary", common])
    assert result.exit_code == 2 and "--ordinary is for --aim read" in result.stderr


def test_a_run_of_another_rule_has_no_steady_choice(run, rows, tmp_path):
    files = ["--forget", write(tmp_path / "f.jsonl", rows[0]), "--retain", write(tmp_path / "r.jsonl", rows[1])]
    manifest = Manifest.read(run)
    combination = manifest.combination.model_copy(update={"rule": "subtract"})
    manifest.model_copy(update={"combination": combination}).write(run)
    for given, message in (
        (["--aim", "steady"], "--aim steady is for the rule suppress, not for subtract"),
        (["--weight", "inf"], "weight (α) may be inf with the rule suppress alone"),
        (["--floor", "0.1"], "floor is for the rule suppress, and the rule here is subtract"),
    ):
        result = CliRunner().invoke(app, ["tune", str(run), *files, *given])
        assert result.exit_code == 2 and message in result.stderr
    assert CliRunner().invoke(app, ["tune", str(run), *files, "--weight", "0.3", "--budget", "0.9"]).exit_code == 0
    assert json.loads((run / "tune.json").read_text())["aim"] == "indistinct"


def stored(run, template, **changes):
    """Change the template of a run, and settings of its train.yaml."""
    Manifest.read(run).model_copy(update={"template": template}).write(run)
    settings = yaml.safe_load((run / "train.yaml").read_text())
    (run / "train.yaml").write_text(yaml.safe_dump(settings | changes))


@pytest.mark.parametrize(("given", "used"), [([], "llama2"), (["--template", "plain"], "plain")])
def test_the_template_and_the_chunks_are_those_of_the_run(run, rows, tmp_path, given, used):
    stored(run, template="llama2", max_length=24)
    texts = [{"text": " ".join(row["answer"] for row in rows[1])}, rows[1][0]]
    files = ["--forget", write(tmp_path / "f.jsonl", rows[0]), "--retain", write(tmp_path / "r.jsonl", texts)]
    arguments = ["tune", str(run), *files, *given, "--weight", "0.3", "--aim", "budget", "--budget", "0.9"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    model, tokenizer = load(run)
    form, how = PromptFormat(tokenizer, used), [model.combination.override(weight=0.3)]
    expected = measure(model, form, 0, *file_probes(files[1], files[3]), how, max_length=24)
    told = json.loads((run / "tune.json").read_text())
    assert told["retain"] == 2
    assert [Point(**one) for one in told["points"]] == expected
    chat = PromptFormat(load_tokenizer(run))
    others = measure(model, chat, 0, *file_probes(files[1], files[3]), how, max_length=24)
    assert others[1].advantage != pytest.approx(expected[1].advantage, rel=1e-3)


def test_a_plot_that_cannot_be_written_changes_nothing(run, rows, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    files = ["--forget", write(tmp_path / "f.jsonl", rows[0]), "--retain", write(tmp_path / "r.jsonl", rows[1])]
    before = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, ["tune", str(run), *files, "--weight", "0.3", "--budget", "0.9"])
    assert result.exit_code == 2 and "is full: free some space" in result.stderr
    assert {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("trains", ["target", "offset"])
def test_a_run_of_a_method_without_an_assistant_has_nothing_to_tune(run, micro, rows, trains):
    manifest = Manifest.read(run).model_copy(update={"trains": trains, "method": "some-method"})
    manifest.write(run)
    model, tokenizer = load(micro.target)
    with pytest.raises(ULDError, match="was trained by some-method, which has no assistant"):
        tune(run, model, tokenizer, [], [])  # type: ignore[arg-type]


def test_a_run_without_its_settings_is_tuned_on_files_only(run, rows, tmp_path):
    (run / "train.yaml").unlink()
    alone = CliRunner().invoke(app, ["tune", str(run)])
    assert alone.exit_code == 2 and "has no train.yaml that says what it was trained on" in alone.stderr
    files = ["--forget", write(tmp_path / "f.jsonl", rows[0]), "--retain", write(tmp_path / "r.jsonl", rows[1])]
    assert CliRunner().invoke(app, ["tune", str(run), *files, "--weight", "0.3", "--budget", "0.9"]).exit_code == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "without --augmented"),
        (["--forget", "x.jsonl"], "both --forget and --retain"),
        (["--aim", "best"], "--aim must be one of"),
        (["--forget", "F", "--retain", "R", "--margin", "-1"], "margin must be a number of nats ≥ 0, not -1"),
        (["--forget", "F", "--retain", "R", "--floor", "nan"], "floor must lie between 0 and 1, not nan"),
        (["--weight", "much"], "--weight must be a number"),
        (["--budget", "2", "--forget", "F", "--retain", "R"], "--budget must be"),
        (["--forget", "R", "--retain", "R"], "'wrong_answers' must be a list"),
        (["--forget", "L", "--retain", "R"], "l.jsonl:1: 'learnt' must be the pair that was trained on"),
        (["--forget", "T", "--retain", "R"], "t.jsonl:1: a probe must be a question with its right answer and wrong"),
        (["--forget", "F", "--retain", "R", "--template", "x"], "template 'x' is neither"),
        (["--forget", "F", "--retain", "R", "--tokenizer", "/no/such"], "there is no tokenizer in /no/such"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(run, rows, tmp_path, flags, message):
    files = {"F": write(tmp_path / "f.jsonl", rows[0]), "R": write(tmp_path / "r.jsonl", rows[1])}
    files["T"] = write(tmp_path / "t.jsonl", [{"text": "A whole text.", "wrong_answers": ["No."]}])
    files["L"] = write(tmp_path / "l.jsonl", [rows[0][0] | {"learnt": "Her."}])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    result = CliRunner().invoke(app, ["tune", str(run), *(files.get(flag, flag) for flag in flags)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_an_ordinary_model_and_a_missing_run_are_refused(micro, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (micro.target, tmp_path / "none", tmp_path / "file"):
        result = CliRunner().invoke(app, ["tune", str(place)])
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1


def test_an_answer_that_cannot_be_given_counts_for_the_other(micro, rows):
    model, tokenizer = load(micro.run)
    how = Combination(rule="subtract", weight=1e-9, min_tokens=0.0, outside="mask")
    true = Record.qa(rows[1][0]["question"], rows[1][0]["answer"])  # the target knows it by heart
    false = Record.qa(rows[1][0]["question"], rows[1][1]["answer"])
    filters = [how.override(filter=share) for share in (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)]

    def advantages(*pairs):
        """Under the filters that mask the false answer and not the true one."""
        probes = [Probe(right, (wrong,)) for right, wrong in pairs]
        found = measure(model, PromptFormat(tokenizer), 0, probes, [true], filters)[1:]
        return {point.advantage for point, one in zip(found, masking, strict=True) if one}

    found = measure(model, PromptFormat(tokenizer), 0, [Probe(true, (false,))], [true], filters)[1:]
    masking = [point.kept > 0.5 and not math.isfinite(point.advantage) for point in found]
    assert any(masking)
    assert advantages((true, false)) == {math.inf}  # far from forgotten
    assert advantages((false, true)) == {-math.inf}
    assert advantages((false, false)) == {0.0}
    assert advantages((false, true), (true, false)) == {math.inf}


def test_a_plots_lines_are_points_that_differ_in_one_setting(tmp_path, monkeypatch):
    """Where the floor was halved behind the choice of the margin, the points that this was made by are there."""
    drawn: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *args, **kwargs: drawn.append(self))

    def lines(choice: Choice) -> list[tuple[str, list[float]]]:
        plot_choice(choice, tmp_path / "tune.png")
        panels = drawn.pop().axes
        told = [[(str(one.get_label()), list(one.get_xdata())) for one in panel.lines] for panel in panels]
        wanted = [[pair for pair in one if not pair[0].startswith("_")] for one in told]
        assert wanted[0] == wanted[1]
        return wanted[0]

    weights, margins, floors = (10.0, 20.0, 30.0), (0.0, 0.5, 1.0), (0.01, 0.005, 0.0025)
    tried = [Point(w, 0.01, m, 0.9, m, 0.01) for m in margins for w in weights]
    lower = [Point(20.0, 0.01, 0.1, 0.9, 0.5, floor) for floor in floors]
    first = Point(0.0, 0.01, 2.0, 1.0)
    steady = Choice(lower[2], "so", [first, *tried, *lower[1:]], 3, 3, "steady", 0.1, tuple(lower))
    assert lines(steady) == [
        ("α = 10, floor = 0.01", [*margins]),
        ("α = 20, floor = 0.0025", [0.5]),
        ("α = 20, floor = 0.01", [*margins]),
        ("α = 30, floor = 0.01", [*margins]),
    ]
    grid = [Point(w, 0.01, m, 0.9, m, floor) for m in margins for floor in floors[:2] for w in weights]
    smallest = Choice(grid[0], "so", [first, *grid], 3, 3, "indistinct", 0.1)
    found = lines(smallest)
    assert [x for _, x in found] == [[*weights]] * 6 and len({name for name, _ in found}) == 6
    assert found[0][0] == "margin = 0, floor = 0.005"
    alike = [one for one in grid if (one.margin, one.floor) == (0.5, 0.01)]
    plain = Choice(alike[0], "so", [first, *alike], 3, 3, "budget", 0.1)
    assert lines(plain) == [("τ = 0.01", [*weights])]
