"""Why vLLM did not start: what its processes write, and what is taken of it."""

import logging
import subprocess
import sys

import pytest

from uld.errors import ULDError
from uld.serving.vllm import FAULTS, fault, register


def fail(logger: logging.Logger, error: Exception) -> None:
    try:
        raise error
    except type(error):
        logger.exception("failed to start")


@pytest.fixture
def process(tmp_path, monkeypatch):
    """What a process of vLLM logs with, once it has called the plug-in, and where that ends."""
    place = tmp_path / "faults"
    monkeypatch.setenv(FAULTS, str(place))
    monkeypatch.setitem(sys.modules, "vllm", None)
    root = logging.getLogger("vllm")
    before = list(root.handlers)
    with pytest.raises(ImportError):
        register()
    yield logging.getLogger("vllm.engine.process"), place
    root.handlers[:] = before


def test_the_first_error_is_told_unless_one_is_ulds_own(process):
    logger, place = process
    assert fault(place) is None
    logger.error("no exception")
    assert fault(place) is None
    fail(logger, ValueError("no room for\nthe cache"))
    fail(logger, RuntimeError("a process has failed, see above"))
    assert fault(place) == (False, "no room for")
    fail(logger, ULDError("the weights are another target's"))
    assert fault(place) == (True, "the weights are another target's")


def test_what_fails_later_is_not_kept(process):
    logger, place = process
    place.parent.rename(place.parent.with_name("gone"))
    fail(logger, ValueError("an engine that has started"))
    assert fault(place) is None


def test_vllm_is_not_imported_to_tell_it():
    code = "import sys, uld.serving.vllm; assert not {'vllm', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
