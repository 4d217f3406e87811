"""Resident memory of an unlearned model over its target alone, and of the paper's way (a second model).

What is free inside the allocator is given back before every reading, or readings differ by it. Libraries are imported,
and the target has run as many rows as the unlearned model will: oneDNN keeps about 2.5 MB of kernels for every new
shape of a pass of any model, which says nothing of unlearning.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys

import psutil
import torch
from common import random_llama, report, unlearned


def resident() -> int:
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


@torch.inference_mode()
def measure(fused: bool) -> dict[str, int]:
    """Bytes of target and assistant; resident bytes beyond the target when the model is ready and after a pass."""
    unlearned(random_llama(torch.bfloat16, layers=1), depth=1)  # PEFT imports much on its first use
    target = random_llama(torch.bfloat16)
    ids = torch.randint(1, 32_000, (1, 8))
    for rows in (1, 2):
        target(input_ids=ids.repeat(rows, 1), use_cache=False)
    weights = sum(p.numel() * p.element_size() for p in target.parameters())
    before = resident()
    model = unlearned(target, fused=fused)
    _ = model.one_pass
    held = resident() - before
    model(input_ids=ids, use_cache=False)
    extra = resident() - before
    lora = sum(p.numel() * p.element_size() for n, p in model.assistant.named_parameters() if "lora_" in n)
    copied = sum(p.numel() * p.element_size() for p in model.assistant.parameters())
    return {"target": weights, "resident_held": held, "resident_extra": extra, "lora": lora, "separate_copy": copied}


def alone(*words: str, **environment: str) -> dict[str, int]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", *words]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=("one pass", "two passes"), help="measure this alone and print JSON")
    which = parser.parse_args().measure
    if which:
        print(json.dumps(measure(which == "one pass")))
        return
    found = alone("one pass")
    bare = alone("one pass", ONEDNN_PRIMITIVE_CACHE_CAPACITY="0")
    two = alone("two passes")
    rows = [
        ["LoRA matrices (bytes)", found["lora"]],
        ["resident, model ready", found["resident_held"]],
        ["resident, after a pass (kernels of LoRA's shapes)", found["resident_extra"]],
        ["instead: after a pass, with no kernels kept", bare["resident_extra"]],
        ["instead: two passes, model ready", two["resident_held"]],
        ["instead: two passes, after a pass", two["resident_extra"]],
        ["an assistant with weights of its own", found["separate_copy"]],
    ]
    table = [[name, f"{value:,}", f"{value / found['target']:.2%}"] for name, value in rows]
    numbers = {"one pass": found, "one pass, no kernels kept": bare, "two passes": two}
    report("memory", ["extra over the target", "bytes", "share of the target"], table, numbers)


if __name__ == "__main__":
    main()
