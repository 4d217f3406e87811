"""A gate that lets an assistant be silent: its logits are scaled by how much it has to say.

The final norm fixes the size of an assistant's state, so without a gate it can come near the uniform distribution only
by finding a state for which the head gives every token about the same. With n the final normed state of width d, w and
b trained beside LoRA,

    ``la = σ(w · n / √d + b) · head(n)``

and a closed gate is exactly uniform. The gate is a part of the assistant's `PeftModel` and lies in a file of its own
beside the adapter, which stays an ordinary adapter of PEFT. Ground floor: knows nothing of runs.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uld.runs.digests import GATE_WEIGHTS

_START = -2.0  # σ(−2) = 0.12: nearly silent at first, and far enough from 0 to learn
_NAME = "uld_gate"  # what a gate is called on the assistant that has it


class Gate(nn.Module):
    """``σ(w · n / √d + b)`` of a state n; w starts at 0 and b at −2.

    Attributes:
        weight: ``(width,)`` w.
        bias: ``()`` b.
    """

    def __init__(self, width: int) -> None:
        """Make a gate for states of a width."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.tensor(_START))

    def forward(self, hidden: Tensor) -> Tensor:
        """How far the gate is open: ``(..., width)`` to ``(..., 1)`` fp32 in [0, 1]."""
        product = hidden.float() @ self.weight.float()
        return torch.sigmoid(product / hidden.shape[-1] ** 0.5 + self.bias.float())[..., None]

    def apply_to(self, logits: Tensor, hidden: Tensor, *, masks: bool = True) -> Tensor:
        """Logits as the gate lets them through; tokens of −inf, which a model masks out itself, stay masked out.

        Args:
            logits: ``(..., vocab)``.
            hidden: ``(..., width)`` the states that they were made from.
            masks: Whether the model may mask tokens out; to look for them takes passes over the whole vocabulary,
                most of them in training.

        Returns:
            ``(..., vocab)`` fp32.
        """
        logits = logits.float()
        if not masks:
            return logits * self(hidden)
        out = torch.isneginf(logits)  # taken out before, as 0 · inf is no gradient
        return (logits.masked_fill(out, 0.0) * self(hidden)).masked_fill(out, -torch.inf)


def gate_of(assistant: Any) -> Gate | None:
    """The gate of an assistant; None where it has none."""
    return getattr(assistant, _NAME, None)


def add_gate(assistant: Any, width: int) -> Gate:
    """Give an assistant a gate that has learnt nothing yet.

    Args:
        assistant: `PeftModel`.
        width: Of its final normed states.
    """
    gate = Gate(width).to(next(assistant.parameters()).device)
    setattr(assistant, _NAME, gate)
    return gate


def save_gate(assistant: Any, folder: Path) -> None:
    """Write an assistant's gate, if it has one, into the folder of its adapter."""
    if (gate := gate_of(assistant)) is not None:
        tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in gate.named_parameters()}
        save_file(tensors, str(folder / GATE_WEIGHTS))


def load_gate(assistant: Any, folder: Path) -> None:
    """Give an assistant the gate that lies in the folder of its adapter, if one does.

    Args:
        assistant: `PeftModel`.
        folder: Its adapter's.

    Raises:
        ValueError: the file does not hold a gate for states of this width, or holds NaN.
    """
    path = folder / GATE_WEIGHTS
    if not path.is_file():
        return
    tensors = load_file(str(path))
    gate = gate_of(assistant) or add_gate(assistant, assistant.get_output_embeddings().weight.shape[-1])
    expected = {name: tensor.shape for name, tensor in gate.named_parameters()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise ValueError(f"{GATE_WEIGHTS} does not hold a gate for states of width {len(gate.weight)}")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError(f"{GATE_WEIGHTS} holds NaN or infinite values")
    gate.load_state_dict(tensors)
