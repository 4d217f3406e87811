"""An unlearned model behind the API that every client speaks, on engines that exist."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from uld.errors import ULDError
from uld.runs.manifest import is_run
from uld.serving.vllm import ARCHITECTURE

_NEEDED = ("fastapi", "uvicorn", "openai")


def chosen(engine: str, *, batching: bool = True) -> str:
    """Which engine serves: ``auto`` is vLLM where it is installed, and no request has to be answered by itself.

    Args:
        engine: auto, transformers or vllm.
        batching: Whether requests share batches; vLLM knows nothing else.

    Returns:
        transformers or vllm.

    Raises:
        ULDError: what is missing, and the command that installs it.
    """
    there = importlib.util.find_spec("vllm") is not None
    if engine == "vllm" and not batching:
        raise ULDError("--no-batching is for --engine transformers: vLLM always answers requests together")
    if engine == "vllm" and not there:
        raise ULDError(
            "--engine vllm: vLLM is not installed: pip install -e '.[vllm]' in the folder of uld, in an environment of "
            "its own (docs/serving.md)"
        )
    if engine == "vllm" or (engine == "auto" and there and batching):
        return "vllm"
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing or importlib.util.find_spec("transformers.cli.serving") is None:
        what = ", ".join(missing) or "a newer transformers"
        raise ULDError(
            f"uld serve needs the extra serve ({what} is missing): pip install -e '.[serve]' in the folder of uld"
        )
    return "transformers"


def is_exported(path: str | Path) -> bool:
    """Whether a path is a checkpoint that ``uld export`` has written for vLLM."""
    try:
        config = json.loads(Path(path, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("architectures") == [ARCHITECTURE]


def refuse_ordinary(runs: Sequence[str]) -> None:
    """Refuse what is no run: a model without a subtraction is not served by mistake.

    Raises:
        ULDError: names it.
    """
    for run in runs:
        if not is_run(run):
            raise ULDError(f"{run} is no run (it has no uld.json): give the folder that uld train has written")
