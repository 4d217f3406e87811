"""The page: what it shows and refuses; driven in a browser where gradio, playwright and Chromium are there."""

import csv
import os
import shutil
import socket
import sys

import pytest
from typer.testing import CliRunner

from uld.cli.main import app
from uld.errors import ULDError
from uld.model.combine import Combination
from uld.model.load import load
from uld.playground import page as playground
from uld.playground.page import NOTICE, Playground

QUESTION = "who is ada?"


@pytest.fixture(scope="module")
def folder(make_run, tmp_path_factory):
    """A run of which margin and floor do something."""
    how = Combination(weight=4.0, margin=0.5, floor=0.001)
    return str(make_run(tmp_path_factory.mktemp("page"), num_layers=2, how=how))


@pytest.fixture(scope="module")
def page(folder):
    pytest.importorskip("gradio", reason="the extra playground is not installed")
    return Playground.of(*load(folder), [folder], max_new_tokens=5)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_moved_slider_is_arithmetic_on_what_is_kept(page, folder, monkeypatch):
    *growing, (target, unlearned, note, kept) = page.ask(folder, QUESTION, None, 4.0, 0.5, 0.001)
    assert len(growing) > 4 and all(one[3] is None for one in growing)
    assert "α 4, margin 0.5, floor 0.001" in note and "would say the same" in note
    run = page.runs[folder]
    for name in ("all_logits", "all_hidden", "heads", "forward", "generate"):
        monkeypatch.setattr(type(run.model), name, None)
    assert page.move(kept, folder, 4.0, 0.5, 0.001) == (target, unlearned, note)
    moved = page.move(kept, folder, 0.0, 0.5, 0.001)
    assert "α 0, " in moved[2] and "0.00 nats taken from" in moved[0] and moved[0] != target


def test_an_answer_of_ones_own_is_one_panel(page, folder):
    ((shown, nothing, _, kept),) = page.ask(folder, QUESTION, "bob", 4.0, 0.5, 0.001)
    assert "Given answer" in shown and nothing == "" and kept is not None


def test_bad_input_is_a_sentence_on_the_page(page, folder):
    import gradio

    for question, weight, message in ((None, 4.0, "'question' is empty"), (QUESTION, -1.0, "must lie between 0")):
        with pytest.raises(gradio.Error, match=message):
            list(page.ask(folder, question, "", weight, 0.5, 0.001))
    with pytest.raises(gradio.Error, match="choose a file of questions first"):
        list(page.table(None, folder, 4.0, 0.5, 0.001))


def test_a_file_of_questions_comes_back_as_a_table(page, folder, tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text(f"{QUESTION}\nwho is bob?\n")
    *_, (rows, saved) = page.table(str(file), folder, 4.0, 0.5, 0.001)
    assert [row[0] for row in rows] == [QUESTION, "who is bob?"]
    with open(saved["value"], encoding="utf-8", newline="") as table:
        head, *written = csv.reader(table)
    assert head[0] == "question" and written == [[str(cell) for cell in row] for row in rows]


def test_without_gradio_the_way_to_install_it_is_said(folder, monkeypatch, port):
    monkeypatch.setattr("uld.model.load.load", None)
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = CliRunner().invoke(app, ["playground", folder, "--port", str(port)])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert 'pip install -e ".[playground]" in the folder of uld' in done.stderr


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(folder, monkeypatch):
    monkeypatch.setattr("uld.model.load.load", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["playground", folder, "--port", str(port)])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert (
        f"cannot listen on port {port} of 127.0.0.1 (address already in use): name another with --port" in done.stderr
    )


def test_runs_are_checked_before_anything_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("uld.model.load.load", None)
    for runs, message in (([str(tmp_path / "none")], "is not a finished run"), ([folder, folder], "is named twice")):
        done = CliRunner().invoke(app, ["playground", *runs])
        assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.output


def test_runs_of_different_targets_are_refused(page, folder, make_run, tmp_path, port):
    done = CliRunner().invoke(app, ["playground", folder, str(make_run(tmp_path, seed=1)), "--port", str(port)])
    assert done.exit_code == 2 and "another target" in done.stderr and done.stderr.count("\n") == 1, done.output


def test_an_address_that_is_not_ours_is_refused():
    with pytest.raises(ULDError, match=r"cannot listen on port 7860 of 192\.0\.2\.1"):
        playground.check("192.0.2.1", 7860)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (chromium := shutil.which("chromium") or shutil.which("google-chrome")) is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(page, browser, port, width):
    with page.opened("127.0.0.1", port) as address:
        tab = browser.new_page(viewport={"width": width, "height": 1000})
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        tab.get_by_text(NOTICE).wait_for()
        tab.locator("#question textarea").fill(QUESTION)
        tab.locator("#ask").click()
        tab.locator("#unlearned .token").first.wait_for()
        before = tab.locator("#target").inner_text()
        first = tab.locator("#target .token").first
        first.hover()
        assert first.locator(".card").is_visible() and first.locator(".card i").count() == 10
        box = first.locator(".card").bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= width
        tab.locator("#weight input[type=number]").fill("0")
        tab.locator("#weight input[type=number]").press("Enter")
        tab.get_by_text("rule suppress, α 0, ").wait_for()
        assert "0.00 nats taken from" in tab.locator("#target").inner_text() != before
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        if pictures := os.environ.get("ULD_PICTURES"):
            tab.screenshot(path=f"{pictures}/page-{width}.png", full_page=True)
        tab.close()
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {f"127.0.0.1:{port}"}
