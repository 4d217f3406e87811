"""The page of ``uld playground``, made with gradio: answers side by side, and what was taken from each token.

The page itself computes nothing: `uld.playground.answers` asks the models, `uld.evaluation.explain` keeps the logits of
what is shown, and moving α, margin or floor is arithmetic on these.
"""

import csv
import html
import importlib
import math
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from uld.errors import ULDError
from uld.evaluation.explain import Explanation, Kept, refuse_ordinary
from uld.model.combine import Combination
from uld.playground.answers import COLUMNS, Asking, Run, questions_of, runs_of, table_row
from uld.report.explained import WHO, heat_map, scale, settings_words, styles

NOTICE = "Whoever sees this page sees what the target says, what was to be forgotten included."
_EXTRA = 'pip install -e ".[playground]" in the folder of uld'
_FONTS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Arial", "sans-serif"]
_KEPT_SECONDS = 3600
_LARGEST_FILE = "5mb"
_LEAST_TOP = (40.0, 0.01)  # of the sliders of α and of the floor
_PANEL_WIDTH = 300  # pixels below which panels stand one above the other
_COLUMN_WIDTHS = ["250px", "250px", "250px", "120px", "120px", "90px"]
_STYLES = """
.answer { min-height: 4rem; font-size: 1rem; }
.answer h3 { margin-top: 0; }
.answer .plain { line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: 1.0625rem; }
.dark .heat { --taken: #d8432a; --gained: #3f74d8; --card: #242422; --edge: #5a5954; --quiet: #b0aea6; }
.heat .said, .heat h3, .heat .token { color: inherit; }
"""


class Playground:
    """The page, and what it asks."""

    def __init__(self, runs: Sequence[Run], *, max_new_tokens: int = 200) -> None:
        """Make the page.

        Args:
            runs: At least one; the page begins with the first.
            max_new_tokens: Most tokens of an answer.

        Raises:
            ULDError: gradio is not installed.
        """
        self._gradio = _gradio()
        self._files = tempfile.TemporaryDirectory(prefix="uld-playground-")  # nobody else's to read
        os.environ["GRADIO_TEMP_DIR"] = self._files.name  # what is sent to the page lies there, and goes with it
        self.runs = {run.name: run for run in runs}
        self._asking = Asking(max_new_tokens)
        self.blocks = self._page()

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        names: Sequence[str],
        template: str | None = None,
        *,
        max_new_tokens: int = 200,
    ) -> "Playground":
        """The page of what `uld.load` gives for one run or several of one target.

        Args:
            model: An unlearned model.
            tokenizer: Its tokenizer.
            names: Of its runs, in their order.
            template: To ask all of them with; None takes that of each run.
            max_new_tokens: Most tokens of an answer.

        Raises:
            ULDError: gradio is not installed, or the model has no assistant.
        """
        return cls(runs_of(refuse_ordinary(model), tokenizer, names, template), max_new_tokens=max_new_tokens)

    @contextmanager
    def opened(self, host: str, port: int) -> Iterator[str]:
        """Serve the page for a while.

        Args:
            host: Address to listen on.
            port: Port to listen on.

        Yields:
            The page's address.

        Raises:
            ULDError: the port is taken.
        """
        _refuse_taken(host, port)
        gradio = self._gradio
        try:
            self.blocks.queue(default_concurrency_limit=4, max_size=64)
            self.blocks.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                max_file_size=_LARGEST_FILE,
                footer_links=[],
                theme=gradio.themes.Base(font=_FONTS, font_mono=["ui-monospace", "monospace"]),
                css=styles() + _STYLES,
            )
        except OSError as error:
            raise ULDError(f"cannot listen on port {port} of {host}: {error}") from error
        try:
            yield f"http://{host}:{port}/"
        finally:
            self.blocks.close(verbose=False)
            for path in Path(self._files.name).iterdir():
                shutil.rmtree(path, ignore_errors=True)

    @staticmethod
    def wait() -> None:
        """Wait until Ctrl-C, or until the process is asked to end."""
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return

    def ask(
        self, name: str, question: str | None, answer: str | None, weight: float, margin: float, floor: float
    ) -> Iterator[tuple[str, str, str, Kept | None]]:
        """Answer a question, or explain the answer that is given; a field that nobody has touched comes as None.

        Yields:
            What to show for the target and for the unlearned model, a sentence, and at last what is kept.
        """
        with self._told():
            run, settings = self._settings(name, weight, margin, floor)
            question = question or ""
            if answer and answer.strip():
                kept = self._asking.given(run, question, answer)
                yield (*self._shown(kept.under(settings)), kept)
                return
            for news in self._asking.stream(run, question, settings):
                if isinstance(news, Kept):
                    yield (*self._shown(news.under(settings)), news)
                else:
                    yield _growing("target", news["target"]), _growing("unlearned", news["unlearned"]), "", None

    def move(self, kept: Kept | None, name: str, weight: float, margin: float, floor: float) -> tuple[Any, ...]:
        """What is shown under another setting; no model is asked."""
        if kept is None:
            return tuple(self._gradio.skip() for _ in range(3))
        with self._told():
            return self._shown(kept.under(self._settings(name, weight, margin, floor)[1]))

    def table(
        self, path: str | None, name: str, weight: float, margin: float, floor: float
    ) -> Iterator[tuple[list[list[str | float]], Any]]:
        """A row for each question of a file, and at last the table as a CSV file."""
        with self._told():
            if path is None:
                raise ULDError("choose a file of questions first: a .txt file of one question a line, or JSON lines")
            run, settings = self._settings(name, weight, margin, floor)
            rows: list[list[str | float]] = []
            for question in questions_of(path):
                rows.append(table_row(self._asking.explained(run, question, settings)))
                yield rows, self._gradio.update(visible=False)
            yield rows, self._gradio.update(value=self._written(rows), visible=True)

    def _settings(self, name: str, weight: float, margin: float, floor: float) -> tuple[Run, list[Combination]]:
        """A run, and its settings with what was moved: what stands where it began is the run's own, to the digit."""
        run = self.runs[name]
        given = zip((weight, margin, floor), _begin(run.own[0]), strict=True)
        moved = [None if value is None or value == begun else float(value) for value, begun in given]
        return run, run.settings(*moved)

    def _shown(self, explanation: Explanation) -> tuple[str, str, str]:
        """What the two panels and the line below them show."""
        panels = [heat_map(answer) for answer in explanation.answers]
        sentence = f"{html.escape(settings_words(explanation.settings))}. {_changes(explanation)}"
        return panels[0], panels[1] if len(panels) > 1 else "", f"{scale()}<p>{sentence}</p>"

    def _written(self, rows: Sequence[Sequence[str | float]]) -> str:
        """The table as a CSV file."""
        path = Path(tempfile.mkdtemp(dir=self._files.name)) / "answers.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        return str(path)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Show bad input as one sentence on the page."""
        try:
            yield
        except ULDError as error:
            raise self._gradio.Error(str(error), print_exception=False) from error

    def _page(self) -> Any:
        """Put the page together."""
        gr = self._gradio
        first = next(iter(self.runs.values()))
        with gr.Blocks(title="uld playground", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
            gr.Markdown(f"## Before and after unlearning\n{NOTICE}")
            name = gr.Dropdown(list(self.runs), value=first.name, label="Run", visible=len(self.runs) > 1)
            question = gr.Textbox(label="Question", lines=2, max_lines=8, elem_id="question")
            with gr.Accordion("An answer of your own", open=False):
                answer = gr.Textbox(label="Answer to explain in place of the models' answers", elem_id="answer")
            button = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Row():
                panels = []
                for who in ("target", "unlearned"):
                    with gr.Column(min_width=_PANEL_WIDTH):
                        panels.append(gr.HTML(_growing(who, ""), elem_id=who, elem_classes="answer"))
            note = gr.HTML(scale(), elem_id="note")
            with gr.Row():
                sliders = self._sliders(first)
            with gr.Accordion("A file of questions", open=False):
                file = gr.File(label="Questions", file_types=[".txt", ".jsonl", ".json", ".csv"], elem_id="file")
                many = gr.Button("Answer them all", elem_id="all")
                table = gr.Dataframe(
                    headers=list(COLUMNS), column_widths=_COLUMN_WIDTHS, wrap=True, interactive=False, elem_id="table"
                )
                saved = gr.DownloadButton("Table as CSV", visible=False)
            kept = gr.State(None, time_to_live=_KEPT_SECONDS)
            shown, model = [*panels, note], {"concurrency_id": "model", "concurrency_limit": 1}
            hidden = {"api_visibility": "private"}
            asked = {"fn": self.ask, "inputs": [name, question, answer, *sliders], "outputs": [*shown, kept]}
            button.click(**asked, **model, **hidden, show_progress="hidden")
            question.submit(**asked, **model, **hidden, show_progress="hidden")
            for slider in sliders:
                moved = {"fn": self.move, "inputs": [kept, name, *sliders], "outputs": shown}
                slider.input(**moved, **hidden, show_progress="hidden", trigger_mode="always_last")
            name.change(self._switched, name, [*sliders, *shown, kept], **hidden, show_progress="hidden")
            many.click(self.table, [file, name, *sliders], [table, saved], **model, **hidden)
        return page

    def _sliders(self, run: Run) -> list[Any]:
        """α, margin and floor as a run has them; margin and floor where its rule has them."""
        gr = self._gradio
        how = run.own[0]
        vocab = run.model.target.config.get_text_config(decoder=True).vocab_size
        weight, margin, floor = _begin(how)
        suppresses = how.rule == "suppress"
        tops = max(_LEAST_TOP[0], 2 * weight), max(math.ceil(math.log(vocab)), margin), max(_LEAST_TOP[1], 2 * floor)
        return [
            gr.Slider(
                0, tops[0], weight, step=0.05, label="α: how much is subtracted", elem_id="weight", min_width=220
            ),
            gr.Slider(
                0, tops[1], margin, step=0.05, label="margin, nats", visible=suppresses, elem_id="margin", min_width=220
            ),
            gr.Slider(
                0, min(1, tops[2]), floor, step=1e-5, label="floor", visible=suppresses, elem_id="floor", min_width=220
            ),
        ]

    def _switched(self, name: str) -> list[Any]:
        """The page for another run: its settings, and nothing asked yet."""
        blank = [_growing("target", ""), _growing("unlearned", ""), scale()]
        return [*self._sliders(self.runs[name]), *blank, None]


def check(host: str, port: int) -> None:
    """Refuse what can be told to be wrong before anything is loaded.

    Raises:
        ULDError: somebody listens on the port already, the address is not this machine's, or gradio is not installed.
    """
    _refuse_taken(host, port)
    _gradio()


def _refuse_taken(host: str, port: int) -> None:
    """Refuse a port that cannot be listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ULDError(
            f"cannot listen on port {port} of {host} ({reason}): name another with --port or --host"
        ) from error


def _gradio() -> Any:
    """The package, told to ask nobody anything.

    Raises:
        ULDError: it is missing.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise ULDError(f"the playground needs gradio, which is missing ({error}): {_EXTRA}") from error


def _begin(how: Combination) -> tuple[float, float, float]:
    """Where the sliders begin; an endless α at the end of its slider."""
    return (_LEAST_TOP[0] if how.weight == math.inf else how.weight), how.margin, how.floor


def _growing(who: str, text: str) -> str:
    """A panel while its answer comes."""
    return f'<section class="heat"><h3>{WHO[who].capitalize()}</h3><p class="plain">{html.escape(text)}</p></section>'


def _changes(explanation: Explanation) -> str:
    """Where the unlearned model would answer otherwise under the settings in force."""
    answers = {answer.who: answer for answer in explanation.answers}
    if (answer := answers.get("unlearned")) is None:
        return ""
    for number, token in enumerate(answer.tokens, 1):
        if (likeliest := token.likeliest_after[0]).log_prob > token.after:
            words = f"“{likeliest.text.strip()}” in place of “{token.text.strip()}”"
            return html.escape(f"Asked again, the unlearned model would say {words} as token {number}.")
    return "Asked again, the unlearned model would say the same."
