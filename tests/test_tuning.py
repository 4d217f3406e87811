import json
import math
import shutil

import pytest
import torch
from typer.testing import CliRunner

from uld.artifact import Manifest
from uld.cli.main import app
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ULDError
from uld.logits import Combination
from uld.modeling import load
from uld.tuning import Point, Probe, choose, measure


def points(*rows):
    return [Point(0.0, 0.01, 2.0, 1.0), *(Point(weight, 0.01, advantage, kept) for weight, advantage, kept in rows)]


def test_the_smallest_weight_that_suffices_is_chosen():
    point, reason = choose(points((0.5, 0.8, 1.0), (1.0, -0.1, 0.995), (1.5, -0.9, 0.993)), budget=0.01)
    assert point.weight == 1.0
    assert "smallest" in reason


def test_the_budget_comes_first():
    rows = points((0.5, 0.8, 0.999), (1.0, 0.3, 0.992), (1.5, -0.5, 0.97))
    point, reason = choose(rows, budget=0.01)
    assert point.weight == 1.0
    assert "0.30 nats" in reason
    assert choose(rows, budget=0.05)[0].weight == 1.5


def test_the_whole_budget_can_be_spent():
    rows = points((0.5, -0.1, 0.999), (1.0, -0.3, 0.985), (1.5, -0.5, 0.97))
    assert choose(rows, budget=0.02, aim="budget")[0].weight == 1.0
    assert choose(rows, budget=0.02)[0].weight == 0.5


def test_a_budget_that_nothing_fits_is_refused():
    with pytest.raises(ULDError, match="--budget"):
        choose(points((0.5, -0.1, 0.9), (1.0, -0.3, 0.8)), budget=0.01)


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
    for point in found:
        model.combination = Combination(weight=point.weight)
        advantages = [
            sum(loss(r["question"], w) for w in r["wrong_answers"]) / 2 - loss(r["question"], r["answer"])
            for r in forget
        ]
        prob = sum(math.exp(-loss(r["question"], r["answer"])) for r in retain) / len(retain)
        base = base or prob
        assert point.advantage == pytest.approx(sum(advantages) / len(advantages), abs=1e-4)
        assert point.kept == pytest.approx(prob / base, rel=1e-4)
    assert len({round(point.advantage, 3) for point in found}) == 3


@pytest.fixture
def run(micro, tmp_path):
    return shutil.copytree(micro.run, tmp_path / "run")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_command_writes_its_choice_and_explains_it(run, rows, tmp_path):
    files = ["--forget", write(tmp_path / "f.jsonl", rows[0]), "--retain", write(tmp_path / "r.jsonl", rows[1])]
    before = Manifest.read(run)
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "without --augmented"),
        (["--forget", "x.jsonl"], "both --forget and --retain"),
        (["--aim", "best"], "--aim must be one of"),
        (["--weight", "much"], "--weight must be a number"),
        (["--budget", "2", "--forget", "F", "--retain", "R"], "--budget must be"),
        (["--forget", "R", "--retain", "R"], "'wrong_answers' must be a list"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(run, rows, tmp_path, flags, message):
    files = {"F": write(tmp_path / "f.jsonl", rows[0]), "R": write(tmp_path / "r.jsonl", rows[1])}
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    result = CliRunner().invoke(app, ["tune", str(run), *(files.get(flag, flag) for flag in flags)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_an_ordinary_model_and_a_missing_run_are_refused(micro, tmp_path):
    for place in (micro.target, tmp_path / "none"):
        result = CliRunner().invoke(app, ["tune", str(place)])
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
