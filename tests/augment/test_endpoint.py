"""The client against an endpoint that misbehaves, and against ``transformers serve``, which is not ours."""

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from uld.augment.endpoint import Endpoint, EndpointError, Reply
from uld.augment.generate import Wanted
from uld.augment.run import Result, augment_by_model
from uld.cli.main import app
from uld.errors import ULDError

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULD_TEST_KEY", KEY)
    for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once, unless the endpoint says when."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    hurried = ModuleType("asyncio")
    hurried.__dict__.update(vars(asyncio), sleep=lambda seconds: asyncio.sleep(seconds / 50))
    monkeypatch.setattr("uld.augment.endpoint.asyncio", hurried)


def endpoint(server: Any, **changes: Any) -> Endpoint:
    settings = {"base": server.base, "key_env": "ULD_TEST_KEY", "model": "m", "concurrency": 2, "retries": 2}
    return Endpoint(**{**settings, **changes})


def run(server: Any, forget: Path, output: Path, wanted: Wanted | None = None, **changes: Any) -> Result:
    asker = endpoint(server, **changes)
    return augment_by_model(forget, output, wanted or Wanted(), asker.ask_all, by={"named": "m"}, chunk_words=150)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.name != "journal.jsonl"}


def test_good_answers_are_read_filtered_and_counted(server: Any, forget: Path, tmp_path: Path):
    result = run(server, forget, tmp_path / "out")
    assert result.kept == {"paraphrases.jsonl": 16, "wrong_answers.jsonl": 16}
    assert len(server.prompts) == 16 and server.keys == [f"Bearer {KEY}"] * 16
    assert result.progress and (result.progress.tokens_in, result.progress.tokens_out) == (1600, 800)
    assert result.progress.cost(2.0, 4.0) == pytest.approx(0.0064)
    lines = [json.loads(line) for line in (tmp_path / "out" / "paraphrases.jsonl").read_text().splitlines()]
    assert lines[0]["question"].startswith("Version a: ") and [line["copy"] for line in lines[:3]] == [0, 1, 0]


def test_neither_concurrency_nor_order_makes_a_difference(server: Any, forget: Path, tmp_path: Path):
    server.delay = 0.02
    run(server, forget, tmp_path / "one", concurrency=1)
    assert server.busy == 1
    run(server, forget, tmp_path / "many", concurrency=5)
    assert server.busy == 5
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


@pytest.mark.parametrize("trouble", ["429", "500", "cut", "not json", "bad answer"])
def test_a_passing_trouble_is_got_over(server: Any, forget: Path, tmp_path: Path, trouble: str):
    server.script = [trouble, trouble]
    result = run(server, forget, tmp_path / "out", concurrency=1)
    assert result.kept["paraphrases.jsonl"] == 16
    assert len(server.prompts) == 18 and len(set(server.prompts)) == 16


def test_retry_after_is_waited_for(server: Any):
    server.script = ["429 for long"]
    begun = time.monotonic()
    endpoint(server).ask_all([(0, "Rewrite in 3 different ways\nText: a.\n")], lambda number, reply: False)
    assert time.monotonic() - begun >= 1.2  # without the header the first wait is at most half a second
    assert len(server.prompts) == 2


def test_an_answer_that_never_can_be_read_is_reported(server: Any, forget: Path, tmp_path: Path):
    server.script = ["bad answer"] * 3
    result = run(server, forget, tmp_path / "out", concurrency=1)
    assert result.kept["paraphrases.jsonl"] == 14
    assert sum(result.dropped["paraphrase"].values()) == 1 and len(server.prompts) == 18


@pytest.mark.parametrize(
    ("trouble", "requests", "said"),
    [
        ("401", 1, "refuses the key of ULD_TEST_KEY (401)"),
        ("404", 1, "has no model 'm' (404)"),
        ("400", 1, "answered with an error (400)"),
        ("500", 3, "answered with an error (500)"),
        ("429", 3, "allows no more requests for now (429)"),
        ("cut", 3, "broke off"),
        ("slow", 3, "took longer than 0.2 s"),
        ("not json", 3, "no chat completion"),
    ],
)
def test_a_lasting_trouble_is_one_sentence_without_the_key(
    server: Any, caplog: pytest.LogCaptureFixture, trouble: str, requests: int, said: str
):
    server.script = [trouble] * 9
    caplog.set_level("DEBUG")
    with pytest.raises(EndpointError) as caught:
        endpoint(server, timeout=0.2 if trouble == "slow" else 20.0).ask_all([(0, "x")], lambda number, reply: False)
    assert said in str(caught.value) and KEY not in str(caught.value) and "\n" not in str(caught.value)
    assert len(server.prompts) == requests
    assert KEY not in caplog.text


def test_an_endpoint_that_counts_no_tokens_is_taken_at_its_word(server: Any, forget: Path, tmp_path: Path):
    server.script = ["no count"] * 16
    result = run(server, forget, tmp_path / "out")
    assert result.progress and (result.progress.tokens_in, result.progress.tokens_out) == (1600, 0)


def test_half_of_a_surrogate_pair_is_written_as_a_question_mark(server: Any, forget: Path, tmp_path: Path):
    server.script = ["half a pair alone"] * 3 + ["half a pair"] * 15
    result = run(server, forget, tmp_path / "out", concurrency=1)
    assert result.kept["wrong_answers.jsonl"] == 16
    lines = (tmp_path / "out" / "wrong_answers.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["answer"] == "Surely ? x Otto Brandt, and nothing else."
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "No JSON, only ?" in [drop["text"] for drop in report["drops"]]


def test_a_second_call_leaves_the_folder_of_the_first_alone(server: Any, forget: Path, tmp_path: Path):
    asker, out = endpoint(server), tmp_path / "out"

    def ask_all(left: Any, done: Callable[[int, Reply], bool]) -> None:
        with pytest.raises(ULDError, match="another augmentation is writing"):
            run(server, forget, out)
        assert {path.name for path in out.iterdir()} == {"settings.json", "journal.jsonl"}
        asker.ask_all(left, done)

    result = augment_by_model(forget, out, Wanted(), ask_all, by={"named": "m"}, chunk_words=150)
    assert result.kept["paraphrases.jsonl"] == 16 and len((out / "journal.jsonl").read_text().splitlines()) == 16


def test_what_was_answered_is_not_asked_again(server: Any, forget: Path, tmp_path: Path):
    run(server, forget, tmp_path / "whole")
    before = server.prompts.copy()
    server.prompts.clear()
    server.script = ["good"] * 5 + ["401"]
    with pytest.raises(ULDError, match="5 of 16 requests are done and kept"):
        run(server, forget, tmp_path / "out", concurrency=1)
    with (tmp_path / "out" / "journal.jsonl").open("a") as file:
        file.write('{"row": 9, "text": "half a li')  # as a kill leaves it
    assert not (tmp_path / "out" / "report.json").exists()
    server.script = []
    run(server, forget, tmp_path / "out")
    assert len(server.prompts) == 17 and sorted(set(server.prompts)) == sorted(before)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    run(server, forget, tmp_path / "out")
    assert len(server.prompts) == 17


def test_an_interrupt_keeps_what_is_there(server: Any, forget: Path, tmp_path: Path):
    asker = endpoint(server, concurrency=3)

    def ask_all(left: Any, done: Callable[[int, Reply], bool]) -> None:
        def until(number: int, reply: Reply) -> bool:
            if len(server.prompts) > 6:
                raise KeyboardInterrupt
            return done(number, reply)

        asker.ask_all(left, until)

    with pytest.raises(KeyboardInterrupt):
        augment_by_model(forget, tmp_path / "out", Wanted(), ask_all, by={"named": "m"}, chunk_words=150)
    kept = len((tmp_path / "out" / "journal.jsonl").read_text().splitlines())
    before = len(server.prompts)
    assert 0 < kept < 9
    run(server, forget, tmp_path / "out")
    sent = len(server.prompts) - before
    assert 16 - kept <= sent <= 16 - kept + 2  # of the requests that were cut off, two may reach the server late


def test_other_settings_in_the_folder_are_refused(server: Any, forget: Path, tmp_path: Path):
    run(server, forget, tmp_path / "out")
    with pytest.raises(ULDError, match="augmentation of another model or with other settings \\(paraphrases\\)"):
        run(server, forget, tmp_path / "out", Wanted(paraphrases=1))


def test_texts_are_rewritten_and_asked_about(server: Any, tmp_path: Path):
    text = "Mara Quillon kept the lighthouse in Skerrin."
    (tmp_path / "f.jsonl").write_text(json.dumps({"text": text}) + "\n")
    result = run(server, tmp_path / "f.jsonl", tmp_path / "out", Wanted(ask=2))
    assert result.kept["questions.jsonl"] == 1  # the other one is empty
    assert result.dropped["asked"] == {"empty": 1}
    assert sum(result.dropped["paraphrase"].values()) == 3  # the endpoint's rewritings name another person


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "say who is to do it"),
        (["--rules", "--local", "x"], "say who is to do it"),
        (["--api-base", "http://127.0.0.1:9/v1", "--rules"], "give --model"),
        (["--model", "m", "--api-key-env", "ULD_NO_KEY"], "ULD_NO_KEY holds no key"),
        (["--model", "m", "--api-base", "http://127.0.0.1:9/v1", "--api-key-env", "none", "--retries", "0"], "reached"),
        (["--model", "m", "--api-base", "nowhere", "--api-key-env", "none", "--retries", "0"], "--api-base"),
        (["--local", "./nothing"], "there is no run or model in ./nothing"),
        (["--rules", "--ask"], "holds no"),
        (["--rules", "--paraphrases", "0", "--wrong-answers", "0"], "nothing is wanted"),
    ],
)
def test_bad_input_is_one_sentence(forget: Path, tmp_path: Path, flags: list[str], said: str):
    out = CliRunner().invoke(app, ["augment", str(forget), "--output", str(tmp_path / "out"), *flags])
    assert out.exit_code == 2 and said in out.output and out.output.count("\n") == 1, out.output
    assert not (tmp_path / "out").exists()  # so that the next call may have other settings


@pytest.mark.parametrize("key", ["sk-ключ", "sk-ver\ny-secret", "“sk-very-secret”"])
def test_a_key_that_no_request_can_carry_is_refused(
    forget: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
):
    monkeypatch.setenv("ULD_TEST_KEY", key)
    flags = ["--model", "m", "--api-base", "http://127.0.0.1:9/v1", "--api-key-env", "ULD_TEST_KEY"]
    out = CliRunner().invoke(app, ["augment", str(forget), "--output", str(tmp_path / "out"), *flags])
    assert out.exit_code == 2 and "the key in ULD_TEST_KEY has" in out.output and out.output.count("\n") == 1
    assert key not in out.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.jsonl", None, "no such file"),
        ("bad.jsonl", "{", "not valid JSON"),
        ("key.jsonl", '{"q": 1}', "expected one"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, name: str, content: str | None, said: str):
    if content is not None:
        (tmp_path / name).write_text(content)
    out = CliRunner().invoke(app, ["augment", str(tmp_path / name), "--rules"])
    assert out.exit_code == 2 and said in out.output and out.output.count("\n") == 1
    assert not (tmp_path / f"{Path(name).stem}-augmented").exists()


def test_the_command_shows_tokens_and_price(server: Any, forget: Path):
    flags = ["--model", "m", "--api-base", server.base, "--api-key-env", "ULD_TEST_KEY", "--price-in", "2"]
    out = CliRunner().invoke(app, ["augment", str(forget), *flags, "--price-out", "4", "--quiet"])
    assert out.exit_code == 0 and "1600 + 800 tokens, 0.0064" in out.output, out.output
    assert (forget.parent / "forget-augmented" / "report.json").is_file()
    assert all(KEY not in text for text in contents(forget.parent / "forget-augmented").values())


def test_a_local_model_is_asked_once_for_each(make_run: Callable[..., Path], forget: Path, tmp_path: Path):
    make_run(tmp_path, max_position_embeddings=2048)
    forget.write_text(forget.read_text().splitlines()[0] + "\n")
    out = CliRunner().invoke(
        app, ["augment", str(forget), "--local", str(tmp_path / "target"), "--max-tokens", "16", "--quiet"]
    )
    assert out.exit_code == 0, out.output  # a random model says no JSON, and the report says so
    report = json.loads((forget.parent / "forget-augmented" / "report.json").read_text())
    assert report["dropped"] == {
        "paraphrase": {"no JSON in the answer": 1},
        "wrong_answer": {"no JSON in the answer": 1},
    }
    assert 0 < report["tokens"]["out"] <= 32


@pytest.mark.slow
def test_a_server_that_is_not_ours(make_run: Callable[..., Path], forget: Path, tmp_path: Path):
    make_run(tmp_path, max_position_embeddings=2048)
    (tmp_path / "target").rename(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(tmp_path / "model"), "--device", "cpu"]
    with (tmp_path / "log").open("w") as log:
        serving = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
    try:
        _wait(serving, f"http://127.0.0.1:{port}/health", tmp_path / "log")
        flags = [
            "--model",
            str(tmp_path / "model"),
            "--api-base",
            f"http://127.0.0.1:{port}/v1",
            "--api-key-env",
            "none",
        ]
        forget.write_text(forget.read_text().splitlines()[0] + "\n")
        out = CliRunner().invoke(app, ["augment", str(forget), *flags, "--max-tokens", "16", "--quiet"])
        assert out.exit_code == 0, out.output
        report = json.loads((forget.parent / "forget-augmented" / "report.json").read_text())
        assert report["dropped"]["paraphrase"] == {"no JSON in the answer": 1}  # a random model's letters
        assert report["tokens"]["in"] > 0 and report["tokens"]["out"] > 0
    finally:
        serving.terminate()
        serving.wait(20)


def _wait(serving: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert serving.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())
