"""``uld serve``: a server that the official client talks to, and what it is not started with."""

import importlib.util
import os
import re
import signal
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

for needed in ("fastapi", "uvicorn"):
    pytest.importorskip(needed, reason="the extra serve is not installed")
openai = pytest.importorskip("openai", reason="the extra serve is not installed")
pytest.importorskip("transformers", minversion="5.23", reason="the extra serve wants transformers 5.23")

from uld.cli.main import app  # noqa: E402
from uld.serving.settings import bind  # noqa: E402


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that cannot be carried out says, in one line."""
    capsys.readouterr()
    assert app(["serve", *arguments], standalone_mode=False) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("uld: ")]
    return line


def address(log: Path, process) -> str:
    """Where a server that is being started listens."""
    for _ in range(600):
        if found := re.search(r"http://[\d.]+:\d+", log.read_text() if log.exists() else ""):
            return found[0]
        assert process.is_alive(), log.read_text()
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_the_official_client_is_served_until_the_server_is_asked_to_end(start_uld, make_run, tmp_path):
    run = make_run(tmp_path)
    keys, log = tmp_path / "keys", tmp_path / "log"
    keys.write_text("a-key\n")
    keys.chmod(0o600)
    process = start_uld(["serve", str(run), "--port", "0", "--api-keys", str(keys), "--name", "forgetful"], log)
    place = address(log, process)
    with urllib.request.urlopen(f"{place}/health") as health:
        assert health.status == 200
    client = openai.OpenAI(base_url=f"{place}/v1", api_key="a-key", max_retries=0)
    asked = [{"role": "user", "content": "who is xyz?"}]
    how = {"model": "forgetful", "messages": asked, "max_tokens": 5, "temperature": 0}
    whole = client.chat.completions.create(**how).choices[0].message.content
    stream = client.chat.completions.create(**how, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in stream) == whole
    assert [one.id for one in client.models.list()] == ["forgetful"]
    with pytest.raises(openai.BadRequestError, match="unknown field 'weight'"):
        client.chat.completions.create(**how, extra_body={"weight": 0})
    with pytest.raises(openai.NotFoundError, match="there is no model 'target' here"):
        client.completions.create(model="target", prompt="a")
    with pytest.raises(openai.AuthenticationError, match="this server wants an API key"):
        client.with_options(api_key="another").models.list()
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    lines = log.read_text()
    assert "POST /v1/chat/completions 200" in lines
    assert "xyz" not in lines
    assert "Traceback" not in lines


def test_what_is_no_run_is_refused(tmp_path, capsys, make_run):
    assert "no run (it has no uld.json)" in said([str(tmp_path)], capsys)
    make_run(tmp_path)
    assert "target is no run (it has no uld.json)" in said([str(tmp_path / "target")], capsys)


def test_runs_of_different_targets_are_refused(tmp_path, capsys, make_run):
    runs = [str(make_run(tmp_path / name, seed=seed)) for seed, name in enumerate("ab")]
    assert "uld: " in (line := said([*runs, "--port", "0"], capsys))
    assert "target" in line


def test_values_out_of_range_are_refused(tmp_path, capsys, make_run):
    run = str(make_run(tmp_path))
    assert "weight (α) must lie between 0 and 1,000,000" in said([run, "--port", "0", "--weight", "-1"], capsys)
    line = said([run, "--port", "0", "--max-tokens", "500", "--device", "cpu"], capsys)
    assert line == "uld: --max-tokens 500: the model reads no more than 128"


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(tmp_path, capsys, make_run):
    run = str(make_run(tmp_path))
    with bind("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said([run, "--port", port], capsys)


def test_an_engine_that_is_not_there_is_refused(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name))
    assert "pip install -e '.[vllm]'" in said([str(tmp_path), "--engine", "vllm"], capsys)
    assert "--steering is for --engine vllm" in said([str(tmp_path), "--steering"], capsys)


def test_vllm_answers_no_request_by_itself(tmp_path, capsys):
    assert "--no-batching is for" in said([str(tmp_path), "--engine", "vllm", "--no-batching"], capsys)


def test_the_command_that_installs_what_is_missing_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("uld.serving._NEEDED", ("no_such_package",))
    line = said([str(tmp_path)], capsys)
    assert line.startswith(
        "uld: uld serve needs the extra serve (no_such_package is missing): pip install -e '.[serve]'"
    )


@pytest.fixture
def exported(make_run, tmp_path):
    from uld.serving.vllm.export import export

    return export([make_run(tmp_path)], tmp_path / "exported")


@pytest.fixture
def vllm(monkeypatch):
    """An engine that is there, and only tells what it was given."""
    given = []
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "vllm" else find(name))
    run = SimpleNamespace(serve=lambda *words: given.append(words), VllmSettings=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "uld.serving.vllm.run", run)
    return given


def test_an_exported_folder_is_served_as_it_is(vllm, exported):
    before = sorted(exported.iterdir())
    assert not app(["serve", str(exported), "--port", "0", "--steering"], standalone_mode=False)
    ((folder, settings, how, _),) = vllm
    assert (folder, settings.name, how.steering) == (exported, "exported", True)
    assert sorted(exported.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--engine", "transformers"], "is a checkpoint for vLLM, and the engine here is transformers: give the run"),
        (["--weight", "0"], "--weight: .* is exported already, with all that in it; export the run again with it"),
        (["--template", "chat"], "--template: "),
        (["--export-to", "other"], "--export-to: "),
        (["run"], "is exported already, and is served alone"),
    ],
)
def test_what_an_exported_folder_holds_is_not_changed(words, why, vllm, exported, capsys, monkeypatch):
    monkeypatch.chdir(exported.parent)
    assert re.search(why, said(["exported", "--port", "0", *words], capsys))
    assert not vllm and not (exported.parent / "other").exists()
