import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from uld.report.aggregate import verdict
from uld.report.cells import Cell, Folder, read_folder
from uld.report.figures import all_figures
from uld.report.html import common_settings, comparisons, page, verdict_sentences
from uld.report.tables import all_tables

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Collects a page's tags, and refuses one that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> in line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        self.text += data


def render(path: Path) -> str:
    folder = read_folder(path)
    return page(folder, all_tables(folder), all_figures(folder))


@pytest.fixture
def html(shared_page: str) -> str:
    return shared_page


@pytest.fixture
def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def test_every_tag_is_closed_and_every_id_is_its_own(read: Reader):
    assert read.open == []
    ids = Counter(attributes["id"] for _, attributes in read.tags if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []


def test_the_page_asks_for_nothing_from_outside(html: str, read: Reader):
    urls = set(re.findall(r"https?://[^\s\"'<)]+", html))
    assert urls == {"https://arxiv.org/abs/2406.08607", "https://arxiv.org/abs/2401.06121"}
    for tag, attributes in read.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "base")
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes)
        href = attributes.get("href") or attributes.get("xlink:href") or "#"
        assert href.startswith("#") or tag == "a"
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_heads_have_a_scope_plots_a_text_and_references_a_target(read: Reader):
    assert all("scope" in attributes for tag, attributes in read.tags if tag == "th")
    plots = [attributes for tag, attributes in read.tags if tag == "svg" and "aria-hidden" not in attributes]
    assert len(plots) == 4 and all(one["aria-label"] and one["role"] == "img" for one in plots)
    ids = {attributes["id"] for _, attributes in read.tags if "id" in attributes}
    for _, attributes in read.tags:
        wanted = attributes.get("aria-labelledby") or (attributes.get("href") or "").removeprefix("#")
        assert not wanted or wanted.startswith("https") or wanted in ids


def test_the_page_has_dark_print_and_phone_rules_for_every_colour_of_the_plots(html: str):
    assert "@media screen and (prefers-color-scheme: dark)" in html and "@media print" in html
    assert 'name="viewport" content="width=device-width' in html
    for colour in set(re.findall(r"var\(--([\w-]+)\)", html)):
        assert len(re.findall(rf"--{colour}:", html)) == 2, f"--{colour} has a light and a dark value"


def test_texts_from_files_are_escaped(html: str, read: Reader):
    assert "<script" not in html and "<b>wrote" not in html
    assert "Who wrote <script>alert(1)</script>?" in read.text and "Ada <b>wrote</b> it." in read.text


def test_labels_and_errors_are_escaped_too(write_folder: Callable[..., Path], make_cell: Callable[..., Cell]):
    nasty = '"><img src=x onerror=alert(1)>'
    changes = {"label": nasty, "versions": {nasty: nasty}, "settings": {nasty: nasty}, "machine": {"cpu": nasty}}
    epochs = [{"epoch": e, "forget_loss": e, "forget_quality": 0.1, "utility_without_rouge": 0.5} for e in (1, 2)]
    cells = [make_cell("target"), make_cell("npo", epochs=epochs, **changes), make_cell("ga", result=None, error=nasty)]
    html = render(write_folder(cells))
    assert "<img" not in html and 'onerror=alert(1)"' not in html and html.count("&lt;img src=x onerror") > 8


def test_answers_before_and_after_stand_under_their_question(shared: Folder):
    forget, retain = comparisons(shared, "forget10")
    assert (forget.side, retain.side) == ("forget", "retain")
    assert forget.answers == [
        ("true answer", "Ada wrote it."),
        ("before (target)", "Ada <b>wrote</b> it."),
        ("ULD", "no & idea"),
    ]


def test_there_are_no_answers_without_their_files(shared: Folder):
    bare = dataclasses.replace(shared, answers={})
    html = page(bare, all_tables(bare), [])
    assert "Answers before and after" not in html and "Ada" not in html


def test_every_setting_and_digest_is_on_the_page(shared: Folder, html: str, read: Reader):
    for cell in shared.cells:
        assert f"{cell.name} <code>{cell.digest}</code>" in html
    trained = [cell for cell in shared.cells if cell.settings]
    assert common_settings(trained) == {"batch_size": 8}
    assert "What all trainings share: 1 settings" in read.text


def test_a_setting_that_one_cell_lacks_is_not_shared(make_cell: Callable[..., Cell]):
    cells = [make_cell("npo", settings={"a": 1, "b": 2, "c": 3}), make_cell("ga", settings={"a": 1, "b": 0})]
    assert common_settings(cells) == {"a": 1}
    assert common_settings([]) == {}


def test_the_summary_stands_on_top(shared: Folder, read: Reader):
    found = verdict(shared, "forget10")
    assert found is not None
    first, second = verdict_sentences(found)
    assert first == (
        "forget10: ULD has the highest F.Q., 0.01 (1e-3–0.1), of the methods that keep M.U. within 0.01 of the "
        "target's (0.9100); its M.U. is 0.905 (0.900–0.910), mean and range of 3 seeds. 1 of 3 methods keep it."
    )
    assert second == "forget10: higher F.Q. at the cost of utility: npo+kl 0.3 at M.U. 0.500."
    assert read.text.index(first) < read.text.index("Figure 3")


def test_the_summary_is_honest_when_nobody_keeps_utility(
    write_folder: Callable[..., Path], make_cell: Callable[..., Cell]
):
    folder = read_folder(write_folder([make_cell("target", mu=0.91), make_cell("npo", mu=0.5, fq=0.25)]))
    found = verdict(folder, "forget10")
    assert found is not None
    (sentence,) = verdict_sentences(found)
    assert "none of 1 methods keeps M.U." in sentence and "npo's: 0.25 at M.U. 0.500" in sentence


def test_problems_are_listed_on_top(read: Reader):
    assert "2 failed or missing" in read.text and "ga, forget10 failed: its process ended with SIGKILL" in read.text
