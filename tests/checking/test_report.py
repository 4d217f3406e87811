"""The reports: JUnit that parses, a page that is whole and escapes everything, tables that fit, true sentences."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from uld.checking.measures import MEASURES, Value
from uld.checking.report import NAMES, SHOWN, junit, page, write_junit, write_reports
from uld.checking.result import Asking, CheckResult, RunResult, Shown, labels, untested
from uld.checking.thresholds import Verdict

EVIL = "<script>alert('x')</script> & \x1b[31m"


class Reader(HTMLParser):
    """Refuses a tag that is closed out of turn; keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def values(number: float) -> dict[str, Value]:
    return {name: Value(number, number - 0.01, number + 0.01, 50) for name in MEASURES}


def made(*names: str, retain_only: bool = True, answers: int = 3) -> CheckResult:
    """A result of some runs, of which all but the last pass."""
    verdicts = [
        Verdict("forget_rouge", "<= retain-only + 0.1", 0.2, 0.3, True, False),
        Verdict("retain_kl", "<= 0.25", 0.24, 0.25, True, True),
    ]
    failed = [replace(verdicts[0], value=0.4, passed=False), verdicts[1]]
    runs = [RunResult(name, values(0.2), failed if name == names[-1] else verdicts) for name in names]
    now = tuple("now" for _ in names)
    said = [
        Shown(
            f"question {i} {EVIL}", "truth", "before", "never" if retain_only else None, now, (True,) * len(now), i > 0
        )
        for i in range(answers)
    ]
    asked = {"forget": Asking(answers, answers - 1, ("mine.jsonl",)), "retain": Asking(answers, answers)}
    others = {"target": values(0.9)} | ({"retain-only": values(0.2)} if retain_only else {})
    return CheckResult(
        runs=runs,
        others=others,
        places={name: f"models/{name}" for name in others},
        asked=asked,
        untested=untested(asked, retain_only, 128),
        folder="out",
        answers={"forget": said, "retain": said},
        machine={"uld": "0.1.0"},
    )


def test_junit_has_a_case_a_threshold_and_a_failure_a_limit_that_is_passed_over():
    root = ElementTree.fromstring(junit(made("runs/a", f"runs/{EVIL}")).encode())
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("4", "1", "0")
    first, second = root
    assert [len(suite) for suite in root] == [2, 2] and first.get("failures") == "0" and second.get("failures") == "1"
    (failure,) = root.iter("failure")
    assert failure.get("message") == failure.text == "forget_rouge is 40.0 %, and must be ≤ 30.0 %"
    assert "<script>" in str(second.get("name")) and "\\x1b" in str(second.get("name"))


@pytest.mark.parametrize("names", [("runs/a",), ("runs/a", "runs/b")])
@pytest.mark.parametrize("retain_only", [True, False])
def test_the_page_is_whole_asks_for_nothing_and_escapes(names, retain_only):
    text = page(made(*names, retain_only=retain_only))
    reader = Reader()
    reader.feed(text)
    assert reader.open == [] and not {"script", "link", "img", "iframe"} & set(reader.seen)
    assert "<script>alert" not in text and "alert('x')" in reader.text
    assert "http" not in text and "@import" not in text
    for words in ("Failed:", "What was asked", "What was not tested", "mine.jsonl", *names):
        assert words in reader.text
    assert ("never saw it" in reader.text) == retain_only
    assert ("models/retain-only" in reader.text) == retain_only


def test_the_page_quotes_a_part_of_many_answers():
    few, many = page(made("runs/a", answers=3)), page(made("runs/a", answers=300))
    assert few.count('class="question"') == 6 and "questions are shown" not in few
    assert many.count('class="question"') == 2 * SHOWN and f"{SHOWN} of 300 questions are shown" in many


@pytest.mark.parametrize("names", [("a" * 60,), ("runs/a", "r" * 70)])
def test_tables_fit_eighty_columns(names):
    result = made(*names)
    rows = [line for line in result.table().splitlines() if line.startswith("|")]
    assert len(rows) > 3 and max(map(len, rows)) <= 80
    assert "forget_rouge is 40.0 %, must be ≤ 30.0 %" in result.table()


def test_the_summary_says_what_failed_and_what_was_not_tested():
    text = made("runs/a").markdown()
    assert text.startswith("# Unlearning check failed\n")
    assert "- `runs/a`: FAIL, 1 of 2 thresholds\n  - `forget_rouge` is 40.0 %, must be ≤ 30.0 %" in text
    assert "## Not tested" in text and "--held-out" in text and "1 of 3 questions" in text


def test_a_summary_of_several_runs_has_its_columns_and_no_tags_whatever_the_runs_are_called():
    text = made("runs/a|b <b>", "runs/c").markdown()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert any(r"| a\|b &lt;b> " in line for line in table) and "<b>" not in text
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1


def test_a_pass_says_where_it_is_close():
    result = made("runs/a", "runs/b")
    assert result.runs[0].passed and not result.passed
    assert result.runs[0].verdict == "PASS, all 2 thresholds; other questions could decide otherwise: retain_kl"


def test_everything_is_written_beside_the_rows(tmp_path):
    result = made("runs/a")
    write_reports(result, "forget_rouge: '<= 0.3'\n", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(NAMES)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["passed"] is found["runs"][0]["passed"] is False and "answers" not in found
    assert found["runs"][0]["values"]["forget_rouge"]["rows"] == 50
    write_junit(result, tmp_path / "deep" / "check.xml")
    assert (tmp_path / "deep" / "check.xml").read_text() == (tmp_path / "junit.xml").read_text()


def test_names_are_short_where_that_tells_them_apart():
    assert labels(["runs/a", "runs/b/"]) == ["a", "b"]
    assert labels(["x/a", "y/a"]) == ["x/a", "y/a"]
    assert labels(["x/target", "y/a"], taken=("target",)) == ["x/target", "y/a"]
