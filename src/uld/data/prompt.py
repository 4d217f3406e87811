r"""Prompts: records to token ids, with an exact boundary between what is given and what is learnt.

A prompt is formatted by the tokenizer's chat template, by a named template, or by an inline one such as
``"Question: {question}\nAnswer: {answer}"``. The prompt's tokens are exactly those that generation will see; the
answer's follow, the end-of-sequence token included.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from uld.data.chat import PROBE, Chat, Turn
from uld.data.record import DataError, Record
from uld.data.special import special_names, tell_of_special

NAMED = {
    "qa": "Question: {question}\nAnswer: {answer}",
    "plain": "{question}\n{answer}",
    "llama2": "[INST] {question} [/INST] {answer}",
}
"""Templates by name; ``llama2`` is the one that TOFU's Llama-2 models were trained with."""

TOO_LONG = "too long for max_length"
"""How it begins why a made row can be none."""
T = TypeVar("T")
_OF_RUN = "uld_template"  # attribute of a tokenizer


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row of tokens.

    Attributes:
        ids: Token ids, special tokens included.
        learn: For each token whether a loss falls on predicting it.
        cut: Learnt tokens that did not fit ``max_length``.
        shortened: Whether a part of an answer is left out, as reasoning is: the chat template does not write it, or
            generation starts behind an empty block of reasoning.
    """

    ids: list[int]
    learn: list[bool]
    cut: int = 0
    shortened: bool = False

    def last_answer(self) -> "Encoded":
        """The same tokens, of which only the last answer is learnt."""
        end = len(self.learn) - self.learn[::-1].index(True)
        begin = next((i for i in range(end, 0, -1) if not self.learn[i - 1]), 0)
        return replace(self, learn=[begin <= i < end for i in range(len(self.ids))])


class NoRoomError(DataError):
    """A prompt takes all the tokens that a row may have."""


def remember_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    """Have a run's tokenizer name the template that the run was trained with, for whoever asks its model."""
    setattr(tokenizer, _OF_RUN, template)


class PromptFormat:
    """Turns records into tokens for one tokenizer and one template.

    Attributes:
        template: Inline; None for the chat template.
        assumed: Whether nobody has said how to ask.
        prefix: Special tokens that the tokenizer puts before a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> None:
        """Choose the template.

        Args:
            tokenizer: With a chat template, unless a template is named.
            template: Name, inline template with ``{question}`` and ``{answer}`` (in which a backslash and an n, as a
                shell hands them on, stand for a line feed), or None for the one that the tokenizer's run was trained
                with (`remember_template`), else the chat template, else ``qa``.

        Raises:
            DataError: an unknown name or an inline template without its two fields.
        """
        self.tokenizer: Any = tokenizer
        if template is None:
            template = getattr(tokenizer, _OF_RUN, None)
        self._chat = Chat(tokenizer)
        self.assumed = template is None and not getattr(tokenizer, "chat_template", None)  # nobody has said how
        if self.assumed:
            template = "qa"
        if template is not None:
            inline = NAMED.get(template, template).replace("\\n", "\n")
            if [inline.count(field) for field in ("{question}", "{answer}")] != [1, 1] or not inline.endswith(
                "{answer}"
            ):
                raise DataError(
                    f"template {template!r} is neither one of {', '.join(NAMED)} nor an inline template that holds "
                    "{question} once and ends in {answer} (--template)"
                )
            template = inline
        self.template = template
        some = self._ids("a")
        special = list(self.tokenizer("a").input_ids)
        self.prefix = special[: special.index(some[0])] if some and some[0] in special else []
        self._special = special_names(tokenizer)

    def prompt_ids(self, question: str | Sequence[tuple[str, str]]) -> list[int]:
        """Tokens of a prompt, ready for generation: the very tokens that `encode` puts before the answer.

        Args:
            question: A question, or a conversation that ends with the user's turn.

        Raises:
            DataError: the template cannot format it.
        """
        messages = (("user", question),) if isinstance(question, str) else tuple(question)
        turns = self._rows(Record(messages=(*messages, ("assistant", PROBE)), source="this prompt"))[-1]
        pieces = self._pieces(turns)
        last = max(i for i, (_, learnt) in enumerate(pieces) if learnt)
        return [token for ids, _ in pieces[:last] for token in ids]

    def behind(self, record: Record, text: str, *, ended: bool) -> tuple[list[int], list[int]]:
        """Tokens of a record's prompt, and of a text that a model wrote there instead of the answer.

        The text is taken as it stands: what a chat template would make of an answer like it is not asked.

        Args:
            record: Question and answer, prompt and completion, or messages, of which the last answer is left out.
            text: What was written.
            ended: Whether what ends an answer stands behind it.

        Raises:
            DataError: the template cannot format the record's prompt.
        """
        *before, last = self._rows(record.answered(PROBE))[-1]
        front, _, back = last.learnt.partition(PROBE)
        learnt = f"{front}{text}{back if ended else ''}"
        pieces = self._pieces([*before, replace(last, learnt=learnt, ended=last.ended or not ended)])
        place = max(i for i, (_, learnt) in enumerate(pieces) if learnt)
        return [token for ids, _ in pieces[:place] for token in ids], pieces[place][0]

    def question_frame(self) -> tuple[list[int], str]:
        """What stands around a question: for a model that is to write the question, too.

        Returns:
            Tokens before a question, and the text between it and the answer, without special tokens.
        """
        before, after = self._frame()
        ids = self._ids(before.rstrip(" "))  # a blank belongs to the token behind it
        ids = ids if self.template is None else self.prefix + ids
        return ids or self.text_ids(""), self._said(self._ids(after))

    def question_end(self) -> tuple[str, int | None]:
        """What ends a question that a model writes.

        Returns:
            The text behind a question, up to the first special token, and that token, if there is one. What follows it,
            such as the role of who answers, ends no question: it is an ordinary word.
        """
        ids = self._ids(self._frame()[1])
        place = next((i for i, token in enumerate(ids) if token in self.tokenizer.all_special_ids), None)
        return self._said(ids[:place]), None if place is None else ids[place]

    def _frame(self) -> tuple[str, str]:
        """The texts before a question, and between it and the answer."""
        if self.template is None:
            whole = self._chat.text((("user", PROBE),), "this prompt", prompt=True)
            before, _, after = whole.partition(PROBE)
        else:
            before, _, after = self.template.removesuffix("{answer}").partition("{question}")
        return before, after

    def _said(self, ids: Sequence[int]) -> str:
        """Tokens as text, without special ones and blanks around."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def text_ids(self, start: str) -> list[int]:
        """Tokens that a text begins with, ready for generation; at least one.

        Raises:
            DataError: there is no text and the tokenizer has no special token to begin with.
        """
        ids = self.prefix + self._ids(start)
        if not ids:
            first = self.tokenizer.bos_token_id
            ids = [first if first is not None else self.tokenizer.eos_token_id]
        if ids == [None]:
            raise DataError("the tokenizer has neither a first nor a last token, so the model cannot begin by itself")
        return ids

    def encode(self, record: Record, max_length: int) -> Encoded:
        """Tokens of a record that is not a whole text.

        The prompt's tokens are those of the prompt alone. The answer's are what joint tokenisation puts behind them;
        where that would merge tokens across the boundary, the answer is tokenised on its own. Learnt are the answers
        and what ends them: what the chat template writes there (blanks aside), or the end-of-sequence token.

        Some chat templates write an earlier turn otherwise than the last one (they drop its reasoning). Then a row
        holds only the answers that stand as generation would leave them, the last one in any case, and `encode_all`
        makes further rows for the others.

        Args:
            record: Question and answer, prompt and completion, or messages.
            max_length: Rows are cut to this many tokens; never inside the first prompt.

        Raises:
            DataError: the prompt alone leaves no room for an answer, or the template cannot format the record, or not
                so that generation starts from the same prompt.
        """
        return self._encoded(self._rows(record)[-1], record, max_length)

    def _encoded(self, turns: Sequence[Turn], record: Record, max_length: int) -> Encoded:
        """A row of turns as tokens."""
        pieces = self._pieces(turns)
        ids = [token for piece, _ in pieces for token in piece]
        learn = [learnt for piece, learnt in pieces for _ in piece]
        if not any(learn):
            raise DataError(
                f"{record.source}: the tokenizer makes no token of the answer, so there is nothing to learn"
            )
        prompt = learn.index(True)
        if prompt >= max_length:
            raise NoRoomError(
                f"{record.source}: the prompt is {prompt} tokens long, which leaves no room for the answer in "
                f"max_length {max_length}: shorten it or raise --max-length"
            )
        kept = min(len(ids), max_length)
        while not learn[kept - 1]:
            kept -= 1
        shortened = any(turn.shortened for turn in turns)
        return Encoded(ids[:kept], learn[:kept], cut=sum(learn[kept:]), shortened=shortened)

    def chunks(self, text: str, max_length: int, source: str = "") -> list[Encoded]:
        """A whole text as consecutive chunks of at most ``max_length`` tokens, end-of-sequence at its end.

        Every token is learnt exactly once, but for the first of a text where the tokenizer puts no special token before
        it: nothing predicts that one. Each chunk begins with the tokenizer's special tokens, or without any with the
        last token of the chunk before it.

        Args:
            text: Any length.
            max_length: Tokens of a chunk.
            source: ``file:line``, for messages.

        Raises:
            DataError: the text has nothing to learn, or ``max_length`` no room.
        """
        self._tell_of_special([text], source)
        ids = self._ids(text)
        if self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        body = ids if self.prefix else ids[1:]
        size = max_length - max(1, len(self.prefix))
        if size < 1:
            raise DataError(f"max_length {max_length} is too short to cut a text into chunks (--max-length)")
        if not body:
            raise DataError(f"{source}: the text is too short: the tokenizer makes {len(ids)} token of it")
        rows = []
        for start in range(0, len(body), size):
            head, part = self.prefix or ids[start : start + 1], body[start : start + size]
            rows.append(Encoded(head + part, [False] * len(head) + [True] * len(part)))
        return rows

    def encode_all(
        self, records: Iterable[Record], max_length: int, chunks: int | None = None
    ) -> tuple[list[Encoded], int]:
        """Encode records; texts become several rows, and conversations whose turns do not fit into one (see `encode`).

        Args:
            records: Any.
            max_length: Tokens of a row.
            chunks: Most rows of each text, spread evenly over it; None takes all.

        Returns:
            The rows and how many of them had an answer cut to ``max_length``.

        Raises:
            DataError: see `encode`.
        """
        rows: list[Encoded] = []
        for record in records:
            if record.text is None:
                rows += [self._encoded(turns, record, max_length) for turns in self._rows(record)]
            else:
                rows += spread(self.chunks(record.text, max_length, record.source), chunks)
        return rows, sum(row.cut > 0 for row in rows)

    def too_long(self, record: Record, max_length: int) -> str | None:
        """Why a record that was made, and that nobody could shorten, can be no row; None where it can.

        Args:
            record: Any; a text always has room, in chunks.
            max_length: Tokens of a row.

        Raises:
            DataError: see `encode`.
        """
        try:
            for turns in self._rows(record) if record.text is None else ():
                self._encoded(turns, record, max_length)
        except NoRoomError:
            return f"{TOO_LONG} {max_length}"
        return None

    def _rows(self, record: Record) -> list[list[Turn]]:
        """The record's answers, in one row or several."""
        if record.prompt is None:  # which its user has written as the model is to read it
            self._tell_of_special((content for _, content in record.messages), record.source)
        if self.template is None and record.prompt is None:
            return self._chat.rows(record.messages, record.source)
        return [list(self._plain_turns(record))]

    def _pieces(self, turns: Sequence[Turn]) -> list[tuple[list[int], bool]]:
        """A row's tokens in consecutive pieces, and whether each is learnt."""
        eos = self.tokenizer.eos_token_id
        end: list[int] = [] if eos is None else [eos]
        pieces: list[tuple[list[int], bool]] = []
        text: str = ""
        ids: list[int] = []
        for turn in turns:
            if turn.alone:
                text, ids = "", []
                pieces.append((self.prefix, False))
            ends = not turn.ended and (turn.alone or turn is turns[-1])
            for part, learnt in ((turn.given, False), (turn.learnt, True), (turn.after, False)):
                new = self._behind(text, ids, part) + (end if learnt and ends else [])
                pieces.append((new, learnt))
                text, ids = text + part, ids + new
        return pieces

    def _plain_turns(self, record: Record) -> Iterable[Turn]:
        """Answers without a chat template."""
        if record.prompt is not None and record.completion is not None:
            yield Turn(record.prompt, record.completion, alone=True)
            return
        frame = (self.template or "").removesuffix("{answer}")
        prompt = frame.rstrip(" ")  # a blank belongs to the token behind it
        roles = [role for role, _ in record.messages]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise DataError(
                f"{record.source}: a prompt template formats user and assistant turns in alternation, not "
                f"{', '.join(roles)}: use the tokenizer's chat template, or take the other turns out"
            )
        contents = [content.strip() for _, content in record.messages]
        for i in range(0, len(contents), 2):
            gap = "\n" if i and self.tokenizer.eos_token_id is None else ""
            given = gap + prompt.replace("{question}", contents[i])
            yield Turn(given, frame[len(prompt) :] + contents[i + 1], alone=True)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _tell_of_special(self, texts: Iterable[str], source: str) -> None:
        tell_of_special(self.tokenizer, self._special, texts, source)

    def _behind(self, text: str, ids: list[int], piece: str) -> list[int]:
        """Tokens of a piece that stands behind a text whose tokens are already fixed."""
        if not text:
            return self._ids(piece)
        joint = self._ids(text + piece)
        if joint[: len(ids)] == ids:
            return joint[len(ids) :]
        # SentencePiece puts a blank before any text that it tokenises alone; behind a line feed it does not.
        lead, led = self._ids("\n"), self._ids("\n" + piece)
        return led[len(lead) :] if led[: len(lead)] == lead else self._ids(piece)


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """At most so many of some items, spread evenly over them and in their order; None takes all."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
