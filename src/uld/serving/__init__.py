"""An unlearned model behind the API that every client speaks, on engines that exist."""

import importlib.util
from collections.abc import Sequence

from uld.errors import ULDError
from uld.runs.manifest import is_run

_NEEDED = ("fastapi", "uvicorn", "openai")


def installed(engine: str) -> None:
    """Refuse an engine that is not there, before anything is loaded.

    Args:
        engine: auto, transformers or vllm.

    Raises:
        ULDError: what is missing, and the command that installs it.
    """
    if engine == "vllm":
        raise ULDError(
            "--engine vllm: this version of uld has no engine for vLLM yet: leave --engine out, or say --engine "
            "transformers"
        )
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing or importlib.util.find_spec("transformers.cli.serving") is None:
        what = ", ".join(missing) or "a newer transformers"
        raise ULDError(
            f"uld serve needs the extra serve ({what} is missing): pip install -e '.[serve]' in the folder of uld"
        )


def refuse_ordinary(runs: Sequence[str]) -> None:
    """Refuse what is no run: a model without a subtraction is not served by mistake.

    Raises:
        ULDError: names it.
    """
    for run in runs:
        if not is_run(run):
            raise ULDError(f"{run} is no run (it has no uld.json): give the folder that uld train has written")
