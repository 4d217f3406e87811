"""What the benchmarks share: things measured in turn, the machine's own rates, tables and JSON."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from uld.model.assistant import add_lora, build_assistant
from uld.model.combine import Combination
from uld.model.unlearned import ULDForCausalLM
from uld.runs.machine import library_versions

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "results" / "benchmarks"
LAYERS, DEPTH, RANK = 24, 6, 32  # of the 370-million-parameter Llama: L, K, r


def arguments(about: str | None) -> argparse.ArgumentParser:
    """A parser that knows where TOFU and the test models are."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, variable, folder in (("--data", "ULD_DATA_DIR", "data"), ("--models", "ULD_MODELS_DIR", "models")):
        parser.add_argument(flag, type=Path, default=Path(os.environ.get(variable, ROOT / "../shared" / folder)))
    return parser


def uld(*words: str, threads: int | None = None, fine: tuple[int, ...] = (0,)) -> None:
    """Run the command, as a user would; an exit code that is not fine ends the script."""
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    environment |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-m", "uld", *words], env=environment, capture_output=True, text=True)
    if done.returncode not in fine:
        sys.exit(f"uld {' '.join(words)}\n{done.stderr}")


def in_turn(things: dict[str, Callable[[], Any]], repeats: int = 5) -> dict[str, list[float]]:
    """Seconds of each thing, measured one after the other ``repeats`` times, after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for number in range(repeats + 1):
        for name, thing in things.items():
            start = time.perf_counter()
            thing()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def series() -> int:
    """How often steps behind a growing cache are measured; the last counts.

    A GPU's attention kernels are planned anew at every length: without a first series, whoever comes first pays for all.
    """
    return 2 if device() == "cuda" else 1


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> dict[str, float]:
    """Median, least and greatest of the ratio of two things, round by round."""
    ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}


def shown(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['least']:.2f}–{value['greatest']:.2f})"


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def rates(dtype: torch.dtype) -> dict[str, float]:
    """This machine's FLOP/s in a large matrix product and bytes/s in reading weights (a matrix times a vector)."""
    a, b = (torch.randn(2048, 2048, device=device(), dtype=dtype) for _ in range(2))
    weights = torch.randn(32_000, 4096, device=device(), dtype=dtype)
    vector = torch.randn(1, 4096, device=device(), dtype=dtype)
    seconds = in_turn({"product": lambda: a @ b, "read": lambda: nn.functional.linear(vector, weights)}, repeats=9)
    product, read = (min(seconds[name]) for name in ("product", "read"))
    return {"flops": 2 * 2048**3 / product, "bytes": weights.numel() * weights.element_size() / read}


def random_llama(dtype: torch.dtype, layers: int = LAYERS) -> PreTrainedModel:
    """A Llama of about 370 million random parameters: hidden 1024, 24 layers, vocabulary 32,000."""
    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=32_000,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).to(device()).eval()


def unlearned(target: PreTrainedModel, depth: int = DEPTH, fused: bool = True) -> ULDForCausalLM:
    """A target with an assistant whose LoRA says something."""
    assistant = add_lora(build_assistant(target, depth), rank=RANK, alpha=RANK)
    for name, parameter in assistant.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(target.dtype)
            if "lora_B" in name:
                nn.init.normal_(parameter.data, std=0.02)
    return ULDForCausalLM.join(target, assistant, Combination(), fused=fused)


def padded(rows: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
    """Token rows and their mask, padded on the right to one width."""
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return ids, mask


def report(name: str, columns: list[str], rows: list[list[str]], numbers: dict[str, Any], call: str = "") -> None:
    """Print a table; write it with the numbers, the machine, versions and commit to ``docs/results/benchmarks``."""
    table = [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *rows)]
    print("\n".join(table), flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    about = {
        "command": f"python benchmarks/{call or name + '.py'}",
        "commit": commit.strip(),
        "machine": machine(),
        "versions": library_versions(),
        "load": os.getloadavg()[0],
    }
    OUT.mkdir(parents=True, exist_ok=True)
    suffix = "-gpu" if gpu else ""
    (OUT / f"{name}{suffix}.json").write_text(json.dumps(about | {"table": table, "numbers": numbers}, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": gpu or _processor(), "threads": torch.get_num_threads(), "system": platform.system()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
