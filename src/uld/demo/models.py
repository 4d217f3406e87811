"""Two micro models of an invented world, trained from scratch: one knows everybody, the other never met some people.

The target learns the whole world by heart, the retain-only model all but the people to be forgotten: the first is what
unlearning starts from, the second what it is measured against. Both are ordinary Hugging Face folders with the same
tokenizer, kept in a cache under a digest of all that they follow from.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from uld.demo.world import WORLD_FILE, World
from uld.model.checkpoint import quiet_transformers
from uld.runs.files import as_usual
from uld.training.scratch import CHAT_TEMPLATE, train_tokenizer

_FORMAT = 1  # raise it when the same settings give another model: models of an older format are then not reused
_WIDTH = 8  # tokens are padded to multiples of this: every new tensor shape costs the CPU a kernel build
_MAX_LENGTH = 256
_IGNORED = -100
_PAD, _BOS, _EOS = range(3)
_GENERAL = ("real_authors_perturbed.json", "world_facts_perturbed.json")  # what both models learn
_LEARNT = {"target": ("full.json", *_GENERAL), "retain-only": ("retain90.json", *_GENERAL)}


@dataclass(frozen=True)
class MicroSettings:
    """Size and training of a micro model; the defaults memorise the default world in about half a minute on two cores.

    Attributes:
        vocab_size: Tokens of the byte-level BPE tokenizer, at most.
        hidden_size: Width; a multiple of 64, the size of an attention head.
        intermediate_size: Width of the feed-forward layers.
        num_layers: Number of layers.
        epochs: Passes over the rows.
        batch_size: Rows a step.
        learning_rate: Peak of the cosine schedule.
        warmup_steps: Steps of linear warm-up.
        initializer_range: Standard deviation of the initial weights; models this small memorise in fewer epochs from
            0.05 than from the usual 0.02.
        seed: Of the initial weights and of the order of rows.
    """

    vocab_size: int = 1536
    hidden_size: int = 128
    intermediate_size: int = 344
    num_layers: int = 4
    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 4e-3
    warmup_steps: int = 30
    initializer_range: float = 0.05
    seed: int = 0


def make_models(
    world: World,
    cache: Path,
    progress: Callable[[str], None] | None = None,
    *,
    settings: MicroSettings | None = None,
) -> tuple[Path, Path]:
    """Train the two models of a world, or find them in the cache.

    A killed call leaves no half-written model, and a model that was finished before is found by the next call.

    Args:
        world: The world to learn.
        cache: Folder in which each model gets a folder of its own.
        progress: Told, in a line each, of every epoch; not called for a model that is found.
        settings: Size and training; by default those of `MicroSettings`.

    Returns:
        The folders of the target and of the retain-only model.
    """
    settings = settings or MicroSettings()
    digest = _digest(world, settings)
    folders = {name: cache / f"{name}-{digest}" for name in _LEARNT}
    missing = {name: folder for name, folder in folders.items() if not folder.exists()}
    if not missing:
        return folders["target"], folders["retain-only"]
    cache.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(_texts(world), settings.vocab_size, _MAX_LENGTH)
    for name, folder in missing.items():
        rows = [_tokens(tokenizer, row) for file in _LEARNT[name] for row in _read(world.folder / file)]
        model = _train(rows, len(tokenizer), settings, lambda line, name=name: progress and progress(f"{name}: {line}"))
        _save(model, tokenizer, folder)
    return folders["target"], folders["retain-only"]


def _digest(world: World, settings: MicroSettings) -> str:
    """Sixteen hexadecimal digits that change with anything a model follows from."""
    state = hashlib.sha256(json.dumps([_FORMAT, CHAT_TEMPLATE, asdict(settings)]).encode())
    for file in _data_files(world):
        state.update(hashlib.sha256(file.name.encode()).digest() + hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()[:16]


def _data_files(world: World) -> list[Path]:
    return sorted(
        file for file in world.folder.iterdir() if file.suffix in (".json", ".jsonl") and file.name != WORLD_FILE
    )


def _read(path: Path) -> list[dict[str, str | list[str]]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _texts(world: World) -> Iterator[str]:
    """Every question and answer of the world in the form in which a prompt has it, right or wrong.

    A tokenizer that had seen only right answers would cut wrong ones into more pieces, and so tell the two apart.
    """
    for file in _data_files(world):
        for row in _read(file):
            for key, value in row.items():
                for text in [value] if isinstance(value, str) else value:
                    yield f"Question: {text}\n" if "question" in key else f"Answer: {text}"


def _tokens(tokenizer: PreTrainedTokenizerFast, row: dict[str, str | list[str]]) -> list[int]:
    chat = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    return tokenizer.encode(str(tokenizer.apply_chat_template(chat, tokenize=False)), add_special_tokens=False)


def _plan(lengths: list[int], batch_size: int, rng: Random) -> list[tuple[int, list[int]]]:
    """One epoch: a width in tokens and the rows of that width, for every step; each row occurs once."""
    widths: dict[int, list[int]] = {}
    for index in rng.sample(range(len(lengths)), len(lengths)):
        widths.setdefault(-(-lengths[index] // _WIDTH) * _WIDTH, []).append(index)
    steps = [
        (width, rows[start : start + batch_size])
        for width, rows in widths.items()
        for start in range(0, len(rows), batch_size)
    ]
    rng.shuffle(steps)
    return steps


def _train(
    rows: list[list[int]],
    vocab_size: int,
    settings: MicroSettings,
    report: Callable[[str], object],
) -> LlamaForCausalLM:
    """Memorise token rows from scratch, on the CPU, with the loss on whole sequences."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.hidden_size // 64,
        num_key_value_heads=settings.hidden_size // 64,
        head_dim=64,
        max_position_embeddings=_MAX_LENGTH,
        tie_word_embeddings=False,
        initializer_range=settings.initializer_range,
        pad_token_id=_PAD,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = LlamaForCausalLM(config)
    rng = Random(settings.seed)
    lengths = [len(row) for row in rows]
    epochs = [_plan(lengths, settings.batch_size, rng) for _ in range(settings.epochs)]
    total = sum(len(plan) for plan in epochs)

    def rate(step: int) -> float:
        return min((step + 1) / settings.warmup_steps, 1) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / total)))

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for number, plan in enumerate(epochs, start=1):
        losses = 0.0
        for width, chosen in plan:
            loss = _loss(model, [rows[index] for index in chosen], width)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses += loss.item()
        report(f"epoch {number} of {settings.epochs}, loss {losses / len(plan):.2f}")
    return model.eval()


def _loss(model: LlamaForCausalLM, rows: list[list[int]], width: int) -> torch.Tensor:
    """Mean next-token NLL in nats, a scalar. Padding is on the right, where a causal model needs no mask against it."""
    tokens = torch.full((len(rows), width), _PAD)
    labels = torch.full((len(rows), width), _IGNORED)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = labels[index, : len(row)] = torch.tensor(row)
    logits = model(input_ids=tokens, use_cache=False).logits  # (rows, width, vocab)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "model"
        with quiet_transformers():
            model.save_pretrained(fresh)
        as_usual(fresh.glob("*.safetensors"))
        tokenizer.save_pretrained(fresh)
        try:
            os.replace(fresh, folder)
        except OSError:
            if not folder.exists():  # otherwise another process was faster with the same model
                raise
