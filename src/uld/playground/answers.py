"""Target and unlearned model side by side: their answers as they come, one run or another, a table of questions.

Two generations run in lockstep: each takes a step in turn, so that only one of them uses the weights at a time.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from transformers import PreTrainedTokenizerBase

from uld.data.documents import read_file
from uld.data.files import File
from uld.data.prompt import PromptFormat, remember_template
from uld.data.text import lines_of, says_nothing
from uld.errors import DataError
from uld.evaluation.explain import Explanation, Kept, Who, ask, keep, prompt_of
from uld.model.combine import Combination
from uld.model.context import context_length
from uld.model.generate import generate_ids
from uld.model.unlearned import ULDForCausalLM

ALL = "all runs together"


@dataclass(frozen=True)
class Run:
    """An unlearned model that can be asked.

    Attributes:
        name: As the page shows it.
        model: Shares its target with those of the other runs.
        form: How it is asked.
        own: Its own settings, one for each assistant; an answer to somebody may hold others for a while.
    """

    name: str
    model: ULDForCausalLM
    form: PromptFormat
    own: tuple[Combination, ...]

    def settings(
        self, weight: float | None = None, margin: float | None = None, floor: float | None = None
    ) -> list[Combination]:
        """The run's own settings, with what is not None in their place; margin and floor where its rule has them.

        Raises:
            ULDError: a value out of range.
        """
        changed = []
        for how in self.own:
            more = {"margin": margin, "floor": floor} if how.rule == "suppress" else {}
            changed.append(how.override(weight=weight, **more))
        return changed


def runs_of(
    model: ULDForCausalLM, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], template: str | None = None
) -> list[Run]:
    """Each run of a model that several were loaded into, and last all of them together.

    Args:
        model: From `uld.load`.
        tokenizer: Its tokenizer.
        names: Of the runs, in the order in which they were loaded.
        template: To ask all of them with; None takes that of each run.
    """
    remember_template(tokenizer, None)
    models, start = [], 0
    for manifest, name in zip(model.manifests, names, strict=True):
        end = start + (2 if manifest.trains in ("offset", "pair") else 1)
        parts: Any = list(model.assistants)[start:end]
        own = (parts, model.combinations[start:end], [manifest], name, model.fused)
        models.append(ULDForCausalLM.join(model.target, *own) if len(names) > 1 else model)
        start = end
    forms = [PromptFormat(tokenizer, template or manifest.template) for manifest in model.manifests]
    several = [*zip(names, models, forms, strict=True), (ALL, model, forms[0])]
    runs = [Run(name, one, form, tuple(one.combinations)) for name, one, form in several]
    return runs if len(names) > 1 else runs[:1]


class Asking:
    """Answers questions for any number of askers, one at a time."""

    def __init__(self, max_new_tokens: int) -> None:
        """Set how long an answer may be, tokens."""
        self.max_new_tokens = max_new_tokens
        self._free = threading.Lock()

    def stream(self, run: Run, question: str, settings: Sequence[Combination]) -> Iterator[dict[Who, str] | Kept]:
        """Answers of target and unlearned model as they grow, greedy; at last they are kept, with their logits.

        Args:
            run: The run to ask.
            question: What to ask.
            settings: One for each assistant.

        Yields:
            The texts so far; when both are whole a `Kept`.

        Raises:
            ULDError: an empty question, or one that is longer than the model's context.
        """
        prompt = prompt_of(run.model, run.form, question)
        room = max(1, min(self.max_new_tokens, context_length(run.model) - len(prompt)))
        with self._free, _under(run.model, settings):
            said: dict[Who, list[int]] = {}
            for said in _in_lockstep(run, prompt, room):
                grown: dict[Who, str] = {}
                for who, ids in said.items():
                    grown[who] = run.form.tokenizer.decode(ids, skip_special_tokens=True).strip()
                yield grown
            yield keep(run.model, run.form, question, said)

    def given(self, run: Run, question: str, answer: str) -> Kept:
        """An answer that the asker gives, with its logits.

        Raises:
            ULDError: see `uld.evaluation.explain.ask`.
        """
        with self._free:
            return ask(run.model, run.form, question, answer, max_new_tokens=self.max_new_tokens)

    def explained(self, run: Run, question: str, settings: Sequence[Combination]) -> Explanation:
        """Both answers to a question, explained.

        Raises:
            ULDError: see `stream`.
        """
        prompt_of(run.model, run.form, question)
        with self._free, _under(run.model, settings):
            return ask(run.model, run.form, question, max_new_tokens=self.max_new_tokens).under(settings)


def questions_of(path: str | Path) -> list[str]:
    """Questions of a file: the lines of a .txt file, else the questions of its records.

    Raises:
        DataError: it cannot be read, or holds no question.
    """
    file = File(Path(path))
    if file.suffix == ".txt":
        found = [line.strip() for line in lines_of(file.text()) if not says_nothing(line)]
    else:
        records, _ = read_file(Path(path))
        for record in records:
            if [role for role, _ in record.messages] != ["user", "assistant"]:
                raise DataError(
                    f'{record.source}: expected {{"question", "answer"}}, or a .txt file of one question a line'
                )
        found = [record.messages[0][1] for record in records]
    if not found:
        raise DataError(f"{file.name}: there is no question in it: write one a line")
    return found


COLUMNS = ("question", "target", "unlearned model", "nats taken", "most from", "nats")
"""Heads of a table of questions; what was taken is of the target's answer."""


def table_row(explanation: Explanation) -> list[str | float]:
    """A question in a table: both answers, what was taken from the target's, and its token that lost most."""
    target, unlearned = explanation.answers
    most = max(target.tokens, key=lambda token: token.taken)
    taken = (round(target.taken, 2), most.text.strip(), round(most.taken, 2))
    return [explanation.question, target.text, unlearned.text, *taken]


@contextmanager
def _under(model: ULDForCausalLM, settings: Sequence[Combination]) -> Iterator[None]:
    """Have a model answer under other settings for a while."""
    own = model.combinations
    model.combinations = list(settings)
    try:
        yield
    finally:
        model.combinations = own


class _Unheard(Exception):
    """Nobody listens any more."""


class _Turns:
    """Whose turn it is."""

    def __init__(self, names: Sequence[Who]) -> None:
        self._waiting = list(names)
        self._changed = threading.Condition()

    def wait(self, name: Who) -> None:
        """Wait for one's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting[0] == name)

    def end(self, name: Who, *, again: bool) -> None:
        """End one's turn, perhaps to have another."""
        with self._changed:
            self._waiting.remove(name)
            self._waiting += [name] if again else []
            self._changed.notify_all()


class _Listener:
    """What `generate` hands its tokens to, one step a turn."""

    def __init__(self, who: Who, turns: _Turns, said: SimpleQueue[Any], unheard: threading.Event) -> None:
        self.who: Who = who
        self.turns, self.said, self.unheard = turns, said, unheard
        self.begun = False

    def put(self, ids: Any) -> None:
        """Take the prompt, then a token at a time."""
        if self.begun:
            self.said.put((self.who, ids.flatten().tolist()))
            self.turns.end(self.who, again=True)
            self.turns.wait(self.who)
        self.begun = True
        if self.unheard.is_set():
            raise _Unheard

    def end(self) -> None:
        """Nothing is left to do."""


def _in_lockstep(run: Run, prompt: list[int], max_new_tokens: int) -> Iterator[dict[Who, list[int]]]:
    """Tokens of both answers so far, a step of one and a step of the other in turn."""
    models: dict[Who, Any] = {"target": run.model.target, "unlearned": run.model}
    said: dict[Who, list[int]] = {who: [] for who in models}
    turns, news, unheard = _Turns(list(models)), SimpleQueue[Any](), threading.Event()

    def answer(who: Who) -> None:
        turns.wait(who)
        end: Any = None
        try:
            listener = _Listener(who, turns, news, unheard)
            generate_ids(models[who], run.form.tokenizer, [prompt], max_new_tokens=max_new_tokens, streamer=listener)
        except _Unheard:
            pass
        except BaseException as error:  # told to the one who asked
            end = error
        turns.end(who, again=False)
        news.put((who, end))

    threads = [threading.Thread(target=answer, args=(who,), daemon=True) for who in models]
    for thread in threads:
        thread.start()
    left = len(threads)
    try:
        while left:
            who, new = news.get()
            if isinstance(new, list):
                said[who] += new
                yield said
            else:
                left -= 1
                if new is not None:
                    raise new
    finally:
        unheard.set()
        for thread in threads:
            thread.join()
