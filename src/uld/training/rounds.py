"""Rounds behind a training: the unlearned model answers, and its assistant is trained on what comes back (`--rounds`).

A round asks the unlearned model, as it is by then, every question about what is to be forgotten: once greedily, and
with sampling by the round's own seed. `uld.training.on_policy` makes rows of the answers; the assistant is trained on
those of all rounds so far and on as many of its first rows, chosen anew. What a round has answered is stored before its
first step, and its steps have checkpoints as those of every training, so a run can be stopped anywhere.
"""

import gc
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from uld.data.collate import Rows
from uld.data.prompt import PromptFormat
from uld.errors import ArtifactError
from uld.model.context import context_length
from uld.model.device import DTYPES
from uld.model.generate import SAMPLING, generate_answers, length_batches
from uld.model.load import load
from uld.runs.files import new_folder, write_text
from uld.runs.manifest import CHECKPOINTS, METRICS, ROUNDS, read_object
from uld.training.config import TrainConfig
from uld.training.inputs import Inputs, remembered
from uld.training.journal import Journal, last_losses, read_metrics, stop_on_interrupt
from uld.training.on_policy import Own, Question, again, came_back, own_rows, shares
from uld.training.trainer import Interrupted, UnlearningTrainer, run_steps, trainer_arguments

logger = logging.getLogger(__name__)

SAMPLES = 1
"""Sampled answers to each question in a round, beside the greedy one."""
REPLAY = 1.0
"""Rows of the first training for each row of the model's own."""
EPOCHS = 3
"""Passes over the rows of a round."""
RATE = 0.25
"""Peak learning rate of a round, as a share of the training's: what was learnt is to be changed, not left."""
_BATCH = 4096  # padded tokens that are answered at a time
_ANSWERS, _TRAINED, _FACTS = "answers.jsonl", "trained.jsonl", "round.json"


@dataclass
class Rounds:
    """The rounds of a run.

    Attributes:
        config: All settings of the run.
        dtype: As for `uld.training.learners.make_learner`.
        inputs: What the first training was trained on.
        questions: About what is to be forgotten.
        trainer: Of the first training, at its end.
        write: Writes the run as it is now, with the facts so far, into a folder.
        facts: What ``uld.json`` says of each round.
    """

    config: TrainConfig
    dtype: str
    inputs: Inputs
    questions: Sequence[Question]
    trainer: UnlearningTrainer
    write: Callable[[Path], None]
    facts: list[dict[str, Any]]

    def play(self, first: int, *, progress: bool) -> None:
        """Play the rounds that are wanted, from where they were stopped.

        Args:
            first: Number of the first round that is to be played.
            progress: Whether bars are shown.

        Raises:
            Interrupted: the user stopped it.
        """
        output, last = Path(self.config.output), self.config.rounds
        form = PromptFormat(self.inputs.tokenizer, self.config.template)
        own: list[Own] = []

        def take(number: int, answers: list[list[str]]) -> None:
            if len(answers) != len(self.questions):
                raise ArtifactError(f"round {number} has answers to other questions: start over with --overwrite")
            own.extend(own_rows(self.questions, answers, form, self.config.max_length, self._seed(number)))

        for number in range(1, first):  # of a run that was finished with them
            take(number, _answers(output / ROUNDS / str(number)))
        for number in range(first, last + 1):
            place = output / CHECKPOINTS / ROUNDS / str(number)
            journal = Journal(place, progress)
            with stop_on_interrupt(journal):
                if not (place / _FACTS).exists():
                    self._ask(number, place, journal)
                take(number, _answers(place))
                self.facts.append(
                    read_object(place / _FACTS, "start over with --overwrite")
                    | self._train(number, place, journal, own)
                )
                self._keep(output / ROUNDS / str(number), place, own)
            if journal.interrupted and number < last:
                raise Interrupted(f"stopped after round {number} of {last}: continue with {self._again}")

    @property
    def _again(self) -> str:
        return f"uld train --output {self.config.output} --resume"

    def _seed(self, number: int) -> int:
        return (self.config.seed * 1_000_003 + number) % 2**32

    def _ask(self, number: int, place: Path, journal: Journal) -> None:
        """Ask the unlearned model as it is now, and store what it says: the facts last."""
        start = time.perf_counter()
        with new_folder(place / "asked", replace=True) as folder:
            self.write(folder)
        trust = self.config.trust_remote_code
        model: Any = load(place / "asked", dtype=DTYPES[self.dtype], trust_remote_code=trust)[0]
        model = model.to(self.trainer.args.device)
        logger.info("round %d: the unlearned model answers %d questions", number, len(self.questions))

        def check() -> None:
            if journal.interrupted:
                raise Interrupted(f"stopped while round {number} was answered: continue with {self._again}")

        tokenizer, room, seed = self.inputs.tokenizer, self.config.max_length, self._seed(number)
        answers = ask(model, tokenizer, self.questions, max_length=room, seed=seed, check=check)
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        lines = list(came_back(self.questions, answers))
        write_text(place / _ANSWERS, _as_lines(lines))
        facts = shares(lines, self.questions) | {"answer_seconds": round(time.perf_counter() - start, 2)}
        write_text(place / _FACTS, json.dumps(facts, indent=2) + "\n")

    def _train(self, number: int, place: Path, journal: Journal, own: Sequence[Own]) -> dict[str, Any]:
        """Train on the rows of all rounds so far and on as many of the first; what came of it."""
        rows = list(remembered(self.config, [one.row for one in own], self.inputs.tokenizer, self.inputs.records))
        rows += again(self.inputs.rows.rows, round(REPLAY * len(rows)), self._seed(number)) if rows else []
        facts = {
            "remembered_rows": sum(bool(one.rest) for one in own),
            "uniform_rows": sum(not one.rest for one in own),
            "rows": len(rows),
        }
        if rows:
            config = replace(
                self.config,
                output=str(place),
                epochs=EPOCHS,
                learning_rate=RATE * self.config.learning_rate,
                warmup=min(0.1, self.config.warmup),
                rounds=0,
            )
            trainer = UnlearningTrainer(
                self.trainer.objective,
                Rows(rows),
                config,
                self.trainer.collator.pad_token_id,
                args=trainer_arguments(config, self.dtype),
                callbacks=[journal],
            )
            of = f" of round {number}"
            run_steps(trainer, journal, place, resume=True, again=self._again, of=of)
        lines = read_metrics(place / METRICS)
        return facts | {
            "steps": len(lines),
            "tokens": sum(line["tokens"] for line in lines),
            "seconds": round(sum(line["seconds"] for line in lines), 2),
            **last_losses(lines),
        }

    def _keep(self, folder: Path, place: Path, own: Sequence[Own]) -> None:
        """Leave in the run what was answered and trained on; with ``--keep-epochs`` also the run as it is now."""
        with new_folder(folder, replace=True) as made:
            if self.config.keep_epochs:
                self.write(made)
            for name in (_ANSWERS, METRICS):
                if (place / name).exists():
                    shutil.copyfile(place / name, made / name)
            write_text(made / _TRAINED, _as_lines([one.to_dict() for one in own]))


def ask(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    max_length: int,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> list[list[str]]:
    """What a model answers to each question: the greedy answer, then `SAMPLES` sampled ones.

    Args:
        model: On its device.
        tokenizer: Its tokenizer.
        questions: In order.
        max_length: Tokens of a prompt with its answer; an answer is no longer than the longest true one of its batch.
        seed: Of the sampling.
        check: Called before every batch; may raise.
    """
    answers: list[list[str]] = [[] for _ in questions]
    room = min(max_length, context_length(model))
    for sample in range(SAMPLES + 1):
        for number, batch in enumerate(length_batches([len(one.prompt) + one.length for one in questions], _BATCH)):
            check()
            most = max(questions[one].length for one in batch)
            prompts = [questions[one].prompt for one in batch]
            new = max(1, min(most, room - max(map(len, prompts))))
            how = SAMPLING if sample else {}
            with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
                torch.manual_seed((seed * 1009 + sample) * 1_000_003 + number)
                texts = generate_answers(model, tokenizer, prompts, max_new_tokens=new, **how)
            for one, text in zip(batch, texts, strict=True):
                answers[one].append(text)
    return answers


def with_rounds(facts: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of a training with those of rounds behind it: steps, tokens and seconds are those of all."""
    if not rounds:
        return dict(facts)
    summed = {name: facts[name] + sum(one[name] for one in rounds) for name in ("steps", "tokens")}
    seconds = facts["seconds"] + sum(one["seconds"] + one["answer_seconds"] for one in rounds)
    losses = {name: value for one in rounds for name, value in one.items() if name.endswith("_loss")}
    return {**facts, **summed, "seconds": round(seconds, 2), **losses, "rounds": [*facts.get("rounds", ()), *rounds]}


def _answers(place: Path) -> list[list[str]]:
    """What was answered in a round.

    Raises:
        ArtifactError: it cannot be read.
    """
    path = place / _ANSWERS
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        return [[one["text"] for one in line["answers"]] for line in lines]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} is missing or damaged: put it back, or start over with --overwrite") from error


def _as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
