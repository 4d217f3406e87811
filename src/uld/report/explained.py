"""What unlearning took from answers, to be read: as lines for a terminal and as one self-contained page."""

import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from uld.evaluation.explain import ExplainedAnswer, ExplainedToken, Explanation
from uld.model.combine import Combination
from uld.text.terminal import one_line, visible

if TYPE_CHECKING:
    from rich.text import Text

MOST = 8.0
"""Nats from which a token has the deepest colour: what a floor of 3e-4 takes from a token that was certain."""
_NOTHING = 0.05  # nats that have no colour yet
WHO = {"target": "target", "unlearned": "unlearned model", "given": "given answer"}
_TEMPLATE = "explained.html.j2"


def depth(token: ExplainedToken) -> int:
    """How deep a token's colour is, from −100 (much likelier than before) to 100 (`MOST` nats taken, or more)."""
    return 0 if abs(token.taken) < _NOTHING else round(100 * max(-1.0, min(1.0, token.taken / MOST)))


def settings_words(settings: Sequence[Combination]) -> str:
    """How the assistants are combined, each different setting once."""
    return "; ".join(dict.fromkeys(map(_setting, settings)))


def _setting(how: Combination) -> str:
    words = [f"rule {how.rule}", f"α {how.weight:g}"]
    if how.rule == "suppress":
        words += [f"margin {how.margin:g}", f"floor {how.floor:.3g}"]
    if how.filters:
        words += [f"τ {how.filter:g}"]
    return ", ".join(words + ([f"{how.rank_tokens} tokens"] if how.rule == "rank" else []))


def terminal_lines(explanation: Explanation) -> "list[Text]":
    """The explanation line by line; without its styles it holds the same in numbers.

    Nothing in it is obeyed by a terminal (`uld.text.terminal`).
    """
    from rich.text import Text

    lines = [Text(f"> {one_line(explanation.question)}", "bold"), Text(settings_words(explanation.settings), "dim")]
    for answer in explanation.answers:
        heat = Text(f"\n{WHO[answer.who]}: ", "bold")
        for token in answer.tokens:
            heat.append(one_line(token.text), _terminal_style(depth(token)))
        lines += [heat, Text(f"{_total(answer)}; of each, before and after:", "dim")]
        for token in answer.tokens:
            line = Text(f"{_number(token.taken):>8}  ")
            line.append(_quoted(token.text), _terminal_style(depth(token)))
            line.append(f"  {_share(token.before)} → {_share(token.after)}")
            lines.append(line)
            for when, likeliest in (("before", token.likeliest_before), ("after", token.likeliest_after)):
                words = "  ".join(f"{_quoted(one.text)} {_share(one.log_prob)}" for one in likeliest)
                lines.append(Text(f"{when:>16}  {words}", "dim"))
    return lines


def page(explanation: Explanation) -> str:
    """The explanation as one page that needs nothing beside it, no script either."""
    return _template().render(explanation=explanation, styles=styles(), settings=settings_words(explanation.settings))


def heat_map(answer: ExplainedAnswer) -> str:
    """The heat map of one answer, to stand in another page that has `styles`."""
    return str(_macros().heat_map(answer))


def scale() -> str:
    """What the colours mean, to stand beside heat maps."""
    return str(_macros().scale())


def _macros() -> Any:
    return _template().make_module({"explanation": None, "styles": "", "settings": ""})


@cache
def _template() -> Any:
    """The page; everything that comes from models and users is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    words: dict[str, Any] = {
        "depth": depth,
        "number": _number,
        "share": _share,
        "who": WHO,
        "marked": _marked,
        "most": MOST,
    }
    environment.globals.update(words, total=_total, visible=visible)
    return environment.from_string((files("uld.report") / _TEMPLATE).read_text(encoding="utf-8"))


def styles() -> str:
    """The style sheet of the heat maps."""
    return (files("uld.report") / "heat.css.j2").read_text(encoding="utf-8")


def _number(nats: float) -> str:
    return f"{nats:+.2f}" if abs(nats) >= 0.005 else "0.00"


def _total(answer: ExplainedAnswer) -> str:
    count = f"{len(answer.tokens)} token" + ("" if len(answer.tokens) == 1 else "s")
    return f"{abs(answer.taken):.2f} nats {'given to' if answer.taken < 0 else 'taken from'} {count}"


def _share(log_prob: float) -> str:
    """A probability as per cent, to two digits that count."""
    share = 100 * math.exp(log_prob)
    return f"{share:.1f}%" if share >= 0.995 else f"{share:.2g}%" if share >= 1e-4 else "0%"


def _quoted(text: str) -> str:
    return f'"{one_line(text)}"'


def _marked(text: str) -> str:
    """A token as a page shows it: line feeds and blanks at its ends can be seen."""
    shown = one_line(text)
    inner = shown.strip(" ")
    start, end = len(shown) - len(shown.lstrip(" ")), len(shown) - len(shown.rstrip(" "))
    return "␣" * start + inner + "␣" * (end if inner else 0)


def _terminal_style(depth: int) -> str:
    """Black on ever deeper red for what was taken, on blue for what became likelier."""
    if depth == 0:
        return ""
    part = abs(depth) / 100
    far = (222, 60, 40) if depth > 0 else (70, 120, 230)
    red, green, blue = (round(255 + (one - 255) * (0.2 + 0.8 * part)) for one in far)
    return f"black on rgb({red},{green},{blue})"
