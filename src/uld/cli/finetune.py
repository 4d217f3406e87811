"""``uld finetune``: settings from a YAML file and flags; the flags are made from `FinetuneConfig`'s fields."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from uld.cli.common import say
from uld.cli.train import chosen, first_speaks, own_layers, readable_size, signature
from uld.training.config import FinetuneConfig, finetune_config
from uld.training.settings import is_first_process

EPILOG = (
    "Example: uld finetune --model MODEL --split full --output models/target   ·   "
    "uld finetune --scratch --split retain90,real_authors,world_facts --data TOFU --output models/retain90"
)


def finetune(**given: Any) -> None:
    """Make a model that knows given data: the target on all of it, a retain-only model on what is to be kept.

    Writes an ordinary Hugging Face model folder.
    """
    config_file = given.pop("config")
    resume, overwrite, quiet = given.pop("resume"), given.pop("overwrite"), given.pop("quiet")
    layers = own_layers(config_file, given)
    config = finetune_config(layers)
    from uld.runs.folder import MODEL, check_resumable
    from uld.training.finetune import finetune as run
    from uld.training.stored import stored_finetuning

    if resume and config.output:
        check_resumable(Path(config.output), MODEL)
        config = replace(stored_finetuning(Path(config.output)), **chosen(layers, config))
    result = first_speaks(run, config, resume=resume, overwrite=overwrite, progress=not quiet)
    if is_first_process():
        say(
            f"{result.output}: {result.steps} steps in {result.seconds:.0f} s, loss {result.loss:.3f} nats/token, "
            f"weights {readable_size(result.weights_bytes)}"
        )


finetune.__signature__ = signature(FinetuneConfig, presets=False)  # type: ignore[attr-defined]
command = finetune
