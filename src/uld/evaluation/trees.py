"""Rows of tokens as trees, in which what several rows begin with stands once.

A tree is one sequence for a model, with positions and a mask of our own: a node sees its ancestors and itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from uld.data.prompt import Encoded
from uld.errors import ULDError

NEVER = 2**31 - 1


@dataclass(slots=True)
class Tree:
    """Rows as one sequence of nodes, each a token behind its parent, depth first.

    So the nodes below node i are those from i up to ``ends[i]``, and its ancestors are the nodes before it that have
    not ended. A row's last token is no node, as nothing follows from it.

    Attributes:
        ids: Token of each node.
        depths: Its position in its rows.
        ends: First node after those below it.
        labels: Each scored token once, as the node that predicts it and the token itself; and its number.
        uses: Row and number of each scored token of the rows.
        path: Nodes of the row that was added last.
        rows: Number of each row, the row, and its last node.
    """

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    labels: dict[tuple[int, int], int] = field(default_factory=dict)
    uses: list[tuple[int, int]] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    rows: list[tuple[int, Encoded, int]] = field(default_factory=list)

    @property
    def branches(self) -> bool:
        """Whether it is more than one row as it stands."""
        return min(self.ends) < NEVER

    def known(self, row: Encoded) -> int:
        """How many of a row's first tokens are those of the row that was added last."""
        count = 0
        for node, token in zip(self.path, row.ids[:-1], strict=False):
            if self.ids[node] != token:
                break
            count += 1
        return count

    def add(self, number: int, row: Encoded) -> None:
        """Add a row; of all rows, the one before must be the one that it shares most tokens with."""
        known, size = self.known(row), len(self.ids)
        for node in self.path[known:]:
            self.ends[node] = size
        new = row.ids[known:-1]
        self.path[known:] = range(size, size + len(new))
        self.ids += new
        self.depths += range(known, known + len(new))
        self.ends += [NEVER] * len(new)
        self.rows.append((number, row, self.path[-1]))
        for node, label, learnt in zip(self.path, row.ids[1:], row.learn[1:], strict=True):
            if learnt:
                self.uses.append((number, self.labels.setdefault((node, label), len(self.labels))))

    def nodes_of(self, last: int) -> list[int]:
        """The nodes of a row, of which the last is given."""
        return [node for node in range(last + 1) if self.ends[node] > last]


def grow(rows: Mapping[int, Encoded], longest: int, largest: int, usual: int) -> list[Tree]:
    """Rows as trees; a row joins a tree where it shares its prompt, or half of itself, and enough to be worth it.

    Args:
        rows: By number; each has something to score.
        longest: Tokens of the longest row that may share a tree.
        largest: Nodes of the largest tree of several rows.
        usual: Nodes of a tree unless its rows are long: a token attends to a whole tree, so its cost grows with it.
    """
    trees: list[Tree] = []
    for number in sorted(rows, key=lambda number: rows[number].ids):
        row = rows[number]
        size = len(row.ids)
        shared = trees and size <= longest and len(trees[-1].rows[0][1].ids) <= longest
        known = trees[-1].known(row) if shared else 0
        enough = max(1, size / 8, min(row.learn.index(True), size / 2))
        most = min(largest, max(usual, 2 * size))
        if known < enough or len(trees[-1].ids) + size - known > most:
            trees.append(Tree())
        trees[-1].add(number, row)
    return trees


def batch_inputs(
    trees: Sequence[Tree], pad: int, dtype: torch.dtype, device: Any, multiple: int, most: int
) -> dict[str, Tensor]:
    """What a model reads of some trees: tokens, and where they branch also positions and mask.

    Args:
        trees: At least one.
        pad: Token that fills short ones.
        dtype: Of the mask.
        device: Of all.
        multiple: Widths are multiples of this, so that few shapes occur,
        most: but no wider than this, unless a tree is.
    """

    def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
        longest = max(len(row) for row in rows)
        width = max(longest, min(-(-longest // multiple) * multiple, most))
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)

    inputs = {"input_ids": padded([tree.ids for tree in trees], pad)}
    if any(tree.branches for tree in trees):
        inputs["position_ids"] = padded([tree.depths for tree in trees], 0)
        inputs["attention_mask"] = tree_mask(padded([tree.ends for tree in trees], NEVER), dtype)
    return inputs


def tree_mask(ends: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to attention scores so that a node sees its ancestors and itself: ``(batch, 1, nodes, nodes)``."""
    place = torch.arange(ends.shape[1], device=ends.device)
    visible = (place <= place[:, None]) & (place[:, None] < ends[:, None, None])
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)


@torch.inference_mode()
def follows_masks(model: Any) -> bool:
    """Whether a model follows a mask of ours at all.

    Twins, two nodes of one token behind one parent, tell: they must find the same.
    """
    if model.config.get_text_config(decoder=True)._attn_implementation not in ("sdpa", "eager"):
        return False
    ids, ends = torch.tensor([[[0, 1, 1]], [[NEVER, 2, NEVER]]], device=model.device)
    depths = torch.tensor([[0, 1, 1]], device=model.device)
    inputs = {"input_ids": ids, "position_ids": depths, "attention_mask": tree_mask(ends, model.dtype)}
    try:
        found = model(use_cache=False, **inputs).logits[0]
    except Exception:  # a family that takes another kind of mask refuses in its own way
        return False
    return bool(torch.allclose(found[1], found[2], rtol=1e-2, atol=1e-2))


@torch.inference_mode()
def bears_padding(model: Any, pad: int) -> bool:
    """Whether a model finds the same in a row with padding behind it.

    Raises:
        ULDError: it sees what is behind a token, so its logits predict nothing.
    """
    row, other = (
        [token for token in range(12) if token != pad][:5],
        [token for token in range(12) if token != pad][8:11],
    )

    def read(*behind: int) -> Tensor:
        ids = torch.tensor([[*row, *behind]], device=model.device)
        return model(input_ids=ids, use_cache=False).logits[0, : len(row)]

    wanted, found = read(), read(pad, pad, pad)
    if bool(wanted.isnan().any()) or alike([found], [wanted]):
        return True
    if not alike([read(*other)], [read(*reversed(other))]):
        raise ULDError(
            f"{type(model).__name__} sees the tokens behind the one that it reads: it is no causal model, and what it "
            "gives a text cannot be scored"
        )
    return False


class Trust:
    """How large trees may be so that a model finds the same in them as in their rows alone.

    A window, under whatever name, is a matter of distance: of positions within a row, or of places in the sequence. So
    the first of the longest rows and of the largest trees are computed alone as well, and where that differs, both
    limits that it may be due to are halved until it does not. What is smaller than something that was found to be the
    same is the same.

    Attributes:
        pads: Whether rows may be padded at all.
        longest: Tokens of the longest row that may be part of a tree; 0 for no trees.
        largest: Nodes of the largest tree.
    """

    def __init__(self, models: Sequence[Any], pad: int) -> None:
        """Ask each model whether it bears padding (with this token) and follows masks."""
        self.pads = all(bears_padding(model, pad) for model in models)
        self.longest = NEVER if self.pads and all(follows_masks(model) for model in models) else 0
        self.largest = NEVER
        self._proven_row = self._proven_tree = 0

    def doubtful(self, trees: Sequence[Tree]) -> list[tuple[Tree, int, Encoded, int]]:
        """Rows of a batch that have to be computed alone as well: tree, its place, the row, and its last node."""
        places = [place for place, tree in enumerate(trees) if tree.branches]
        if not places:
            return []
        found = []
        largest = max(places, key=lambda place: len(trees[place].ids))
        if len(trees[largest].ids) > self._proven_tree:
            found.append((largest, trees[largest].rows[-1]))
        rows = [(place, row) for place, tree in enumerate(trees) for row in tree.rows]
        longest = max(rows, key=lambda one: len(one[1][1].ids))
        if len(longest[1][1].ids) > self._proven_row:
            found.append(longest)
        return [(trees[place], place, row, last) for place, (_, row, last) in found]

    def prove(self, trees: Sequence[Tree]) -> None:
        """A batch of trees is as its rows are alone."""
        sizes = [len(tree.ids) for tree in trees if tree.branches]
        if sizes:
            self._proven_tree = max(self._proven_tree, *sizes)
            self._proven_row = max(self._proven_row, *(len(row.ids) for tree in trees for _, row, _ in tree.rows))

    def lower(self, tokens: int | None, nodes: int) -> None:
        """Rows of so many tokens differ under a mask of ours; or, if None, a tree of so many nodes does."""
        if tokens is not None:
            self.longest = max(tokens // 2, min(self._proven_row, tokens - 1))
        else:
            self.largest = max(nodes // 2, min(self._proven_tree, nodes - 1))


def alike(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether states ``(tokens, width)`` of some models are the same but for rounding: none is off by more of its size.

    How much is the root of the dtype's precision: 0.0003 in fp32, 0.09 in bf16.
    """
    for one, other in zip(found, wanted, strict=True):
        off = (one.float() - other.float()).norm(dim=-1)
        if not bool((off <= torch.finfo(one.dtype).eps ** 0.5 * other.float().norm(dim=-1)).all()):
            return False
    return True
