"""What larger targets need, computed from their shapes: writes ``docs/scaling.md``.

The formulas are checked against this package's own small models: adapter bytes against `peft`, FLOPs against torch's
counter.
"""

import math
from dataclasses import dataclass

import torch
from common import ROOT
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from uld.methods.registry import get_method
from uld.model.assistant import add_lora, build_assistant, default_num_layers
from uld.training.objective import Objective, terms_of

ROWS, TOKENS, ANSWER = 3600, 70, 45  # forget10 with D'f and D'r: rows of an epoch, tokens of a row, of its answer
BATCH = 32
H100 = 790e12  # bf16 FLOP/s of one H100 in large matrix products
SHARE = 0.45  # of it that a training step reaches
GPU_BYTES = 78 * 2**30


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; `kv` is the width of keys and values."""

    name: str
    layers: int
    hidden: int
    inner: int
    kv: int
    vocab: int
    tied: bool = False

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's seven linears."""
        h, f = self.hidden, self.inner
        return [(h, h), (h, self.kv), (h, self.kv), (h, h), (h, f), (h, f), (f, h)]

    @property
    def layer(self) -> int:
        """Weights of a layer, norms included."""
        return sum(i * o for i, o in self.linears) + 2 * self.hidden

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.vocab * self.hidden

    @property
    def total(self) -> int:
        """All weights."""
        return self.layers * self.layer + self.hidden + self.head * (1 if self.tied else 2)

    def lora(self, depth: int, rank: int) -> int:
        """LoRA weights on every linear of the first layers."""
        return depth * rank * sum(i + o for i, o in self.linears)

    def trained_on(self, depth: int) -> int:
        """Weights that training holds: embedding, K layers, norm, head."""
        return self.total - (self.layers - depth) * self.layer

    def config(self) -> LlamaConfig:
        """A Llama of this shape, with heads of 64."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.kv // 64,
            vocab_size=self.vocab,
            tie_word_embeddings=self.tied,
        )

    def step_flops(self, depth: int, rank: int, rows: int, tokens: int, answer: int) -> float:
        """FLOPs of a training step: forward and input gradients of K layers, LoRA with its gradients, head, attention.

        Input gradients of the first layer's q, k, v are not needed below it, but LoRA needs those of everything above.
        """
        dense = depth * (self.layer - 2 * self.hidden)
        first = self.hidden * (self.hidden + 2 * self.kv)
        lora = self.lora(depth, rank)
        lora_first = 3 * rank * self.hidden
        positions, scored = rows * tokens, rows * answer
        attention = depth * rows * 2 * 2 * tokens**2 * self.hidden  # two products, forward
        return (
            positions * (2 * dense + 2 * (dense - first) + 6 * lora - 2 * lora_first)
            + scored * 4 * self.head
            + attention * 3.5  # the backward pass makes the scores again and has four products
        )


SHAPES = [
    Shape("Llama-3.2-1B", 16, 2048, 8192, 512, 128_256, tied=True),
    Shape("Llama-2-7B", 32, 4096, 11_008, 4096, 32_000),
    Shape("Llama-3.1-8B", 32, 4096, 14_336, 1024, 128_256),
    Shape("Llama-2-70B", 80, 8192, 28_672, 1024, 32_000),
]
SMALL = [
    (Shape("tofu-4m", 6, 192, 512, 192, 4096), 3),
    (Shape("hidden 512, 8 layers", 8, 512, 1408, 512, 8000), 2),
]


def counted(shape: Shape, depth: int, rank: int, rows: int, tokens: int, answer: int) -> tuple[int, int, int]:
    """What torch counts for a real step: all weights, LoRA weights, FLOPs."""
    target = AutoModelForCausalLM.from_config(shape.config())
    peft = add_lora(build_assistant(target, depth), rank=rank, alpha=rank)
    objective = Objective(peft, terms_of(get_method("uld"))).train()
    kind = torch.zeros(rows, tokens, dtype=torch.long)
    kind[: rows // 2, -answer:], kind[rows // 2 :, -answer:] = 1, 2
    ids, side = torch.randint(1, shape.vocab, (rows, tokens)), kind[:, -1]
    with FlopCounterMode(display=False) as counter:
        objective(ids, torch.ones_like(ids), ids, kind, side, torch.zeros(rows)).sum().backward()
    lora = sum(p.numel() for n, p in peft.named_parameters() if "lora_" in n)
    return sum(p.numel() for p in target.parameters()), lora, counter.get_total_flops()


def gib(count: float) -> str:
    return f"{count / 2**30:.1f}" if count > 2**29 else f"{count / 2**30:.2f}"


def main() -> None:
    rank = 32
    lines = [
        "# What larger targets need",
        "",
        "Computed by `python benchmarks/scaling.py`; nothing of this size was run.",
        "",
        "Serving here means one pass in transformers, where the assistant shares the target's weights; under vLLM it has its own "
        "([how many GPUs](serving.md#how-many-gpus)). Training here means `uld train`; `uld forget` also loads the whole target.",
        "",
    ]
    lines += [
        f"ULD with K a quarter of the layers, LoRA rank {rank}, bf16 weights, batch {BATCH}, an epoch of {ROWS:,} rows of "
        f"{TOKENS} tokens ({ANSWER} of them answer). Optimiser: LoRA, its gradient and two moments in fp32. Activations: "
        "what a layer keeps for the backward pass, without gradient checkpointing. Seconds: FLOPs over "
        f"{SHARE:.0%} of an H100's {H100 / 1e12:.0f} TFLOP/s. FLOPs of a decoding step grow with K/L only in the shared "
        "layers; its bytes, which decide at batch 1, grow by the LoRA matrices alone. Whole target: weights, gradients and two "
        "moments in fp32, what a method that trains the target itself holds besides activations and a frozen copy.",
        "",
        "| target | parameters | adapter (MiB) | of target | weights held in training (GiB) | optimiser (GiB) "
        "| activations (GiB) | training in all (GiB) | H100s to train | s an epoch | serving: extra (MiB) | H100s to serve "
        "| whole target (GiB) |",
        f"|{'---|' * 13}",
    ]
    for shape in SHAPES:
        depth = default_num_layers(shape.layers)
        lora = shape.lora(depth, rank)
        held, optimiser = 2 * shape.trained_on(depth), 16 * lora
        # inputs of the seven linears and of LoRA, norms, attention, gate and product, in bf16
        kept = depth * BATCH * TOKENS * (10 * shape.hidden + 2 * shape.kv + 5 * shape.inner + 7 * rank) * 2
        logits = BATCH * ANSWER * shape.vocab * 4 * 3
        training = held + optimiser + kept + logits
        seconds = shape.step_flops(depth, rank, BATCH, TOKENS, ANSWER) * math.ceil(ROWS / BATCH) / (H100 * SHARE)
        lines.append(
            f"| {shape.name} | {shape.total / 1e9:.2f} B | {2 * lora / 2**20:.0f} | {lora / shape.total:.2%} | {gib(held)} "
            f"| {gib(optimiser)} | {gib(kept + logits)} | {gib(training)} | {math.ceil(training / GPU_BYTES)} "
            f"| {seconds:.0f} | {2 * lora / 2**20:.0f} | {math.ceil(2 * shape.total * 1.1 / GPU_BYTES)} "
            f"| {gib(16 * shape.total)} |"
        )
    lines += ["", "## The formulas against small models that were run", ""]
    lines += [
        "| model | parameters: computed / counted | LoRA: computed / counted | FLOPs of a step: computed / counted |"
    ]
    lines += ["|---|---|---|---|"]
    for shape, depth in SMALL:
        total, lora, flops = counted(shape, depth, rank, 8, 64, 40)
        ours = shape.step_flops(depth, rank, 8, 64, 40)
        lines.append(
            f"| {shape.name}, K = {depth} | {shape.total:,} / {total:,} | {shape.lora(depth, rank):,} / {lora:,} "
            f"| {ours:.4g} / {flops:.4g} = {ours / flops:.3f} |"
        )
    text = "\n".join(lines) + "\n"
    (ROOT / "docs" / "scaling.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
