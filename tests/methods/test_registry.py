import dataclasses
import pkgutil
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

import uld.methods
from uld.errors import ULDError
from uld.methods import registry
from uld.methods.registry import all_methods, get_method, register
from uld.training.config import TrainConfig, train_config

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy, so that a test's methods do not stay."""
    all_methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    yield


@pytest.mark.parametrize("name", all_methods())
def test_an_option_that_is_no_finite_number_is_refused(name):
    for option, default in all_methods()[name].options.items():
        for value in ("nan", "inf", "-inf", "x", "", "1e400"):
            with pytest.raises(ULDError, match=f"--option {option}={value}: {option} must be a"):
                all_methods()[name].read_options([f"{option}={value}"])
        with pytest.raises(ULDError, match="has no such option"):
            all_methods()[name].read_options([f"{option}x={default}"])


def test_every_module_of_the_package_is_a_method_under_its_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(uld.methods.__path__)} - {"registry", "terms"}
    assert len(all_methods()) >= len(modules) >= 1
    assert list(all_methods()) == sorted(all_methods())
    for name, method in all_methods().items():
        assert method.name == name and method.summary.endswith(".") and method.paper.startswith("https://")
        assert get_method(name) is method
        train_config([(name, method.defaults)])  # settings that exist, of the right type


def test_the_default_method_exists() -> None:
    assert get_method(TrainConfig().method).name == "uld"


@pytest.mark.parametrize("name", ["ULD", "udl", "uldd"])
def test_a_slip_is_answered_with_a_guess(name: str) -> None:
    with pytest.raises(ULDError) as caught:
        get_method(name)
    assert str(caught.value).startswith(f"there is no method {name!r}: did you mean 'uld'?")
    assert "--method" in str(caught.value)


def test_something_else_is_answered_with_the_list() -> None:
    listed = re.escape(f"there is no method 'zzzz': choose one of {', '.join(all_methods())} (")
    with pytest.raises(ULDError, match=listed):
        get_method("zzzz")


@pytest.mark.usefixtures("own_registry")
def test_a_users_own_method_is_found_and_a_taken_name_is_refused() -> None:
    mine = dataclasses.replace(get_method("uld"), name="mine")
    assert register(mine) is mine and get_method("mine") is mine
    with pytest.raises(ValueError, match="a method named 'mine' is registered already"):
        register(mine)
    with pytest.raises(ValueError, match="'uld'"):
        register(dataclasses.replace(mine, name="uld", summary="Another."))
    assert get_method("uld").summary != "Another."


def test_options_are_read_over_the_defaults_and_a_slip_is_answered() -> None:
    method = get_method("npo+kl")
    assert method.options == {"beta": 0.1} and method.read_options(["beta=0.5"]) == {"beta": 0.5}
    with pytest.raises(ULDError, match="npo\\+kl has no such option: did you mean 'beta'"):
        method.read_options(["bta=0.5"])
    with pytest.raises(ULDError, match="beta must be a number"):
        method.read_options(["beta=much"])
    with pytest.raises(ULDError, match="it has none"):
        get_method("ga").read_options(["beta=1"])


def test_a_method_says_what_it_needs() -> None:
    assert get_method("npo").needs == ["frozen log-likelihoods, once", "no retain rows"]
    assert get_method("ga+kl").needs == ["frozen model in every step"]
    assert get_method("dpo+gd").needs == ["frozen log-likelihoods, once", "alternative answers"]
    assert get_method("uld").needs == []
    assert get_method("whp").needs == ["a run of whp-decode, trained first", "no retain rows"]


def test_the_table_of_methods_is_the_registrys_own() -> None:
    script = runpy.run_path(str(DOCS / "methods_table.py"))
    between = (DOCS / "methods.md").read_text().partition(script["START"])[2].partition(script["END"])[0]
    assert between.strip() == script["table"]().strip(), "run python docs/methods_table.py"


def test_what_the_table_shows_stands_in_the_methods_own_files() -> None:
    shared: dict[str, dict[str, object]] = {}
    for name, method in all_methods().items():
        assert method.formula and set(method.notes) <= set(method.options), name
        assert shared.setdefault(method.formula, method.options) == method.options, name  # one line shows one of them


@pytest.mark.usefixtures("own_registry")
def test_a_new_method_has_its_line_without_an_edit_of_the_page() -> None:
    register(dataclasses.replace(get_method("npo+kl"), name="mine", formula="|x|", notes={"beta": "b"}))
    table = runpy.run_path(str(DOCS / "methods_table.py"))["table"]()
    (line,) = [line for line in table.splitlines() if line.startswith("| `mine` |")]
    assert line.endswith(
        "| \\|x\\| | target | frozen model in every step; frozen log-likelihoods, once | `beta=0.1` (b) |"
    )


def test_the_page_of_methods_lists_every_one_with_paper_and_options() -> None:
    page = (DOCS / "methods.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `") and "arxiv.org" in line]
    listed: list[str] = []
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        names = re.findall(r"`([^`]+)`", cells[0])
        listed += names
        for name in names:
            method = get_method(name)
            assert method.paper in cells[1] or name.startswith("offset-"), name
            shown = dict(one.split("=") for one in re.findall(r"`(\w+=[^`]+)`", cells[5]))
            assert {option: float(value) for option, value in shown.items()} == method.options, name
            trains = {"target": "target", "offset": "small model", "assistant": "assistant", "pair": "two small models"}
            assert trains[method.trains] in cells[3]
            assert ("frozen model" in cells[4]) >= ("frozen model in every step" in method.needs), name
            assert (f"a run of `{method.teacher}`" in cells[4]) == (method.teacher is not None), name
            assert ("alternative answers" in cells[4]) == (method.alternatives is not None), name
            assert ("once" in cells[4]) == any(loss.reference for loss in method.losses), name
    assert sorted(listed) == list(all_methods()) and len(set(listed)) == len(listed)


def test_the_page_of_methods_has_the_settings_that_methods_bring() -> None:
    page = (DOCS / "methods.md").read_text()
    for name in ("simnpo", "satimp", "pdu", "rmu"):
        (row,) = re.findall(rf"^\| `{name}` \| `--retain-weight ([\d.]+)[^|]*\|$", page, re.MULTILINE)
        assert float(row) == get_method(name).defaults["retain_weight"]
    for name in ("dd-distilled", "whp"):
        method = get_method(name)
        assert method.teacher is not None and method.teach is not None
        assert get_method(method.teacher).defaults["weight"] == method.options["alpha"]
    for method in all_methods().values():
        if method.trains == "target":
            assert method.defaults.get("batch_size", 32) == (32 if method.retain is None else 64), method.name


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
def test_a_seed_is_one_that_there_is(seed):
    with pytest.raises(ULDError, match=rf"--option seed={seed}: seed must be at (least 0|most 4,294,967,295), not"):
        get_method("rmu").read_options([f"seed={seed}"])
