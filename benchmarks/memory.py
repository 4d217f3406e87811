"""Resident memory of an unlearned model over its target alone, and of the paper's way (a second model)."""

import gc

import psutil
import torch
from common import random_llama, report, unlearned


def resident() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


@torch.inference_mode()
def main() -> None:
    target = random_llama(torch.bfloat16)
    ids = torch.randint(1, 32_000, (1, 8))
    target(input_ids=ids)  # allocator pools and kernels are there before anything is compared
    weights = sum(p.numel() * p.element_size() for p in target.parameters())
    before = resident()
    model = unlearned(target)
    model(input_ids=ids, use_cache=False)
    extra = resident() - before
    lora = sum(p.numel() * p.element_size() for n, p in model.assistant.named_parameters() if "lora_" in n)
    copied = sum(p.numel() * p.element_size() for p in model.assistant.parameters())
    numbers = {"target": weights, "resident_extra": extra, "lora": lora, "separate_copy": copied}
    rows = [
        ["LoRA matrices (bytes)", f"{lora:,}", f"{lora / weights:.2%}"],
        ["resident, measured", f"{extra:,}", f"{extra / weights:.2%}"],
        ["an assistant with weights of its own", f"{copied:,}", f"{copied / weights:.2%}"],
    ]
    report("memory", ["extra over the target", "bytes", "share of the target"], rows, numbers)


if __name__ == "__main__":
    main()
