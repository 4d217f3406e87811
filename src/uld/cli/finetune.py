"""``uld finetune``: settings from a YAML file and flags; the flags are made from `FinetuneConfig`'s fields."""

from typing import Any

from uld.cli.common import Quiet, refuse_absent, say
from uld.cli.train import Config, Overwrite, Resume, first_speaks, own_layers, readable_size, with_settings
from uld.training.config import FinetuneConfig, finetune_config
from uld.training.settings import is_first_process

EPILOG = (
    "Example: uld finetune --model MODEL --split full --output models/target\n\n"
    "uld finetune --scratch --split retain90,real_authors,world_facts --data TOFU --output models/retain90"
)


@with_settings(FinetuneConfig)
def finetune(
    settings: dict[str, Any],
    config: Config = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a model that knows given data: the target on all of it, a retain-only model on what is to be kept.

    Writes an ordinary Hugging Face model folder.
    """
    layers = own_layers(config, settings)
    chosen = finetune_config(layers)
    first_speaks(refuse_absent, chosen.file, model=chosen.model)
    from uld.training.finetune import finetune as run
    from uld.training.stored import resumed

    if resume and chosen.output:
        chosen = resumed(chosen, layers)
    result = first_speaks(run, chosen, resume=resume, overwrite=overwrite, progress=not quiet)
    if is_first_process():
        say(
            f"{result.output}: {result.steps} steps in {result.seconds:.0f} s, loss {result.loss:.3f} nats/token, "
            f"weights {readable_size(result.weights_bytes)}"
        )
