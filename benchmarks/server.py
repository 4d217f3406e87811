"""Servers of ``uld serve`` for the scripts that ask one: how they are named, started, waited for and ended."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch
from common import ROOT, arguments, machine

import uld
from uld.data.prompt import PromptFormat
from uld.model.generate import generate_answers
from uld.runs.machine import library_versions

sys.path.insert(0, str(ROOT / "docs"))
from between_marks import put

OUT = ROOT / "docs" / "results" / "serving"
ENGINES = ("transformers", "vllm")
NAME, KEY = "unlearned", "a-key-of-the-benchmarks"
_READY = re.compile(r"answers everybody who \S+ \S+ \S+ at (http://\S+)/v1")


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        engine: Of `ENGINES`.
        url: Its address, without ``/v1``.
        process: That was started; vLLM's own are its children.
        log: File of what it writes.
    """

    engine: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, path: str, body: Any = None, *, key: str = KEY, seconds: float = 600) -> httpx2.Response:
        """Send a request: a GET without a body; bytes are sent as they are."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        method = "GET" if body is None else "POST"
        return httpx2.request(method, f"{self.url}{path}", content=content, headers=headers, timeout=seconds)


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """Flags of every script that asks a server: a run, engines, and the Python that has vLLM."""
    parser = arguments(about)
    parser.add_argument("--run", type=Path, required=True, help="A run on tofu-4m, tuned: forget10, `uld tune`.")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="Default: both.")
    parser.add_argument(
        "--vllm-python",
        default=str(ROOT / "build" / "vllm-env" / "bin" / "python"),
        help="Python of the environment that has vLLM (make test-vllm builds it).",
    )
    return parser


@contextmanager
def serving(model: Path, engine: str, options: argparse.Namespace, work: Path, *flags: str) -> Iterator[Server]:
    """Serve a run, in fp32 and with a key, until the block ends.

    Args:
        model: Run folder, or a checkpoint of ``uld export``.
        engine: Of `ENGINES`.
        options: From `parser_of`.
        work: Folder for its log and its keys.
        flags: Further ones of ``uld serve``.
    """
    keys = work / "keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    words = ["serve", str(model), "--engine", engine, "--port", "0", "--name", NAME, "--dtype", "fp32"]
    words += ["--api-keys", str(keys), *flags]
    python = options.vllm_python if engine == "vllm" else sys.executable
    if engine == "vllm" and not any(one.startswith("--vllm-args") for one in flags):
        words += ["--vllm-args=--enforce-eager"]  # without minutes of compilation
    with running([python, "-m", "uld", *words], engine, work) as server:
        yield server


@contextmanager
def running(command: Sequence[str], engine: str, work: Path) -> Iterator[Server]:
    """A command that serves, from the line that says where until it is asked to end.

    Raises:
        SystemExit: it did not start.
    """
    source = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(source), "TOKENIZERS_PARALLELISM": "false", "VLLM_CPU_KVCACHE_SPACE": "1"}
    own |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    log = work / f"{engine}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=os.environ | own)
    try:
        while (found := _READY.search(log.read_text(errors="replace"))) is None:
            if process.poll() is not None:
                sys.exit(f"{' '.join(command)}\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.2)
        while httpx2.get(f"{found[1]}/health", timeout=60).status_code != 200:
            time.sleep(0.2)
        yield Server(engine, found[1], process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Model:
    """What a server should answer: the run in this process, in fp32.

    Attributes:
        model: From `uld.load`.
        tokenizer: Its tokenizer.
        form: How questions become prompts.
    """

    model: Any
    tokenizer: Any
    form: PromptFormat

    @classmethod
    def load(cls, run: Path) -> "Model":
        """Load a run."""
        model, tokenizer = uld.load(str(run), dtype="fp32")
        return cls(model, tokenizer, PromptFormat(tokenizer))

    def answers(self, questions: Sequence[str], tokens: int) -> list[str]:
        """Greedy answers to questions."""
        return self.continued([self.form.prompt_ids(one) for one in questions], tokens)

    def continued(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[str]:
        """What is written behind prompts, each by itself: a batch would round otherwise."""
        return [generate_answers(self.model, self.tokenizer, [one], max_new_tokens=tokens)[0] for one in prompts]

    def scored(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Log-probabilities of an answer's tokens."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
        own = logits.float().log_softmax(-1)[len(prompt) - 1 : -1]
        return own.gather(-1, torch.tensor(answer)[:, None])[:, 0].tolist()


def write(name: str, call: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Write ``docs/results/serving/NAME.json``: numbers, and what they were made by and on.

    Args:
        name: Of the file.
        call: The command behind ``python benchmarks/``.
        numbers: By name; ``engines`` holds those of each engine, and keeps what the file has of others.

    Returns:
        What the file holds.
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    about = {
        "command": f"python benchmarks/{call}",
        "commit": commit.strip(),
        "machine": machine(),
        "versions": library_versions(),
    }
    path = OUT / f"{name}.json"
    before = json.loads(path.read_text()).get("engines", {}) if path.exists() else {}
    whole = about | numbers | {"engines": {**before, **numbers["engines"]}}
    OUT.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    return whole


def into_page(name: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Put a table into ``docs/serving.md``, between the marks of its name."""
    table = "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
    put(table, ROOT / "docs" / "serving.md", f"<!-- {name} -->", f"<!-- /{name} -->")
    print(table, flush=True)
