"""``uld eval attacks``, ``muse`` and ``knowundo`` end to end on micro models, and what a user can do wrong."""

import json

import pytest
from typer.testing import CliRunner

from uld.cli.main import app
from uld.evaluation.knowundo import KnowUnDo

QA = [{"question": f"who is {name}?", "answer": f"{name} b c"} for name in ("abe", "fay", "zed")]
OTHERS = [{"text": f"over the hill and {name} again"} for name in ("far", "near", "up", "down")]
PEOPLE = [{"text": row["question"], "labels": row["answer"]} for row in QA]


def evaluate(*arguments: object):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def refused(done) -> str:
    """The one sentence of a failed command."""
    assert done.exit_code == 2, done.output
    assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("uld: ")
    return done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory, make_run):
    """A folder with a run, its target, and data for every command."""
    folder = tmp_path_factory.mktemp("world")
    make_run(folder, max_position_embeddings=512)
    (folder / "members.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QA))
    (folder / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OTHERS))
    for name in ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl"):
        (folder / f"{name}.json").write_text(json.dumps(QA[:2]))
    for name in ("forget", "holdout"):
        (folder / f"{name}.json").write_text(json.dumps(OTHERS if name == "forget" else [row["answer"] for row in QA]))
    for name in ("unlearn_val", "retention_val"):
        (folder / f"{name}.json").write_text(json.dumps(PEOPLE))
    return folder


def arguments(world, command):
    """A command's own arguments."""
    model = ("--model", world / "run", "-q")
    if command == "attacks":
        return (command, *model, "--members", world / "members.jsonl", "--non-members", world / "others.jsonl")
    return (command, *model, "--data", world)


def test_attacks_on_a_run(world):
    other = ("--reference-model", world / "target", "--retain-model", world / "target", "--gradnorm")
    done = evaluate(*arguments(world, "attacks"), *other, "--json")
    assert done.exit_code == 0 and done.stderr == "", done.output
    result = json.loads(done.stdout)
    assert list(result["attacks"]) == ["loss", "zlib", "min_k", "min_k++", "gradnorm", "reference"]
    assert result["members"] == 3 and result["non_members"] == 4 and not result["left_out"]
    assert result["attacks"]["reference"]["retain_auc"] == 0.5
    folder = world / "run" / "eval" / "attacks-members-others"
    assert json.loads((folder / "result.json").read_text()) == result
    assert len((folder / "non_members.jsonl").read_text().splitlines()) == 4
    again = evaluate(*arguments(world, "attacks"), *other)
    assert "| min_k++ " in again.stdout and "PrivLeak (%)" in again.stdout
    assert f"Logs and results: {folder}" in again.stdout
    plain = evaluate(*arguments(world, "attacks"), "--limit", 2, "--weight", 0)
    assert "2 members, 2 non-members" in plain.stdout and "reference left out" in plain.stdout
    assert plain.stdout.rstrip().endswith("attacks-members-others-weight-0.0-limit-2")


def test_muse_on_a_run(world):
    done = evaluate(*arguments(world, "muse"), "--retain-model", world / "target", "--json", "--limit", 2)
    assert done.exit_code == 0 and done.stderr == "", done.output
    result = json.loads(done.stdout)
    assert result["rows"] == {"knowmem": 2, "forget": 2, "holdout": 2, "utility": 2}
    assert list(result["left_out"]) == ["verbmem"] and result["retain_auc"] is not None
    folder = world / "run" / "eval" / f"muse-{world.name}"
    assert json.loads((folder / "result.json").read_text()) == result
    assert (folder / f"retain-{str(world / 'target').strip('/').replace('/', '_')}" / "holdout.jsonl").is_file()
    shown = evaluate(*arguments(world, "muse"), "--limit", 2)
    assert "C2 knowmem (low)" in shown.stdout and "C1 verbmem left out: the data has no verbmem" in shown.stdout
    assert "name one with --retain-model" in shown.stdout


def test_knowundo_on_a_target(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = evaluate("knowundo", "--model", world / "target", "--data", world, "--max-new-tokens", 4, "-q")
    assert done.exit_code == 0 and done.stderr == "", done.output
    assert "| unlearn success (%) | retention success (%) |" in done.stdout
    (log,) = tmp_path.glob("eval/*/knowundo-val-max_new_tokens-4/unlearn.jsonl")
    assert {"accuracy", "avg_loss", "generated", "rougeL_f1"} <= json.loads(log.read_text().splitlines()[0]).keys()
    result = json.loads((log.parent / "result.json").read_text())
    assert result["unlearn_success"] + result["retention_success"] == pytest.approx(100.0)  # both sets are the same


def test_an_interrupted_evaluation_says_how_to_go_on(world, tmp_path, monkeypatch):
    original, calls = KnowUnDo.work, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(KnowUnDo, "work", interrupted)
    command = (*arguments(world, "knowundo"), "--no-generate", "--output", tmp_path / "log")
    assert refused(evaluate(*command)) == (
        f"uld: interrupted: {tmp_path}/log holds what is done, and the same command continues from there\n"
    )
    assert len((tmp_path / "log" / "unlearn.jsonl").read_text().splitlines()) == 3
    assert evaluate(*command).exit_code == 0


@pytest.mark.parametrize("command", ["attacks", "muse", "knowundo"])
def test_what_a_user_can_do_wrong(world, tmp_path, command):
    given = arguments(world, command)
    assert "there is no run or model in" in refused(evaluate(*given, "--model", tmp_path / "no"))
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(evaluate(*given, "--output", tmp_path / "file"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").write_text("")
    assert "holds no evaluation" in refused(evaluate(*given, "--output", tmp_path / "full"))
    assert "--dtype must be one of" in refused(evaluate(*given, "--dtype", "half"))
    if command != "knowundo":
        said = refused(evaluate(*given, "--retain-model", tmp_path / "no"))
        assert "--retain-model takes a folder or a Hub id" in said
    if command == "attacks":
        assert "there is no such file" in refused(evaluate(*given[:-1], tmp_path / "no.jsonl"))
        assert "members and non-members at once" in refused(evaluate(*given[:-1], world / "members.jsonl"))
    else:
        said = refused(evaluate(*given[:-1], tmp_path / "no"))
        assert "--data must name a folder" in said
