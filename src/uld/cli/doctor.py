"""``uld doctor``: what this machine has, and what is missing for what."""

import importlib.util
from importlib.metadata import PackageNotFoundError, requires, version

import typer

from uld.cli.common import say

EXTRAS = {
    "tensorboard": ("track", "curves in TensorBoard (--report-to tensorboard)"),
    "liger_kernel": ("kernels", "faster training kernels on CUDA"),
    "bitsandbytes": ("quant", "4-bit and 8-bit targets"),
    "gradio": ("playground", "the page of uld playground"),
    "pypdf": ("documents", "PDF and HTML documents"),
    "openai": ("augment", "questions and paraphrases by an endpoint"),
    "lm_eval": ("harness", "uld eval harness and uld lm-eval"),
    "fastapi": ("serve", "uld serve on transformers' own server"),
    "vllm": ("vllm", "uld serve on vLLM, in an environment of its own"),
}
DISTRIBUTION = "uld-llm"


def doctor() -> None:
    """Show versions, device, dtype and memory, and what is missing for what; exit code 2 if uld cannot work."""
    packages, broken = _packages()
    lines = [*packages, *(_machine() if not broken else [])]
    for module, (extra, purpose) in EXTRAS.items():
        present = importlib.util.find_spec(module) is not None
        hint = f"missing, needed only for {purpose}: pip install -e '.[{extra}]' in the folder of uld"
        lines.append((module, "present" if present else hint))
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        say(f"{name:<{width}}  {text}")
    if broken:
        say(f"uld: {', '.join(broken)} must be mended: pip install -U -e . in the folder of uld", err=True)
        raise typer.Exit(2)


def _packages() -> tuple[list[tuple[str, str]], list[str]]:
    """Versions of everything that uld is made of, and the names of those that are missing or of an unfit version."""
    import platform

    from packaging.requirements import Requirement

    lines, broken = [("python", platform.python_version())], []
    try:
        lines.append((DISTRIBUTION, version(DISTRIBUTION)))
        needed = [Requirement(line) for line in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        return [*lines, (DISTRIBUTION, "not installed")], [DISTRIBUTION]
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(one.name)
        except PackageNotFoundError:
            found = "missing"
        fits = found != "missing" and one.specifier.contains(found, prereleases=True)
        lines.append((one.name, found if fits else f"{found}, but uld needs {one.specifier}"))
        broken += [] if fits else [one.name]
    return lines, broken


def _machine() -> list[tuple[str, str]]:
    """Devices, the dtype that they take, processor, memory and disk."""
    import shutil

    import psutil
    import torch

    lines = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = (size / 2**30 for size in torch.cuda.mem_get_info(i))
            lines.append((f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, {free:.0f} of {total:.0f} GiB free"))
        dtype = "bf16" if torch.cuda.is_bf16_supported() else "fp32: this GPU has no bf16"
    else:
        lines.append(("device", "mps" if torch.backends.mps.is_available() else "cpu: no GPU that torch can use"))
        dtype = "as stored; --dtype bf16 halves an fp32 model's memory"
    memory = psutil.virtual_memory()
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    return [
        *lines,
        ("dtype", dtype),
        ("cpu", f"cores: {cores}, threads of torch: {torch.get_num_threads()}"),
        ("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
        ("disk", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free in this folder"),
    ]
