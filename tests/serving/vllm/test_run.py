"""``uld serve --engine vllm``: the official client against vLLM's own server, behind uld's gate."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import uld
from uld.data.prompt import PromptFormat
from uld.model.combine import Combination

pytest.importorskip("vllm", reason="vLLM is not installed (make test-vllm)")
openai = pytest.importorskip("openai", reason="the official client is not installed")

HOW = Combination(weight=3.0, margin=0.5, floor=0.01)


@pytest.fixture(scope="module")
def run(run_of) -> Path:
    return run_of("llama", how=HOW)


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, subprocess.Popen]]:
    """Its address, its log, its process."""
    folder = tmp_path_factory.mktemp("server")
    keys, log = folder / "keys", folder / "log"
    keys.write_text("a-key\n")
    keys.chmod(0o600)
    words = ["serve", str(run), "--engine", "vllm", "--port", "0", "--name", "forgetful", "--api-keys", str(keys)]
    words += ["--dtype", "fp32", "--max-tokens", "96", "--vllm-args", "--enforce-eager --block-size 32"]
    with log.open("wb") as stream:
        own = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        process = subprocess.Popen([sys.executable, "-m", "uld", *words], stdout=stream, stderr=stream, env=own)
    try:
        for _ in range(3000):
            if found := re.search(r"answers everybody who has a key at (http://[\d.]+:\d+)", log.read_text()):
                break
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.2)
        yield found[1], log, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def client(server) -> Any:
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="a-key", max_retries=0)


def written(run: Path, question: str, tokens: int) -> str:
    model, tokenizer = uld.load(run)
    ids = PromptFormat(tokenizer).prompt_ids(question)
    found = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    return tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True)


def test_answers_are_those_of_generate(run: Path, client: Any):
    how = {"model": "forgetful", "messages": [{"role": "user", "content": "who is xyz?"}], "max_tokens": 12}
    whole = client.chat.completions.create(**how, logprobs=True, top_logprobs=3).choices[0]
    assert whole.message.content == written(run, "who is xyz?", 12)
    assert whole.logprobs.content
    stream = client.chat.completions.create(**how, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in stream) == whole.message.content
    scored = client.completions.create(model="forgetful", prompt="who is it", max_tokens=1, echo=True, logprobs=1)
    assert len(scored.choices[0].logprobs.token_logprobs) >= len("who is it")
    assert [one.id for one in client.models.list()] == ["forgetful"]


def test_a_client_is_told_of_no_folder(client: Any):
    (one,) = client.models.list()
    assert one.root == "forgetful"


def test_what_is_not_served_is_refused(server, client: Any):
    how = {"model": "forgetful", "prompt": "a", "max_tokens": 2}
    with pytest.raises(openai.BadRequestError, match="--steering"):
        client.completions.create(**how, logit_bias={"5": 100})
    with pytest.raises(openai.BadRequestError, match="unknown field 'weight'"):
        client.completions.create(**how, extra_body={"weight": 0})
    with pytest.raises(openai.NotFoundError, match="there is no model 'target' here"):
        client.completions.create(**how | {"model": "target"})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").models.list()
    for path in ("/tokenize", "/v1/load_lora_adapter", "/v1/responses", "/openapi.json", "/invocations"):
        request = urllib.request.Request(f"{server[0]}{path}", b"{}", {"Authorization": "Bearer a-key"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == 404
    for path in ("/health", "/metrics"):
        with urllib.request.urlopen(f"{server[0]}{path}") as found:
            assert found.status == 200


def test_the_key_and_the_words_are_nowhere_to_be_seen_and_a_signal_ends_it(server, client: Any):
    client.completions.create(model="forgetful", prompt="xyzzy", max_tokens=2)
    _, log, process = server
    assert "a-key" not in Path(f"/proc/{process.pid}/cmdline").read_text()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    lines = log.read_text()
    assert "POST /v1/completions 200" in lines
    assert "xyzzy" not in lines and "a-key" not in lines
    assert "Traceback" not in lines


@pytest.mark.slow
def test_why_it_does_not_start_is_one_sentence(run: Path, tmp_path: Path):
    """Found in a process of vLLM's, of which its own message says nothing."""
    from safetensors.torch import load_file, save_file

    from uld.serving.vllm.export import export

    folder, name = export([run], tmp_path / "exported", copy=True), "model.layers.0.mlp.up_proj.weight"
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {name: weights[name] * 1.5}, folder / "model.safetensors", metadata={"format": "pt"})
    own = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    words = ["serve", str(folder), "--port", "0", "--max-tokens", "96", "--vllm-args", "--enforce-eager"]
    done = subprocess.run([sys.executable, "-m", "uld", *words], capture_output=True, text=True, env=own)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("uld: ")]
    assert "are not those of the target that run was trained on" in line
