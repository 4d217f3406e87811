"""What a loss sees of a batch."""

from typing import Protocol

from torch import Tensor

from uld.methods.losses import FrozenPositionLoss, PositionLoss


class Side(Protocol):
    """The forget or the retain rows of a batch, as a loss sees them.

    Attributes:
        labels: ``(positions,)`` the token at each position that carries a loss.
        row: ``(positions,)`` the row, 0 … rows − 1, of each of these positions.
        rows: Number of rows.
        frozen_log_likelihood: ``(rows,)`` of each answer under the model before training, nats; NaN where no loss
            asks for it.
        alternative: The alternative answers to the same questions, row by row, if the method has them.
    """

    labels: Tensor
    row: Tensor
    rows: int
    frozen_log_likelihood: Tensor
    alternative: "Side | None"

    @property
    def lengths(self) -> Tensor:
        """Number of positions of each row: ``(rows,)`` fp32."""
        ...

    def total(self, loss: PositionLoss) -> Tensor:
        """Sum of a loss over all positions."""
        ...

    def each(self, loss: PositionLoss) -> Tensor:
        """A loss at every position: ``(positions,)`` fp32."""
        ...

    def each_frozen(self, loss: FrozenPositionLoss) -> Tensor:
        """A loss that also sees the frozen model's logits, at every position: ``(positions,)`` fp32."""
        ...

    def log_likelihood(self) -> Tensor:
        """Summed log-likelihood of each answer: ``(rows,)`` fp32, nats."""
        ...

    def by_row(self, values: Tensor) -> Tensor:
        """Sum values of the positions ``(positions,)`` within each row: ``(rows,)``."""
        ...

    def layer(self) -> Tensor:
        """Hidden states after the tapped layer at every position: ``(positions, width)``."""
        ...

    def frozen_layer(self) -> Tensor:
        """The frozen model's hidden states after the tapped layer: ``(positions, width)``."""
        ...
