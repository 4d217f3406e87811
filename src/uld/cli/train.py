"""``uld train``: settings from presets, a YAML file and flags; the flags are made from `TrainConfig`'s fields."""

import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from uld.cli.common import say
from uld.errors import ULDError, flag
from uld.training.config import RunConfig, TrainConfig, read_preset, read_yaml, setting_fields, train_config
from uld.training.settings import is_first_process

EPILOG = (
    "Example: uld train --target MODEL --forget forget.jsonl --retain retain.jsonl --output runs/x   ·   "
    "uld train --preset tofu-4m --target MODEL --split forget10 --data tofu --augmented tofu_augmented --output runs/y"
)
_LET_FIRST_SPEAK = 3.0  # seconds


def _flag_type(kind: Any) -> Any:
    """The type that typer parses for a setting's type: every flag may be absent."""
    options = [
        o for o in (get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)) if o is not type(None)
    ]
    (option,) = options
    if get_origin(option) is tuple:
        return list[str] | None
    if get_origin(option) is Literal:
        return str | None
    return option | None


def signature(config: type[RunConfig], *, presets: bool) -> inspect.Signature:
    """One optional flag a setting, and the flags that are not settings."""
    kinds = get_type_hints(config)
    parameters = []
    for field in setting_fields(config):
        default = field.default
        shown = "" if default in (None, "", ()) else f" (default: {default})"  # rich takes brackets for markup
        names = (
            [flag(field.name)] if kinds[field.name] is not bool else [f"{flag(field.name)}/--no-{flag(field.name)[2:]}"]
        )
        option = typer.Option(
            *names, help=field.metadata["help"] + shown, rich_help_panel=field.metadata["group"], show_default=False
        )
        kind = Annotated[_flag_type(kinds[field.name]), option]
        parameters.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
    extra = {
        "preset": (
            list[str] | None,
            typer.Option(help="Settings that ship with uld (repeat to stack them; uld ls presets)."),
        ),
        "config": (str | None, typer.Option(help="YAML file of settings; flags win over it.")),
        "resume": (bool, typer.Option("--resume", help="Continue an unfinished run in --output.")),
        "overwrite": (bool, typer.Option("--overwrite", help="Replace the run in --output.")),
        "quiet": (bool, typer.Option("--quiet", "-q", help="No progress bar.")),
    }
    if not presets:
        del extra["preset"]
    for name, (kind, option) in extra.items():
        default = False if kind is bool else None
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
        )
    return inspect.Signature(parameters)


def train(**given: Any) -> None:
    """Train an assistant for what is to be forgotten: writes an adapter of a few MB; the target stays as it is.

    Other methods (--method, uld ls methods) train the target itself, or a small model beside it.
    """
    presets, config_file = given.pop("preset") or [], given.pop("config")
    resume, overwrite, quiet = given.pop("resume"), given.pop("overwrite"), given.pop("quiet")
    layers = [(f"preset {name}", read_preset(name)) for name in presets] + own_layers(config_file, given)
    config = train_config(layers)
    from uld.runs.folder import check_resumable
    from uld.training.run import train as run
    from uld.training.stored import stored_settings

    if resume and config.output:
        check_resumable(Path(config.output))
        config = replace(stored_settings(Path(config.output)), **chosen(layers, config))
    result = first_speaks(run, config, resume=resume, overwrite=overwrite, progress=not quiet)
    if not is_first_process():
        return
    forget = "not measured" if result.forget_loss is None else f"{result.forget_loss:.3f}"
    retain = "" if result.retain_loss is None else f", retain loss {result.retain_loss:.3f}"
    say(
        f"{result.output}: {result.steps} steps in {result.seconds:.0f} s, "
        f"forget loss {forget}{retain} nats, weights {readable_size(result.weights_bytes)}"
    )


def own_layers(config_file: str | None, flags: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Settings of the user's file and of the command line."""
    given = {name: value or None if isinstance(value, list) else value for name, value in flags.items()}
    return [*([(config_file, read_yaml(config_file))] if config_file else []), ("the command line", given)]


def first_speaks(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run something in every process; of an error that all meet, the first tells."""
    try:
        return run(*args, **kwargs)
    except ULDError:
        if not is_first_process():
            time.sleep(_LET_FIRST_SPEAK)  # torchrun ends us when the first process fails of the same cause
        raise


def readable_size(size: int) -> str:
    """Bytes as people say them."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


def chosen(layers: list[tuple[str, Any]], config: RunConfig) -> dict[str, Any]:
    """The settings that some layer names, with the value that won."""
    return {name: getattr(config, name) for _, layer in layers for name, value in layer.items() if value is not None}


train.__signature__ = signature(TrainConfig, presets=True)  # type: ignore[attr-defined]
command = train
