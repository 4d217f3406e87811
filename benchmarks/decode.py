"""How much longer a decoding step and a prefill of an unlearned model take than the target's own.

A Llama of 370 million parameters, K = 6 of 24 layers, bf16: the target, one pass, two passes, and two passes with an
assistant that is a copy of its own (as the paper's code has it). The target and two passes use transformers'
`DynamicCache`; one pass uses its own cache, which copies less (`uld.model.caches.RoomyLayer`), so that the target is measured
over such a cache, too. Floors: bytes for single-token steps at batch 1, FLOPs for the prefill.
"""

import copy

import torch
from common import DEPTH, LAYERS, in_turn, random_llama, rates, ratio, report, series, shown, unlearned
from transformers import DynamicCache

from uld.model.caches import FusedCache, as_given

STEPS = 8
CONTEXT = 64
PREFILL = 512


@torch.inference_mode()
def main() -> None:
    dtype = torch.bfloat16
    target = random_llama(dtype)
    model = unlearned(target)
    separate = copy.deepcopy(model.assistant)
    rows, numbers = [], {"rates": rates(dtype)}

    def steps(forward, cache, ids):
        def run() -> None:
            for _ in range(STEPS):
                forward(cache, input_ids=ids[:, -1:], use_cache=True)

        forward(cache, input_ids=ids, use_cache=True, logits_to_keep=1)
        return run

    def alone(cache, **inputs):
        return target(**as_given(cache), **inputs)

    def one_pass(cache, **inputs):
        return model(**as_given(cache), **inputs)

    def two_passes(cache, **inputs):
        return model.combined(model.all_logits(cache, **inputs))

    def two_copies(cache, **inputs):
        mine, theirs = cache.split()
        logits = [target(**as_given(mine), **inputs).logits, separate(**as_given(theirs), **inputs).logits]
        return model.combined(logits)

    def caches():
        model.fused = True
        one = model.new_cache()
        model.fused = False
        two, copies = model.new_cache(), model.new_cache()
        model.fused = True
        return one, two, copies

    weights = sum(p.numel() * p.element_size() for p in target.parameters())
    weights -= target.get_input_embeddings().weight.numel() * 2  # one row of it is read
    lora = sum(p.numel() * p.element_size() for n, p in model.assistant.named_parameters() if "lora_" in n)
    for batch in (1, 4, 16):
        ids = torch.randint(1, 32_000, (batch, CONTEXT), device=target.device)
        seconds = {}
        for _ in range(series()):
            one, two, copies = caches()
            ours = FusedCache(DynamicCache(config=target.config), [1] * LAYERS)
            seconds = in_turn(
                {
                    "target": steps(alone, DynamicCache(config=target.config), ids),
                    "target, our cache": steps(alone, ours, ids),
                    "one pass": steps(one_pass, one, ids),
                    "two passes": steps(two_passes, two, ids),
                    "two copies": steps(two_copies, copies, ids),
                }
            )
        floor = (weights + lora) / weights
        found = {name: ratio(seconds, name, "target") for name in ("one pass", "two passes", "two copies")}
        found["same cache"] = ratio(seconds, "one pass", "target, our cache")
        numbers[f"batch {batch}"] = {"seconds": seconds, "ratios": found, "floor_bytes": floor}
        rows.append([f"step, batch {batch}", *map(shown, found.values()), f"{floor:.2f} (bytes)"])
    ids = torch.randint(1, 32_000, (1, PREFILL), device=target.device)

    def prefill(fused: bool) -> None:
        model.fused = fused
        model(input_ids=ids, use_cache=True, logits_to_keep=1)

    seconds = in_turn(
        {
            "target": lambda: target(input_ids=ids, use_cache=True, logits_to_keep=1),
            "one pass": lambda: prefill(True),
            "two passes": lambda: prefill(False),
        }
    )
    found = {name: ratio(seconds, name, "target") for name in ("one pass", "two passes")}
    floor = (LAYERS + DEPTH) / LAYERS
    numbers[f"prefill {PREFILL}"] = {"seconds": seconds, "ratios": found, "floor_flops": floor}
    rows.append([f"prefill, {PREFILL} tokens", *map(shown, found.values()), "–", "–", f"{floor:.2f} (FLOPs)"])
    passes = ["one pass", "two passes", "two passes, separate copy"]
    columns = ["unlearned / target", *passes, "one pass / target with the same cache", "floor"]
    report("decode", columns, rows, numbers)


if __name__ == "__main__":
    main()
