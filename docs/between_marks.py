"""Puts a generated table between two marks of a page; for the scripts beside it."""

from pathlib import Path


def put(table: str, page: Path, start: str, end: str) -> None:
    """Replace what stands between the marks, each of which is a line of its own."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(start)
    page.write_text(f"{before}{start}\n{table}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
