"""The date in a prompt: fixed, so that the same command gives the same numbers on any day and in any time zone.

Chat templates such as Llama 3's write today's date into the prompt, by calling ``strftime_now``. `pinned` puts a macro
of that name before the template, and the macro knows one date. The template carries it from then on: whatever renders
it, here or elsewhere, writes that date.
"""

import re
from datetime import date
from functools import lru_cache
from typing import Any

from uld.errors import ConfigError

DATE = "2024-07-26"
"""The date where none is given: the one that Llama 3's own templates fall back on where there is no clock."""

_CLOCK = "strftime_now"
_PINNED = re.compile(r"\{# uld: the date is (\d{4}-\d\d-\d\d) #\}\{% macro .*?\{% endmacro %\}\n", re.DOTALL)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July")
_MONTHS += ("August", "September", "October", "November", "December")


def is_date(text: str) -> bool:
    """Whether a text is a day, written as 2024-07-26."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def date_fault(text: str | None) -> str | None:
    """Why a text is no date; None where it is one, or is not given."""
    return None if text is None or is_date(text) else f"must be a day, written as 2024-12-31, not {text!r}"


def check_date(text: str | None) -> None:
    """Refuse a date that is none.

    Raises:
        ConfigError: it is not a day, written as 2024-12-31.
    """
    if (fault := date_fault(text)) is not None:
        raise ConfigError(f"--date {fault}")


@lru_cache
def pinned(template: str, day: str | None = None) -> str:
    """A chat template that reads no clock.

    Args:
        template: As the tokenizer has it.
        day: As 2024-07-26; None keeps the date that the template is pinned to, else takes `DATE`.

    Returns:
        The template with a fixed date, or as it is where it reads no clock.
    """
    before = _PINNED.match(template)
    bare = template[before.end() :] if before else template
    if _CLOCK not in bare:
        return template
    chosen = day or (before[1] if before else DATE)
    written = "".join(f"|replace('{key}', '{value}')" for key, value in _directives(date.fromisoformat(chosen)).items())
    return (
        f"{{# uld: the date is {chosen} #}}{{% macro {_CLOCK}(format) %}}{{% for part in format.split('%%') %}}"
        f"{{{{ '%' if not loop.first }}}}{{{{ part{written} }}}}{{% endfor %}}{{% endmacro %}}\n{bare}"
    )


def pin(tokenizer: Any, day: str | None = None) -> None:
    """Fix the date of a tokenizer's chat templates; see `pinned`."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        tokenizer.chat_template = {name: pinned(template, day) for name, template in found.items()}
    elif found:
        tokenizer.chat_template = pinned(found, day)


def pinned_date(tokenizer: Any) -> str | None:
    """The date that a tokenizer's chat template is pinned to; None where it reads no clock, or is not pinned."""
    found = getattr(tokenizer, "chat_template", None)
    texts = found.values() if isinstance(found, dict) else [found or ""]
    return next((match[1] for text in texts if (match := _PINNED.match(text))), None)


def _directives(day: date) -> dict[str, str]:
    """What ``strftime`` writes for each directive at midnight of a day: in English, whatever the machine's language."""
    name, month = _DAYS[day.weekday()], _MONTHS[day.month - 1]
    iso = day.isocalendar()
    numbers = {
        "d": f"{day:%d}",
        "m": f"{day:%m}",
        "y": f"{day:%y}",
        "j": f"{day:%j}",
        "U": f"{day:%U}",
        "W": f"{day:%W}",
        "V": f"{iso.week:02}",
        "H": "00",
        "I": "12",
        "M": "00",
        "S": "00",
    }
    texts = {
        "A": name,
        "a": name[:3],
        "B": month,
        "b": month[:3],
        "h": month[:3],
        "p": "AM",
        "P": "am",
        "Z": "",
        "z": "",
        "c": f"{name[:3]} {month[:3]} {day.day:2} 00:00:00 {day.year:04}",
        "x": f"{day:%m/%d/%y}",
        "X": "00:00:00",
        "D": f"{day:%m/%d/%y}",
        "F": day.isoformat(),
        "T": "00:00:00",
        "R": "00:00",
        "r": "12:00:00 AM",
        "Y": f"{day.year:04}",
        "C": f"{day.year // 100:02}",
        "G": f"{iso.year:04}",
        "g": f"{iso.year % 100:02}",
        "u": str(iso.weekday),
        "w": str(iso.weekday % 7),
        "e": f"{day.day:2}",
        "k": " 0",
        "l": "12",
        "f": "000000",
        "s": str((day - date(1970, 1, 1)).days * 86_400),
        "n": "\\n",
        "t": "\\t",
    }
    plain = {f"%-{key}": value.lstrip("0") or "0" for key, value in numbers.items()}
    loud = {f"%^{key}": texts[key].upper() for key in "AaBb"}
    return plain | loud | {f"%{key}": value for key, value in (numbers | texts).items()}
