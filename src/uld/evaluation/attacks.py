"""Membership-inference attacks on a model: texts that it was trained on against texts that it was not.

Every text is scored as training would see it (answers behind their questions, texts whole, end of sequence included)
and its scores are written as soon as they are there. The arithmetic is in `uld.evaluation.membership`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from uld.data.documents import Source, listed, read_records
from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import Record
from uld.errors import ULDError
from uld.evaluation import membership
from uld.evaluation.benchmark import Benchmark, Found, Other, Result, Subject, Task, by_length, digest
from uld.evaluation.scoring import Scorer, refuse_nan
from uld.evaluation.token_scores import attack_scores
from uld.model.generate import BATCH_TOKENS
from uld.runs.values import Count, Length
from uld.text.table import aligned

SETS = ("members", "non_members")
ATTACKS = ("loss", "zlib", "min_k", "min_k++", "gradnorm", "reference")

Scores = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass
class Attacks(Benchmark):
    """Two sets of texts.

    Attributes:
        members: What the model was trained on: files and folders, or records.
        non_members: What it was not, of the same kind.
        gradnorm: Whether to take the norm of each text's gradient: a backward pass a text.
        max_length: Only a text's first tokens count, never more than the model has positions for; None: as many.
        limit: First texts of each set only.
    """

    others: ClassVar[Mapping[str, Other]] = {
        "reference_model": Other("reference-model"),
        "retain_model": Other("retain-model"),
    }
    in_name = ("limit", "max_length")
    documents = SETS

    members: Source | Sequence[Source]
    non_members: Source | Sequence[Source]
    gradnorm: bool = False
    max_length: Length | None = None
    limit: Count | None = None
    sets: dict[str, list[Record]] = field(init=False)

    def __post_init__(self) -> None:
        """Read both sets.

        Raises:
            ULDError: an empty one, a text in both, or a number out of range.
        """
        super().__post_init__()
        given = (listed(self.members), listed(self.non_members))
        self.sets = {name: read_records(texts)[: self.limit] for name, texts in zip(SETS, given, strict=True)}
        _refuse_shared(*self.sets.values())
        firsts = (one.source if isinstance(one, Record) else one for one, *_ in given)
        self.name = "-".join(["attacks", *(Path(first).stem for first in firsts)])

    def settings(self, subject: Subject) -> dict[str, Any]:
        """The texts, as far as they count, and how Min-K% does."""
        given = [[record.exact for record in records] for records in self.sets.values()]
        return {"data": digest(given), "max_length": self._longest(subject), "k": membership.K}

    def beside(self, role: str) -> "Attacks":
        """The reference attack takes nothing but losses."""
        return replace(self, **self.sets, gradnorm=self.gradnorm and role == "retain_model")

    def tasks(self, subject: Subject, found: Found) -> Iterator[Task[Encoded]]:
        """A task a set."""
        for name, records in self.sets.items():
            rows = [_encoded(subject.form, record, self._longest(subject)) for record in records]
            yield Task(
                name,
                rows,
                lambda some: self.work(subject, some),
                by_length([len(row.ids) for row in rows], BATCH_TOKENS),
                finished=lambda _, result: "gradnorm" in result or not self.gradnorm,
            )

    def _longest(self, subject: Subject) -> int:
        return min(self.max_length or subject.context, subject.context)

    def work(self, subject: Subject, rows: Sequence[Encoded]) -> list[dict[str, Any]]:
        """For each text ``tokens`` that carry a loss, ``cut`` where it was too long, and a score an attack.

        All attacks but ``reference``, which takes two models.
        """
        results = []
        for row, tokens in zip(rows, subject.token_scores(rows), strict=True):
            whole = True in row.learn[:2]  # no prompt: nothing predicts the first token, but it is part of the text
            said = [token for token, learn in zip(row.ids, row.learn, strict=True) if learn or whole]
            text: Any = subject.tokenizer.decode(said, skip_special_tokens=True)
            result: dict[str, Any] = {"tokens": len(tokens.log_probs), **attack_scores(tokens, text)}
            if row.cut:
                result["cut"] = row.cut
            if self.gradnorm:
                result["gradnorm"] = gradient_norm(subject.scorer, row)
            refuse_nan(subject.model, result.values())
            results.append(result)
        return results

    def summarise(self, found: Found, others: Mapping[str, Found] | None = None) -> "AttackResult":
        """From scores to AUCs."""
        beside = others or {}
        return attack_result(found, beside.get("reference_model"), beside.get("retain_model"))


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
class AttackResult(Result):
    """All attacks on one model.

    Attributes:
        attacks: By name.
        members: Number of members.
        non_members: Number of other texts.
        cut: Texts that were longer than what counted of them.
        left_out: Attacks that were not run, and comparisons that cannot be made, and why.
    """

    attacks: dict[str, Attack]
    members: int
    non_members: int
    cut: int
    left_out: dict[str, str]

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
        scores: Of the model under attack.
        reference: Of a model that was trained on neither set, for the reference attack.
        retain: Of a retain-only model, for PrivLeak.
    """
    why = {"gradnorm": "ask for it with --gradnorm", "reference": "it needs --reference-model"}
    if reference is not None and (number := membership.cut_elsewhere(scores, reference, SETS, "cut")):
        reference, why["reference"] = None, _uneven(number, "reference")
    if retain is not None and (number := membership.cut_elsewhere(scores, retain, SETS, "cut")):
        retain, why["PrivLeak"] = None, _uneven(number, "retain-only")
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
    return AttackResult(
        attacks=attacks,
        members=len(scores["members"]),
        non_members=len(scores["non_members"]),
        cut=sum("cut" in row for name in SETS for row in scores[name]),
        left_out={name: why[name] for name in (*ATTACKS, "PrivLeak") if name in why and name not in attacks},
    )


def _uneven(number: int, other: str) -> str:
    texts = "1 text was" if number == 1 else f"{number} texts were"
    return (
        f"{texts} cut at another place for the {other} model, which takes more or fewer tokens: name what both take "
        "with --max-length"
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
