"""Batches: which rows go together, and how they become padded tensors.

The plan is made for the whole epoch, the same for every process: forget and retain rows are mixed in every batch in
proportion, rows of similar length go together, every row is seen exactly once.
"""

import math
import operator
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from uld.data.prompt import Encoded

NO_LOSS, FORGET, RETAIN, ALTERNATIVE, LEARN = range(5)
LENGTH_MULTIPLE = 16
_WINDOW = 32  # batches that are sorted by length together


@dataclass(frozen=True, slots=True)
class Row:
    """A row of tokens with the side that it is on.

    Attributes:
        encoded: Tokens and which of them are learnt.
        kind: `FORGET` or `RETAIN`; `LEARN` in a training of one side.
        everywhere: Loss on every position, prompt included, instead of on the learnt tokens.
        alternative: Another answer to the same prompt, which travels with the row.
        reference: Log-likelihood of the answer under the model before training, nats; NaN where nothing asks for it.
        alternative_reference: The same of the alternative.
        later: What takes its place from the second epoch on, in turn.
        ordinary: Learnt tokens that are on the retain side though the row is to be forgotten; None: none is.
    """

    encoded: Encoded
    kind: int
    everywhere: bool = False
    alternative: Encoded | None = None
    reference: float = math.nan
    alternative_reference: float = math.nan
    later: tuple[Encoded, ...] = ()
    ordinary: tuple[bool, ...] | None = None

    @property
    def sequences(self) -> int:
        """Rows of a batch that it becomes: its alternative is one as well."""
        return 1 if self.alternative is None else 2

    @property
    def tokens(self) -> int:
        """Of the longest that it comes to: in any epoch, or its alternative."""
        return max(len(one.ids) for one in (self.encoded, self.alternative, *self.later) if one is not None)

    def of(self, epoch: int) -> "Row":
        """As it stands in an epoch, counted from 0."""
        turn = epoch % (len(self.later) + 1)
        return replace(self, encoded=self.later[turn - 1]) if turn else self


class Rows(Dataset[Row]):
    """All rows of an epoch.

    Attributes:
        rows: As they stand in the first.
        epoch: Whose rows are given out, counted from 0.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        """Take the rows."""
        self.rows = list(rows)
        self.epoch = 0

    @classmethod
    def of_sides(
        cls,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded],
        *,
        uniform_on: str = "answer",
        alternatives: Sequence[Encoded] | None = None,
        in_turn: Sequence[Sequence[Encoded]] = (),
    ) -> "Rows":
        """Forget rows, then retain rows.

        Args:
            forget: Rows to forget.
            retain: Rows to retain.
            uniform_on: ``answer`` or ``all``: retain positions that carry the loss.
            alternatives: Another answer for each forget row.
            in_turn: More to retain; of each, one an epoch.
        """
        others = alternatives if alternatives is not None else [None] * len(forget)
        rows = [Row(row, FORGET, alternative=other) for row, other in zip(forget, others, strict=True)]
        everywhere = uniform_on == "all"
        rows += [Row(row, RETAIN, everywhere) for row in retain]
        return cls(rows + [Row(first, RETAIN, everywhere, later=tuple(later)) for first, *later in in_turn])

    def set_references(self, forget: Sequence[float], alternatives: Sequence[float] | None = None) -> None:
        """Note log-likelihoods under the model before training, nats: of every forget answer and every alternative."""
        others = alternatives if alternatives is not None else [math.nan] * len(forget)
        for i, (one, other) in enumerate(zip(forget, others, strict=True)):
            self.rows[i] = replace(self.rows[i], reference=one, alternative_reference=other)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        """One row of the epoch."""
        return self.rows[index].of(self.epoch)


def epoch_plan(kinds: Sequence[int], lengths: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Global batches of one epoch.

    Rows are sorted by length within windows of `_WINDOW` batches; then all batches but the last, which may be short,
    are shuffled. On TOFU's augmented forget10 at batch size 32, 17 % of all positions are padding, 10 points of it from
    rounding lengths up to `LENGTH_MULTIPLE`; in random batches it would be 51 %.

    Args:
        kinds: Side of each row.
        lengths: Tokens of each row.
        batch_size: Rows of a global batch; the last may have fewer.
        seed: Decides the whole plan.

    Returns:
        Lists of row indices: every row once; in each list both sides in proportion, up to one row.
    """
    rng = random.Random(seed)
    sides = [[i for i, k in enumerate(kinds) if k == kind] for kind in sorted(set(kinds))]
    for side in sides:
        rng.shuffle(side)
    total = len(kinds)
    ends = [min(end, total) for end in range(batch_size, total + batch_size, batch_size)]
    # Rows of each side up to each batch's end, rounded; the last side takes the rest, so that every batch is full.
    bounds = [[round(len(side) * end / total) for end in ends] for side in sides[:-1]]
    bounds.append([end - sum(bound[b] for bound in bounds) for b, end in enumerate(ends)])
    batches: list[list[int]] = [[] for _ in ends]
    for side, stops in zip(sides, bounds, strict=False):
        starts = [0, *stops]
        for first in range(0, len(ends), _WINDOW):
            last = min(first + _WINDOW, len(ends))
            rows = sorted(side[starts[first] : starts[last]], key=lengths.__getitem__)
            for b in range(first, last):
                batches[b] += rows[starts[b] - starts[first] : starts[b + 1] - starts[first]]
    full, last = batches[:-1], batches[-1:]
    rng.shuffle(full)
    return full + last


def token_plan(
    kinds: Sequence[int], lengths: Sequence[int], budget: int, seed: int, sequences: Sequence[int] | None = None
) -> list[list[int]]:
    """Global batches of at most ``budget`` padded tokens, whatever number of rows that is.

    Every epoch has the same batches, so that their number, and with it the number of steps, is known before.

    Args:
        kinds: Side of each row.
        lengths: Tokens of each row.
        budget: Sequences times the longest, rounded up to `LENGTH_MULTIPLE`; a longer row is a batch of its own.
        seed: Decides the whole plan.
        sequences: How many each row becomes; None is one each.

    Returns:
        Lists of row indices: every row once; in each list both sides in proportion, up to one row for each side.
    """
    rng = random.Random(seed)
    counts = sequences or [1] * len(kinds)
    sides = [[i for i, k in enumerate(kinds) if k == kind] for kind in sorted(set(kinds))]
    for side in sides:
        rng.shuffle(side)
    rows = _interleaved(sides)
    window = max(1, _WINDOW * budget * len(rows) // max(1, sum(map(operator.mul, lengths, counts))))
    batches: list[list[int]] = []
    for first in range(0, len(rows), window):
        part = rows[first : first + window]
        by_length = [sorted((i for i in part if kinds[i] == kind), key=lengths.__getitem__) for kind in set(kinds)]
        batch: list[int] = []
        width = held = 0
        for i in _interleaved(by_length):
            wider = max(width, -(-lengths[i] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
            if batch and (held + counts[i]) * wider > budget:
                batches.append(batch)
                batch, held, wider = [], 0, -(-lengths[i] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
            batch.append(i)
            width, held = wider, held + counts[i]
        batches.append(batch)
    return batches


def _interleaved(sides: Sequence[Sequence[int]]) -> list[int]:
    """All entries, each side's in its own order, mixed so that every stretch holds the sides in proportion."""
    places = [((n + 0.5) / len(side), number, i) for number, side in enumerate(sides) for n, i in enumerate(side)]
    return [i for _, _, i in sorted(places)]


class PlanSampler(Sampler[list[int]]):
    """This process's micro-batches of an epoch, cut from the plan that all processes share.

    Each global batch is dealt into ``world × accumulation`` micro-batches; process r takes those numbered
    ``a · world + r``. A process without a row left in a short last batch gets an empty list.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        batch_tokens: int | None = None,
    ) -> None:
        """Remember the settings; `set_epoch` chooses the epoch. ``batch_tokens`` takes the place of ``batch_size``."""
        self.rows = rows
        self.kinds = [row.kind for row in rows.rows]
        self.lengths = [row.tokens for row in rows.rows]
        self.batch_size, self.seed, self.rank, self.world, self.accumulation = (
            batch_size,
            seed,
            rank,
            world,
            accumulation,
        )
        sequences = [row.sequences for row in rows.rows]
        self.fixed = (
            None if batch_tokens is None else token_plan(self.kinds, self.lengths, batch_tokens, seed, sequences)
        )
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, of the rows as well: who skips batches asks for this alone."""
        self.epoch = self.rows.epoch = epoch

    def _plan(self) -> list[list[int]]:
        """The epoch's global batches."""
        seed = self.seed * 1_000_003 + self.epoch
        if self.fixed is None:
            return epoch_plan(self.kinds, self.lengths, self.batch_size, seed)
        return random.Random(seed).sample(self.fixed, len(self.fixed))

    def __len__(self) -> int:
        """Micro-batches of this process in an epoch."""
        batches = -(-len(self.kinds) // self.batch_size) if self.fixed is None else len(self.fixed)
        return batches * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the micro-batches."""
        parts = self.world * self.accumulation
        for batch in self._plan():
            for a in range(self.accumulation):
                yield batch[a * self.world + self.rank :: parts]


class PlanLoader(DataLoader[Row]):
    """A DataLoader whose plan and rows follow the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class Collator:
    """Pads rows on the right to their longest, rounded up so that few tensor shapes occur."""

    def __init__(self, pad_token_id: int) -> None:
        """Remember the padding token."""
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Make a batch.

        Args:
            rows: Any number; none gives one row of padding without a loss. Alternatives become rows behind all others,
                in the order of the rows that they belong to.

        Returns:
            ``input_ids``, ``attention_mask``, ``labels`` (the *next* token at each position) and ``kind`` (`NO_LOSS`,
            `FORGET`, `RETAIN`, `ALTERNATIVE` or `LEARN` at each position), all ``(batch, tokens)`` int64; ``side``
            ``(batch,)``, the kind of each row, and ``reference`` ``(batch,)`` fp32.
        """
        rows = [*rows, *(_alternative(row) for row in rows if row.alternative is not None)]
        longest = max((len(row.encoded.ids) for row in rows), default=1)
        shape = (max(1, len(rows)), -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
        batch: dict[str, Any] = {
            "input_ids": torch.full(shape, self.pad_token_id),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.zeros(shape, dtype=torch.long),
            "kind": torch.full(shape, NO_LOSS),
            "side": torch.tensor([row.kind for row in rows] or [NO_LOSS]),
            "reference": torch.tensor([row.reference for row in rows] or [math.nan], dtype=torch.float32),
        }
        if not rows:
            batch["attention_mask"][0, 0] = 1
        for i, row in enumerate(rows):
            ids, learn = row.encoded.ids, row.encoded.learn
            n = len(ids)
            batch["input_ids"][i, :n] = torch.tensor(ids)
            batch["attention_mask"][i, :n] = 1
            batch["labels"][i, : n - 1] = torch.tensor(ids[1:])
            wanted = torch.tensor([row.everywhere or flag for flag in learn[1:]], dtype=torch.bool)
            batch["kind"][i, : n - 1][wanted] = row.kind
            if row.ordinary is not None:
                batch["kind"][i, : n - 1][torch.tensor(row.ordinary[1:], dtype=torch.bool)] = RETAIN
        return batch


def _alternative(row: Row) -> Row:
    """The alternative answer of a row as a row of its own."""
    assert row.alternative is not None
    return Row(row.alternative, ALTERNATIVE, reference=row.alternative_reference)
