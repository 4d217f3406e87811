"""JSON that any parser reads, infinities included. Ground floor."""

import json
import re
from typing import Any

_STRING_OR_INFINITY = re.compile(r'"(?:[^"\\]|\\.)*"|Infinity')


def dumps(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """JSON with infinities, which JSON has no word for, as ``1e999``.

    That is a valid JSON number, and too large for a float, so that every parser of doubles reads infinity.

    Args:
        value: What `json.dumps` takes.
        indent: As in `json.dumps`.
        ensure_ascii: As there.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)
    if "Infinity" not in text:
        return text
    return _STRING_OR_INFINITY.sub(lambda match: "1e999" if match[0] == "Infinity" else match[0], text)
