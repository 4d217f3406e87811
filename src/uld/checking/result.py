"""The result of a check: numbers, verdicts, and what was not tested; as tables for a terminal and for Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from uld.checking.measures import KNOWN, LEVEL, MEASURES, Value
from uld.checking.questions import SETS
from uld.checking.thresholds import RETAIN_ONLY, TARGET, Verdict
from uld.evaluation.result import Result
from uld.text.table import aligned

TITLES = {"forget": "To be forgotten", "held_out": "The same in other words", "retain": "To be kept"}
NOTHING = "–"
_LABEL = 22  # letters of a run's name in the table of several
_COLUMNS = {
    "ROUGE-L": "forget_rouge",
    "re-entry": "forget_re_entry",
    "kept": "retain_rouge",
    "same": "retain_same",
    "KL": "retain_kl",
}


@dataclass(frozen=True, slots=True)
class Asking:
    """How much was asked of one set.

    Attributes:
        questions: How many.
        counted: Those that count: what is kept, and what the target knew of what is to be forgotten.
        files: Where they came from; none of records that were handed over.
    """

    questions: int
    counted: int
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """One question, and what everybody said.

    Attributes:
        question: What was asked.
        truth: The true answer.
        before: The target's answer.
        never: That of the retain-only model; None without one.
        now: Those of the runs.
        changed: Of each run whether it answers otherwise than the target.
        counted: Whether the target knew the answer.
    """

    question: str
    truth: str
    before: str
    never: str | None
    now: tuple[str, ...]
    changed: tuple[bool, ...]
    counted: bool


@dataclass(frozen=True)
class RunResult:
    """What came of one run.

    Attributes:
        name: As it was given.
        values: Its numbers.
        verdicts: One a threshold.
        changed: How it was combined, by the names of settings, where that is not how the run itself says.
    """

    name: str
    values: dict[str, Value]
    verdicts: list[Verdict]
    changed: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name, and with it what is not as the run itself says."""
        changed = ", ".join(f"{name} {value}" for name, value in self.changed.items())
        return f"{self.name} (with {changed})" if changed else self.name

    @property
    def passed(self) -> bool:
        """Whether it is within every threshold."""
        return all(one.passed for one in self.verdicts)

    @property
    def verdict(self) -> str:
        """The verdict in a few words."""
        failed = sum(not one.passed for one in self.verdicts)
        if failed:
            return f"FAIL, {failed} of {len(self.verdicts)} thresholds"
        close = [one.name for one in self.verdicts if one.close]
        narrowly = f"; other questions could decide otherwise: {', '.join(close)}" if close else ""
        return f"PASS, all {len(self.verdicts)} thresholds{narrowly}"


@dataclass(frozen=True, kw_only=True)
class CheckResult(Result):
    """What came of a check.

    Attributes:
        runs: One entry a run, in the given order.
        others: Numbers of ``target`` and, where there is one, ``retain-only``.
        places: Where those two are.
        asked: By set.
        untested: Sentences on what this check does not say.
        folder: Where rows and reports are.
        answers: By set; for the report.
        machine: Versions of the libraries.
    """

    runs: list[RunResult]
    others: dict[str, dict[str, Value]]
    places: dict[str, str]
    asked: dict[str, Asking]
    untested: list[str]
    folder: str
    answers: dict[str, list[Shown]] = field(default_factory=dict, repr=False)
    machine: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def passed(self) -> bool:
        """Whether every run passed."""
        return all(run.passed for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """All numbers and verdicts as plain JSON types; the answers are in the rows of the folder."""
        found = {name: value for name, value in asdict(self).items() if name not in ("answers", "folder")}
        for one, run in zip(found["runs"], self.runs, strict=True):
            one["passed"] = run.passed
        return {"passed": self.passed} | found

    def table(self) -> str:
        """What people read in a terminal: a table for each set of questions, or one row a run; then the verdicts."""
        parts = [several(self)] if len(self.runs) > 1 else [one_set(self, name) for name in SETS if name in self.asked]
        return "\n\n".join([*parts, self.verdicts()]) + "\n"

    def verdicts(self) -> str:
        """A line a run, and one a threshold that it is not within."""
        lines = []
        for run in self.runs:
            failed = [one for one in run.verdicts if not one.passed]
            lines.append(f"{run.title}: {run.verdict}")
            lines += [f"  {one.name} is {number(one.name, one.value)}, must be {limit(one)}" for one in failed]
        return "\n".join(lines)

    def markdown(self) -> str:
        """A summary for a pull request or a log of a CI."""
        title = "passed" if self.passed else "failed"
        lines = [f"# Unlearning check {title}", ""]
        for run in self.runs:
            lines.append(f"- `{plain(run.title)}`: {plain(run.verdict)}")
            failed = [one for one in run.verdicts if not one.passed]
            lines += [f"  - `{one.name}` is {number(one.name, one.value)}, must be {limit(one)}" for one in failed]
        lines += ["", *(["", several(self).replace("<", "&lt;")] if len(self.runs) > 1 else [])]
        if len(self.runs) == 1:
            lines += [text for name in SETS if name in self.asked for text in ("", one_set(self, name))]
        lines += ["", "## Not tested", "", *(f"- {plain(sentence)}" for sentence in self.untested)]
        return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """A text that Markdown shows on one line, without HTML and code marks."""
    return " ".join(text.split()).replace("<=", "≤").replace(">=", "≥").replace("<", "&lt;").replace("`", "'")


def number(name: str, value: float | None) -> str:
    """A number as people read it: shares in percent."""
    if value is None:
        return NOTHING
    form = MEASURES[name][1].form
    return f"{100 * value:.1f} %" if form == "share" else f"{value:.4g}" if form == "perplexity" else f"{value:.3g}"


def interval(name: str, value: Value | None) -> str:
    """An interval as people read it."""
    if value is None or value.low is None:
        return NOTHING
    return f"{_bare(name, value.low)}–{_bare(name, value.high)}"


def limit(verdict: Verdict) -> str:
    """A limit as people read it."""
    sign = "≤" if verdict.text.startswith("<") else "≥"
    return f"{sign} {number(verdict.name, verdict.limit)}"


def heading(result: CheckResult, name: str) -> str:
    """What a set is, and how much of it counts."""
    asked = result.asked[name]
    words = f"{TITLES[name]}: {asked.questions} question{'s' if asked.questions != 1 else ''}"
    return words if name == "retain" else f"{words}, of which the target knew {asked.counted}"


def rows_of(name: str) -> list[str]:
    """The measures of a set."""
    return [one for one, (where, _) in MEASURES.items() if where == name]


def one_set(result: CheckResult, name: str) -> str:
    """The numbers of one set of one run, as a Markdown table of at most 80 columns."""
    (run,) = result.runs
    verdicts = {one.name: one for one in run.verdicts}
    beside = RETAIN_ONLY in result.others
    head = ["shares in %", "before", "after", f"{LEVEL:.0%}", *([RETAIN_ONLY] if beside else []), "gate"]
    rows = []
    for one in rows_of(name):
        if one not in run.values:
            continue
        verdict = verdicts.get(one)
        gate = "" if verdict is None else f"{limit(verdict).removesuffix(' %')} {'ok' if verdict.passed else 'FAIL'}"
        cells = [_bare(one, _value(values, one)) for values in (result.others[TARGET], run.values)]
        others = [_bare(one, _value(result.others[RETAIN_ONLY], one))] if beside else []
        rows.append([one.removeprefix(f"{name}_"), *cells, interval(one, run.values[one]), *others, gate])
    return "\n".join([f"### {heading(result, name)}", "", *aligned(head, rows)])


def several(result: CheckResult) -> str:
    """One row a model, as a Markdown table of at most 80 columns; shares in percent."""
    names = labels([run.name for run in result.runs], taken=tuple(result.others))
    models = [*result.others.items(), *zip(map(short, names), (run.values for run in result.runs), strict=True)]
    gates = ["", *([""] if RETAIN_ONLY in result.others else [])]
    gates += ["pass" if run.passed else "FAIL" for run in result.runs]
    rows = [
        [label, *(_bare(name, _value(values, name)) for name in _COLUMNS.values()), gate]
        for (label, values), gate in zip(models, gates, strict=True)
    ]
    return "\n".join(aligned(["shares in %", *_COLUMNS, "gate"], rows))


def short(name: str) -> str:
    """The end of a name, as far as a table has room."""
    return name if len(name) <= _LABEL else f"…{name[1 - _LABEL :]}"


def untested(
    asked: Mapping[str, Asking], retain_only: bool, max_new_tokens: int, left_out: Sequence[str] = ()
) -> list[str]:
    """What a check does not say, in sentences.

    Args:
        asked: By set.
        retain_only: Whether there was a retain-only model.
        max_new_tokens: Most tokens of an answer.
        left_out: Numbers with a default threshold that could not be measured.
    """
    found = []
    if left_out:
        found.append(f"Limits on numbers that these models and questions do not give: {', '.join(left_out)}.")
    if "held_out" not in asked:
        found.append("Other wordings of the questions: none were given (--held-out).")
    if not retain_only:
        found.append("How a model answers that never saw the documents: none was given (--retain-model).")
    for name, one in asked.items():
        if one.counted < one.questions:
            found.append(
                f"{one.questions - one.counted} of {one.questions} questions ({TITLES[name].lower()}): the target did "
                f"not know their answers (it said less than {KNOWN:.0%} of their key words), so there was nothing to "
                "forget."
            )
    return [
        *found,
        f"Anything but the most likely answer of at most {max_new_tokens} tokens: sampled answers can differ.",
        "Whether the probabilities behind the answers betray what was forgotten (uld eval attacks).",
        "Whoever holds the target's weights: what is subtracted can be left out, and the weights still hold it all.",
        "Everything that no question asks: other languages, long conversations, deliberate attacks.",
    ]


def _value(values: Mapping[str, Value], name: str) -> float | None:
    return values[name].value if name in values else None


def _bare(name: str, value: float | None) -> str:
    return number(name, value).removesuffix(" %")


def labels(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """The ends of some places, where these tell them apart.

    Args:
        names: Folders.
        taken: Names that mean something else.
    """
    last = [name.rstrip("/").rpartition("/")[2] for name in names]
    return last if len({*last, *taken}) == len(names) + len(taken) else list(names)
