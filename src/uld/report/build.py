"""From a comparison's folder to its report: ``tables.md``, ``tables.csv``, ``tables.tex``, ``report.html``."""

from pathlib import Path

from uld.report.cells import read_folder
from uld.report.figures import all_figures
from uld.report.html import page
from uld.report.tables import all_tables
from uld.report.tidy import tidy
from uld.runs.files import write_text
from uld.text.table import latex, markdown

NAMES = ("tables.md", "tables.csv", "tables.tex", "report.html")
_TEX_HEAD = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n\n"


def build(folder: str | Path, output: str | Path | None = None, *, quote: bool = True) -> list[Path]:
    """Write the report of a comparison from its files alone; the same files give the same bytes.

    Args:
        folder: Output folder of ``uld compare``.
        output: Where to write; None writes into the folder itself.
        quote: Whether the page shows answers, which quote the benchmark.

    Returns:
        The files written.

    Raises:
        CellError: the folder has no cells, or a file is damaged.
        ArtifactError: the output cannot be written.
    """
    read = read_folder(folder, quote=quote)
    tables = all_tables(read)
    texts = (
        "\n".join(map(markdown, tables)),
        tidy(read),
        _TEX_HEAD + "\n".join(map(latex, tables)),
        page(read, tables, all_figures(read)),
    )
    places = [Path(folder if output is None else output) / name for name in NAMES]
    for place, text in zip(places, texts, strict=True):
        write_text(place, text)
    return places
