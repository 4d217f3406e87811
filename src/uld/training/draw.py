"""A retain set drawn from the target itself, for users who have none.

What the target says when it is asked about nothing in particular is a sample of what it knows. Half of the rows begin
with nothing at all (the model writes the question, too, as in Magpie, Xu et al. 2024, arXiv 2406.08464), half with a
generic prompt of ``generic_prompts.txt``. What repeats the forget set, or holds one of its names or rare words, is
dropped and counted: the target has that by heart, and would be trained to keep it.
"""

import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import ceil
from typing import Any

import torch
from transformers import LogitsProcessorList

from uld.augment.items import row
from uld.data.overlap import Overlap
from uld.data.prompt import PromptFormat
from uld.data.record import Record, parse_record
from uld.errors import DataError, ULDError
from uld.model.context import context_length
from uld.model.generate import SAMPLING, TopP, generate_ids, last_ids
from uld.text.progress import bar

logger = logging.getLogger(__name__)

LEAST_ROWS = 256
_BATCH, _LEAST = 128, 32  # samples that are written side by side, at most and at least
_SPARE = 1.25  # samples for each row that is missing, as some are dropped
_ROUNDS = 6  # samples at most for each row that is wanted
_QUESTION_TOKENS = 64
_ANSWER_TOKENS = 192
_STRETCHES = (24, 40)  # tokens behind which rows that have ended, or repeat the forget set, are written no further
_TOP_P = 0.95


@dataclass(frozen=True)
class Drawn:
    """Rows that a model has written.

    Attributes:
        records: In the order of drawing.
        prompts: What each began with: a generic prompt, or nothing where the model began by itself.
        facts: How they were made and what was dropped, for ``uld.json``.
    """

    records: list[Record]
    prompts: list[str]
    facts: dict[str, Any]

    def to_jsonl(self) -> str:
        """The rows as JSON lines that ``--retain`` reads."""
        lines = []
        for record, prompt in zip(self.records, self.prompts, strict=True):
            lines.append(json.dumps(row(record) | {"drawn_from": prompt}, ensure_ascii=False) + "\n")
        return "".join(lines)


def _can_be_read(record: Record) -> bool:
    """Whether it can be read back: a small model also writes NUL characters."""
    try:
        parse_record(row(record), record.source)
    except DataError:
        return False
    return True


def generic_prompts() -> tuple[list[str], list[str]]:
    """Generic questions and generic beginnings of texts, in a fixed order."""
    lines = _prompt_file().splitlines()
    return [line for line in lines if line.endswith("?")], [line for line in lines if not line.endswith("?")]


def draw_rows(
    model: Any,
    form: PromptFormat,
    forget: Sequence[Record],
    rows: int = LEAST_ROWS,
    *,
    seed: int = 0,
    max_length: int = 512,
    progress: bool = False,
) -> Drawn:
    """Draw a retain set from a model: temperature 1, top-p 0.95, the same rows for the same seed.

    A forget set of questions gives questions with answers, one of texts gives texts, a mixed one both.

    Args:
        model: The whole target, in evaluation mode.
        form: Its tokenizer with the run's template.
        forget: What is to be forgotten.
        rows: How many rows to keep.
        seed: Of the sampling.
        max_length: Tokens of a row, at most, and never more than the model has positions for; an answer has up to 192.
        progress: Show a progress bar.

    Returns:
        ``rows`` rows, or fewer, with a warning, where six times as many samples did not give enough.

    Raises:
        ULDError: not one sample could be kept.
    """
    max_length = min(max_length, context_length(model))
    overlap, seen, dropped = Overlap(forget, form.tokenizer), set(), Counter()
    records: list[Record] = []
    prompts: list[str] = []
    samples = 0
    line = bar(rows, "drawing retain rows", "row", shown=progress)
    with line, torch.random.fork_rng(devices=_cuda_devices(model)):
        torch.manual_seed(seed)
        plan, most = _plan(forget), max(_ROUNDS * rows, _LEAST)
        while len(records) < rows and samples < most:
            wanted = max(_LEAST, ceil(_SPARE * (rows - len(records))))
            starts = list(itertools.islice(plan, min(_BATCH, wanted, most - samples)))
            for (_, prompt), record in zip(starts, _write(model, form, starts, max_length, overlap), strict=True):
                samples += 1
                if record is None:
                    reason = "empty"
                else:
                    reason = overlap.why(record) if _can_be_read(record) else "no text that can be read"
                if record is not None and reason is None and record.same in seen:
                    reason = "drawn twice"
                if reason is not None:
                    dropped[reason] += 1
                elif record is not None and len(records) < rows:
                    seen.add(record.same)
                    records.append(record)
                    prompts.append(prompt)
                    line.update()
    if not records:
        raise ULDError(
            f"none of {samples} samples of the target can be a retain row ({_counts(dropped)}): name a file of your "
            "own with --retain"
        )
    if len(records) < rows:
        logger.warning("only %d of %d retain rows could be drawn (%s)", len(records), rows, _counts(dropped))
    facts = {
        "rows": len(records),
        "samples": samples,
        "dropped": dict(sorted(dropped.items())),
        "seed": seed,
        "temperature": SAMPLING["temperature"],
        "top_p": _TOP_P,
        "ngram": overlap.run,
        "began_by_itself": prompts.count(""),
        "prompts_sha256": hashlib.sha256(_prompt_file().encode()).hexdigest(),
    }
    logger.info("drew %d retain rows from the target in %d samples (%s)", len(records), samples, _counts(dropped))
    return Drawn(records, prompts, facts)


def _counts(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} dropped: {reason}" for reason, count in sorted(dropped.items())) or "none dropped"


def _prompt_file() -> str:
    return (files("uld.data") / "generic_prompts.txt").read_text(encoding="utf-8")


def _plan(forget: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """What each sample begins with, without end: own and generic in turn, questions and texts in turn."""
    questions, texts = (itertools.cycle(prompts) for prompts in generic_prompts())
    kinds: list[str] = []
    if any(record.messages for record in forget):
        kinds += ["own question", "generic question"]
    if any(not record.messages for record in forget):
        kinds += ["own text", "generic text"]
    for kind in itertools.cycle(kinds):
        yield kind, next(questions) if kind == "generic question" else next(texts) if kind == "generic text" else ""


def _write(
    model: Any, form: PromptFormat, starts: Sequence[tuple[str, str]], max_length: int, overlap: Overlap
) -> list[Record | None]:
    """What the model makes of a batch of beginnings; None where nothing came of one.

    What repeats the forget set is left unfinished, and a question that does so without an answer.
    """
    found: list[Record | None] = [None] * len(starts)
    asked = {i: prompt for i, (kind, prompt) in enumerate(starts) if kind == "generic question"}
    own = [i for i, (kind, _) in enumerate(starts) if kind == "own question"]

    def sample(prompts: Sequence[Sequence[int]], tokens: int, end: int | None = None) -> list[str]:
        return _sample(
            model, form, prompts, tokens, max_length, lambda text: overlap.why(Record(text=text)) is not None, end
        )

    if own:
        opening, (closing, end) = form.question_frame()[0], form.question_end()
        for i, text in zip(own, sample([opening] * len(own), _QUESTION_TOKENS, end), strict=True):
            question = _question(text, closing)
            if question and overlap.why(Record(text=question)):
                found[i] = Record(text=question, source=f"drawn row {i + 1}")
            elif question:
                asked[i] = question
    prompts = {i: form.prompt_ids(question) for i, question in sorted(asked.items())}
    answers = sample(list(prompts.values()), _ANSWER_TOKENS)
    for i, answer in zip(prompts, answers, strict=True):
        if answer.strip():
            found[i] = Record.qa(asked[i], answer.strip(), f"drawn row {i + 1}")
    texts = [i for i, (kind, _) in enumerate(starts) if kind.endswith("text")]
    written = sample([form.text_ids(starts[i][1]) for i in texts], _ANSWER_TOKENS)
    for i, text in zip(texts, written, strict=True):
        if text.strip():
            found[i] = Record(text=f"{starts[i][1]}{text}".strip(), source=f"drawn row {i + 1}")
    return found


def _question(text: str, closing: str) -> str:
    """The question in what a model wrote behind the opening of one: up to the answer's opening, on one line."""
    text = text.split(closing)[0] if closing else text
    return (text.strip().splitlines() or [""])[0].strip()


def _sample(
    model: Any,
    form: PromptFormat,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    max_length: int,
    unwanted: Callable[[str], bool],
    end: int | None = None,
) -> list[str]:
    """What the model writes behind each prompt; nothing where the prompt leaves no room, less where it is unwanted.

    A text has the blank that it begins with, if any; ``end`` is one more token that ends it.
    """
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < max_length]
    room = min(tokens, max_length - max((len(prompts[i]) for i in fitting), default=0))
    settings = {**SAMPLING, "logits_processor": LogitsProcessorList([TopP(_TOP_P)])}
    ends, written = last_ids(model, form.tokenizer) | {end}, {i: list[int]() for i in fitting}
    text: dict[int, str] = {}
    for number in _stretches(room):
        if not fitting:
            break
        try:
            given = [[*prompts[i], *written[i]] for i in fitting]
            found = generate_ids(model, form.tokenizer, given, max_new_tokens=number, **settings).tolist()
        except (RuntimeError, ValueError) as error:  # logits that are not finite, a cuda out-of-memory
            raise DataError(f"cannot draw a retain set from the target: {str(error).splitlines()[0]}") from error
        more = []
        for i, ids in zip(fitting, found, strict=True):
            kept = list(itertools.takewhile(lambda token: token not in ends, ids))
            written[i] += kept
            text[i] = _behind(form.tokenizer, prompts[i], written[i])
            if len(kept) == number and not unwanted(text[i]):
                more.append(i)
        fitting = more
    return [text.get(i, "") for i in range(len(prompts))]


def _behind(tokenizer: Any, prompt: Sequence[int], written: Sequence[int]) -> str:
    """Tokens as text behind those of a prompt: alone some tokenizers leave out their first blank."""
    before, through = (tokenizer.decode([*prompt, *some], skip_special_tokens=True) for some in ((), written))
    if through.startswith(before):
        return through[len(before) :]
    return f" {tokenizer.decode(written, skip_special_tokens=True)}"


def _stretches(room: int) -> Iterator[int]:
    """Tokens of each of a few parts that make up all there is room for."""
    for number in (*_STRETCHES, room):
        if part := min(number, room):
            yield part
        room -= part


def _cuda_devices(model: Any) -> list[int]:
    device = model.device
    return [device.index or 0] if device.type == "cuda" else []
