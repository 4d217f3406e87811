"""What a check leaves for people and for a CI: one page, a Markdown summary, JUnit XML, and all numbers as JSON."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from uld.checking.measures import LEVEL, MEASURES, Value
from uld.checking.result import (
    NOTHING,
    TITLES,
    CheckResult,
    RunResult,
    Shown,
    heading,
    interval,
    labels,
    limit,
    number,
    rows_of,
)
from uld.checking.thresholds import RETAIN_ONLY, TARGET, Verdict
from uld.data.prompt import spread
from uld.errors import ArtifactError
from uld.report.html import rendered
from uld.runs.card import note_check
from uld.runs.files import put, write_text
from uld.runs.manifest import is_run
from uld.text.json_text import dumps
from uld.text.terminal import visible
from uld.training.settings import is_first_process

logger = logging.getLogger(__name__)

_HEAD = 4096  # bytes in which a file of JUnit says what it is
SHOWN = 40
"""Questions of a set that the page quotes."""
NAMES = ("thresholds.yaml", "report.html", "summary.md", "junit.xml", "result.json")


def write_reports(result: CheckResult, thresholds: str, folder: Path) -> None:
    """Write all of `NAMES`, the numbers last; the first of several processes does.

    Args:
        result: What came of the check.
        thresholds: What it was held against, as YAML.
        folder: The check's.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    if not is_first_process():
        return
    numbers = dumps(result.to_dict(), indent=2) + "\n"
    texts = (thresholds, page(result), result.markdown(), junit(result), numbers)
    for name, text in zip(NAMES, texts, strict=True):
        write_text(folder / name, text)
    for run in result.runs:
        if is_run(run.name) and not run.changed:  # else another model was checked than whoever loads it gets
            try:
                note_check(run.name, passed=run.passed, sentence=f"{run.verdict}.")
            except ArtifactError as error:  # a run may lie where nobody may write
                logger.warning("%s: the check is not noted there", error)


def refuse_junit(path: Path) -> None:
    """Refuse a place for JUnit XML in which something else is; results of before are replaced.

    Raises:
        ArtifactError: it is a folder, or another file.
    """
    if path.is_dir():
        raise ArtifactError(f"--junit {path} is a folder: name a file in it")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            beginning = file.read(_HEAD)
        if b"<testsuite" not in beginning:
            raise ArtifactError(f"--junit {path} exists already and holds no JUnit XML: name another file")


def write_junit(result: CheckResult, path: Path) -> None:
    """Write JUnit XML into a file of its own; `refuse_junit` says where it may be.

    Raises:
        ArtifactError: it cannot be written there.
    """
    refuse_junit(path)
    put(path, junit(result))


def junit(result: CheckResult) -> str:
    """JUnit XML: a suite a run, a case a threshold."""
    failures = [len([one for one in run.verdicts if not one.passed]) for run in result.runs]
    total = str(sum(len(run.verdicts) for run in result.runs))
    root = ElementTree.Element("testsuites", name="uld check", tests=total, failures=str(sum(failures)), errors="0")
    for run, failed in zip(result.runs, failures, strict=True):
        counts = {"tests": str(len(run.verdicts)), "failures": str(failed), "errors": "0", "skipped": "0"}
        suite = ElementTree.SubElement(root, "testsuite", {"name": visible(run.title), **counts})
        for one in run.verdicts:
            case = ElementTree.SubElement(
                suite, "testcase", classname=visible(run.title), name=f"{one.name} {one.text}"
            )
            said = f"{one.name} is {number(one.name, one.value)}, and must be {limit(one)}"
            if not one.passed:
                ElementTree.SubElement(case, "failure", message=said, type="threshold").text = said
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


@dataclass(frozen=True)
class _Line:
    """A line of the page's table of one run: what a number is, its values as texts, and what the gate says."""

    title: str
    name: str
    before: str
    after: str
    interval: str
    never: str
    limit: str
    verdict: Verdict | None


def page(result: CheckResult) -> str:
    """The report as one self-contained page. Everything that comes from files and models is escaped."""
    quoted = {name: _quoted(name, shown) for name, shown in result.answers.items()}
    return rendered(
        "uld.checking",
        "check.html.j2",
        result=result,
        titles=TITLES,
        headings={name: heading(result, name) for name in result.asked},
        level=f"{LEVEL:.0%}",
        beside=RETAIN_ONLY in result.others,
        tables=[(run, {name: _lines(result, run, name) for name in result.asked}) for run in result.runs],
        quoted=quoted,
        gone=[name for name in ("forget", "held_out") if name in result.asked],
        names=labels([run.name for run in result.runs], taken=tuple(result.others)),
        sentences=[_sentences(result, run) for run in result.runs],
        changes=[sum(one.changed[at] for one in result.answers["retain"]) for at in range(len(result.runs))],
    )


def _sentences(result: CheckResult, run: RunResult) -> list[str]:
    """What came of a run, in words; and which limits it is beyond."""
    before = result.others[TARGET]
    found = []
    for name in ("forget", "held_out"):
        if (one := f"{name}_re_entry") in run.values:
            asked = "in other words" if name == "held_out" else "of what is to be forgotten"
            found.append(
                f"Asked {asked}, {number(one, run.values[one].value)} of the answers hold a key word of the true one; "
                f"before it was {number(one, before[one].value)}."
            )
    found.append(
        f"Of what is to be kept, {number('retain_same', run.values['retain_same'].value)} is answered as before."
    )
    for name in result.asked:
        failed = [one for one in run.verdicts if not one.passed and MEASURES[one.name][0] == name]
        if failed:
            words = "; ".join(f"{MEASURES[one.name][1].title} (must be {limit(one)})" for one in failed)
            found.append(f"Beyond the limits – {TITLES[name].lower()}: {words}.")
    return [_tied(one) for one in found]


def _tied(text: str) -> str:
    """A text in which no line ends between a number and what it counts."""
    return text.replace(" %", "\u00a0%").replace("≤ ", "≤\u00a0").replace("≥ ", "≥\u00a0")


def _quoted(name: str, shown: Sequence[Shown]) -> list[Shown]:
    """The questions that the page quotes: of what is kept those that changed first, of the rest those that count."""
    first = [one for one in shown if (any(one.changed) if name == "retain" else one.counted)]
    rest = [one for one in shown if one not in first]
    chosen = spread(first, SHOWN)
    return chosen + spread(rest, max(0, min(SHOWN - len(chosen), SHOWN // 4)))


def _lines(result: CheckResult, run: RunResult, name: str) -> list[_Line]:
    verdicts = {one.name: one for one in run.verdicts}

    def text(values: dict[str, Value], one: str) -> str:
        return _tied(number(one, values[one].value)) if one in values else NOTHING

    return [
        _Line(
            MEASURES[one][1].title,
            one,
            text(result.others[TARGET], one),
            text(run.values, one),
            interval(one, run.values[one]),
            text(result.others.get(RETAIN_ONLY, {}), one),
            _tied(limit(verdicts[one])) if one in verdicts else "",
            verdicts.get(one),
        )
        for one in rows_of(name)
        if one in run.values
    ]
