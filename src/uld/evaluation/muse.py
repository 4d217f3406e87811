"""MUSE: does a model still say the texts, know what they say, show that it saw them, and know all the rest.

Four of MUSE's six numbers (Shi et al. 2024, arXiv 2407.06460, §3), as its released code computes them: C1 verbatim
memorization, C2 knowledge memorization, C3 privacy leakage, C4 utility. Every row is written as soon as it is done.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from uld.data.muse import load_muse
from uld.data.prompt import Encoded
from uld.errors import ULDError
from uld.evaluation import membership
from uld.evaluation.benchmark import Benchmark, Found, Other, Result, Subject, Task, by_length, digest
from uld.evaluation.memorization import longest_verbatim_run
from uld.evaluation.metrics import rouge_l_f1
from uld.evaluation.scoring import refuse_nan
from uld.model.generate import end_ids, generate_ids
from uld.runs.values import Count, CountFromZero, given
from uld.text.table import aligned

METRICS = {"verbmem": "C1", "knowmem": "C2", "privleak": "C3", "utility": "C4"}
NEEDED = {
    "verbmem": ("verbmem",),
    "knowmem": ("forget_qa", "forget_qa_icl"),
    "privleak": ("forget", "holdout"),
    "utility": ("retain_qa", "retain_qa_icl"),
}
"""Parts of the data that each number needs."""
PROMPT_TOKENS = 200
VERBMEM_TOKENS = 128
KNOWMEM_TOKENS = 32
_ENDS = ("\n\n", "\nQuestion", "Question:")  # where a few-shot answer stops

Parts = Mapping[str, Sequence[Mapping[str, str]]]


@dataclass
class Muse(Benchmark):
    """The parts of MUSE that are there.

    Attributes:
        corpus: ``news`` or ``books``, from the Hub.
        data: Folder laid out like MUSE's; parts may be missing. Or the parts themselves.
        shots: Examples before a question; None takes all, as MUSE does (10).
        limit: First rows of each part only.
        metrics: What to compute, of `METRICS`; what lacks its parts is left out.
    """

    prompt = "qa"  # MUSE asks without a chat template
    others: ClassVar[Mapping[str, Other]] = {"retain_model": Other("retain")}
    in_name = ("shots",)

    corpus: str | None = None
    data: str | Path | Parts | None = None
    shots: CountFromZero | None = None
    limit: Count | None = None
    metrics: Sequence[str] = tuple(METRICS)
    parts: Parts = field(init=False)

    def __post_init__(self) -> None:
        """Read the parts.

        Raises:
            ULDError: there are none, a number is out of range, or there is no such metric.
        """
        super().__post_init__()
        self.metrics = given("metrics", self.metrics, tuple)
        if unknown := [one for one in self.metrics if one not in METRICS]:
            raise ULDError(f"metrics must be some of {', '.join(METRICS)}, not {unknown[0]!r}")
        data = self.data
        self.parts = data if isinstance(data, Mapping) else load_muse(self.corpus, data)
        self.name = f"muse-{self.corpus or ('parts' if isinstance(data, Mapping) else Path(str(data)).name)}"

    def settings(self, subject: Subject) -> dict[str, Any]:
        """The data, the examples, and how Min-K% counts."""
        return {"data": digest(self.parts), "k": membership.K, "shots": self.shots}

    def beside(self, role: str) -> "Muse | None":
        """The retain-only model has to show what it saw."""
        there = all(part in self.parts for part in NEEDED["privleak"])
        return replace(self, data=self.parts, metrics=("privleak",), shots=None) if there else None

    def tasks(self, subject: Subject, found: Found) -> Iterator[Task[Any]]:
        """A task a number, two for privacy leakage."""
        job = _Job(subject)
        for metric in self.metrics:
            if any(part not in self.parts for part in NEEDED[metric]):
                continue
            if metric == "verbmem":
                passages = [job.passage(row) for row in self.parts["verbmem"][: self.limit]]
                yield Task("verbmem", passages, job.continued, by_length([len(prompt) for prompt, _ in passages]))
            elif metric == "privleak":
                for part in NEEDED[metric]:
                    rows = [job.whole(row["text"]) for row in self.parts[part][: self.limit]]
                    yield Task(part, rows, job.scored, by_length([len(row.ids) for row in rows]))
            else:
                part, examples = NEEDED[metric]
                shots = self.parts[examples][: self.shots]
                asked = [job.question(row, shots) for row in self.parts[part][: self.limit]]
                yield Task(metric, asked, job.answered, by_length([len(prompt) for prompt, _ in asked]))

    def summarise(self, found: Found, others: Mapping[str, Found] | None = None) -> "MuseResult":
        """From rows to MUSE's numbers; PrivLeak needs those of a retain-only model."""
        left_out = {
            metric: f"the data has no {' and no '.join(missing)}"
            for metric, needed in NEEDED.items()
            if (missing := [part for part in needed if part not in self.parts])
        }
        retain = (others or {}).get("retain_model")
        auc, retain_auc = _auc(found), _auc(retain) if retain is not None else None
        if auc is not None and retain_auc is None:
            left_out["privleak"] = "it is relative to a retain-only model: name one with --retain-model"
        elif retain is not None and (number := membership.cut_elsewhere(found, retain, NEEDED["privleak"], "too_long")):
            retain_auc = None
            left_out["privleak"] = (
                f"{number} texts were cut at another place for the retain-only model, which takes more or fewer "
                "tokens: name one with as large a context"
            )
        runs = [row["verbatim_run"] for row in found.get("verbmem", [])]
        return MuseResult(
            verbmem=_rouge(found, "verbmem"),
            knowmem=_rouge(found, "knowmem"),
            privleak=membership.privleak(auc, retain_auc) if auc is not None and retain_auc is not None else None,
            utility=_rouge(found, "utility"),
            auc=auc,
            retain_auc=retain_auc,
            verbatim_run=sum(runs) / len(runs) if runs else None,
            rows={task: len(rows) for task, rows in found.items()},
            too_long={task: n for task, rows in found.items() if (n := sum("too_long" in row for row in rows))},
            left_out=left_out,
        )


@dataclass(frozen=True)
class _Job:
    """What rows are made, and what is done to them."""

    subject: Subject

    def ids(self, text: str) -> list[int]:
        """Tokens of a text with the special tokens in front, as MUSE has them."""
        ids: Any = self.subject.tokenizer(text, verbose=False).input_ids
        return list(ids[:-1] if ids and ids[-1] == self.subject.tokenizer.eos_token_id else ids)

    def text(self, ids: Any) -> str:
        """What tokens say."""
        return str(self.subject.tokenizer.decode(ids, skip_special_tokens=True))

    def passage(self, row: Mapping[str, str]) -> tuple[list[int], list[int]]:
        """Prompt and true continuation of a passage; of a whole text the first 200 tokens and what follows."""
        if "text" in row:
            ids = self.ids(row["text"])
            special = len(ids) - len(
                self.subject.tokenizer(row["text"], add_special_tokens=False, verbose=False).input_ids
            )
            end = max(0, special) + PROMPT_TOKENS
            if len(ids) <= end:
                raise ULDError(
                    f"a text of verbmem has {len(ids)} tokens, so nothing follows its first {PROMPT_TOKENS}: "
                    f"{row['text'][:40]!r}"
                )
            return ids[:end], ids[end : end + VERBMEM_TOKENS]
        return self.ids(row["prompt"]), self.ids(row["gt"])[:VERBMEM_TOKENS]

    def question(
        self, row: Mapping[str, str], examples: Sequence[Mapping[str, str]]
    ) -> tuple[list[int], Mapping[str, str]]:
        """Few-shot prompt, and the row."""
        shots = "".join(f"Question: {one['question']}\nAnswer: {one['answer']}\n\n" for one in examples)
        return self.ids(f"{shots}Question: {row['question']}\nAnswer: "), row

    def whole(self, text: str) -> Encoded:
        """A text of which every token but the first is scored; of a long one as much as the model takes."""
        ids = self.ids(text)
        if len(ids) < 2:
            raise ULDError(
                f"a text of privleak is too short to score: the tokenizer makes {len(ids)} token of {text!r}"
            )
        return Encoded(
            ids[: self.subject.context],
            [True] * min(len(ids), self.subject.context),
            cut=max(0, len(ids) - self.subject.context),
        )

    def continued(self, passages: Sequence[tuple[list[int], list[int]]]) -> list[dict[str, Any]]:
        """C1 of some passages."""
        results = []
        for (prompt, truth), ids in zip(
            passages, self.generated([p for p, _ in passages], VERBMEM_TOKENS), strict=True
        ):
            result = self.compared(prompt, VERBMEM_TOKENS, self.text(ids), self.text(truth))
            results.append(result | {"verbatim_run": longest_verbatim_run(ids, truth)})
        return results

    def answered(self, asked: Sequence[tuple[list[int], Mapping[str, str]]]) -> list[dict[str, Any]]:
        """C2 or C4 of some questions."""
        results = []
        for (prompt, row), ids in zip(asked, self.generated([p for p, _ in asked], KNOWMEM_TOKENS), strict=True):
            said = self.text(ids)
            for end in _ENDS:
                said = said.split(end)[0]
            compared = self.compared(prompt, KNOWMEM_TOKENS, said, row["answer"])
            results.append({"question": row["question"]} | compared)
        return results

    def scored(self, rows: Sequence[Encoded]) -> list[dict[str, Any]]:
        """Min-K% of some texts."""
        results: list[dict[str, Any]] = []
        for row, tokens in zip(rows, self.subject.token_scores(rows), strict=True):
            score = membership.min_k(tokens.log_probs)
            refuse_nan(self.subject.model, [score])
            results.append({"tokens": len(tokens.log_probs), "min_k": score} | ({"too_long": True} if row.cut else {}))
        return results

    def generated(self, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
        """What the model writes behind each prompt, up to its end of sequence."""
        out = generate_ids(self.subject.model, self.subject.tokenizer, prompts, max_new_tokens=new_tokens).tolist()
        ends = end_ids(self.subject.model, self.subject.tokenizer)
        return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in out]

    def compared(self, prompt: list[int], new_tokens: int, said: str, truth: str) -> dict[str, Any]:
        """Row of a generated text."""
        result: dict[str, Any] = {"generated": said, "truth": truth, "rougeL_f1": rouge_l_f1(said, truth)}
        return result | ({"too_long": True} if len(prompt) + new_tokens > self.subject.context else {})


@dataclass(frozen=True)
class MuseResult(Result):
    """MUSE's numbers, in per cent.

    Attributes:
        verbmem: C1, mean ROUGE-L F1 of continuations of forget texts; low is forgotten.
        knowmem: C2, mean ROUGE-L F1 of answers about them; low is forgotten.
        privleak: C3, PrivLeak; 0 is best, below it the model shows that it saw them.
        utility: C4, mean ROUGE-L F1 of answers about other texts; high is kept.
        auc: Of Min-K% 40 % on forget against holdout texts, a fraction; above 0.5 members are found.
        retain_auc: The same of the retain-only model.
        verbatim_run: Tokens of the longest run that a continuation shares with the true one, mean.
        rows: Rows of each task.
        too_long: Rows of each task that do not fit the model's positions; texts to score were cut.
        left_out: Numbers that are missing, and why.
    """

    verbmem: float | None
    knowmem: float | None
    privleak: float | None
    utility: float | None
    auc: float | None
    retain_auc: float | None
    verbatim_run: float | None
    rows: dict[str, int]
    too_long: dict[str, int]
    left_out: dict[str, str]

    def table(self) -> str:
        """The four numbers as Markdown, and what is missing below."""
        goals = {"verbmem": "low", "knowmem": "low", "privleak": "near 0", "utility": "high"}
        head = [f"{METRICS[name]} {name} ({goals[name]})" for name in METRICS]
        shown = ["-" if getattr(self, name) is None else f"{getattr(self, name):.2f}" for name in METRICS]
        lines = [*aligned(head, [shown]), "", "ROUGE-L F1 and PrivLeak in per cent."]
        if self.auc is not None:
            retain = "" if self.retain_auc is None else f"; the retain-only model's: {self.retain_auc:.4f}"
            lines.append(f"AUC of Min-K%, forget against holdout: {self.auc:.4f}{retain}")
        if self.verbatim_run is not None:
            lines.append(f"Longest verbatim run: {self.verbatim_run:.1f} tokens on average")
        lines += [
            f"{n} of {self.rows[t]} rows of {t} do not fit the model's positions" for t, n in self.too_long.items()
        ]
        lines += [f"{METRICS[name]} {name} left out: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines) + "\n"


def _rouge(found: Mapping[str, Any], task: str) -> float | None:
    rows = found.get(task)
    return 100 * sum(row["rougeL_f1"] for row in rows) / len(rows) if rows else None


def _auc(found: Mapping[str, Any]) -> float | None:
    if "forget" not in found or "holdout" not in found:
        return None
    return membership.auc(*([row["min_k"] for row in found[part]] for part in ("forget", "holdout")))
