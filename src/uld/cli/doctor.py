"""``uld doctor``: what this machine has, and what is missing for what."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version

import typer

from uld.cli.common import guarded

EXTRAS = {
    "tensorboard": ("track", "curves in TensorBoard (--report-to tensorboard)"),
    "liger_kernel": ("kernels", "faster training kernels on CUDA"),
    "bitsandbytes": ("quant", "4-bit and 8-bit targets"),
}
PACKAGES = ("uld-llm", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "tokenizers")


@guarded
def doctor() -> None:
    """Show versions, device, dtype and memory, and what is missing for what."""
    import platform
    import shutil

    import psutil
    import torch

    lines = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            lines.append((package, version(package)))
        except PackageNotFoundError:
            lines.append((package, "missing: reinstall uld-llm"))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            lines.append(
                (f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
            )
        lines.append(("dtype", "bf16" if torch.cuda.is_bf16_supported() else "fp32: this GPU has no bf16"))
    else:
        lines.append(("device", "mps" if torch.backends.mps.is_available() else "cpu: no GPU that torch can use"))
        lines.append(("dtype", "as stored (--dtype bf16 halves the memory)"))
    memory = psutil.virtual_memory()
    lines.append(
        ("cpu", f"{psutil.cpu_count(logical=False) or psutil.cpu_count()} cores, {torch.get_num_threads()} threads")
    )
    lines.append(("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"))
    lines.append(("disk", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free in this folder"))
    for module, (extra, purpose) in EXTRAS.items():
        present = importlib.util.find_spec(module) is not None
        lines.append((module, "present" if present else f"missing, only for {purpose}: pip install 'uld-llm[{extra}]'"))
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        typer.echo(f"{name:<{width}}  {text}")
