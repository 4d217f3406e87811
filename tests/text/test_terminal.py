"""What is printed is shown and not obeyed: control characters, directions, invisible characters, halves of pairs."""

import io
import json
import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uld.text.terminal import OutputError, Screen, one_line, screens, visible

JOINERS = "\u200c\u200d"
# Signs of Arabic, Syriac, Kaithi and shorthand that Unicode counts as formats, but that are drawn.
DRAWN = {0x600, 0x601, 0x602, 0x603, 0x604, 0x605, 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
OBEYED = [chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
OBEYED = [one for one in OBEYED if one not in JOINERS + "\t\n" and ord(one) not in DRAWN]


PLAIN = "plain, α = 1 – 中文 👩\u200d🚀 می\u200cخواهم\n\tnext"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def harmless(text: str) -> bool:
    return all(one not in text for one in OBEYED)


@pytest.mark.parametrize("first", range(0, 4096, 64))
def test_everything_that_a_terminal_would_obey_is_written_out(first: int):
    for one in OBEYED[first : first + 64]:
        shown = visible(f"a{one}b")
        number = ord(one)
        if 0xDC80 <= number < 0xDD00:
            assert shown == f"a\\x{number - 0xDC00:02x}b"
        else:
            form, digits = ("x", 2) if number < 256 else ("u", 4) if number < 2**16 else ("U", 8)
            assert shown == f"a\\{form}{number:0{digits}x}b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07rest", "\\x1b]0;title\\x07rest"),
        ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        ("\x9b31m", "\\x9b31m"),
        ("good\rEVIL", "good\\x0dEVIL"),
        ("a\x08\x08b", "a\\x08\\x08b"),
        ("user\u202etxt.exe", "user\\u202etxt.exe"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("caf\udce9.jsonl", "caf\\xe9.jsonl"),
        ("\ud83d alone", "\\ud83d alone"),
        ("\U000e0041", "\\U000e0041"),
        (PLAIN, PLAIN),
    ],
)
def test_known_cases(text: str, shown: str):
    assert visible(text) == shown


@settings(max_examples=400)
@given(st.text(st.one_of(st.sampled_from(OBEYED), st.characters(exclude_categories=()))))
def test_any_text_becomes_harmless_and_keeps_the_rest(text: str):
    shown = visible(text)
    assert harmless(shown) and visible(shown) == shown == shown.encode().decode()
    left = iter(shown)
    assert all(one in left for one in text if one not in OBEYED)  # in order
    assert "\n" not in one_line(text)


@settings(max_examples=300)
@given(st.lists(st.text(st.one_of(st.sampled_from(OBEYED), st.sampled_from("ab\n")), max_size=8)))
def test_on_a_terminal_all_that_is_written_is_harmless_however_it_is_cut(parts: list[str]):
    terminal = Terminal()
    screen = Screen(terminal, shows=True, comments=False)
    for part in parts:
        screen.write(part)
    assert terminal.getvalue() == visible("".join(parts))


@settings(max_examples=300)
@given(st.lists(st.sampled_from(["\x1b[A", "\x1b", "[", "A", "\r", "\n", "x", "\x07", "\u202e"])).map("".join))
def test_a_comment_may_draw_a_bar_and_nothing_else(text: str):
    terminal = Terminal()
    Screen(terminal, shows=True, comments=True).write(text)
    written = terminal.getvalue()
    if text and not text.replace("\x1b[A", "").strip("\n"):  # up by lines, as between two bars
        assert written in (text, visible(text))
    elif text.startswith("\r") and "\n" not in text:
        assert written.replace("\r", "") == visible(text.replace("\r", ""))
    else:
        assert written == visible(text)


def test_a_bar_of_tqdm_is_drawn(monkeypatch):
    from tqdm import tqdm

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with screens():
        for _ in tqdm(range(3), desc="ro\x1bws", position=1, ascii=True):
            pass
    drawn = terminal.getvalue()
    assert "\rro\\x1bws: 100%" in drawn and "\x1b[A" in drawn and drawn.count("\x1b") == drawn.count("\x1b[A")


class Stream(io.TextIOWrapper):
    """A text stream over bytes, a terminal or not."""

    terminal = False

    def isatty(self) -> bool:
        return self.terminal


def printed(monkeypatch, text: str, *, terminal: bool, encoding: str = "utf-8", name: str = "stdout") -> bytes:
    stream = Stream(io.BytesIO(), encoding=encoding, write_through=True)
    stream.terminal = terminal
    monkeypatch.setattr(sys, name, stream)
    with screens():
        print(text, end="", file=getattr(sys, name))
    assert getattr(sys, name) is stream and stream.errors == "strict"
    return stream.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["\x1b[31mred\x1b[0m\r\n", "\u202eright\u202c", "\x00\x9b", '{"a": "\\u001b"}'])
def test_what_is_piped_stays_as_it_is(monkeypatch, text: str):
    assert printed(monkeypatch, text, terminal=False) == text.encode()
    assert printed(monkeypatch, text, terminal=True) == visible(text).encode()
    assert printed(monkeypatch, text, terminal=False, name="stderr") == visible(text).encode()


def test_a_name_that_is_not_utf8_is_piped_by_its_bytes(monkeypatch):
    assert printed(monkeypatch, "caf\udce9\n", terminal=False) == b"caf\xe9\n"
    assert printed(monkeypatch, "caf\udce9\n", terminal=True) == b"caf\\xe9\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_stream_that_cannot_hold_a_letter_gets_its_number(monkeypatch, encoding: str):
    assert printed(monkeypatch, "a \u0434 \ud83d", terminal=False, encoding=encoding) == b"a \\u0434 \\ud83d"


class Broken(io.StringIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "unread"), [(BrokenPipeError(32, "Broken pipe"), True), (OSError(28, "No space left on device"), False)]
)
def test_output_that_cannot_be_written_is_an_error_and_a_comment_is_not(error: OSError, unread: bool):
    with pytest.raises(OutputError, match=error.strerror.lower()) as caught:
        Screen(Broken(error), shows=False, comments=False).writelines(["a"])
    assert caught.value.unread is unread
    Screen(Broken(error), shows=True, comments=True).write("a")


def test_a_screen_is_the_stream_otherwise():
    stream = Stream(io.BytesIO(), encoding="utf-8")
    screen: Any = Screen(stream, shows=True, comments=False)
    assert screen.encoding == "utf-8" and screen.writable() and screen.rich_proxied_file is stream
    with pytest.raises(TypeError):
        screen.write(b"bytes")
    json.dump({"a": 1}, screen)
    screen.flush()
    assert stream.buffer.getvalue() == b'{"a": 1}'  # type: ignore[attr-defined]
