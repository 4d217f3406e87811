"""Draws `docs/demo.svg`, the picture of the README, from `docs/demo.txt`, what ``uld demo`` printed.

Run it as ``COLUMNS=100 uld demo > docs/demo.txt; python docs/demo_picture.py``. Nothing is typed by hand: the picture
holds the first questions of each table, with their answers.
"""

import re
import textwrap
from html import escape
from pathlib import Path

TRANSCRIPT = Path(__file__).with_name("demo.txt")
PICTURE = TRANSCRIPT.with_suffix(".svg")
SHOWN = 2
"""Questions of each table in the picture."""
WIDTH, MARGIN, LABEL, LINE = 620, 24, 78, 24  # pixels; narrow, so that a telephone can show it
LETTERS = 56
"""Letters of a line of an answer at most."""
HEADINGS = {"Forgotten": "To be forgotten", "Kept": "To be kept"}
STYLE = """
text { font: 16px system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif; fill: #1f2430 }
.card { fill: #fafbfc; stroke: #d5d9e0 }
.heading { font-size: 14px; font-weight: 700; letter-spacing: .06em; fill: #4a5568 }
.question { font-weight: 700 }
.label { fill: #697386 }
.Forgotten { fill: #b3261e }
.Kept { fill: #1b6e3c }
"""


def answers(transcript: str) -> dict[str, list[tuple[str, str, str]]]:
    """Question, answer before and answer after, of each table of a transcript."""
    tables: dict[str, list[tuple[str, str, str]]] = {}
    name, column = "", 0
    for line in transcript.splitlines():
        if heading := re.match(r"(\w+), before +\| after", line):
            name, column = heading[1], line.index("|")
            tables[name] = []
        elif name and line.startswith("? "):
            tables[name].append((line[2:], "", ""))
        elif name and line.startswith("    "):
            question, before, after = tables[name][-1]
            left, right = line[:column].strip(), line[column + 1 :].strip()
            tables[name][-1] = (question, f"{before} {left}".strip(), f"{after} {right}".strip())
        else:
            name = ""
    return tables


def picture(transcript: str) -> str:
    """The SVG of a transcript."""
    parts: list[str] = []
    y = MARGIN

    def put(text: str, kind: str, x: int = MARGIN) -> None:
        parts.append(f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>')

    for name, rows in answers(transcript).items():
        y += LINE // 2
        put(HEADINGS[name].upper(), "heading")
        for question, *both in rows[:SHOWN]:
            y += LINE + LINE // 4
            for line in textwrap.wrap(question, LETTERS + 8):
                put(line, "question")
                y += LINE
            for label, answer in zip(("before", "after"), both, strict=True):
                put(label, "label")
                for line in textwrap.wrap(answer, LETTERS):
                    put(line, name if label == "after" else "answer", MARGIN + LABEL)
                    y += LINE
            y -= LINE
        y += LINE + LINE // 2
    height = y
    title = "Answers of a model before and after unlearning"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
            ' role="img">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="card" x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="10"/>',
            *parts,
            "</svg>\n",
        ]
    )


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(picture(TRANSCRIPT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
