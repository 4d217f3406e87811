"""The demo from end to end on a smaller world, what it leaves, and what it refuses; slow: the real one."""

import json
import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import uld.demo.run as demo
from uld.checking.result import Shown
from uld.cli.main import app
from uld.demo.models import MicroSettings
from uld.demo.run import DemoSize, run_demo, side_by_side
from uld.errors import ArtifactError
from uld.model.combine import Combination
from uld.model.load import load
from uld.runs.manifest import is_run

TINY = DemoSize(
    people=10,
    evaluated=1,
    micro=MicroSettings(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=64,
        num_layers=2,
        epochs=16,
        batch_size=8,
        learning_rate=6e-3,
        warmup_steps=5,
    ),
    training={"num_layers": 1, "epochs": 1, "retain_rows": 8},
)


def table(said: str) -> dict[str, list[str]]:
    """Cells of the check's table by model, the name of a run being what is left."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line[:1] == "|"]
    names = {"target": "before", "retain-only": "never knew"}
    return {names.get(name, "after"): cells for name, *cells in rows[2:]}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def first(cache, tmp_path_factory):
    """A demo's folder and what it said."""
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("first"))
        run = run_demo(None, str(cache), 0, lines.append, size=TINY, progress=False)
        return run.resolve(), "\n".join(lines)


def test_it_shows_everything_in_a_screenful(first):
    run, said = first
    assert run.name == "demo-1" and is_run(run)
    assert [line[:2] for line in said.splitlines() if re.match(r"\d\.", line)] == ["1.", "2.", "3.", "4."]
    assert list(table(said)) == ["before", "never knew", "after"]
    assert said.count("\n? ") == 8  # four questions about the forgotten, four about the kept
    assert len(said.splitlines()) < 60
    assert f"uld generate -m {run.relative_to(run.parents[1])} --compare" in said


def test_it_ends_with_the_numbers_of_uld_check(first):
    run, said = first
    rows = [json.loads(line) for line in (run / "eval/check/target/forget.jsonl").read_text().splitlines()]
    result = json.loads((run / "eval/check/result.json").read_text())
    assert (run / "eval/check/report.html").is_file()
    before, never, after = table(said).values()
    (checked,) = result["runs"]
    models = [
        (before, result["others"]["target"]),
        (never, result["others"]["retain-only"]),
        (after, checked["values"]),
    ]
    for shown, values in models:
        for cell, name in zip(shown, ("forget_rouge", "forget_re_entry", "retain_rouge", "retain_same"), strict=False):
            assert float(cell) == pytest.approx(100 * values[name]["value"], abs=0.051)
    assert after[-1] == ("pass" if result["passed"] else "FAIL")
    assert f": {'PASS' if result['passed'] else 'FAIL'}, " in said
    assert result["asked"]["held_out"]["questions"] == result["asked"]["forget"]["questions"] == len(rows)


def test_what_it_leaves_is_an_ordinary_run(first):
    run, _ = first
    model, tokenizer = load(run)
    before, _ = load(model.manifest.target)  # type: ignore[union-attr]
    assert model.combination == Combination(weight=1.5)  # type: ignore[union-attr]
    ids = tokenizer("Question: Who is Ada?\nAnswer:", return_tensors="pt").input_ids
    assert not torch.allclose(model(input_ids=ids).logits, before(input_ids=ids).logits)


def test_a_second_demo_takes_another_folder_and_trains_no_models(first, cache, monkeypatch):
    run, said = first
    lines: list[str] = []
    monkeypatch.chdir(run.parents[1])
    again = run_demo(None, str(cache), 0, lines.append, size=TINY, progress=False)
    assert again.name == "demo-2"
    assert not any("epoch" in line for line in lines)
    assert table("\n".join(lines)) == table(said)  # the same world, the same seed


def test_interrupted_while_unlearning_it_leaves_models_to_go_on_with_and_no_folder(cache, first, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "train", interrupted)
    models = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    with pytest.raises(KeyboardInterrupt):
        run_demo(None, str(cache), 0, lambda line: None, size=TINY, progress=False)
    assert list((tmp_path / "runs").iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == models


def test_every_fifth_epoch_is_told():
    lines: list[str] = []
    for epoch in range(1, 21):
        demo._tell(f"target: epoch {epoch} of 20, loss 1.00", lines.append)
    assert lines == [f"   target: epoch {epoch} of 20, loss 1.00" for epoch in (5, 10, 15, 20)]


def test_interrupted_while_training_models_it_keeps_the_finished_one(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_EPOCHS_BETWEEN_LINES", 1)

    def say(line: str) -> None:
        if line.strip().startswith("retain-only"):
            raise KeyboardInterrupt

    size = replace(TINY, micro=replace(TINY.micro, epochs=1))
    with pytest.raises(KeyboardInterrupt):
        run_demo(None, str(tmp_path), 0, say, size=size, progress=False)
    names = sorted(path.name.rpartition("-")[0] for path in tmp_path.iterdir())
    assert names == ["target", "world"]


def test_a_folder_that_is_taken_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    for taken in (tmp_path / "thesis", tmp_path / "thesis" / "chapter.tex"):
        with pytest.raises(ArtifactError, match=r"exists already: choose another folder \(--output\)"):
            run_demo(str(taken), str(tmp_path / "cache"), 0, print, size=TINY)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "cache").write_text("a file")
    done = CliRunner().invoke(app, ["demo", "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "run")])
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert done.stderr.startswith(f"uld: cannot write to {tmp_path / 'cache'}: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("width", [30, 80, 120])
def test_answers_stand_side_by_side(width):
    before, after = "Ada Lovelace was born in London in 1815.", "a\nb " * 30
    both = [("Where? " * 30, before, after), ("And?", "", "x")]
    lines = side_by_side("Forgotten", [Shown(q, "", old, None, (new,), (True,), True) for q, old, new in both], width)
    assert all(len(line) <= max(width, 50) for line in lines)
    columns = [line.partition("|") for line in lines[1:] if not line.startswith("? ")]
    assert len({len(left) for left, _, _ in columns}) == 1
    words = [
        " ".join(" ".join(column).split()) for column in zip(*((one, two) for one, _, two in columns), strict=True)
    ]
    assert words == [f"{before} (nothing)", " ".join(after.split()) + " x"]


@pytest.mark.slow
def test_the_real_demo_forgets_and_keeps(tmp_path):
    lines: list[str] = []
    run_demo(str(tmp_path / "run"), str(tmp_path / "cache"), 0, lines.append, progress=False)
    before, _, after = ([float(cell) for cell in cells[:5]] for cells in table("\n".join(lines)).values())
    result = json.loads((tmp_path / "run/eval/check/result.json").read_text())
    prob = {name: result["others"][name]["forget_probability"]["value"] for name in ("target", "retain-only")}
    now = result["runs"][0]["values"]
    assert prob["target"] > 0.95 and prob["retain-only"] < 0.1 and now["forget_probability"]["value"] < 0.1
    assert after[0] < before[0] / 2 and after[1] < before[1] / 2
    assert after[2] > 95 and now["retain_probability"]["value"] > 0.9
    assert result["passed"]
