"""What the documentation says is there: links, pages, names, commands with their flags, code, records, settings."""

import ast
import importlib
import inspect
import itertools
import json
import re
import runpy
import shlex
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import uld
from uld.checking.measures import MEASURES
from uld.checking.thresholds import read_thresholds
from uld.cli.main import app
from uld.compare.grid import Grid
from uld.data.documents import read_sources
from uld.data.record import parse_record
from uld.evaluation.held_out import file_probes
from uld.model.combine import Combination
from uld.runs.manifest import Manifest
from uld.training.config import TrainConfig, read_preset, setting_fields, train_config

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/guides").glob("*.md")),
    EXAMPLES / "README.md",
]
RESULTS = sorted((ROOT / "docs/results").rglob("*.md"))
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^]]+\]: (\S+)|<(?:a|img)\b[^>]*?(?:href|src)=\"([^\"]+)\"", re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")
PLACE = re.compile(
    r"(?<![\w/.-])(?:docs|examples|benchmarks|src|tests)/[\w./-]*\w\.(?:md|py|jsonl|json|yaml|txt|csv)\b"
)
DOCUMENTED = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
LAUNCHERS = re.compile(r"^(?:torchrun .*--no-python |accelerate launch .*-m )?(uld .*)$")


def blocks(kind: str) -> list[tuple[Path, str]]:
    """Blocks of code of a kind, with their pages."""
    return [(page, text) for page in PAGES for found, text in BLOCK.findall(page.read_text()) if found == kind]


def commands() -> list[str]:
    """Every ``uld`` command line of the documentation, in blocks and in running text."""
    lines = [line for _, text in blocks("") for line in text.splitlines()]
    lines += re.findall(r"^# (uld .*)$", (EXAMPLES / "settings.yaml").read_text(), re.MULTILINE)
    for page in PAGES:
        text = BLOCK.sub("", page.read_text())
        lines += [" ".join(found.split()) for found in re.findall(r"`(uld\s[^`]*)`", text)]
    found = (LAUNCHERS.match(line.partition("  #")[0].strip()) for line in lines)
    return sorted({match[1].strip() for match in found if match})


def heading_ids(page: Path) -> set[str]:
    """The anchors of a page that a forge and the site make alike; those of headings that stand twice they do not."""
    text = BLOCK.sub("", page.read_text())
    headings = [
        re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", one).strip() for one in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    ]
    ids = Counter(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {name for name, times in ids.items() if times == 1} | set(DOCUMENTED.findall(text))


def links(page: Path) -> list[str]:
    """Where a page's links and images lead; what stands in code is no link."""
    text = CODE.sub("", BLOCK.sub("", page.read_text()))
    return ["".join(found) for found in LINK.findall(text)]


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links(page):
        if not re.match(r"\w+:", link):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.is_file(), f"{page.name} links to {name}, which is no file"
            assert target.resolve().is_relative_to(ROOT), f"{page.name} links to {name}, which is outside the project"
            assert not anchor or anchor in heading_ids(target), f"{page.name}: {name} has no heading #{anchor}, or two"


def test_the_anchors_are_those_that_the_site_makes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# α, `uld.json` & [a link](x.md)\n## Twice\n## Twice\n```\n# no heading\n```\n### One_two - three\n"
    )
    assert heading_ids(page) == {"α-uldjson--a-link", "one_two---three"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_spoken_of_are_there(page):
    if page.name != "CHANGELOG.md":  # which speaks of the past
        assert not [name for name in PLACE.findall(page.read_text()) if not (ROOT / name).exists()]


class SiteLoader(yaml.SafeLoader):
    """Reads mkdocs.yml without the functions that it names."""


SiteLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def nav_pages(entries: list[Any]) -> list[str]:
    """The files of a part of the site's navigation."""
    values = [value for entry in entries for value in entry.values()]
    return [page for value in values for page in (nav_pages(value) if isinstance(value, list) else [value])]


def test_every_page_stands_once_in_the_sites_navigation():
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), SiteLoader)
    assert site["strict"] is True
    assert sorted(nav_pages(site["nav"])) == sorted(str(page.relative_to(ROOT)) for page in [*PAGES, *RESULTS])


def named(name: str) -> Any:
    """What a dotted name stands for: a module, or something in one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        place, _, last = name.rpartition(".")
        return getattr(importlib.import_module(place), last)


def test_the_python_page_documents_every_public_name_and_only_what_exists():
    names = DOCUMENTED.findall((ROOT / "docs/api.md").read_text())
    assert {f"uld.{name}" for name in uld.__all__} <= set(names) and len(names) == len(set(names))
    assert all(inspect.getdoc(named(name)) for name in names)


def test_install_commands_name_the_clone_and_extras_that_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    shown = [line for page in PAGES for line in re.findall(r"^(?:.*`)?pip install ([^`#\n]*)", page.read_text(), re.M)]
    shown = [line for line in shown if line.strip() != "pre-commit"]  # a tool of its own
    assert len(shown) >= 4
    for line in shown:
        found = re.fullmatch(r'-e (?:\.|"\.\[([\w,]+)\]")', line.strip())
        assert found, f"pip install {line}: not on PyPI, so -e . or -e '.[EXTRA]'"
        assert set((found[1] or "dev").split(",")) <= set(extras), line


def test_the_picture_of_the_readme_is_drawn_from_what_the_demo_printed():
    script = runpy.run_path(str(ROOT / "docs/demo_picture.py"))
    transcript = (ROOT / "docs/demo.txt").read_text()
    assert (ROOT / "docs/demo.svg").read_text() == script["picture"](transcript), "run python docs/demo_picture.py"
    tables = script["answers"](transcript)
    assert set(tables) == set(script["HEADINGS"]) and all(len(rows) >= script["SHOWN"] for rows in tables.values())
    for forgotten, kept in zip(*tables.values(), strict=True):
        assert forgotten[1] != forgotten[2] and kept[1]


@cache
def uld_command() -> Any:
    """The command with its subcommands, made once."""
    return typer.main.get_command(app)


@pytest.mark.parametrize("line", commands())
def test_a_command_can_be_given_as_it_is_shown(line):
    command = uld_command()
    words = shlex.split(line)[1:]
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, line  # type: ignore[attr-defined]
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    if all(word.startswith("-") for word in words):  # spoken of, not shown: a command alone, or the name of a flag
        known = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)} | {"--help"}
        assert set(words) <= known, line
        return
    given = command.make_context("uld", words).params  # unknown flags, wrong types and missing arguments raise
    if command.name == "train":
        presets = [(name, read_preset(name)) for name in given.pop("preset") or []]
        settings = {
            name: value for name, value in given.items() if name in {f.name for f in setting_fields(TrainConfig)}
        }
        train_config([*presets, (line, {name: value or None for name, value in settings.items()})])
    if command.name in ("generate", "eval", "tofu"):
        for name in ("rule", "outside"):
            for value in str(given.get(name) or getattr(Combination, name)).split(","):
                Combination().override(**{name: value})


def test_there_are_commands_of_every_kind_to_test():
    command = uld_command()
    shown = {line.split()[1] for line in commands()}
    assert shown >= set(command.commands) and len(commands()) > 30  # type: ignore[attr-defined]


def test_python_in_the_documentation_and_the_examples_compiles_and_names_what_exists():
    sources = [*blocks("python"), *((path, path.read_text()) for path in EXAMPLES.glob("*.py"))]
    cells = json.loads((EXAMPLES / "forget.ipynb").read_text())["cells"]
    sources += [(EXAMPLES / "forget.ipynb", "".join(one["source"])) for one in cells if one["cell_type"] == "code"]
    assert len(sources) >= 7
    for page, text in sources:
        for node in ast.walk(ast.parse(text, str(page))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("uld"):
                module = __import__(str(node.module), fromlist=["_"])
                assert all(hasattr(module, alias.name) for alias in node.names), f"{page}: {node.module}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "uld":
                assert hasattr(uld, node.attr) or node.attr == "methods", f"{page}: uld.{node.attr}"


def test_json_in_the_documentation_is_what_it_is_called():
    shown = blocks("json")
    manifests = [text for _, text in shown if text.startswith("{\n")]
    assert len(manifests) == 1
    manifest = Manifest.model_validate_json(manifests[0])
    assert set(json.loads(manifests[0])) == set(Manifest.model_fields)
    assert manifest.combination.model_dump() == vars(Combination.steady(49152))
    for page, text in shown:
        if text not in manifests:
            records = [parse_record(json.loads(line), f"{page.name}") for line in text.splitlines()]
            assert len(records) == 4


def test_yaml_in_the_documentation_and_the_examples_holds_settings():
    sources = [*blocks("yaml"), (EXAMPLES / "settings.yaml", (EXAMPLES / "settings.yaml").read_text())]
    for page, text in sources:
        values = yaml.safe_load(text)
        if "jobs" in values:  # a workflow of a forge; its command stands above it as well
            assert any("uld check" in step.get("run", "") for step in values["jobs"]["check"]["steps"])
        elif "cells" in values:
            Grid.model_validate(values)
        elif values.keys() <= MEASURES.keys():
            read_thresholds(values, retain_only=True, held_out=True)
        else:
            train_config([(str(page), values)])


def test_example_files_are_read_and_held_out_rows_are():
    forget, retain = (read_sources([str(EXAMPLES / f"{side}.jsonl")])[0] for side in ("forget", "retain"))
    probes, held_out = file_probes(EXAMPLES / "probes.jsonl", EXAMPLES / "held_out.jsonl")
    seen = [{one.content for one in some} for some in (forget, retain, [p.right for p in probes], held_out)]
    assert not any(one & other for one, other in itertools.combinations(seen, 2))
    for records in (forget, retain):
        assert {bool(one.messages) + 2 * (one.prompt is not None) + 4 * (one.text is not None) for one in records} == {
            1,
            2,
            4,
        }


def test_the_table_of_settings_is_the_codes_own():
    script = runpy.run_path(str(ROOT / "docs" / "settings_table.py"))
    page = (ROOT / "docs" / "training.md").read_text()
    between = page.partition(script["START"])[2].partition(script["END"])[0]
    assert between.strip() == script["table"]().strip(), "run python docs/settings_table.py"
    names = {field.name for field in setting_fields(TrainConfig)}
    assert set(script["SOURCES"]) <= names
    without = {name for name in names if script["default"](name, getattr(uld.TrainConfig(), name)) == "–"}
    switches = {"trust_remote_code", "gradient_checkpointing", "report_to"}
    assert names - set(script["SOURCES"]) == without | switches, "say where the default comes from"


def test_the_settings_of_an_untuned_assistant_are_those_that_the_page_names():
    page = " ".join((ROOT / "docs" / "combination.md").read_text().split())
    pattern = (
        r"gets an α of (\S+), a margin of ⅔ log V .*?: (\S+) for 4,096 tokens, (\S+) for 49,152\) and a floor of (\S+):"
    )
    weight, small, large, floor = map(float, re.search(pattern, page).groups())  # type: ignore[union-attr]
    for vocabulary, margin in ((4096, small), (49152, large)):
        how = Combination.steady(vocabulary)
        assert (how.weight, how.margin, how.floor) == (weight, margin, floor)
    others = re.search(r"leaves the others at (\S+), (\S+) and (\S+), as in", page).groups()  # type: ignore[union-attr]
    assert tuple(map(float, others)) == (Combination().weight, Combination().margin, Combination().floor)
    text = (ROOT / "docs" / "combination.md").read_text()
    assert re.findall(r"^\| `(\w+)` \(default\)", text, re.MULTILINE) == [Combination().rule]


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], citation["version"]) == ("uld-llm", uld.__version__)
    assert citation["references"][0]["url"].endswith("2406.08607")
    assert f"[{uld.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
