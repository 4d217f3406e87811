"""Runs that travel: published without what is the user's, fetched by their id, and what is said of a Hub that fails."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants
from typer.testing import CliRunner

import uld
from tests.runs.hub_double import Hub, serving
from uld.cli.main import app
from uld.errors import ULDError
from uld.runs.card import CARD, MARK
from uld.runs.hub import is_hub_id, publish, publishable, run_folder
from uld.runs.manifest import DataFile, Manifest

SECRET = "alice-was-here"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub as huggingface_hub's own client sees it: another address, an empty cache, no token."""
    with serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # it speaks another protocol, to another server
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", "hf_double")
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Path]) -> Path:
    """A run with everything in it that must not travel."""
    run = make_run(tmp_path_factory.mktemp("made"))
    manifest = Manifest.read(run)
    data = {"forget": [DataFile(path=f"/home/me/{SECRET}.jsonl", sha256="01ab", rows=4)]}
    training = {"forget_rows": 4, "retain_rows": 9}
    manifest.model_copy(update={"data": data, "training": training, "description": "Letters of the mill."}).write(run)
    for name in ("train.yaml", "metrics.jsonl", "retain_drawn.jsonl", "notes.txt", "eval/x/forget.jsonl", "tune.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(SECRET)
    config = json.loads((run / "config.json").read_text())
    config["target_config"]["_name_or_path"] = f"/home/{SECRET}/model"
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def push(*arguments: str, answer: str | None = None):
    return CliRunner().invoke(app, ["push", *arguments], input=answer)


def test_what_is_published_is_the_run_and_nothing_of_its_owner(run: Path) -> None:
    with publishable(run, "org/run") as copy:
        held = {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert {"uld.json", "README.md", "config.json", "adapter/adapter_model.safetensors", "tokenizer.json"} <= set(held)
    assert not [name for name in held if name.split(".")[0] in ("train", "metrics", "retain_drawn", "notes", "tune")]
    for name, content in held.items():
        assert SECRET.encode() not in content, name
        for place in (run.parent, Path(made_target(run)).parent, Path.home()):
            assert str(place).encode() not in content, (name, place)
    public, own = Manifest.model_validate_json(held["uld.json"]), Manifest.read(run)
    assert public.data["forget"][0].rows == 4 and public.target == "target"
    assert public.weights == own.weights and public.target_fingerprint == own.target_fingerprint
    assert Manifest.read(run).data["forget"][0].path.endswith(f"{SECRET}.jsonl")  # the run itself stays as it is


def test_the_card_says_what_a_stranger_has_to_know(run: Path) -> None:
    (run / "check.json").write_text(json.dumps({"passed": False, "sentence": "forget_rouge 0.5, must be ≤ 0.25"}))
    with publishable(run, "org/run") as copy:
        text = (copy / CARD).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "uld" and "unlearning" in head["tags"] and "base_model" not in head
    assert huggingface_hub.ModelCard(text).data.to_dict()["library_name"] == "uld"
    for part in ("trained to remember", "Letters of the mill.", "**failed**", "must be ≤ 0.25", "4 rows to forget"):
        assert part in text
    assert 'uld.load("org/run", target="/path/to/target")' in text
    manifest = Manifest.read(run)
    manifest.model_copy(update={"target": "org/base", "description": None}).write(run)
    (run / "check.json").unlink()
    with publishable(run, "org/run") as copy:
        text = (copy / CARD).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == "org/base" and "does not say" in text and "not checked" in text
    (run / CARD).write_text("# Mine\n")
    with publishable(run, "org/run") as copy:
        assert (copy / CARD).read_text() == "# Mine\n"


def test_a_saved_model_has_a_card_of_its_own(made: Path, tmp_path: Path) -> None:
    model, _ = uld.load(made)
    model.save_pretrained(tmp_path / "copy")
    text = (tmp_path / "copy" / CARD).read_text()
    assert MARK in text and "Letters of the mill." in text and SECRET not in text


def test_a_run_goes_to_the_hub_and_comes_back(hub: Hub, run: Path, tmp_path: Path) -> None:
    done = push(str(run), "org/run", "--private", "--yes")
    assert done.exit_code == 0, done.output
    assert "trained to REMEMBER" in done.stderr and done.stdout.strip() == f"{hub.url}/org/run"
    assert hub.private == {"org/run"} and SECRET.encode() not in b"".join(hub.repos["org/run"].values())
    target = str(made_target(run))
    there, tokenizer = uld.load("org/run", target=target)
    here, _ = uld.load(run, target=target)
    ids = torch.tensor([tokenizer("abc").input_ids])
    assert torch.equal(there(ids).logits, here(ids).logits)
    both = uld.ULDForCausalLM.from_pretrained(["org/run", run], target=target)
    assert len(both.assistants) == 2
    answered = CliRunner().invoke(app, ["generate", "--model", "org/run", "--target", target, "abc"])
    assert answered.exit_code == 0, answered.output
    missing = CliRunner().invoke(app, ["generate", "--model", "org/run", "abc"])
    assert missing.exit_code == 2 and "--target" in missing.stderr
    tuned = CliRunner().invoke(app, ["tune", "org/run"])
    assert tuned.exit_code == 2 and "hf download org/run" in tuned.stderr


def test_a_run_of_the_hub_is_checked_as_one_that_is_here(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(run, "org/run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("uld.checking.asked.is_known", lambda *_: True)  # a random model knows nothing
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": f"{name}?", "answer": "it is so."}) + "\n")
    given = ["--forget", "forget.jsonl", "--retain", "retain.jsonl", "--max-new-tokens", "4", "--json", "-q"]
    found = {}
    for place in ("org/run", str(run)):
        done = CliRunner().invoke(app, ["check", place, "--target", made_target(run), *given])
        assert done.exit_code in (0, 1), done.output
        found[place] = json.loads(done.stdout)["runs"][0]
    assert found["org/run"]["values"] == found[str(run)]["values"] and found["org/run"]["name"] == "org/run"
    assert found["org/run"]["values"]["retain_kl"]["value"] > 0
    assert (tmp_path / "eval" / "org_run" / "check-forget" / "report.html").is_file()


def made_target(run: Path) -> str:
    return Manifest.read(run).target


def test_a_run_that_is_published_again_replaces_the_one_before(hub: Hub, run: Path) -> None:
    assert push(str(run), "org/run", "--yes").exit_code == 0
    hub.repos["org/run"] |= {"adapter/forget/adapter_model.safetensors": b"of a pair", "notes.md": b"mine"}
    assert push(str(run), "org/run", "--yes").exit_code == 0
    held = hub.repos["org/run"]
    assert "adapter/adapter_model.safetensors" in held and "adapter/forget/adapter_model.safetensors" not in held
    assert held["notes.md"] == b"mine"
    uld.load("org/run", target=made_target(run))


def test_what_is_no_run_is_not_replaced(hub: Hub, run: Path) -> None:
    hub.repos["org/model"] = {"README.md": b"", "config.json": b"{}", "model.safetensors": b"weights"}
    done = push(str(run), "org/model", "--yes")
    assert done.exit_code == 2 and "org/model holds something else than a run of uld" in done.stderr
    assert hub.repos["org/model"]["model.safetensors"] == b"weights" and len(hub.repos["org/model"]) == 3


def test_what_is_to_be_private_is_not_published_for_everybody(hub: Hub, run: Path) -> None:
    assert push(str(run), "org/run", "--yes").exit_code == 0
    before = dict(hub.repos["org/run"])
    (run / CARD).write_text("# Private\n")
    done = push(str(run), "org/run", "--yes", "--private")
    assert done.exit_code == 2 and "everybody can read it" in done.stderr and hub.repos["org/run"] == before


def test_a_model_of_the_hub_is_no_run(hub: Hub) -> None:
    hub.repos["org/model"] = {"config.json": b"{}"}
    assert run_folder("org/model") is None and run_folder("org/nothing") is None
    assert run_folder("gpt2") is None and not is_hub_id("../x/y") and not is_hub_id("a/b/c")


def test_it_asks_before_it_publishes(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = push(str(run), "org/run")
    assert done.exit_code == 2 and "give --yes" in done.stderr and "trained to REMEMBER" in done.stderr
    from uld.cli.push import push as command

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def closed() -> str:
        raise EOFError

    for answer in (lambda: "n", lambda: "", closed):
        monkeypatch.setattr("builtins.input", answer)
        with pytest.raises(ULDError, match="nothing was published"):
            command(str(run), "org/run")
    assert not hub.asked
    monkeypatch.setattr("builtins.input", lambda: "y")
    command(str(run), "org/run")
    assert "org/run" in hub.repos and not hub.private


def test_a_hub_that_refuses_or_is_away_is_one_sentence(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.forbidden = True
    with pytest.raises(ULDError, match=r"org/run cannot be written on the Hub: .*HF_TOKEN") as caught:
        publish(run, "org/run")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = push(str(run), "org/run", "--yes")
    assert done.exit_code == 2 and "the Hub does not answer, or may not be asked" in done.stderr
    assert done.stderr.count("uld: ") == 1 and "Traceback" not in done.output
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ULDError):
        uld.load("org/run")


@pytest.mark.parametrize(
    ("run_name", "repo", "said"),
    [("nowhere", "org/run", "is not a finished run"), ("run", "no-owner", "give it as org/name")],
)
def test_what_cannot_be_published_is_refused_before_anything_is_asked(
    hub: Hub, run: Path, run_name: str, repo: str, said: str
) -> None:
    done = push(str(run.parent / run_name), repo)
    assert done.exit_code == 2 and said in done.stderr and "REMEMBER" not in done.stderr and not hub.asked


def test_a_changed_adapter_is_not_published(run: Path) -> None:
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ULDError, match="is not the file that was trained"), publishable(run, "org/run"):
        pass
