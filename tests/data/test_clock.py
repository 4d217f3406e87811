import datetime
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from uld.cli.common import ModelOptions
from uld.data.clock import DATE, is_date, pin, pinned, pinned_date
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ConfigError
from uld.model.load import load, load_tokenizer
from uld.runs.manifest import Manifest
from uld.training.config import TrainConfig, train_config
from uld.training.run import train

CLOCKS = {  # ways in which a template comes by today's date
    "straight": "Today is {{ strftime_now('%d %b %Y') }}.",
    "where there is a clock": "{% if strftime_now is defined %}{% set today = strftime_now('%Y-%m-%d') %}{% else %}"
    "{% set today = 'long ago' %}{% endif %}Today is {{ today }}.",
    "unless it is given": "{% if not date_string is defined %}{% set date_string = strftime_now('%B %-d, %Y') %}"
    "{% endif %}Today is {{ date_string }}.",
    "under another name": "{% set now = strftime_now %}Today is {{ now(format='%A %H:%M:%S') }}.",
    "in a macro and a loop": "{% macro day(m) %}{{ m.role ~ strftime_now('%x') }}{% endmacro %}"
    "{% for m in messages[:1] %}{{ day(m) }}{% endfor %}",
    "with a format that is put together": "{% set parts = ['%d', '%m'] %}On {{ strftime_now(parts | join('/')) }}.",
}
TURNS = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{{ '<assistant>' if add_generation_prompt }}"
)


def set_clock(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    """Let transformers read another date from the clock."""

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Then":
            return cls.fromisoformat(day)

    monkeypatch.setattr(chat_template_utils, "datetime", Then)


@pytest.fixture
def dated(byte_tokenizer, tmp_path):
    """Makes a folder with a tokenizer whose chat template begins as it is told."""

    def make(start: str) -> Path:
        byte_tokenizer.chat_template = start + TURNS
        byte_tokenizer.save_pretrained(tmp_path / "dated")
        return tmp_path / "dated"

    return make


@pytest.mark.parametrize("start", CLOCKS.values(), ids=CLOCKS)
def test_prompts_are_the_same_on_any_day(start, dated, monkeypatch):
    folder = dated(start)
    seen, raw = set(), set()
    for day in ("2024-02-29", "2031-11-05T23:59:59"):
        set_clock(monkeypatch, day)
        for tokenizer in (load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)):  # the second reads the clock
            form: Any = PromptFormat(tokenizer)
            seen.add((*form.prompt_ids("who?"), *form.encode(Record.qa("who?", "Ann"), 500).ids))
        plain = AutoTokenizer.from_pretrained(folder)
        raw.add(plain.apply_chat_template([{"role": "user", "content": ""}], tokenize=False))
    assert len(seen) == 1 and len(raw) == 2


def test_prompts_are_the_same_in_any_time_zone(dated, monkeypatch):
    folder, seen = dated(CLOCKS["straight"] + "{{ strftime_now('%H %Z %s') }}"), set()
    for zone in ("AAA-14", "BBB+12"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        pinned.cache_clear()
        seen.add(tuple(PromptFormat(load_tokenizer(folder)).prompt_ids("who?")))
    monkeypatch.undo()
    time.tzset()
    assert len(seen) == 1


@pytest.mark.parametrize("day", ["2024-07-26", "1999-01-03", "2000-02-29", "2021-01-01"])
def test_every_directive_is_written_as_strftime_does_at_midnight(day):
    then = datetime.datetime.fromisoformat(day)
    keys = [*"aAwdbBmyYHIpMSfzZjUWcxXGuV%", *"eDFTRrhntklCgP", *(f"-{key}" for key in "dmIHMSjyUWV"), "^a", "^B"]
    form = "".join(f"[%{key}|%%{key}%{key}%%%{key}%%]" for key in keys)
    template = chat_template_utils._compile_jinja_template(pinned(f"{{{{ strftime_now('{form}') }}}}", day))
    assert template.render().split("]") == then.strftime(form).split("]")


def test_the_date_is_the_templates_own_from_then_on(dated, tmp_path):
    tokenizer: Any = load_tokenizer(dated(CLOCKS["straight"]), date="2025-04-10")
    assert pinned_date(tokenizer) == "2025-04-10"
    tokenizer.save_pretrained(tmp_path / "saved")
    for again in (AutoTokenizer.from_pretrained(tmp_path / "saved"), load_tokenizer(tmp_path / "saved")):
        assert pinned_date(again) == "2025-04-10"
        asked = again.apply_chat_template([{"role": "user", "content": "who?"}], tokenize=False)
        assert asked == "Today is 10 Apr 2025.<user>who?"
    assert pinned_date(load_tokenizer(tmp_path / "saved", date="2020-01-02")) == "2020-01-02"
    text = pinned(CLOCKS["straight"])
    assert pinned(pinned(text, "2020-01-02"), DATE) == text == pinned(text)


@pytest.mark.parametrize("template", ["\n  {% if true %}\n x{% endif %}", "  {{- 'x' }}", "\n\n{%- set a = 1 %}\nx"])
def test_nothing_else_of_a_template_changes(template):
    render = lambda text: chat_template_utils._compile_jinja_template(text).render()  # noqa: E731
    assert pinned(template) == template
    clock = template + "{{ strftime_now('%Y') }}"
    assert render(pinned(clock)) == render(template) + "2024"


def test_templates_by_name_are_all_pinned():
    tokenizer = SimpleNamespace(chat_template={"default": CLOCKS["straight"], "tools": TURNS})
    pin(tokenizer, "2025-04-10")
    assert pinned_date(tokenizer) == "2025-04-10" and tokenizer.chat_template["tools"] == TURNS


@pytest.mark.parametrize("text", ["today", "2024-7-26", "20240726", "2024-02-30", "26 Jul 2024", "2024-W30-5"])
def test_a_date_that_is_none_is_refused(text):
    assert not is_date(text)
    with pytest.raises(ConfigError, match=r"^--date must be a day, written as 2024-12-31, not '"):
        TrainConfig(date=text)
    with pytest.raises(ConfigError, match=r"^--date"):
        load("nowhere", date=text)
    with pytest.raises(ConfigError, match=r"^--date"):
        ModelOptions(model="nowhere", date=text).check()


def test_a_date_in_yaml_needs_no_quotes():
    assert train_config([("a file", {"date": datetime.date(2025, 4, 10)})]).date == "2025-04-10"
    assert "date: '2025-04-10'" in TrainConfig(date="2025-04-10").to_yaml()


def test_a_run_is_asked_on_its_own_date(make_run, dated, tmp_path):
    run = make_run(tmp_path, vocab_size=300)
    shutil.copy(dated(CLOCKS["straight"]) / "chat_template.jinja", run)
    assert pinned_date(load(run)[1]) == DATE  # a run of an older version: its template reads the clock
    Manifest.read(run).model_copy(update={"date": "2025-04-10"}).write(run)
    assert pinned_date(load(run)[1]) == "2025-04-10"
    assert pinned_date(load(run, tokenizer=dated(CLOCKS["straight"]))[1]) == "2025-04-10"
    assert pinned_date(load(run, date="2020-01-02")[1]) == "2020-01-02"
    options = ModelOptions(model=str(run))
    assert options.beside(str(tmp_path / "target"), "--retain-model").date == "2025-04-10"
    given = ModelOptions(model=str(run), date="2020-01-02")
    assert given.beside(str(tmp_path / "target"), "--retain-model").date == "2020-01-02"
    old = json.loads((run / "uld.json").read_text())
    del old["date"]
    (run / "uld.json").write_text(json.dumps(old))
    assert Manifest.read(run).date is None


def test_a_training_writes_its_date_down(task, dated, tmp_path):
    target = Path(shutil.copytree(task.target, tmp_path / "target"))
    start = "{% set today = strftime_now('%d %b') %}{{ bos_token }}"
    shutil.copy(dated(start) / "chat_template.jinja", target)
    changes = {"target": str(target), "epochs": 1, "date": "2025-04-10"}
    train(TrainConfig(**task.settings(tmp_path / "run", **changes)), progress=False)
    assert Manifest.read(tmp_path / "run").date == "2025-04-10"
    assert pinned_date(AutoTokenizer.from_pretrained(tmp_path / "run")) == "2025-04-10"
    assert pinned_date(AutoTokenizer.from_pretrained(target)) is None  # the target is left as it was
