"""Whether a text repeats documents that are to be forgotten: their words in a row, their names, or one of them whole.

In languages that write nouns with capitals, nouns without a token of their own count as names.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from uld.data.record import Record
from uld.data.text import folded, words_of

NGRAM = 8
"""Words in a row that a text may not share with the documents."""
_NAME_WORD = re.compile(r"[^\W_](?:[^\W_]|[-'](?=[^\W_]))*")


class Overlap:
    """Tells whether a text repeats some documents."""

    def __init__(self, documents: Iterable[Record], tokenizer: Any = None) -> None:
        """Collect the documents' runs of `NGRAM` words, their names, and those that are shorter than that.

        Args:
            documents: What is to be forgotten.
            tokenizer: Knows rare names by their having no token of their own; without it only names of two words count.
        """
        documents = list(documents)
        self.whole = {record.same for record in documents}
        texts = [text for record in documents for text in _texts(record)]
        self.runs = {run for text in texts for run in _runs(words_of(text), NGRAM)}
        self.names = {name for text in texts for run in _capitalised(text) for name in _names(run)}
        self.rare = set() if tokenizer is None else _rare_names(texts, tokenizer)
        self.short = {tuple(words) for text in texts if 3 <= len(words := words_of(text)) < NGRAM}

    def why(self, record: Record) -> str | None:
        """Why a record cannot be kept: it shares a run of words or a name, or is or holds a whole short document."""
        for text in _texts(record):
            words = words_of(text)
            if not self.runs.isdisjoint(_runs(words, NGRAM)):
                return f"{NGRAM} words in a row of the forget set"
            if any(not self.short.isdisjoint(_runs(words, n)) for n in {len(one) for one in self.short}):
                return "a whole answer or question of the forget set"
            runs = [one for run in _capitalised(text) for one in (run, _full(run))]
            squeezed = "\n".join(" ".join(run) for run in runs)
            if any(name in squeezed for name in self.names):  # also where a small model goes on with its last word
                return "a name of the forget set"
            if not self.rare.isdisjoint(word.casefold().removesuffix("'s") for word in _NAME_WORD.findall(text)):
                return "a name of the forget set"
        return "a record of the forget set" if record.same in self.whole else None


def _texts(record: Record) -> list[str]:
    """Everything that a record says, as texts are compared."""
    texts = (*(content for _, content in record.messages), record.prompt, record.completion, record.text)
    return [folded(text) for text in texts if text]


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + length]) for i in range(len(words) - length + 1))


def _capitalised(text: str) -> list[list[str]]:
    """Runs of capitalised words, as names and titles have them, in small letters; an initial ends in its point."""
    text = unicodedata.normalize("NFC", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    runs: list[list[str]] = []
    end = None  # of a run that may go on
    for found in _NAME_WORD.finditer(text):
        word, after = found[0], found.end()
        initial = len(word) == 1 and text.startswith(".", after)
        if not word[0].isupper() or word.startswith("I'") or (len(word) == 1 and not initial):
            end = None
            continue
        gap = text[end : found.start()] if end is not None else None
        if gap is None or not (gap.isspace() or (gap == "" and runs[-1][-1].endswith("."))):
            runs.append([])
        runs[-1].append(f"{word}.".casefold() if initial else word.casefold().removesuffix("'s"))
        end = after + initial
    return runs


def _rare_names(texts: Iterable[str], tokenizer: Any) -> set[str]:
    """Single names, in small letters: capitalised within a sentence, and without a token of their own."""
    found = set()
    for text in texts:
        for match in _NAME_WORD.finditer(text):
            before = text[: match.start()].rstrip()
            within = before != text[: match.start()] and (before[-1:].islower() or before[-1:] == ",")
            if within and match[0][0].isupper() and len(match[0]) > 2:
                found.add(match[0].removesuffix("'s"))
    lead = len(tokenizer.encode("a", add_special_tokens=False))  # a blank that comes first may get a token of its own

    def tokens(word: str) -> int:
        return len(tokenizer.encode(f"a {word}", add_special_tokens=False)) - lead

    return {word.casefold() for word in found if tokens(word) > 1}


def _full(run: Sequence[str]) -> list[str]:
    """A run without its initials."""
    return [word for word in run if not word.endswith(".")]


def _names(run: Sequence[str]) -> Iterator[str]:
    """Two words in a row, with initials between them and without; or an initial and a word."""
    for words in (run, _full(run)):
        for one, two in itertools.pairwise(words):
            if not two.endswith("."):
                yield f"{one} {two}"
