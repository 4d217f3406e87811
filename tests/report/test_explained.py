"""Explanations to be read: nothing of them is obeyed, everything is there without colours and without a script."""

import html
import math
import re

import pytest

from uld.evaluation.explain import ExplainedAnswer, ExplainedToken, Explanation, Likely
from uld.model.combine import Combination
from uld.report.explained import depth, heat_map, page, settings_words, terminal_lines


def token(text: str, before: float, after: float, *others: str) -> ExplainedToken:
    likeliest = tuple(Likely(one, -1.0 - i) for i, one in enumerate(others or (text,)))
    return ExplainedToken(text, before, after, likeliest, tuple(reversed(likeliest)))


HOSTILE = '<script>alert("x")</script>'
ANSWER = ExplainedAnswer(
    "target",
    "Mara keeps it",
    (
        token(" Mara", -0.1, -6.1, " Mara", " Tom", " Ann", " Eve", " Kit"),
        token(HOSTILE, -0.5, -0.5),
        token("\x1b[2J", -3.0, -1.0),
        token("</s>", -1.0, -math.inf),
    ),
)
EXPLANATION = Explanation("Who keeps\nthe light?", (Combination(weight=20.0, margin=3.0, floor=5e-4),), (ANSWER,))


@pytest.mark.parametrize(
    ("taken", "expected"), [(0.0, 0), (0.04, 0), (4.0, 50), (8.0, 100), (math.inf, 100), (-2.0, -25), (-99.0, -100)]
)
def test_the_deeper_the_more_was_taken(taken, expected):
    assert depth(token("x", 0.0, -taken)) == expected


def test_lines_hold_every_number_without_their_colours():
    text = "\n".join(line.plain for line in terminal_lines(EXPLANATION))
    assert "> Who keeps\\nthe light?" in text and "rule suppress, α 20, margin 3, floor 0.0005" in text
    assert '+6.00  " Mara"  90.5% → 0.22%' in text
    assert re.search(r'before  " Mara" 36.8%  " Tom" 13.5%  " Ann" 5.0%  " Eve" 1.8%  " Kit" 0.67%', text)
    assert "-2.00" in text and "+inf" in text and "inf nats taken from 4 tokens" in text
    assert "\x1b" not in text and "\\x1b[2J" in text


def test_lines_are_coloured_by_what_was_taken():
    heat = next(line for line in terminal_lines(EXPLANATION) if line.plain.startswith("\ntarget:"))
    styles = {heat.plain[span.start : span.end]: str(span.style) for span in heat.spans}
    assert "rgb" in styles[" Mara"] and "rgb" in styles["</s>"] and styles[" Mara"] != styles["</s>"]
    assert not styles.get(HOSTILE)


def test_the_page_stands_alone_and_runs_nothing():
    text = page(EXPLANATION)
    assert "<script" not in text and html.escape(HOSTILE, quote=False).replace('"', "&#34;") in text
    assert not re.search(r"""(?:src|href)=|url\(|@import|https?:""", text)
    assert text.count('class="token') == len(ANSWER.tokens) and "prefers-color-scheme: dark" in text
    assert "@media print" in text and 'name="viewport"' in text
    for word in ("Tom", "Ann", "Eve", "Kit"):  # in the card that shows on hover, and in the table for print
        assert text.count(f"␣{word}</span>") == 4
    assert "+6.00" in text and "90.5% before, 0.22% after" in text and "\x1b" not in text


def test_a_heat_map_alone_is_that_of_the_page():
    assert heat_map(ANSWER).strip() in page(EXPLANATION)
    one = ExplainedAnswer("given", "x", (token("x", -3.0, -1.0),))
    assert "2.00 nats given to 1 token</span>" in heat_map(one) and "token more" in heat_map(one)


def test_settings_are_said_once_and_by_their_rule():
    how = Combination(rule="subtract", weight=1.5, filter=0.01)
    assert settings_words((how, how, Combination(weight=math.inf))) == (
        "rule subtract, α 1.5, τ 0.01; rule suppress, α inf, margin 0, floor 0"
    )
