"""Membership-inference attacks on a model: texts that it was trained on against texts that it was not.

Every text is scored as training would see it (answers behind their questions, texts whole, end of sequence included)
and its scores are written as soon as they are there. The arithmetic is in `uld.evaluation.membership`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import Record
from uld.errors import ULDError
from uld.evaluation import membership
from uld.evaluation.resume import begin, complete
from uld.evaluation.scoring import Scorer, refuse_nan
from uld.evaluation.token_scores import attack_scores, token_scores
from uld.model.context import context_length
from uld.model.generate import length_batches
from uld.text.table import aligned

SETS = ("members", "non_members")
ATTACKS = ("loss", "zlib", "min_k", "min_k++", "gradnorm", "reference")

Scores = Mapping[str, Sequence[Mapping[str, Any]]]


def score_sets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    members: Sequence[Record],
    non_members: Sequence[Record],
    output: str | Path,
    *,
    template: str | None = None,
    gradnorm: bool = False,
    max_length: int | None = None,
    progress: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """Score every text of both sets, or go on where an evaluation was stopped.

    Args:
        model: Any causal LM.
        tokenizer: Its tokenizer.
        members: What the model was trained on.
        non_members: What it was not, of the same kind.
        output: Folder for the scores; texts already in it are not scored again.
        template: Prompt template; None takes the tokenizer's chat template.
        gradnorm: Whether to take the norm of each text's gradient: a backward pass a text.
        max_length: Only a text's first tokens count, never more than the model has positions for; None: as many.
        progress: Show a progress bar.

    Returns:
        For each of `SETS` an entry a text: ``tokens`` that carry a loss, ``cut`` where it was too long, and a score an
        attack (all but ``reference``, which takes two models).

    Raises:
        ULDError: an empty set, a text in both, a text that cannot be encoded, a model that gives NaN, or a folder with
            the results of other settings.
    """
    _refuse_shared(members, non_members)
    form = PromptFormat(tokenizer, template)
    context = context_length(model)
    longest = min(max_length or context, context)
    given = [[record.content for record in records] for records in (members, non_members)]
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
    output = begin(output, model, form, data=digest, max_length=longest, k=membership.K)
    job = _Job(model, tokenizer, gradnorm)
    found = {}
    for name, records in zip(SETS, (members, non_members), strict=True):
        rows = [_encoded(form, record, longest) for record in records]
        found[name] = complete(
            Path(output),
            name,
            list(length_batches([len(row.ids) for row in rows])),
            lambda batch, rows=rows: job.score([rows[i] for i in batch]),
            device=model.device.type,
            finished=lambda _, result: "gradnorm" in result or not gradnorm,
            progress=progress,
        )
    return found


def _refuse_shared(members: Sequence[Record], non_members: Sequence[Record]) -> None:
    for name, records in zip(("members", "non-members"), (members, non_members), strict=True):
        if not records:
            raise ULDError(f"there are no {name}: an attack compares two sets of texts")
    known = {record.same: record.source for record in members}
    if shared := [record for record in non_members if record.same in known]:
        first = shared[0]
        raise ULDError(
            f"{len(shared)} texts are members and non-members at once ({known[first.same]} and {first.source}): "
            "take them out of one of the two"
        )


def _encoded(form: PromptFormat, record: Record, max_length: int) -> Encoded:
    """One row of a record, of which only the first tokens count."""
    if record.text is None:
        return form.encode(record, max_length)
    row = form.chunks(record.text, 2**31, record.source)[0]
    return Encoded(row.ids[:max_length], row.learn[:max_length], cut=max(0, len(row.ids) - max_length))


@dataclass(frozen=True)
class _Job:
    """What is done to every text."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    gradnorm: bool

    @cached_property
    def scorer(self) -> Scorer:
        """Made when the first text needs it."""
        return Scorer.of(self.model, self.tokenizer)

    def score(self, rows: Sequence[Encoded]) -> list[dict[str, Any]]:
        """Scores of some texts."""
        results = []
        for row, tokens in zip(rows, token_scores(self.scorer, rows), strict=True):
            whole = True in row.learn[:2]  # no prompt: nothing predicts the first token, but it is part of the text
            said = [token for token, learn in zip(row.ids, row.learn, strict=True) if learn or whole]
            text: Any = self.tokenizer.decode(said, skip_special_tokens=True)
            result: dict[str, Any] = {"tokens": len(tokens.log_probs), **attack_scores(tokens, text)}
            if row.cut:
                result["cut"] = row.cut
            if self.gradnorm:
                result["gradnorm"] = gradient_norm(self.scorer, row)
            refuse_nan(self.model, result.values())
            results.append(result)
        return results


def gradient_norm(scorer: Scorer, row: Encoded) -> float:
    """GradNorm: how much a text would still change the model, ``mean_w ‖∂ loss / ∂w‖₂`` over its weight tensors w.

    Of an unlearned model the weights are the target's and the adapters', each once. Source: Wang et al. 2024, arXiv
    2402.17012, with open-unlearning's mean over tensors.

    Args:
        scorer: Of the model.
        row: The text.
    """
    weights = [one for one in scorer.model.parameters() if one.is_floating_point()]
    before = [one.requires_grad for one in weights]
    try:
        for one in weights:
            one.requires_grad_(True)
        gradients = torch.autograd.grad(scorer.mean_loss(row), weights, allow_unused=True)
    finally:
        for one, wanted in zip(weights, before, strict=True):
            one.requires_grad_(wanted)
    return float(torch.stack([one.float().norm() for one in gradients if one is not None]).mean())


@dataclass(frozen=True)
class Attack:
    """How well one attack tells members from other texts.

    Attributes:
        auc: Area under the ROC curve, 0.5 where it tells nothing.
        tpr: Share of members found at a false-positive rate of 1 %.
        member_score: Mean score of the members.
        other_score: Mean score of the others.
        retain_auc: The same attack's AUC on a retain-only model.
        privleak: PrivLeak against it, per cent.
    """

    auc: float
    tpr: float
    member_score: float
    other_score: float
    retain_auc: float | None = None
    privleak: float | None = None


@dataclass(frozen=True)
class AttackResult:
    """All attacks on one model.

    Attributes:
        attacks: By name.
        members: Number of members.
        non_members: Number of other texts.
        cut: Texts that were longer than what counted of them.
        left_out: Attacks that were not run, and why.
    """

    attacks: dict[str, Attack]
    members: int
    non_members: int
    cut: int
    left_out: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return vars(self) | {"attacks": {name: vars(one) for name, one in self.attacks.items()}}

    def table(self) -> str:
        """A line an attack, as Markdown, and what is missing below."""
        compared = any(one.retain_auc is not None for one in self.attacks.values())
        head = ("attack", "AUC", "TPR at 1 % FPR", "members", "non-members")
        rows = [
            [name, f"{a.auc:.4f}", f"{a.tpr:.4f}", f"{a.member_score:.4g}", f"{a.other_score:.4g}"]
            + ([_shown(a.retain_auc, ".4f"), _shown(a.privleak, "+.2f")] if compared else [])
            for name, a in self.attacks.items()
        ]
        lines = aligned((*head, "retain AUC", "PrivLeak (%)") if compared else head, rows)
        lines += [
            "",
            f"{self.members} members, {self.non_members} non-members; scores are means, lower for known texts",
        ]
        if self.cut:
            lines.append(f"{self.cut} texts were too long: only their first tokens counted")
        lines += [f"{name} left out: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines) + "\n"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def attack_result(scores: Scores, reference: Scores | None = None, retain: Scores | None = None) -> AttackResult:
    """From scores to AUCs.

    Args:
        scores: From `score_sets`, of the model under attack.
        reference: Of a model that was trained on neither set, for the reference attack.
        retain: Of a retain-only model, for PrivLeak.
    """
    ours, theirs = _columns(scores, reference), _columns(retain, reference) if retain is not None else {}
    attacks = {}
    for name, (member, other) in ours.items():
        auc = membership.auc(member, other)
        retain_auc = membership.auc(*theirs[name]) if name in theirs else None
        attacks[name] = Attack(
            auc=auc,
            tpr=membership.true_positive_rate(member, other),
            member_score=sum(member) / len(member),
            other_score=sum(other) / len(other),
            retain_auc=retain_auc,
            privleak=None if retain_auc is None else membership.privleak(auc, retain_auc),
        )
    why = {"gradnorm": "ask for it with --gradnorm", "reference": "it needs --reference-model"}
    return AttackResult(
        attacks=attacks,
        members=len(scores["members"]),
        non_members=len(scores["non_members"]),
        cut=sum("cut" in row for name in SETS for row in scores[name]),
        left_out={name: why[name] for name in ATTACKS if name not in attacks},
    )


def _columns(scores: Scores, reference: Scores | None) -> dict[str, list[list[float]]]:
    """For each attack the scores of members and of others."""
    names = [name for name in ATTACKS if all(name in row for one in SETS for row in scores[one])]
    columns = {name: [[row[name] for row in scores[one]] for one in SETS] for name in names}
    if reference is not None:
        columns["reference"] = [
            [membership.reference([-a["loss"]], [-b["loss"]]) for a, b in zip(scores[one], reference[one], strict=True)]
            for one in SETS
        ]
    return columns
