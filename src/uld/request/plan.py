"""How long the steps of a request take and what memory they need: counted from shapes, at rates that are measured.

A plan is an estimate. Words of the documents stand for tokens, questions that are not asked yet for what rules ask, and
steps that read weights once a token are taken at the memory's rate.
"""

import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from uld.augment.items import items
from uld.data.documents import read_sources
from uld.evaluation.probing import READ, READ_TOKENS
from uld.model.assistant import base_model, decoder_layers, default_num_layers
from uld.model.causal_lm import load_config, skeleton_of
from uld.model.combine import margins_of
from uld.model.device import DTYPES, best_device
from uld.request.material import EVERY, MOST, parts
from uld.request.settings import PARAPHRASES, WRONG_ANSWERS, Request
from uld.request.steps import (
    ASKING,
    CHECKING,
    DRAWING,
    KNOWING,
    TRAINING,
    TUNING,
    rows_drawn,
)
from uld.request.training import ROUNDS, epochs_of, settings_of
from uld.text.progress import duration
from uld.training.rounds import EPOCHS as ROUND_EPOCHS
from uld.training.rounds import REPLAY, SAMPLES

_TOKENS_A_WORD = 1.5
_QUESTION = 60  # tokens of a question with its answer
_DRAWN = 120  # tokens of a drawn row
_ANSWER = 64  # tokens of a generated answer, about
_BATCH = 32
_EFFICIENCY = 0.5  # of the rate of a large matrix product that a training or a scoring reaches, about
_RETURNING = 0.15  # of the answers in which words come back, about
_READINGS = 3  # margins under which answers are read, about, until nothing of them comes back
_SAMPLES = 1.4  # samples for each row that is kept
_PASSES = 4  # of a logit under a setting of the combination through memory
_STEP = 0.005  # seconds that a decoded token of a batch takes at least


@dataclass(frozen=True)
class Shape:
    """What the target is made of.

    Attributes:
        parameters: In all.
        assistant: In the K layers that an assistant has beside the target's, embedding and head.
        below: In the layers below these that it reads the target's states of, in training as well.
        layers: L.
        depth: K.
        vocabulary: V.
        bytes: Of a weight.
        dtype: Of the arithmetic.
    """

    parameters: int
    assistant: int
    below: int
    layers: int
    depth: int
    vocabulary: int
    bytes: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Plan:
    """An estimate.

    Attributes:
        rows: Trained on, in an epoch, about.
        seconds: By name of the step; steps that take no time to speak of are left out.
        memory: Bytes at most, about.
        device: Where.
        shape: Of the target.
    """

    rows: int
    seconds: dict[str, float]
    memory: int
    device: str
    shape: Shape

    def left(self, done: Container[str]) -> float:
        """Seconds of all steps but these."""
        return sum(seconds for name, seconds in self.seconds.items() if name not in done)

    def __str__(self) -> str:
        """For people."""
        lines = [
            f"target: {self.shape.parameters / 1e6:,.0f} M parameters, {self.shape.layers} layers, the "
            f"{'last' if self.shape.below else 'first'} {self.shape.depth} for the assistant",
            f"memory: about {max(0.1, self.memory / 2**30):.1f} GiB on {self.device}",
            *(f"{name}: {duration(seconds)}" for name, seconds in self.seconds.items()),
            f"in all: {duration(self.left(()))}, give or take a half",
        ]
        return "\n".join(lines)


def shape_of(request: Request) -> Shape:
    """The target's shapes, from its configuration alone.

    Raises:
        ULDError: there is no such model.
    """
    settings = settings_of(request)
    trust = bool(settings.get("trust_remote_code"))
    revision = {"revision": settings["revision"]} if "revision" in settings else {}
    config = load_config(request.target, trust_remote_code=trust, **revision)
    whole = skeleton_of(request.target, config, trust)
    layers = decoder_layers(base_model(whole))[1]
    total = len(layers)
    depth = settings.get("num_layers")
    last = settings.get("lora_layers") or (None if depth else default_num_layers(total))
    counts = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    parameters = sum(parameter.numel() for parameter in whole.parameters())
    named = settings.get("dtype", "auto")
    stored = getattr(config, "dtype", None) or torch.float32
    automatic = torch.bfloat16 if best_device() != "cpu" else stored
    dtype = automatic if named == "auto" else getattr(torch, DTYPES[named])
    vocabulary = config.get_text_config(decoder=True).vocab_size
    depth = depth or total
    own = min(last or depth, depth)
    outside = parameters - sum(counts)
    sizes = {"assistant": outside + sum(counts[depth - own : depth]), "below": sum(counts[: depth - own])}
    return Shape(parameters, **sizes, layers=total, depth=own, vocabulary=vocabulary, bytes=dtype.itemsize, dtype=dtype)


def plan(request: Request) -> Plan:
    """Estimate a request.

    Raises:
        ULDError: documents or target cannot be read.
    """
    shape, device, settings = shape_of(request), best_device(), settings_of(request)
    found = items(read_sources(request.documents)[0])
    texts = [item for item in found if item.is_text]
    pairs = len(found) - len(texts) + request.questions * len(texts)
    forget = len(texts) + pairs
    words = sum(len(f"{item.context} {item.answer}".split()) for item in found)
    tokens = (words * _TOKENS_A_WORD + request.questions * len(texts) * _QUESTION) / max(1, forget)
    given = len(parts(read_sources(request.retain)[0]))
    drawn = rows_drawn(forget, given) if request.draw is None else request.draw
    retain = given + drawn
    held = min(MOST, retain // EVERY)
    rows = forget * (1 + PARAPHRASES) + pairs * WRONG_ANSWERS + retain - held
    batch = settings["batch_size"]
    steps = ceil(rows / batch) * settings.get("epochs", epochs_of(settings, rows))
    flops, moved = rates(shape.dtype, device)
    work = flops * _EFFICIENCY

    def decoded(answers: int, length: int, weights: int) -> float:
        """Seconds of generating answers in batches."""
        batches = ceil(answers / _BATCH)
        step = max(weights * shape.bytes / moved, 2 * weights * min(answers, _BATCH) / work, _STEP)
        return batches * length * step

    both = shape.parameters + shape.assistant
    learnt = (forget * tokens * (1 + PARAPHRASES) + (rows - forget * (1 + PARAPHRASES)) * _QUESTION) / max(1, rows)
    measured = pairs * (1 + WRONG_ANSWERS) + held
    settings_tried = len(margins_of(shape.vocabulary))
    logits = measured * _QUESTION * shape.vocabulary
    answered = 2 * pairs + held
    seconds = {}

    def checked(weights: int) -> float:
        """Seconds of answering and scoring every question of the check."""
        return decoded(answered, _ANSWER, weights) + answered * _QUESTION * 2 * weights / work

    if request.source.local is not None:
        seconds[ASKING] = (len(texts) + 2 * forget) * decoded(1, 4 * _QUESTION, shape.parameters)
    if drawn:
        seconds[DRAWING] = _SAMPLES * decoded(drawn, _DRAWN, shape.parameters)
    seconds[KNOWING] = checked(shape.parameters)
    seconds[TRAINING] = (steps * batch * 4 * shape.assistant + rows * 2 * shape.below) * learnt / work
    if rounds := settings.get("rounds", ROUNDS if shape.below else 0):
        asking = forget * (1 + PARAPHRASES)
        own = 2 * _RETURNING * (1 + SAMPLES) * asking  # rows to be remembered, and as many to be uniform on
        seconds[TRAINING] += rounds * (1 + SAMPLES) * decoded(asking, _ANSWER // 2, both)
        seconds[TRAINING] += rounds * (1 + REPLAY) * own * ROUND_EPOCHS * learnt * 4 * shape.assistant / work
    seconds[TUNING] = measured * _QUESTION * 2 * both / work + logits * 4 * _PASSES * settings_tried / moved
    seconds[TUNING] += _READINGS * decoded(min(READ, forget), READ_TOKENS, both)
    seconds[CHECKING] = checked(both) + (checked(shape.parameters) if request.retain_model else 0)
    longest = batch * settings["max_length"] * shape.vocabulary * 4
    memory = both * shape.bytes + 3 * min(longest, 2**31)
    return Plan(rows, seconds, memory, device, shape)


def rates(dtype: torch.dtype, device: str) -> tuple[float, float]:
    """FLOP/s of a matrix product and bytes/s of reading weights, in about a second.

    Args:
        dtype: Of the arithmetic.
        device: Where.
    """
    size = 512 if device == "cpu" else 4096
    a = torch.ones(size, size, device=device, dtype=dtype)
    vector = torch.ones(size, 1, device=device, dtype=dtype)
    weights = torch.ones(8 * size, size, device=device, dtype=dtype)
    product = _seconds(lambda: a @ a, device)
    read = _seconds(lambda: weights @ vector, device)
    return 2 * size**3 / product, weights.numel() * weights.element_size() / read


def _seconds(work: Callable[[], Any], device: str) -> float:
    """The shortest of a few times."""
    times = []
    for _ in range(5):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return max(1e-9, min(times))
