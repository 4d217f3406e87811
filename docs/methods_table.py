"""Writes the table of methods in ``docs/methods.md`` from the registry, `uld.methods.registry.all_methods`.

Run it as ``python docs/methods_table.py``. Everything in it stands in a method's own file.
"""

from collections.abc import Sequence
from pathlib import Path

from uld.methods.registry import Method, all_methods

PAGE = Path(__file__).with_name("methods.md")
START, END = "<!-- methods: written by docs/methods_table.py -->\n", "<!-- end of methods -->\n"
TRAINS = {"assistant": "assistant", "target": "target", "offset": "small model", "pair": "two small models"}
_NO_NEED = "no retain rows"  # is no need, and stands in the formula


def _paper(url: str) -> str:
    return f"[{url.rstrip('/').rpartition('/')[2]}]({url})"


def _trains(methods: Sequence[Method]) -> str:
    """What is trained; a method may choose among the target's parameters."""
    words = [TRAINS[one.trains] + (", in part" if one.restrict is not None else "") for one in methods]
    return ", or ".join(dict.fromkeys(words))


def _needs(methods: Sequence[Method]) -> str:
    """What all need, then what some do, and which."""
    needs = dict.fromkeys(need for one in methods for need in one.needs if need != _NO_NEED)
    found: dict[bool, list[str]] = {True: [], False: []}
    for need in needs:
        who = [one for one in methods if need in one.needs]
        everybody = len(who) == len(methods)
        names = "" if everybody else f" ({', '.join(f'`{one.name}`' for one in who)})"
        teacher = who[0].teacher
        found[everybody].append((need if teacher is None else need.replace(teacher, f"`{teacher}`")) + names)
    return "; ".join(found[True] + found[False]) or "–"


def _options(method: Method) -> str:
    notes = {name: f" ({note})" for name, note in method.notes.items()}
    shown = [f"`{name}={value:g}`{notes.get(name, '')}" for name, value in method.options.items()]
    return ", ".join(shown) or "–"


def table() -> str:
    """All methods as Markdown, a line for those of one formula."""
    groups: dict[str, list[Method]] = {}
    for method in all_methods().values():
        groups.setdefault(method.formula, []).append(method)
    lines = ["| method | paper | formula | trains | needs | options |", "|---|---|---|---|---|---|"]
    for formula, methods in groups.items():
        first = methods[0]
        names = " ".join(f"`{one.name}`" for one in methods)
        cells = [names, _paper(first.paper), formula, _trains(methods), _needs(methods), _options(first)]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from between_marks import put

    put(table(), PAGE, START, END)
