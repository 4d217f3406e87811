"""A table of short texts, as Markdown and as LaTeX. Knows nothing about what it holds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "−": r"$-$",
    "Δ": r"$\Delta$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "τ": r"$\tau$",
    "×": r"$\times$",
    "…": r"\dots{}",
    "’": "'",
    "\n": " ",
    "\u00a0": "~",
}
_WIDE = 4  # columns that a page has room for
_POWER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)e(-?)(\d+)(?!\w)")


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns.

    Attributes:
        name: Identifier, letters, digits and hyphens.
        title: What it shows.
        columns: Heads; the first is that of the rows' names.
        rows: Each as long as ``columns``.
        groups: Heads above the heads, ``(text, columns)``, together as wide as the table; an empty text is no head.
        strong: Rows to be set in bold.
        faded: Columns of numbers that are not this comparison's own.
        notes: Sentences below the table.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[tuple[str, int]] = ()
    strong: frozenset[int] = frozenset()
    faded: frozenset[int] = frozenset()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse rows of another width."""
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of {self.name} is not {len(self.columns)} texts long")
        if self.groups and sum(width for _, width in self.groups) != len(self.columns):
            raise ValueError(f"the groups of {self.name} are not {len(self.columns)} columns wide")


def markdown(table: Table) -> str:
    """A heading, the table and its notes.

    Markdown has no heads above heads, so they are written into those below, but for the first with a text, which is
    what the table is about.
    """
    above = _above(table)
    heads = [f"{head} ({group})" if group else head for head, group in zip(table.columns, above, strict=True)]
    lines = [f"## {_plain(table.title)}", "", _line(heads), _line(["---"] + ["---:"] * (len(heads) - 1))]
    for number, row in enumerate(table.rows):
        lines.append(_line([f"**{cell}**" if is_strong(table, number, at) else cell for at, cell in enumerate(row)]))
    for note in table.notes:
        lines += ["", _plain(note)]
    return "\n".join(lines) + "\n"


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, padded so that a terminal shows its columns, too: the first left, the others right."""
    head, *rows = ([cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in (head, *rows))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (head, rule, *rows):
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _above(table: Table) -> list[str]:
    """For each column the head above its head; of several the first is left out."""
    texts = [text for text, _ in table.groups if text]
    omitted = texts[0] if len(texts) == 2 else None
    above = [text if text != omitted else "" for text, width in table.groups for _ in range(width)]
    return above or [""] * len(table.columns)


def is_strong(table: Table, row: int, column: int) -> bool:
    """Whether a cell is set in bold."""
    return row in table.strong and column not in table.faded


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", r"\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """A text that Markdown shows as it stands: one line, no HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def latex(table: Table) -> str:
    r"""A ``table*`` with booktabs' rules; it needs the packages booktabs and, for wide tables, graphicx."""
    wide = len(table.columns) > _WIDE
    lines = [
        r"\begin{table*}",
        r"\centering",
        r"\small",
        rf"\caption{{{escape_latex(table.title)}.}}",
        rf"\label{{tab:{table.name}}}",
        *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
    ]
    if any(text for text, _ in table.groups):
        cells, rules, first = [], [], 1
        for text, width in table.groups:
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(text)}}}")
            if text:
                rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
            first += width
        lines += [" & ".join(cells) + r" \\", " ".join(rules)]
    lines += [" & ".join(map(escape_latex, table.columns)) + r" \\", r"\midrule"]
    for number, row in enumerate(table.rows):
        cells = [escape_latex(cell) for cell in row]
        bold = [rf"\textbf{{{c}}}" if is_strong(table, number, at) else c for at, c in enumerate(cells)]
        lines.append(" & ".join(bold) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}" + ("}" if wide else "")]
    lines += [rf"\par\smallskip\footnotesize {escape_latex(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def escape_latex(text: str) -> str:
    r"""A text as LaTeX source: special characters escaped, ``4.3e-25`` as :math:`4.3\times10^{-25}`."""
    parts, done = [], 0
    for found in _POWER.finditer(text):
        parts.append(_escape(text[done : found.start()]))
        parts.append(rf"${found[1]}\times10^{{{found[2]}{found[3]}}}$")
        done = found.end()
    return "".join([*parts, _escape(text[done:])])


def _escape(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
