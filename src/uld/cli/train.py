"""``uld train``: settings from presets, a YAML file and flags; the flags are made from `TrainConfig`'s fields."""

import inspect
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
    """Train an assistant for what is to be forgotten: writes an adapter of a few MB; the target stays as it is."""
    presets, config_file = given.pop("preset") or [], given.pop("config")
    resume, overwrite, quiet = given.pop("resume"), given.pop("overwrite"), given.pop("quiet")
    layers = [(f"preset {name}", read_preset(name)) for name in presets]
    if config_file:
        layers.append((config_file, read_yaml(config_file)))
    flags = {name: value or None if isinstance(value, list) else value for name, value in given.items()}
    layers.append(("the command line", flags))
    config = train_config(layers)
    if resume:
        config = _stored(config, layers)
    from uld.training import train as run

    result = run(config, resume=resume, overwrite=overwrite, progress=not quiet)
    typer.echo(
        f"{result.output}: {result.steps} steps in {result.seconds:.0f} s, forget loss {result.forget_loss:.3f}, "
        f"retain loss {result.retain_loss:.3f} nats/token, adapter {result.adapter_bytes / 2**20:.1f} MiB"
    )


def _stored(config: TrainConfig, layers: list[tuple[str, Any]]) -> TrainConfig:
    """The settings of the run to be resumed; what is given again must not differ."""
    from pathlib import Path

    from uld.artifact import SETTINGS

    path = Path(config.output) / SETTINGS
    if not config.output or not path.is_file():
        raise ULDError(f"{config.output or '--output'} holds no run to resume")
    stored = train_config([(str(path), read_yaml(path))])
    for source, layer in layers:
        for name, value in layer.items():
            if value is not None and name != "output" and getattr(config, name) != getattr(stored, name):
                raise ULDError(
                    f"{source} says {flag(name)} {getattr(config, name)}, but the run in {config.output} was started "
                    f"with {getattr(stored, name)}: leave it out, or start over with --overwrite"
                )
    return train_config([(str(path), read_yaml(path)), ("the command line", {"output": config.output})])


train.__signature__ = _signature()  # type: ignore[attr-defined]
train.__annotations__ = {p.name: p.annotation for p in _signature().parameters.values()}
command = guarded(train)
