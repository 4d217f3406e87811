"""What an assistant costs a GPU at shapes of one and of seven billion random weights, in bf16: a part of `gpu.py`.

Decoding: a step of 1, 4, 16 and 32 texts behind a static cache, target and unlearned in turn, each as Python launches it and as
a CUDA graph replays it; prefill of 512 tokens; a training step: its FLOPs over its seconds as a share of a large product's rate,
and the most memory that it held. Bounds stand beside: a decoding step reads the target's weights and LoRA's, a prefill computes
L + K layers. What fails is written down in place of its numbers, and the rest goes on.
"""

import gc
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RANK, device, in_turn, machine, rates, ratio, unlearned
from scaling import SHAPES, Shape
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM
from transformers.cache_utils import StaticCache

from uld.methods.registry import get_method
from uld.model.assistant import add_lora, build_assistant, default_num_layers
from uld.model.caches import as_given
from uld.runs.machine import library_versions
from uld.training.objective import Objective, terms_of

TEXTS, STEPS, REPEATS = (1, 4, 16, 32), 16, 5
ROOM, PREFILL = 512, 512
ROWS, TOKENS, ANSWER = 32, 128, 64  # of a training step: half of the rows are remembered, half are uniform
TINY = [Shape("tiny", 4, 128, 256, 64, 1000), Shape("tied", 4, 128, 256, 128, 1000, tied=True)]


def costs(path: Path, dry: bool) -> None:
    """Measure every shape, and write after each."""
    dtype = torch.float32 if dry and device() == "cpu" else torch.bfloat16
    found: dict[str, Any] = {"machine": machine(), "versions": library_versions(), "dtype": str(dtype)}
    found["rates"] = rates(dtype)
    found["shapes"] = {}
    for shape in TINY if dry else SHAPES[:2]:
        found["shapes"][shape.name] = of_shape(shape, dtype, found["rates"], 2 if dry else STEPS)
        path.write_text(json.dumps(found, indent=1) + "\n")
        gc.collect()
        if device() == "cuda":
            torch.cuda.empty_cache()


def of_shape(shape: Shape, dtype: torch.dtype, rate: dict[str, float], steps: int) -> dict[str, Any]:
    start = time.monotonic()
    torch.manual_seed(0)
    with torch.device(device()):
        target = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype).eval()
    depth = default_num_layers(shape.layers)
    model = unlearned(target, depth)
    about: dict[str, Any] = {"layers": shape.layers, "depth": depth, "made in, s": time.monotonic() - start}
    about["bounds"] = {
        "step": 1 + sum(p.numel() for n, p in model.assistant.named_parameters() if "lora_" in n) / shape.total,
        "prefill": (shape.layers + depth) / shape.layers,
    }
    for texts in TEXTS:
        about[f"step, {texts} texts"] = tried(lambda texts=texts: decoding(target, model, texts, shape.vocab, steps))
    about["prefill"] = tried(lambda: prefill(target, model, shape.vocab))
    about["training"] = tried(lambda: training(target, depth, shape.vocab, rate["flops"]))
    return about


def tried(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return measure()
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"}


@torch.inference_mode()
def decoding(target: Any, model: Any, texts: int, vocab: int, steps: int) -> dict[str, Any]:
    """Seconds of so many steps of both, launched one by one and replayed."""
    token = torch.randint(1, vocab, (texts, 1), device=device())
    place = torch.zeros_like(token)
    mask = torch.ones(texts, 1, 1, ROOM, dtype=torch.bool, device=device())
    things: dict[str, Callable[[], Any]] = {}
    failed = {}
    for name, one in (("target", target), ("unlearned", model)):
        for how in ("launched", "graph"):
            cache = static(one)

            def step(one: Any = one, cache: Any = cache) -> Any:
                inputs = {"input_ids": token, "position_ids": place, "attention_mask": mask}
                return one(**inputs, **as_given(cache), use_cache=True).logits

            try:
                run = captured(step) if how == "graph" else step
                run()
            except Exception as error:
                traceback.print_exc()
                failed[f"{name}, {how}"] = str(error).splitlines()[0]
                continue
            things[f"{name}, {how}"] = lambda run=run: [run() for _ in range(steps)]
    seconds = in_turn(things, REPEATS)
    ratios = {
        how: ratio(seconds, f"unlearned, {how}", f"target, {how}")
        for how in ("launched", "graph")
        if {f"unlearned, {how}", f"target, {how}"} <= seconds.keys()
    }
    return {"seconds": seconds, "steps": steps, "ratios": ratios} | ({"failed": failed} if failed else {})


def static(model: Any) -> Any:
    """An empty cache whose tensors stay where they are, as a graph needs them."""

    def made(one: Any) -> StaticCache:
        return StaticCache(config=one.config, max_cache_len=ROOM)

    return model._joined(made) if hasattr(model, "_joined") else made(model)


def captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """The step as a CUDA graph; as it is where there is no CUDA."""
    if device() != "cuda":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.inference_mode()
def prefill(target: Any, model: Any, vocab: int) -> dict[str, Any]:
    ids = torch.randint(1, vocab, (1, PREFILL), device=device())

    def run(one: Any) -> Callable[[], Any]:
        return lambda: one(input_ids=ids, use_cache=True, logits_to_keep=1)

    seconds = in_turn({"target": run(target), "unlearned": run(model)}, REPEATS)
    return {"seconds": seconds, "ratio": ratio(seconds, "unlearned", "target")}


def training(target: Any, depth: int, vocab: int, rate: float) -> dict[str, Any]:
    """A step of ULD on rows of one length, with its optimiser."""
    assistant = add_lora(build_assistant(target, depth), rank=RANK, alpha=RANK)
    objective = Objective(assistant, terms_of(get_method("uld"))).train()
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-6)
    kind = torch.zeros(ROWS, TOKENS, dtype=torch.long, device=device())
    kind[: ROWS // 2, -ANSWER:], kind[ROWS // 2 :, -ANSWER:] = 1, 2
    ids = torch.randint(1, vocab, (ROWS, TOKENS), device=device())
    inputs = (ids, torch.ones_like(ids), ids, kind, kind[:, -1], torch.zeros(ROWS, device=device()))

    def step() -> None:
        with torch.autocast(device(), torch.bfloat16, enabled=target.dtype == torch.bfloat16):
            loss = objective(*inputs).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    if device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = in_turn({"step": step}, REPEATS)["step"]
    flops = counter.get_total_flops()
    found = {"seconds": seconds, "flops": flops, "share of the rate": flops / min(seconds) / rate}
    found |= {"rows": ROWS, "tokens": TOKENS, "tokens of an answer": ANSWER}
    if device() == "cuda":
        found["peak bytes"] = torch.cuda.max_memory_allocated()
    return found
