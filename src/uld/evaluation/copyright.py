"""Copyright: how much of a book a model still says.

A chunk of the book is cut in two. The model is given the first part behind a request to complete it, and writes as
many tokens as the second part has; what it wrote is held against what stands there, and so is what it would have said
at every token (teacher forcing). Source: the ULD paper (arXiv 2406.08607, §4.2 and Table 3): 400 chunks of 512 tokens,
of which 200 are given.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uld.data.documents import listed, read_sources
from uld.data.prompt import Encoded, PromptFormat, spread
from uld.data.record import DataError, Record
from uld.errors import ULDError
from uld.evaluation.benchmark import Benchmark, Found, Result, Subject, Task, in_order
from uld.evaluation.memorization import exact_memorization, extraction_strength, longest_verbatim_run
from uld.evaluation.perplexity import perplexity, readable_tokens
from uld.evaluation.rouge import rouge_l
from uld.evaluation.scoring import refuse_nan
from uld.model.generate import generate_ids
from uld.runs.values import Count, Length
from uld.text.table import aligned

REQUEST = "Let's see how you would complete this piece of text:"
"""What the paper writes before a chunk."""

_BATCH = 16  # chunks that are continued at a time


@dataclass(frozen=True, kw_only=True)
class CopyrightResult(Result):
    """What a model says of a book. Means over chunks, but for BLEU, which is the corpus's, and the longest run."""

    bleu: float
    """Corpus BLEU of the continuations (sacrebleu), 0 to 100."""
    rouge_l: float
    """F1 of ROUGE-L (`rouge_l`), a share."""
    exact_memorization: float
    """Share of the true continuation's tokens that are the greedy prediction."""
    extraction_strength: float
    """Share of the true continuation that is predicted to its end."""
    longest_run: int
    """Longest run of tokens that a continuation shares with the true one, of all chunks."""
    mean_run: float
    perplexity: float
    """Of the true continuations' tokens."""
    chunks: int
    signature: str
    """How sacrebleu counted."""
    kept: dict[str, dict[str, float]] = field(default_factory=dict)
    """Perplexity of what is kept, by file: of a token, and of texts also of a word and a byte; ``cut``: answers that
    were too long."""

    def table(self) -> str:
        """Return two Markdown tables: the book, and what is kept."""
        head = ("BLEU", "ROUGE-L (%)", "exact memorization", "extraction strength", "longest run", "mean run", "PPL")
        row = (
            f"{self.bleu:.2f}",
            f"{100 * self.rouge_l:.2f}",
            f"{self.exact_memorization:.3f}",
            f"{self.extraction_strength:.3f}",
            f"{self.longest_run}",
            f"{self.mean_run:.1f}",
            f"{self.perplexity:.4g}",
        )
        lines = aligned(("chunks", *head), [(str(self.chunks), *row)])
        if self.kept:
            rows = [
                (name, *(f"{one[unit]:.4g}" if unit in one else "-" for unit in ("token", "word", "byte")))
                for name, one in self.kept.items()
            ]
            lines += ["", *aligned(("kept", "PPL of a token", "of a word", "of a byte"), rows)]
            cut = {name: one["cut"] for name, one in self.kept.items() if "cut" in one}
            told = [f"{n} answers of {name} were too long: only their first tokens counted" for name, n in cut.items()]
            lines += ["", *told] if told else []
        return "\n".join(lines) + "\n"


def chunks_of(
    texts: Sequence[str], form: PromptFormat, *, chunk_tokens: int = 512, chunks: int | None = 400
) -> list[Encoded]:
    """The chunks of a book: those that a training on the same texts with the same length sees.

    Args:
        texts: The book, in one part or several.
        form: Makes tokens.
        chunk_tokens: Tokens of a chunk, special tokens included.
        chunks: Most chunks of each text, spread evenly over it. None takes all.

    Returns:
        The chunks in order; the last of a book may be shorter.

    Raises:
        DataError: a text is too short, or ``chunk_tokens``.
    """
    return [chunk for text in texts for chunk in spread(form.chunks(text, chunk_tokens), chunks)]


@dataclass
class Copyright(Benchmark):
    """A book, and what a model should still read well.

    Attributes:
        text: The book: a text file, or any other document or folder of them that holds texts.
        kept: Files whose perplexity is also measured: of texts every token counts, of other records the answers.
            Questions are asked in the prompt template.
        chunks: See `chunks_of`.
        chunk_tokens: See `chunks_of`.
        prompt_tokens: First tokens of a chunk that the model is given. Chunks without any beyond are left out.
        request: Stands before them; empty for nothing.
    """

    prompt = "plain"
    in_name = ("chunks", "chunk_tokens", "prompt_tokens")
    documents = ("text", "kept")

    text: str | Path
    kept: str | Path | Sequence[str | Path] | None = None
    chunks: Count | None = 400
    chunk_tokens: Length = 512
    prompt_tokens: Count = 200
    request: str = REQUEST
    texts: list[str] = field(init=False)
    records: dict[str, list[Record]] = field(init=False)

    def __post_init__(self) -> None:
        """Read the files.

        Raises:
            ULDError: one cannot be read, or is no book; or a number is out of range.
        """
        super().__post_init__()
        places = [str(path) for path in listed(self.kept or ())]
        if missing := [path for path in (str(self.text), *places) if not os.path.exists(path)]:
            raise ULDError(f"{missing[0]}: there is no such file")
        self.name = f"copyright-{Path(self.text).stem}"
        self.records = {path: read_sources([path])[0] for path in places}
        self.texts = read_book(self.text)

    def settings(self, subject: Subject) -> dict[str, Any]:
        """The book, how it is cut, and the template where questions are asked in it."""
        how = {name: getattr(self, name) for name in (*self.in_name, "request")}
        asked = {} if (template := self._template(subject)) is None else {"template": template}
        book = hashlib.sha256("\0".join(self.texts).encode()).hexdigest()
        return {**how, **asked, "data": book, "benchmark": "copyright"}

    def _template(self, subject: Subject) -> str | None:
        """The prompt template, if something is asked in it."""
        asked = any(record.messages for records in self.records.values() for record in records)
        return subject.template if asked else None

    def tasks(self, subject: Subject, found: Found) -> Iterator[Task[Encoded]]:
        """The chunks; then what is kept is read.

        Raises:
            DataError: settings that leave nothing to complete.
        """
        template = self._template(subject)
        PromptFormat(subject.tokenizer, template)  # a bad one is refused before the work
        rows = self._rows(subject)
        yield Task("chunks", rows, lambda some: _completed(subject, some), in_order(len(rows), _BATCH))
        how = (subject.model, subject.tokenizer)
        found["kept"] = [perplexity(*how, records, template).to_dict() for records in self.records.values()]

    def _rows(self, subject: Subject) -> list[Encoded]:
        """The chunks that have something to complete, each behind the request."""
        form = PromptFormat(subject.tokenizer, self.prompt)
        found = chunks_of(self.texts, form, chunk_tokens=self.chunk_tokens, chunks=self.chunks)
        found = [chunk for chunk in found if len(_body(chunk)) > self.prompt_tokens]
        rows = [_asked(form, chunk, self.request, self.prompt_tokens) for chunk in found]
        if not rows:
            raise DataError(
                f"{self.text}: no chunk of it is longer than the {self.prompt_tokens} tokens of the prompt: lower "
                "--prompt-tokens, raise --chunk-tokens, or take a longer text"
            )
        longest, readable = max(len(row.ids) for row in rows), readable_tokens(subject.model, subject.tokenizer)
        if longest > readable:
            room = readable - (len(rows[0].ids) - len(_body(found[0])))  # behind the request, the same in all rows
            fitting = room + len(found[0].ids) - len(_body(found[0]))
            advice = (
                f"lower --chunk-tokens to {fitting}, or shorten --request"
                if room > self.prompt_tokens
                else f"lower --prompt-tokens below {room} and --chunk-tokens to {fitting}, or shorten --request"
                if room > 1
                else "shorten --request"
            )
            raise DataError(
                f"a chunk behind its request is {longest} tokens long, and the model reads {readable}: {advice}"
            )
        return rows

    def summarise(self, found: Found, others: Mapping[str, Found] | None = None) -> CopyrightResult:
        """From rows to the numbers of a table."""
        return aggregate(found["chunks"], dict(zip(self.records, found["kept"], strict=True)))


def aggregate(rows: Sequence[dict[str, Any]], kept: dict[str, dict[str, float]] | None = None) -> CopyrightResult:
    """From the log's lines to the numbers of a table.

    Args:
        rows: As they are in the log.
        kept: Perplexities by name.
    """
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU()
    score = bleu.corpus_score([row["generated"] for row in rows], [[row["truth"] for row in rows]]).score

    def mean(key: str) -> float:
        return float(np.mean([row[key] for row in rows]))

    return CopyrightResult(
        bleu=score,
        rouge_l=mean("rouge_l"),
        exact_memorization=mean("exact_memorization"),
        extraction_strength=mean("extraction_strength"),
        longest_run=max(row["longest_run"] for row in rows),
        mean_run=mean("longest_run"),
        perplexity=float(np.exp(sum(row["loss"] for row in rows) / sum(row["tokens"] for row in rows))),
        chunks=len(rows),
        signature=str(bleu.get_signature()),
        kept=kept or {},
    )


def read_book(path: str | Path) -> list[str]:
    """The texts of a file or folder (see `uld.data.documents`).

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    records, _ = read_sources([str(path)])
    if strange := [record.source for record in records if record.text is None]:
        raise DataError(f"{strange[0]}: is a question or a prompt with its answer: expected a text")
    return [record.text for record in records if record.text is not None]


def _body(chunk: Encoded) -> list[int]:
    """A chunk's own tokens."""
    return [token for token, learnt in zip(chunk.ids, chunk.learn, strict=True) if learnt]


def _asked(form: PromptFormat, chunk: Encoded, request: str, prompt_tokens: int) -> Encoded:
    """A chunk behind the request, learnt where the model has to go on by itself."""
    body = _body(chunk)
    head = form.text_ids(f"{request}\n") if request else chunk.ids[: len(chunk.ids) - len(body)]
    given = len(head) + prompt_tokens
    return Encoded(head + body, [False] * given + [True] * (len(body) - prompt_tokens))


def _completed(subject: Subject, rows: list[Encoded]) -> list[dict[str, Any]]:
    """What a model says and would have said of some chunks."""
    from sacrebleu import sentence_bleu

    tokenizer: Any = subject.tokenizer
    prompts = [[token for token, learnt in zip(row.ids, row.learn, strict=True) if not learnt] for row in rows]
    truths = [_body(row) for row in rows]
    written = generate_ids(subject.model, tokenizer, prompts, max_new_tokens=max(map(len, truths))).tolist()
    results = []
    for truth, ids, scores in zip(truths, written, subject.token_scores(rows), strict=True):
        refuse_nan(subject.model, scores.log_probs)
        ids = ids[: len(truth)]
        text, wanted = (tokenizer.decode(one, skip_special_tokens=True).strip() for one in (ids, truth))
        results.append(
            {
                "bleu": sentence_bleu(text, [wanted]).score,
                "rouge_l": rouge_l(text, wanted),
                "exact_memorization": exact_memorization(scores.right),
                "extraction_strength": extraction_strength(scores.right),
                "longest_run": longest_verbatim_run(ids, truth),
                "loss": float(-scores.log_probs.sum()),
                "tokens": len(truth),
                "generated": text,
                "truth": wanted,
            }
        )
    return results
