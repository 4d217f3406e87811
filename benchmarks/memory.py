"""Resident memory of an unlearned model over its target alone, and of the paper's way (a second model).

What is free inside the allocator is given back before every reading, or readings differ by it. Libraries are imported,
and the target has run as many rows as the unlearned model will: oneDNN keeps about 2.5 MB of kernels for every new
shape of a pass of any model, which says nothing of unlearning.
"""

import ctypes
import gc
import platform

import psutil
import torch
from common import random_llama, report, unlearned


def resident() -> int:
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


@torch.inference_mode()
def main() -> None:
    unlearned(random_llama(torch.bfloat16, layers=1), depth=1)  # PEFT imports much on its first use
    target = random_llama(torch.bfloat16)
    ids = torch.randint(1, 32_000, (1, 8))
    for rows in (1, 2):
        target(input_ids=ids.repeat(rows, 1), use_cache=False)
    weights = sum(p.numel() * p.element_size() for p in target.parameters())
    before = resident()
    model = unlearned(target)
    _ = model.one_pass
    held = resident() - before
    model(input_ids=ids, use_cache=False)
    extra = resident() - before
    lora = sum(p.numel() * p.element_size() for n, p in model.assistant.named_parameters() if "lora_" in n)
    copied = sum(p.numel() * p.element_size() for p in model.assistant.parameters())
    numbers = {"target": weights, "resident_held": held, "resident_extra": extra, "lora": lora, "separate_copy": copied}
    table = [
        ["LoRA matrices (bytes)", f"{lora:,}", f"{lora / weights:.2%}"],
        ["resident, model ready", f"{held:,}", f"{held / weights:.2%}"],
        ["resident, after a pass (kernels of LoRA's shapes)", f"{extra:,}", f"{extra / weights:.2%}"],
        ["an assistant with weights of its own", f"{copied:,}", f"{copied / weights:.2%}"],
    ]
    report("memory", ["extra over the target", "bytes", "share of the target"], table, numbers)


if __name__ == "__main__":
    main()
