"""The progress line: drawn on a terminal, seldom in a file, and not at all for what is soon done."""

import io
from pathlib import Path

import pytest

from uld.text import progress
from uld.text.progress import bar

ROOT = Path(__file__).resolve().parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **how: bool) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    with bar(4, "settings", "row", **how) as line:
        for _ in range(4):
            line.update()
    return stream.getvalue()


def test_a_terminal_sees_what_is_done_how_far_and_how_long_still(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(monkeypatch, Terminal())
    assert "settings: 100%|" in text and "4/4, ETA 00:00" in text


def test_what_is_soon_done_leaves_no_line_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(monkeypatch, io.StringIO()) == ""
    monkeypatch.setattr(progress, "_SHORT", 0.0)
    assert "settings: 100%|" in drawn(monkeypatch, io.StringIO())
    assert drawn(monkeypatch, io.StringIO(), logged=False) == ""


def test_a_file_gets_whole_lines_one_below_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SHORT", 0.0)
    monkeypatch.setattr(progress, "_SELDOM", 0.0)
    text = drawn(monkeypatch, io.StringIO())
    lines = text.splitlines()
    assert "\r" not in text and text.endswith("\n") and len(lines) >= 4
    assert all(line.startswith("settings: ") and "ETA" in line for line in lines)


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_nothing_is_shown_where_nothing_is_wanted(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SHORT", 0.0)
    assert drawn(monkeypatch, stream, shown=False) == ""


def test_there_is_no_other_line_than_this_one() -> None:
    """Everything that takes long shows how far it is in the same way."""
    files = (ROOT / "src/uld").rglob("*.py")
    assert [path.name for path in files if "import tqdm" in path.read_text()] == ["progress.py"]
