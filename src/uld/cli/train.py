"""``uld train``: settings from presets, a YAML file and flags; the flags are made from `TrainConfig`'s fields."""

import inspect
import time
from collections.abc import Callable
from dataclasses import Field
from typing import Annotated, Any, Literal, get_origin

import typer

from uld.cli.common import Quiet, refuse_absent, say, spliced
from uld.errors import ULDError, flag
from uld.training.config import RunConfig, TrainConfig, read_preset, read_yaml, setting_fields, train_config
from uld.training.settings import is_first_process, kind_of

EPILOG = (
    "Example: uld train --target MODEL --forget forget.jsonl --retain retain.jsonl --output runs/x\n\n"
    "uld train --preset tofu-4m --target MODEL --split forget10 --data tofu --augmented tofu_augmented --output runs/y"
)
_LET_FIRST_SPEAK = 3.0  # seconds

Config = Annotated[str | None, typer.Option(help="YAML file of settings; flags win over it.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run in --output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")]


def with_settings(config: type[RunConfig]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one optional flag a setting, and hand over what was given as its argument ``settings``."""
    added = [_flag(one) for one in setting_fields(config)]
    return lambda command: spliced(command, "settings", added, dict)


def _flag(setting: Field[Any]) -> inspect.Parameter:
    """The flag of a setting: typer reads numbers and switches, and the settings check what they say."""
    default, kind = setting.default, kind_of(setting)
    kind = kind.__origin__ if get_origin(kind) is Annotated else kind
    name = flag(setting.name)
    option = typer.Option(
        f"{name}/--no-{name[2:]}" if kind is bool else name,
        help=setting.metadata["help"] + ("" if default in (None, "", ()) else f" (default: {default})"),
        rich_help_panel=setting.metadata["group"],
        show_default=False,  # in brackets, which rich takes for markup
    )
    read = {tuple: list[str], Literal: str}.get(get_origin(kind), kind)
    annotation = Annotated[read | None, option]
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


@with_settings(TrainConfig)
def train(
    settings: dict[str, Any],
    preset: Annotated[
        list[str] | None, typer.Option(help="Settings that ship with uld (repeat to stack them; uld ls presets).")
    ] = None,
    config: Config = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train an assistant for what is to be forgotten: writes an adapter of a few MB; the target stays as it is.

    Other methods (--method, uld ls methods) train the target itself, or a small model beside it.
    """
    layers = [(f"preset {name}", read_preset(name)) for name in preset or []] + own_layers(config, settings)
    chosen = train_config(layers)
    first_speaks(refuse_absent, [*chosen.forget, *chosen.retain], target=chosen.target)
    from uld.training.run import train as run
    from uld.training.stored import resumed

    if resume and chosen.output:
        chosen = resumed(chosen, layers)
    result = first_speaks(run, chosen, resume=resume, overwrite=overwrite, progress=not quiet)
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
