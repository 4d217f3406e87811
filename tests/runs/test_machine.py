"""What this machine is."""

import pytest

import uld.runs.machine
from uld.runs.machine import peak_memory


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes(monkeypatch, platform, unit):
    import resource

    raw = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(uld.runs.machine.sys, "platform", platform)
    assert raw * unit <= peak_memory() <= 2 * raw * unit
