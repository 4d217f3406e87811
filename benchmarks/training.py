"""What a training step of ULD costs: against the paper's code's way, and against full-model NPO+KL on the same rows.

Rows are TOFU forget10 with augmentation, an even draw of our plan's batches. Every contender takes the same rows:

- ours: `uld.training.objective.Objective` (one forward, padded to the longest row, logits where a loss falls);
- the reference's way: rows padded to 256, forget and retain rows in forwards of their own, logits at every position,
  an assistant with weights of its own;
- NPO+KL on the whole model, once in our batches, once padded to 256: the frozen model's log-likelihoods of the forget
  answers are precomputed in the first and run again in every step in the second; its distribution on the retain rows is
  run in both.

``--model 370m`` takes a random Llama of 370 million parameters in bf16 instead of tofu-4m in fp32.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from common import arguments, in_turn, padded, random_llama, rates, ratio, report, shown
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from uld.data.collate import FORGET, RETAIN, Collator, Row, Rows, epoch_plan
from uld.data.prompt import PromptFormat
from uld.data.tofu import training_set
from uld.methods.losses import cross_entropy
from uld.methods.registry import get_method
from uld.model.assistant import add_lora, build_assistant
from uld.model.causal_lm import load_target
from uld.model.load import load_tokenizer
from uld.training.learners import Learner
from uld.training.objective import Objective, terms_of

WIDTH = 256


def rows_of(options: argparse.Namespace) -> Rows:
    data = training_set("forget10", options.data / "tofu", options.data / "tofu_augmented", retain_rows=1600)
    form = PromptFormat(load_tokenizer(options.models / "tofu-4m-full"))
    forget, retain = (form.encode_all(records, WIDTH)[0] for records in (data.forget, data.retain))
    return Rows.of_sides(forget, retain)


def stepper(model: nn.Module, loss: Callable[[list[Row]], Tensor], bf16: bool) -> Callable[[list[Row]], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def step(rows: list[Row]) -> None:
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=bf16):
            value = loss(rows)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(target: Any, depth: int, device: str) -> tuple[nn.Module, Callable[[list[Row]], Tensor]]:
    objective = Objective(
        add_lora(build_assistant(target, depth), rank=32, alpha=32), terms_of(get_method("uld"))
    ).train()
    collate = Collator(0)

    def loss(rows: list[Row]) -> Tensor:
        sums = objective(**{name: value.to(device) for name, value in collate(rows).items()})
        return (sums * torch.tensor([1.0, 6.5], device=device)).sum() / len(rows)

    return objective, loss


def split(rows: list[Row], device: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Forget rows and retain rows, each padded to 256: ids, mask, positions whose next token is learnt."""
    sides = []
    for kind in (FORGET, RETAIN):
        chosen = [row.encoded for row in rows if row.kind == kind]
        ids, mask = padded([row.ids for row in chosen], WIDTH)
        learn, _ = padded([[int(flag) for flag in row.learn] for row in chosen], WIDTH)
        sides.append((ids.to(device), mask.to(device), learn[:, 1:].bool().to(device)))
    return sides


def reference_way(target: Any, depth: int, device: str) -> tuple[nn.Module, Callable[[list[Row]], Tensor]]:
    model: Any = add_lora(copy.deepcopy(build_assistant(target, depth)), rank=32, alpha=32).train()

    def loss(rows: list[Row]) -> Tensor:
        (forget, mask, learn), (retain, retain_mask, _) = split(rows, device)
        logits = model(input_ids=forget, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        labels = forget[:, 1:].masked_fill(~learn, -100)
        remember = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        other = model(input_ids=retain, attention_mask=retain_mask, use_cache=False).logits.float()
        return remember + 6.5 * -other.log_softmax(-1).mean()

    return model, loss


def npo_kl(target: Any, device: str) -> tuple[nn.Module, Callable[[list[Row]], Tensor]]:
    """Our ``npo+kl`` on the whole model; the log-likelihoods that are computed once are not, and cost nothing here."""
    model = copy.deepcopy(target).train().requires_grad_(True)
    objective, collate = Objective(Learner(model, target), terms_of(get_method("npo+kl"))), Collator(0)

    def loss(rows: list[Row]) -> Tensor:
        batch = {name: value.to(device) for name, value in collate(rows).items()}
        return objective(**batch | {"reference": torch.zeros(len(rows), device=device)}).sum() / len(rows)

    return model, loss


def npo_kl_padded(target: Any, device: str) -> tuple[nn.Module, Callable[[list[Row]], Tensor]]:
    """NPO+KL as it is usually written: rows padded to 256, every logit made, the frozen model run in every step."""
    model, frozen, beta = copy.deepcopy(target).train().requires_grad_(True), target, 0.1

    def log_likelihood(model: Any, ids: Tensor, mask: Tensor, learn: Tensor) -> Tensor:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).view(ids.shape[0], -1)
        return -(losses * learn).sum(-1)

    def loss(rows: list[Row]) -> Tensor:
        (ids, mask, learn), (retain, retain_mask, _) = split(rows, device)
        with torch.no_grad():
            before = log_likelihood(frozen, ids, mask, learn)
            old = frozen(input_ids=retain, attention_mask=retain_mask, use_cache=False).logits.float().log_softmax(-1)
        now = log_likelihood(model, ids, mask, learn)
        forget = -nn.functional.logsigmoid(-beta * (now - before)).mean() * 2 / beta
        new = model(input_ids=retain, attention_mask=retain_mask, use_cache=False).logits.float().log_softmax(-1)
        return forget + nn.functional.kl_div(new, old, log_target=True, reduction="batchmean")

    return model, loss


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", choices=("tofu-4m", "370m"), default="tofu-4m")
    options = parser.parse_args()
    big = options.model == "370m"
    dtype = torch.bfloat16 if big else torch.float32
    target = random_llama(dtype) if big else load_target(options.models / "tofu-4m-full").requires_grad_(True)
    device = target.device.type
    depth, batch_size = (6, 8) if big else (3, 32)
    rows = rows_of(options)
    lengths = [len(row.encoded.ids) for row in rows.rows]
    plan = epoch_plan([row.kind for row in rows.rows], lengths, batch_size, seed=0)[:-1]
    batches = [[rows[i] for i in batch] for batch in plan[:: max(1, len(plan) // (1 if big else 6))]][: 1 if big else 6]

    contenders = {
        "ours": ours(target, depth, device),
        "reference's way": reference_way(target, depth, device),
        "NPO+KL, our batches": npo_kl(target, device),
        "NPO+KL, padded to 256": npo_kl_padded(target, device),
    }
    steps = {name: stepper(model, loss, big) for name, (model, loss) in contenders.items()}
    flops = {}
    for name, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step(batches[0])
        flops[name] = counter.get_total_flops()
    seconds = in_turn({name: lambda step=step: [step(batch) for batch in batches] for name, step in steps.items()})
    count = sum(len(batch) for batch in batches)
    rate = rates(dtype)
    first = in_turn({name: lambda step=step: step(batches[0]) for name, step in list(steps.items())[:1]})
    share = flops["ours"] / min(first["ours"]) / rate["flops"]
    found = {name: ratio(seconds, name, "ours") for name in steps if name != "ours"}
    table = []
    for name, times in seconds.items():
        per_epoch = sorted(times)[len(times) // 2] / count * len(rows)
        times_ours = shown(found[name]) if name in found else "1"
        work = flops[name] / flops["ours"]
        table.append([name, f"{count / min(times):.1f}", f"{per_epoch:.0f}", times_ours, f"{work:.2f}"])
    table.append(
        [f"ours: share of the measured matmul rate ({rate['flops'] / 1e9:.0f} GFLOP/s)", f"{share:.2f}", "", "", ""]
    )
    numbers = {"seconds": seconds, "ratios": found, "flops": flops, "rates": rate, "matmul_share": share}
    columns = [options.model, "rows/s", "s an epoch", "time / ours", "FLOPs / ours"]
    report(f"training-{options.model}", columns, table, numbers, f"training.py --model {options.model}")


if __name__ == "__main__":
    main()
