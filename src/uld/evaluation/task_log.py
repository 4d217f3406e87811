"""What a TOFU evaluation found out about every row: the columns of a per-sample log, checked.

`uld.evaluation.tofu_log` reads and writes them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

from uld.evaluation.log_values import LogError, plain

AUTHORS_NAMES = {
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
"""Task names, in the authors' order, and what the authors call them."""

REQUIRED = ("avg_loss", "paraphrase_loss", "wrong_losses")

MIA = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")
"""Columns of the membership attacks."""


@dataclass(frozen=True, kw_only=True)
class TaskLog:
    """One task set: a column per quantity, an entry per row. Optional columns are None as a whole, never in part.

    Losses are in nats; numbers are turned into plain Python ones, so numpy arrays may be passed.

    Raises:
        LogError: if a column is shorter or longer than `keys`, a key repeats, a value is NaN, no number or out of its
            range, or rows differ in their number of wrong answers.
    """

    keys: list[str]
    """The row's index in its data set, as text."""
    avg_loss: list[float]
    """Mean loss per token of the answer."""
    paraphrase_loss: list[float]
    """Mean loss per token of the paraphrased answer (real authors and world facts: of the answer itself)."""
    wrong_losses: list[list[float]]
    """``(rows, wrong)``: mean loss per token of each wrong answer."""
    loss: list[float] | None = None
    """Summed loss of the answer."""
    tokens: list[int] | None = None
    """Tokens of the answer that carry a loss."""
    paraphrase_loss_sum: list[float] | None = None
    paraphrase_tokens: list[int] | None = None
    wrong_loss_sums: list[list[float]] | None = None
    wrong_tokens: list[list[int]] | None = None
    rouge1: list[float] | None = None
    """ROUGE-1 recall of the generated answer, in [0, 1]."""
    rougeL: list[float] | None = None
    """ROUGE-L recall of the generated answer, in [0, 1]."""
    generated: list[tuple[str, str, str]] | None = None
    """``(prompt, generation, truth)`` of each row."""
    question: list[str] | None = None
    """What was asked, without what a chat template writes around it."""
    stored_prob: list[float] | None = None
    """Probability (real authors and world facts: the normalised one) as the log itself states it."""
    stored_truth_ratio: list[float] | None = None
    """``1 / t`` as the log itself states it."""
    extraction_strength: list[float] | None = None
    """Share of the answer that the rest of it calls up, in [0, 1]."""
    exact_memorization: list[float] | None = None
    """Share of the answer's tokens that are the greedy prediction, in [0, 1]."""
    mia_loss: list[float] | None = None
    """Scores of the answer by membership attacks (`uld.evaluation.membership`), lower for what looks known."""
    mia_zlib: list[float] | None = None
    mia_min_k: list[float] | None = None
    mia_min_k_plus_plus: list[float] | None = None
    paraphrase_rougeL: list[float] | None = None
    """ROUGE-L recall of the generated answer against the paraphrased one, in [0, 1]."""
    unknown_words: list[int] | None = None
    """Uncapitalised words of the generated answer that stand nowhere in the data."""
    clean: list[float] | None = None
    """How sure a classifier is that the generated answer is no gibberish, in [0, 1]."""
    judged_loss: list[float] | None = None
    """Summed loss of the generated answer under another model."""
    judged_tokens: list[int] | None = None
    """Its tokens under that model; 0 for an empty answer."""
    samples: list[list[str]] | None = None
    """Answers that were sampled, as many of each row."""

    def __post_init__(self) -> None:
        """Turn values into plain numbers and check that the columns fit together."""
        set_field = object.__setattr__
        set_field(self, "keys", [str(key) for key in self.keys])
        if not self.keys:
            raise LogError("A task log needs at least one row.")
        if len(set(self.keys)) != len(self.keys):
            raise LogError("A task log has repeated row keys: give every row its own index.")
        for column in fields(self)[1:]:
            values = getattr(self, column.name)
            if values is None and column.name not in REQUIRED:
                continue
            if values is None or len(values) != len(self.keys):
                count = "no" if values is None else len(values)
                raise LogError(f"Column {column.name!r} has {count} entries for {len(self.keys)} rows: log every row.")
            rows = zip(self.keys, values, strict=True)
            set_field(self, column.name, [plain(column.name, key, value) for key, value in rows])
        counts = {len(row) for row in self.wrong_losses}
        if len(counts) != 1 or 0 in counts:
            raise LogError("Column 'wrong_losses' needs the same number of wrong answers, at least one, in every row.")
        if self.samples is not None and (len({len(row) for row in self.samples}) != 1 or not self.samples[0]):
            raise LogError("Column 'samples' needs the same number of sampled answers, at least one, in every row.")
        for name in ("wrong_loss_sums", "wrong_tokens"):
            if {len(row) for row in getattr(self, name) or ()} - counts:
                raise LogError(f"Column {name!r} needs as many entries as there are wrong answers in every row.")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)


@dataclass(frozen=True, eq=False)
class TofuLog(Mapping[str, TaskLog]):
    """The evaluation of one model: some or all of `forget`, `retain`, `real_authors`, `world_facts`.

    Equality looks at the tasks alone. `source` is the file it came from, for messages. `non_members` are the scores, by
    attack, of answers that the model was not trained on.

    Raises:
        LogError: if a task has another name, or the attacks scored different numbers of non-members.
    """

    tasks: dict[str, TaskLog]
    source: str = field(default="this log")
    non_members: dict[str, list[float]] | None = None

    def __post_init__(self) -> None:
        """Check the names of the tasks, and the scores of the non-members."""
        if self.non_members is not None:
            checked = {name: [plain(name, str(i), v) for i, v in enumerate(self.non_members[name])] for name in MIA}
            if len({len(values) for values in checked.values()}) != 1 or not checked[MIA[0]]:
                raise LogError("The attacks must have scored the same non-members, at least one: evaluate again.")
            object.__setattr__(self, "non_members", checked)
        for name in self.tasks:
            if name not in AUTHORS_NAMES:
                raise LogError(f"Unknown TOFU task {name!r}: use {', '.join(sorted(AUTHORS_NAMES))}.")

    def __getitem__(self, name: str) -> TaskLog:
        """Return the task of that name."""
        return self.tasks[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the tasks."""
        return iter(self.tasks)

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.tasks)
