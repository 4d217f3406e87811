"""When two texts are the same, when a text says nothing, and how a message quotes one.

Everything that compares documents compares `folded` texts: the forget set with the retain set, duplicates, drawn rows,
augmentation with what it was made of. What is learnt is always the text as it stands.
"""

import re
import unicodedata
from typing import Any

# Unicode's Default_Ignorable_Code_Point (zero widths, soft hyphens, marks of direction, variation selectors, fillers)
# and control characters that are no white space.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
WITHOUT_BLANKS = (  # Thai, Lao, Tibetan, Burmese, Khmer; Japanese and Chinese
    "\u0e00-\u109f\u1780-\u17ff"
    "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff"  # vowels and the like, no letters
_WORD = re.compile(rf"(?![\W_])[{WITHOUT_BLANKS}]|(?:[^\W_{WITHOUT_BLANKS}]|[{MARKS}])+")
_SILENT = ("Cc", "Cf", "Cn", "Co", "Mn", "Mc", "Me", "Zs", "Zl", "Zp")
_EMPTY_SIGNS = "\u2800\ufffd"  # a blank of Braille, and what stands for a character that was lost
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # how Python writes a byte of a file name that is no UTF-8


def folded(text: str) -> str:
    """A text as it is compared: without what does not show, and with one spelling of what does.

    Characters that do not show are left out, Unicode's compatibility composition (NFKC) gives accents, ligatures and
    widths one spelling, and white space of any kind and length (line ends, no-break spaces) becomes one blank, none at
    the ends. Case, punctuation and words stay.
    """
    return " ".join(unicodedata.normalize("NFKC", _UNSEEN.sub("", text)).split())


def says_nothing(text: str) -> bool:
    """Whether a text holds no character that shows: blanks, control characters, zero widths, lone accents."""
    return not any(
        unicodedata.category(char) not in _SILENT and char not in _EMPTY_SIGNS and not _UNSEEN.match(char)
        for char in text
    )


def lines_of(text: str) -> list[str]:
    """The lines of a text as editors count them; other signs that Unicode calls line ends (U+2028) stand within one."""
    return re.split("\r\n|\n|\r", text)


def shown(value: Any, most: int = 60) -> str:
    """A value as a message quotes it, on one line.

    Args:
        value: Anything that stands in a file.
        most: Characters of it.
    """
    text = value if isinstance(value, str) else repr(value)
    short = text if len(text) <= most else f"{text[:most]}…"
    return repr(short) if isinstance(value, str) else short


def shown_name(path: Any) -> str:
    """The name of a file as a message gives it: with escapes for what cannot be printed."""
    text = _ESCAPED_BYTE.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", str(path))
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def words_of(text: str) -> list[str]:
    """The words of a text in any script, in small letters; of ASCII text runs of letters and digits.

    A script without blanks between words, such as Chinese or Thai, gives a word a character.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())
