"""``uld eval tofu --from-summary``: the field's scores from three files, and what is refused beside them."""

import json

import pytest
from typer.testing import CliRunner

from uld.cli.main import app
from uld.evaluation.open_unlearning import ATTACKS, MEMORISATION, UTILITY

THREE = "--from-summary S --target-summary T --retain-summary R"


def evaluate(*arguments: object):
    return CliRunner().invoke(app, ["eval", "tofu", *map(str, arguments)])


@pytest.fixture
def places(tmp_path) -> dict[str, object]:
    """Three summaries by a letter each."""
    for name in "STR":
        (tmp_path / name).write_text(json.dumps(dict.fromkeys((*MEMORISATION, *ATTACKS, *UTILITY), 0.5)))
    return {name: tmp_path / name for name in "STR"}


def test_published_scores_from_summaries(data_dir, tmp_path):
    published = json.loads((data_dir / "reference_logs/openunlearning_scores_llama31_8b.json").read_text())
    files = {name: tmp_path / f"{i}.json" for i, name in enumerate(published)}
    for name, one in published.items():
        files[name].write_text(json.dumps(one["summary"]))
    beside = ("--target-summary", files["baselines/target"], "--retain-summary", files["baselines/retrain"])
    for name, one in published.items():
        done = evaluate("--from-summary", files[name], *beside, "--json")
        assert done.exit_code == 0 and done.stderr == ""
        assert json.loads(done.stdout) == pytest.approx(one["scores"], rel=1e-9, abs=1e-9)
        assert list(json.loads(done.stdout)) == ["mem", "priv", "utility", "agg"]


def test_a_table_without_json(places):
    done = evaluate(*(places.get(word, word) for word in THREE.split()))
    assert done.exit_code == 0 and done.stderr == ""
    assert [cell.strip() for cell in done.stdout.splitlines()[0].strip("|").split("|")] == [
        *("Mem", "Priv", "Utility", "Agg")
    ]
    assert "0.5000" in done.stdout and "1.0000" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--from-summary S", "--target-summary and --retain-summary missing"),
        ("--target-summary T --retain-summary R", "the summaries of three models: --from-summary missing"),
        ("--retain-summary R --model RUN", "--from-summary and --target-summary missing"),
        (f"{THREE} --model RUN", "reads no log: leave out --model"),
        (f"{THREE} --from-log LOG --retain-log LOG", "reads no log: leave out --from-log and --retain-log"),
        (f"{THREE} --retain-model RUN", "leave out --retain-model"),
        (f"{THREE} --output R", "leave out --output"),
        (f"{THREE} --weight 2", "--from-summary runs no model: leave out what chooses or changes one"),
        (f"{THREE} --dtype fp32", "--from-summary runs no model"),
        ("--from-summary NONE --target-summary T --retain-summary R", "No such file or directory; expected open-unl"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(places, arguments, message):
    done = evaluate(*(places.get(word, word) for word in arguments.split()))
    assert done.exit_code == 2, done.output
    assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("uld: ")
    assert message in done.stderr
