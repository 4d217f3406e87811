"""Whether a text repeats documents that are to be forgotten: words in a row, names, rare words, or one of them whole.

A model that has documents by heart says pieces of them wherever it can, so a few words in a row are enough; the more
the documents say, the more it takes not to be chance. In languages that write nouns with capitals, nouns without a
token of their own count as names.
"""

import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from uld.data.record import Record
from uld.data.text import WITHOUT_BLANKS, folded, words_of

LEAST_RUN, MOST_RUN = 4, 8
"""Words in a row that a text may not share with documents of some thousand words, and with any."""
UNKNOWN = 0.25
"""A tokenizer tells rare words where no more than this share of the documents' words have no token of their own."""
_CHARACTER = re.compile(f"[{WITHOUT_BLANKS}]")
_NAME_WORD = re.compile(r"[^\W_](?:[^\W_]|[-'](?=[^\W_]))*")


class Overlap:
    """Tells whether a text repeats some documents."""

    def __init__(self, documents: Iterable[Record], tokenizer: Any = None) -> None:
        """Collect the documents' runs of words, their names and rare words, and those that are shorter than a run.

        Args:
            documents: What is to be forgotten.
            tokenizer: Knows rare words by their having no token of their own; without it only names of two words count.
        """
        documents = list(documents)
        self.whole = {record.same for record in documents}
        texts = [text for record in documents for text in _texts(record)]
        said = [words_of(text) for text in texts]
        self.run = telling_run(sum(len(words) for words in said))
        self.runs = {run for words in said for run in self._runs_of(words)}
        self.names = {name for text in texts for run in _capitalised(text) for name in _names(run)}
        self.rare_names, self.rare_words = (set[str](), set[str]()) if tokenizer is None else _rare(texts, tokenizer)
        self.short = {tuple(words) for words in said if 3 <= len(words) < MOST_RUN}

    def why(self, record: Record) -> str | None:
        """Why a record cannot be kept: it shares a run of words or a name, or is or holds a whole short document."""
        for text in _texts(record):
            words = words_of(text)
            if any(not self.short.isdisjoint(_runs(words, n)) for n in {len(one) for one in self.short}):
                return "a whole answer or question of the forget set"
            if shared := next((run for run in self._runs_of(words) if run in self.runs), None):
                return f"{len(shared)} words in a row of the forget set"
            runs = [one for run in _capitalised(text) for one in (run, _full(run))]
            squeezed = "\n".join(" ".join(run) for run in runs)
            if any(name in squeezed for name in self.names):  # also where a small model goes on with its last word
                return "a name of the forget set"
            spelled = {word.casefold().removesuffix("'s") for word in _NAME_WORD.findall(text)}
            if not self.rare_names.isdisjoint(spelled):
                return "a name of the forget set"
            if not self.rare_words.isdisjoint(spelled):
                return "a rare word of the forget set"
        return "a record of the forget set" if record.same in self.whole else None

    def _runs_of(self, words: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Runs that are hardly ever shared by chance; where a character is a word, that takes `MOST_RUN` of them."""
        characters = {word for word in words if _CHARACTER.match(word)}
        yield from (run for run in _runs(words, self.run) if characters.isdisjoint(run))
        if characters:
            yield from _runs(words, MOST_RUN)


def telling_run(words: int) -> int:
    """Words in a row that a text hardly ever shares by chance with so many: 4, from 100,000 on 5, and so on up to 8."""
    return min(MOST_RUN, max(LEAST_RUN, int(math.log10(words or 1))))


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


def _rare(texts: Sequence[str], tokenizer: Any) -> tuple[set[str], set[str]]:
    """Names and other words, in small letters, without a token of their own.

    A name is capitalised within a sentence. Other words count where the tokenizer knows most words of the language.
    """
    names, others = set[str](), set[str]()
    for text in texts:
        for match in _NAME_WORD.finditer(text):
            before = text[: match.start()].rstrip()
            within = before != text[: match.start()] and (before[-1:].islower() or before[-1:] == ",")
            if within and match[0][0].isupper() and len(match[0]) > 2:
                names.add(match[0].removesuffix("'s"))
            if match[0].islower() and match[0].isalpha() and len(match[0]) > 3 and not _CHARACTER.match(match[0]):
                others.add(match[0])
    lead = len(tokenizer.encode("a", add_special_tokens=False))  # a blank that comes first may get a token of its own

    def rare(words: set[str]) -> set[str]:
        spelled = {word: tokenizer.encode(f"a {word}", add_special_tokens=False) for word in words}
        return {word.casefold() for word, tokens in spelled.items() if len(tokens) - lead > 1}

    unknown = rare(others)
    return rare(names), unknown if len(unknown) <= UNKNOWN * len(others) else set()


def _full(run: Sequence[str]) -> list[str]:
    """A run without its initials."""
    return [word for word in run if not word.endswith(".")]


def _names(run: Sequence[str]) -> Iterator[str]:
    """Two words in a row, with initials between them and without; or an initial and a word."""
    for words in (run, _full(run)):
        for one, two in itertools.pairwise(words):
            if not two.endswith("."):
                yield f"{one} {two}"
