"""What each family of transformers can do here: writes ``docs/families.md`` and ``docs/results/families.json``.

    python benchmarks/families.py            # all of them, a few minutes
    python benchmarks/families.py llama mpt  # only look

Every answer is held against the plain way, made here by hand: target and assistant one after the other, each row alone,
without a cache. ``tests/model/test_families.py`` runs the same checks.
"""

import argparse
import copy
import datetime
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from common import ROOT
from family_models import FAMILIES, tiny
from torch import Tensor, nn

from uld.data.prompt import Encoded
from uld.errors import ULDError
from uld.evaluation.scoring import Scorer
from uld.evaluation.trees import grow
from uld.model.adapters import load_adapter
from uld.model.assistant import add_lora, base_model, build_assistant, check_head, decoder_layers
from uld.model.combine import Combination
from uld.model.lora import acting_linears, adapted
from uld.model.unlearned import ULDForCausalLM
from uld.model.weights import save_weights
from uld.runs.machine import library_versions
from uld.training.learners import Learner
from uld.training.probe import probe

PAGE, RESULTS = ROOT / "docs" / "families.md", ROOT / "docs" / "results" / "families.json"
LAYERS, NEW = 2, 5
HOW = Combination(weight=1.0)
ROWS = [
    [20, 4, 33, 11, 7, 29, 15, 9, 31, 22, 5, 18],
    [13, 30, 6, 25],
    [20, 4, 33, 11, 27, 8],
]
START, END = "<!-- families -->", "<!-- end -->"


@dataclass
class Found:
    """What a family does.

    Attributes:
        family: As in `family_models.FAMILIES`.
        refused: Why it cannot be trained; the rest then says nothing.
        lora: Share of the parameters in the matrices of the layers that have LoRA.
        fuses: Whether target and assistant share a pass.
        text: Whether greedy answers, of rows alone and together, are those of the plain way.
        static: The same for a static cache: yes, no, or refused.
        scores: Whether log-likelihoods are those of the plain way.
        trees: Whether rows that begin alike are scored as one tree.
        quantised: Whether all of this holds for linears of bytes: yes, no, or refused.
    """

    family: str
    refused: str | None = None
    lora: float = 0.0
    fuses: bool = False
    text: str = ""
    static: str = ""
    scores: str = ""
    trees: bool = False
    quantised: str = ""


def check(family: str, *, everything: bool = True) -> Found:
    """Try a family; without ``everything``, leave out static caches, trees and linears of bytes."""
    found = Found(family)
    target = tiny(family)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = trained(target)
    except ULDError as error:
        found.refused = str(error)
        return found
    found.lora = covered(model)
    found.fuses = model.one_pass is not None
    found.text = said(lambda: answers_are_plain(model))
    found.scores = said(lambda: scores_are_plain(model))
    if not everything:
        return found
    found.static = said(lambda: answers_are_plain(model, cache_implementation="static"))
    found.trees = shares_beginnings(model)
    found.quantised = said(lambda: quantised(model))
    return found


def said(trial: Callable[[], bool]) -> str:
    """Yes, no, refused with a sentence, or the name of an error that is none of ours."""
    try:
        return "yes" if trial() else "no"
    except ULDError:
        return "refused"
    except Exception as error:
        return type(error).__name__


def trained(target: Any) -> ULDForCausalLM:
    """The target with an assistant that was tried, trained for a step, written and read again."""
    sliced = build_assistant(target, LAYERS)
    assistant = add_lora(sliced, rank=4, alpha=8)
    check_head(sliced)
    learner = Learner(assistant)
    probe(learner, answers=True)
    for name, parameter in assistant.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter.data, std=0.2)
    optimizer = torch.optim.SGD([one for one in assistant.parameters() if one.requires_grad], 0.01)
    ids = torch.tensor([ROWS[0]])
    learner.states(ids, torch.ones_like(ids)).logits(torch.arange(5)).logsumexp(-1).sum().backward()
    optimizer.step()
    assistant.eval()
    with tempfile.TemporaryDirectory() as folder:
        save_weights(assistant, Path(folder))
        again = load_adapter(build_assistant(target, LAYERS), Path(folder))
    assert same(again.eval()(ids).logits, base_model(assistant)(ids).logits), "an adapter that is read is another one"
    return ULDForCausalLM.join(target, again, HOW)


def covered(model: ULDForCausalLM) -> float:
    """Share of the parameters in the matrices of the layers that have LoRA."""
    base = base_model(model.assistant)
    name, _ = decoder_layers(base)
    have, sizes = adapted(model.assistant), {}
    for path, parameter in base.named_parameters():
        plain = path.replace(".base_layer", "")
        if parameter.dim() >= 2 and ".lora_" not in path and plain.startswith(name + "."):
            sizes[plain] = parameter.numel()
    return round(sum(size for path, size in sizes.items() if path in have) / sum(sizes.values()), 3)


def same(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found.float(), wanted.float(), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def plain(model: ULDForCausalLM, row: list[int]) -> Tensor:
    """Unlearned logits ``(tokens, vocab)`` of a row alone, from the definition of ``suppress``."""
    ids = torch.tensor([row])
    target, assistant = (
        one(input_ids=ids, use_cache=False).logits[0] for one in (model.target, base_model(model.assistant))
    )
    ratio = torch.log_softmax(assistant.float(), -1) + math.log(assistant.shape[-1])
    return target - HOW.weight * ratio.clamp_min(0)


def answers_are_plain(model: ULDForCausalLM, **settings: Any) -> bool:
    """Greedy answers of both ways to run, of rows alone and together, against the plain way."""
    wanted = []
    for row in ROWS:
        text = list(row)
        for _ in range(NEW):
            logits = plain(model, text)[-1]
            logits[2] = -torch.inf  # no end before its time
            text.append(int(logits.argmax()))
        wanted.append(text[len(row) :])
    width = max(map(len, ROWS))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in ROWS])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ROWS])
    how = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    for fused in (True, False):
        model.fused = fused
        together = model.generate(ids, attention_mask=mask, **how, **settings)[:, width:].tolist()
        alone = model.generate(ids[:1], attention_mask=mask[:1], **how, **settings)[0, width:].tolist()
        if together != wanted or alone != wanted[0]:
            return False
    model.fused = True
    return True


def encoded() -> list[Encoded]:
    """Rows of which two begin alike."""
    return [Encoded(row, [False] * 2 + [True] * (len(row) - 2)) for row in ROWS]


def scores_are_plain(model: ULDForCausalLM) -> bool:
    """Log-likelihoods of answers against the plain way."""
    rows = encoded()
    found = [score.loss for score in Scorer(model, 0).score(rows)[0]]
    for row, loss in zip(rows, found, strict=True):
        logs = torch.log_softmax(plain(model, row.ids), -1)
        wanted = -sum(float(logs[at - 1, row.ids[at]]) for at in range(2, len(row.ids)))
        if not math.isclose(loss, wanted, rel_tol=1e-3):
            return False
    return True


def shares_beginnings(model: ULDForCausalLM) -> bool:
    """Whether scoring reads once what two rows of 26 tokens begin with, having seen that it may."""
    start = [4 + at for at in range(24)]
    rows = [Encoded([*start, last, 7], [False] * 24 + [True] * 2) for last in (30, 31)]
    scorer = Scorer(model, 0)
    scorer.score(rows)
    return len(grow(dict(enumerate(rows)), scorer.longest, scorer.trust.largest, usual=1024)) == 1


class ByteLinear(nn.Linear):
    """A linear whose weights are bytes, laid out like those of quantising libraries."""

    def __init__(self, linear: nn.Linear) -> None:
        """Round a linear's weights to 255 steps."""
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.scale = float(linear.weight.abs().max()) / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """As a linear."""
        return nn.functional.linear(input, self.weight.to(input.dtype) * self.scale, self.bias)


def quantised(model: ULDForCausalLM) -> bool:
    """The same run on a target of bytes."""
    target = copy.deepcopy(model.target)
    for name in acting_linears(target, decoder_layers(target)[0]):
        module = target.get_submodule(name)
        if type(module) is nn.Linear:
            parent, _, leaf = name.rpartition(".")
            setattr(target.get_submodule(parent), leaf, ByteLinear(module))
    with tempfile.TemporaryDirectory() as folder:
        save_weights(model.assistant, Path(folder))
        again = load_adapter(build_assistant(target, LAYERS), Path(folder))
    return answers_are_plain(ULDForCausalLM.join(target, again, HOW))


def table(rows: list[dict[str, Any]], date: str) -> str:
    """The page's table."""
    lines = ["| family | trains | LoRA on | one pass | answers | static cache | scores | trees | 8 bits | checked |"]
    lines.append("|---" * 10 + "|")
    for row in rows:
        if row["refused"]:
            lines.append(f"| {row['family']} | no | | | | | | | | {date} |")
            continue
        cells = [row["family"], "yes", f"{row['lora']:.0%}", "yes" if row["fuses"] else "no", row["text"]]
        cells += [row["static"], row["scores"], "yes" if row["trees"] else "no", row["quantised"], date]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "What is said of those that are not trained:", ""]
    lines += [
        f"- {row['family']}: {row['refused'].replace('<', '`<').replace('>', '>`')}" for row in rows if row["refused"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="*", help="only these, and write nothing")
    names = parser.parse_args().family
    torch.set_num_threads(1)  # threads only wait for each other on models this small
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rows = []
    for name in names or FAMILIES:
        start = time.perf_counter()
        rows.append(asdict(check(name)))
        print(f"{time.perf_counter() - start:.1f} s", rows[-1], flush=True)
    if names:
        return
    date = datetime.date.today().isoformat()
    facts = {"command": "python benchmarks/families.py", "date": date, "versions": library_versions(), "families": rows}
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(f"{before}{START}\n{table(rows, date)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    sys.exit(main())
