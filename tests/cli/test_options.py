"""What holds for every option of every command: no empty text, no number without bounds, and Python's own defaults."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import uld.training.finetune
import uld.training.run
from uld.augment.endpoint import Endpoint
from uld.augment.generate import Wanted
from uld.augment.run import augment_by_model, augment_by_rules
from uld.cli.boundary import MAY_BE_EMPTY
from uld.cli.main import app
from uld.demo.run import run_demo
from uld.evaluation import harness
from uld.evaluation.attacks import Attacks
from uld.evaluation.copyright import Copyright
from uld.evaluation.explain import explain
from uld.evaluation.knowundo import KnowUnDo
from uld.evaluation.muse import Muse
from uld.evaluation.pipe import evaluate
from uld.evaluation.tofu import Tofu
from uld.evaluation.tuning import tune
from uld.methods.registry import all_methods
from uld.playground.page import Playground
from uld.training.config import FinetuneConfig, TrainConfig, setting_fields, train_config
from uld.training.draw import draw_rows

ELSEWHERE = {"weight", "margin", "floor", "filter", "min_tokens", "budget"}  # `Combination` and `tune` check them
NOT_GIVEN = (None, "", ())


def commands(found: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that takes options of ours, with the words that call it."""
    found = found or typer.main.get_command(app)
    for name, command in getattr(found, "commands", {}).items():
        yield from commands(command, (*path, name))
    if not hasattr(found, "commands") and path != ("lm-eval",):
        yield path, found


def text_of(option: Any) -> Any:
    """The type of an option's value, of its items for a list."""
    return option.type_descriptor.annotation


def is_text(option: Any) -> bool:
    return text_of(option) in (str, list[str])


def is_number(option: Any) -> bool:
    return text_of(option) in (int, float)


def arguments(command: Any, option: Any, value: str) -> list[str]:
    """What a command needs, and one option with a value."""
    given: list[str] = []
    places = [one for one in command.params if not one.opts[0].startswith("-")]
    before = places[: places.index(option)] if option in places else []
    for one in command.params:
        if one is option or one.required or one in before:
            given += [one.opts[0]] if one.opts[0].startswith("-") else []
            given.append(value if one is option else "x")
    return given


ALL = [(path, command, option) for path, command in commands() for option in command.params]
PLACES = [(path, command, option) for path, command, option in ALL if is_text(option)]


ROOT: Any = typer.main.get_command(app)


def run_one(path: tuple[str, ...], given: list[str]) -> int:
    """Run a command, and give its exit code back."""
    return ROOT.main([*path, *given], standalone_mode=False)


def test_no_option_of_any_command_takes_an_empty_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private.jsonl").write_text('{"text": "a diary"}\n')
    tried = 0
    for path, command, option in PLACES:
        if option.name in MAY_BE_EMPTY:
            continue
        for empty in {"", "  "} - {option.default}:  # the default is not given, and then it is asked for
            assert run_one(path, arguments(command, option, empty)) == 2, (path, option.name)
            named = max(option.opts, key=len) if option.opts[0].startswith("-") else option.name.upper()
            said = capsys.readouterr().err
            assert said.startswith(f"uld: {named} is empty: "), (path, option.name, said)
            tried += 1
    assert tried > 150 and [one.name for one in tmp_path.iterdir()] == ["private.jsonl"]


def test_no_option_takes_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    for path, command, option in ALL:
        if text_of(option) is float and option.name not in {f.name for f in setting_fields(TrainConfig)}:
            for value in ("nan", "inf", "-inf"):
                assert run_one(path, arguments(command, option, value)) == 2, (path, option.name, value)
                said = capsys.readouterr().err
                assert "must be a finite number" in said or (option.max is not None and option.opts[0] in said), said


def test_every_number_has_bounds() -> None:
    seen = 0
    for path, _, option in ALL:
        if is_number(option) and path not in (("train",), ("finetune",)) and option.name not in ELSEWHERE:
            assert option.min is not None and option.max is not None, (path, option.name)
            seen += 1
    assert seen > 30


def resolved_by_flags(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, *given: str) -> Any:
    """The settings that a command hands to the Python function behind it."""
    asked: list[Any] = []

    def run(config: Any, **_: Any) -> Any:
        asked.append(config)
        raise uld.ULDError("seen")

    monkeypatch.setattr(module, name, run)
    done = CliRunner().invoke(app, list(given))
    assert done.stderr == "uld: seen\n", done.output
    return asked[0]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in, with what the commands below name: a missing file would end them."""
    monkeypatch.chdir(tmp_path)
    for name in ("f", "r"):
        Path(name).touch()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("method", all_methods())
def test_python_flags_and_files_come_to_the_same_settings(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    places = {"target": "M", "output": "o", "forget": ("f",), "retain": ("r",)}
    flags = [
        part for name, value in places.items() for part in (f"--{name}", value if isinstance(value, str) else value[0])
    ]
    by_flags = resolved_by_flags(monkeypatch, uld.training.run, "train", "train", "--method", method, *flags)
    by_python = TrainConfig(method=method, **places)  # type: ignore[arg-type]
    assert by_python == by_flags == train_config([("a file", places | {"method": method})])
    defaults = all_methods()[method].defaults
    assert {name: getattr(by_python, name) for name in defaults} == dict(defaults)
    assert (by_python.rule in ("offset", "rank")) == (all_methods()[method].trains in ("offset", "pair"))
    given = TrainConfig(method=method, learning_rate=0.5, epochs=TrainConfig().epochs, **places)  # type: ignore[arg-type]
    assert given.learning_rate == 0.5 and given.epochs == TrainConfig().epochs  # what is given wins


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("start", [{"scratch": True}, {"model": "M"}])
def test_python_and_flags_finetune_with_the_same_settings(monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    flags = ["--scratch"] if "scratch" in start else ["--model", "M"]
    by_flags = resolved_by_flags(
        monkeypatch, uld.training.finetune, "finetune", "finetune", *flags, "--file", "f", "--output", "o"
    )
    assert FinetuneConfig(file=("f",), output="o", **start) == by_flags
    assert FinetuneConfig(file=("f",), output="o", **start) == FinetuneConfig.of(file="f", output="o", **start)


FUNCTIONS: list[tuple[tuple[str, ...], tuple[Callable[..., Any], ...], dict[str, str], set[str]]] = [
    (("augment",), (Wanted, augment_by_rules, Endpoint), {"api_key_env": "", "questions": ""}, {"seed", "chunk_words"}),
    (("augment",), (augment_by_model,), {}, {"chunk_words"}),
    (("draw",), (draw_rows,), {}, {"rows", "seed", "max_length"}),
    (("tune",), (tune,), {"budget": "several as a text"}, {"aim", "template"}),
    (("demo",), (run_demo,), {}, set()),
    (("explain",), (explain,), {}, {"answer", "template", "max_new_tokens"}),
    (("playground",), (Playground.of,), {}, {"template", "max_new_tokens"}),
    (("eval", "tofu"), (Tofu, evaluate), {}, {"generate", "max_new_tokens", "limit", "data", "template"}),
    (("eval", "knowundo"), (KnowUnDo, evaluate), {}, {"generate", "max_new_tokens", "limit", "template"}),
    (("eval", "muse"), (Muse, evaluate), {}, {"shots", "limit"}),
    (("eval", "copyright"), (Copyright, evaluate), {}, {"chunks", "chunk_tokens", "prompt_tokens", "template"}),
    (("eval", "attacks"), (Attacks, evaluate), {}, {"gradnorm", "max_length", "template"}),
    (
        ("eval", "harness"),
        (harness.evaluate,),
        {},
        {"num_fewshot", "limit", "apply_chat_template", "batch_size", "max_length", "log_samples"},
    ),
]


@pytest.mark.parametrize(
    ("path", "functions", "other", "needed"),
    FUNCTIONS,
    ids=[" ".join((*path, functions[0].__name__)) for path, functions, *_ in FUNCTIONS],
)
def test_a_commands_defaults_are_those_of_the_function_behind_it(
    path: tuple[str, ...], functions: tuple[Callable[..., Any], ...], other: dict[str, str], needed: set[str]
) -> None:
    options = {option.name: option for option in dict(commands())[path].params}
    compared: set[str] = set()
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():
            option = options.get(name)
            if option is None or option.required or name in other or parameter.default is parameter.empty:
                continue
            here, there = parameter.default, option.default
            spoken = name in ("request", "kept")  # the command says "the default" by leaving it out
            assert spoken or here == there or (here in NOT_GIVEN and there in NOT_GIVEN), (path, name, here, there)
            compared.add(name)
    assert needed <= compared, needed - compared
