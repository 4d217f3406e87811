"""vLLM as an engine: the checkpoint that it reads, the model that it runs, and the server around it.

vLLM calls `register` in each of its processes (entry point ``vllm.general_plugins``): nothing heavy is imported here.
"""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

from uld.errors import ULDError, words

ARCHITECTURE = "ULDForVLLM"
"""What ``config.json`` of an exported checkpoint names, and vLLM finds `uld.serving.vllm.model` by."""

FAULTS = "ULD_VLLM_FAULTS"
"""Variable that names a file, in which vLLM's processes write why they did not start."""


def register() -> None:
    """Tell vLLM of the architecture; its module is imported when a checkpoint asks for it."""
    if place := os.environ.get(FAULTS):
        logging.getLogger("vllm").addHandler(_Faults(place))
    from vllm import ModelRegistry  # type: ignore[import-not-found]

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")


class _Faults(logging.Handler):
    """Keeps the errors that vLLM's processes log: whoever started them is told only that one has failed."""

    def __init__(self, place: str) -> None:
        super().__init__(logging.ERROR)
        self._place = Path(place)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        with suppress(OSError), self._place.open("a", encoding="utf-8") as stream:  # once it has started, none is kept
            stream.write(json.dumps([isinstance(error, ULDError), words(error)]) + "\n")


def fault(place: str | Path) -> tuple[bool, str] | None:
    """Why vLLM did not start: the first of its processes' errors, one of uld's before others.

    Args:
        place: What `FAULTS` named.

    Returns:
        Whether it is a `ULDError`, and its sentence; None where none was written.
    """
    if not Path(place).exists():
        return None
    lines = [json.loads(line) for line in Path(place).read_text(encoding="utf-8").splitlines()]
    found: list[tuple[bool, str]] = [(own, said) for own, said in lines]
    return min(found, key=lambda one: not one[0], default=None)
