r"""Prompts: records to token ids, with an exact boundary between what is given and what is learnt.

A prompt is formatted by the tokenizer's chat template, by a named template, or by an inline one such as
``"Question: {question}\nAnswer: {answer}"``. The prompt's tokens are exactly those that generation will see; the
answer's follow, the end-of-sequence token included.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from uld.data.record import DataError, Record

NAMED = {
    "qa": "Question: {question}\nAnswer: {answer}",
    "plain": "{question}\n{answer}",
    "llama2": "[INST] {question} [/INST] {answer}",
}
"""Templates by name; ``llama2`` is the one that TOFU's Llama-2 models were trained with."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row of tokens.

    Attributes:
        ids: Token ids, special tokens included.
        learn: For each token whether a loss falls on predicting it.
        cut: Tokens of the answer that did not fit ``max_length``.
    """

    ids: list[int]
    learn: list[bool]
    cut: int = 0


class PromptFormat:
    """Turns records into tokens for one tokenizer and one template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> None:
        """Choose the template.

        Args:
            tokenizer: With a chat template, unless a template is named.
            template: Name, inline template with ``{question}`` and ``{answer}``, or None for the chat template
                (``qa`` where the tokenizer has none).

        Raises:
            DataError: an unknown name or an inline template without its two fields.
        """
        self.tokenizer: Any = tokenizer
        if template is None and not getattr(tokenizer, "chat_template", None):
            template = "qa"
        if template is not None:
            inline = NAMED.get(template, template)
            if inline.count("{question}") != 1 or not inline.endswith("{answer}"):
                raise DataError(
                    f"template {template!r} is neither one of {', '.join(NAMED)} nor an inline template that holds "
                    "{question} once and ends in {answer}"
                )
            template = inline
        self.template = template
        some = self._ids("a")
        special = list(self.tokenizer("a").input_ids)
        self._prefix = special[: special.index(some[0])] if some and some[0] in special else []

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _chat(self, messages: Sequence[tuple[str, str]], prompt: bool) -> str:
        turns = [{"role": role, "content": content} for role, content in messages]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)

    def _pieces(self, record: Record) -> Iterable[tuple[str, bool]]:
        """Consecutive pieces of the formatted record, and whether each is learnt."""
        if record.prompt is not None and record.completion is not None:
            yield record.prompt, False
            yield record.completion, True
        elif self.template is not None:
            yield from self._templated(record)
        else:
            done = ""
            for i, (role, _) in enumerate(record.messages):
                if role != "assistant":
                    continue
                before, through = self._chat(record.messages[:i], True), self._chat(record.messages[: i + 1], False)
                if not (before.startswith(done) and through.startswith(before)):
                    raise DataError(
                        f"{record.source}: the tokenizer's chat template does not put the answer behind its prompt, "
                        "so the answer cannot be told from it: choose a template with --template"
                    )
                yield before[len(done) :], False
                yield through[len(before) :], True
                done = through

    def _templated(self, record: Record) -> Iterable[tuple[str, bool]]:
        template = self.template or ""
        frame = template.removesuffix("{answer}")
        prompt = frame.rstrip(" ")
        gap = frame[len(prompt) :]
        questions = [content for role, content in record.messages if role == "user"]
        answers = [content for role, content in record.messages if role == "assistant"]
        if len(questions) != len(answers):
            raise DataError(f"{record.source}: --template needs as many user turns as assistant turns")
        for question, answer in zip(questions, answers, strict=True):
            yield prompt.replace("{question}", question.strip()), False
            yield gap + answer.strip(), True

    def prompt_ids(self, question: str | Sequence[tuple[str, str]]) -> list[int]:
        """Tokens of a prompt, ready for generation.

        Args:
            question: A question, or a conversation that ends with the user's turn.
        """
        messages = (("user", question),) if isinstance(question, str) else tuple(question)
        if self.template is None:
            return self._ids(self._chat(messages, True))
        last = (*messages, ("assistant", "-"))
        *pieces, _ = self._templated(Record(messages=last))
        return self._prefix + self._ids("".join(text for text, _ in pieces))

    def encode(self, record: Record, max_length: int) -> Encoded:
        """Tokens of a record that is not a whole text.

        The prompt's tokens are those of the prompt alone. The answer's are what joint tokenisation puts behind them;
        where that would merge tokens across the boundary, the answer is tokenised on its own.

        Args:
            record: Question and answer, prompt and completion, or messages.
            max_length: Rows are cut to this many tokens; never inside a prompt.

        Raises:
            DataError: the prompt alone leaves no room for an answer.
        """
        chat = self.template is None and record.prompt is None
        ids: list[int] = [] if chat else list(self._prefix)
        learn = [False] * len(ids)
        text, eos = "", self.tokenizer.eos_token_id
        prompt_end = 0
        for piece, learnt in self._pieces(record):
            new = self._behind(text, ids[len(self._prefix) if not chat else 0 :], piece)
            if learnt:
                prompt_end = prompt_end or len(ids)
                new, rest = (new[: new.index(eos) + 1], new[new.index(eos) + 1 :]) if eos in new else (new, [])
                if eos is not None and (not new or new[-1] != eos):
                    new = [*new, eos]
                ids += new + rest
                learn += [True] * len(new) + [False] * len(rest)
            else:
                ids += new
                learn += [False] * len(new)
            text += piece
        while learn and not learn[-1]:
            ids.pop()
            learn.pop()
        if prompt_end >= max_length:
            raise DataError(
                f"{record.source}: the prompt is {prompt_end} tokens long, which leaves no room for the answer in "
                f"max_length {max_length}: shorten it or raise --max-length"
            )
        return Encoded(ids[:max_length], learn[:max_length], cut=max(0, len(ids) - max_length))

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

    def chunks(self, text: str, max_length: int) -> list[Encoded]:
        """A whole text as consecutive chunks of at most ``max_length`` tokens, every token learnt.

        Each chunk begins with the special tokens that the tokenizer puts first; the last ends with end-of-sequence.
        """
        ids = self._ids(text)
        if self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        size = max_length - len(self._prefix)
        if size < 2:
            raise DataError(f"max_length {max_length} is too short to cut a text into chunks")
        starts = range(0, len(ids), size)
        head = [False] * len(self._prefix)
        return [
            Encoded(self._prefix + ids[i : i + size], head + [True] * len(ids[i : i + size]))
            for i in starts
            if len(ids) - i > 1 or i == 0
        ]

    def encode_all(self, records: Iterable[Record], max_length: int) -> tuple[list[Encoded], int]:
        """Encode records; texts become several rows.

        Returns:
            The rows and how many of them had an answer cut to ``max_length``.

        Raises:
            DataError: see `encode`.
        """
        rows: list[Encoded] = []
        for record in records:
            rows += [self.encode(record, max_length)] if record.text is None else self.chunks(record.text, max_length)
        return rows, sum(row.cut > 0 for row in rows)
