"""``uld train``: settings from presets, a YAML file and flags; the flags are made from `TrainConfig`'s fields."""

import inspect
import os
import time
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from uld.cli.common import guarded
from uld.config import TrainConfig, flag, read_preset, read_yaml, setting_fields, train_config
from uld.errors import ULDError

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


def _signature() -> inspect.Signature:
    """One optional flag a setting, and the flags that are not settings."""
    kinds = get_type_hints(TrainConfig)
    parameters = []
    for field in setting_fields():
        default = field.default
        shown = "" if default in (None, "", ()) else f" [default: {default}]"
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
    layers = [(f"preset {name}", read_preset(name)) for name in presets]
    if config_file:
        layers.append((config_file, read_yaml(config_file)))
    flags = {name: value or None if isinstance(value, list) else value for name, value in given.items()}
    layers.append(("the command line", flags))
    config = train_config(layers)
    from uld.run_folder import check_output, stored_settings
    from uld.training import train as run

    if resume and config.output:
        check_output(Path(config.output), resume=True, overwrite=False)
        config = replace(stored_settings(Path(config.output)), **_given(layers, config))
    first = os.environ.get("RANK", "0") == "0"
    try:
        result = run(config, resume=resume, overwrite=overwrite, progress=not quiet)
    except ULDError:
        if not first:
            time.sleep(_LET_FIRST_SPEAK)  # torchrun ends us when the first process fails of the same cause
        raise
    if not first:
        return
    size = result.weights_bytes
    readable = f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
    retain = "" if result.retain_loss is None else f", retain loss {result.retain_loss:.3f}"
    typer.echo(
        f"{result.output}: {result.steps} steps in {result.seconds:.0f} s, "
        f"forget loss {result.forget_loss:.3f}{retain} nats, weights {readable}"
    )


def _given(layers: list[tuple[str, Any]], config: TrainConfig) -> dict[str, Any]:
    """The settings that some layer names, with the value that won."""
    return {name: getattr(config, name) for _, layer in layers for name, value in layer.items() if value is not None}


train.__signature__ = _signature()  # type: ignore[attr-defined]
train.__annotations__ = {p.name: p.annotation for p in _signature().parameters.values()}
command = guarded(train)
