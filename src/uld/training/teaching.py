"""The run that a method learns from: which settings it shares with the run that it teaches, and which are its own."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState

from uld.methods.registry import Method, own_options
from uld.model.device import DTYPES
from uld.model.unlearned import ULDForCausalLM
from uld.runs.folder import TEACHER
from uld.runs.manifest import CHECKPOINTS, RUN_SETTINGS, DataFile, Manifest, is_run
from uld.training.config import TrainConfig
from uld.training.learner import Learner
from uld.training.trainer import Interrupted

logger = logging.getLogger(__name__)

_TAUGHT_WITH = (  # settings that a run has from the run that it teaches
    *("target", "revision", "trust_remote_code", "tokenizer", "template", "date", "max_length"),
    *("forget", "retain", "draw_retain", "chunks", "augment", "paraphrases", "wrong_answers"),
    *("split", "data", "augmented", "retain_rows", "small", "num_layers", "lora_alpha", "lora_dropout"),
    *("batch_size", "micro_batch_size", "batch_tokens", "dtype", "gradient_checkpointing", "seed", "save_steps"),
)


def teaching_settings(config: TrainConfig, method: Method, options: dict[str, Any]) -> TrainConfig | None:
    """Settings of the run that a method learns from, if it learns from one.

    Raises:
        ULDError: an option out of range.
    """
    if method.teacher is None or method.teach is None:
        return None
    shared = {name: getattr(config, name) for name in _TAUGHT_WITH}
    own = method.teach(**own_options(method.teach, options))
    return TrainConfig(method=method.teacher, output=str(Path(config.output) / CHECKPOINTS / TEACHER), **shared | own)


def learn_from_run(
    teaching: TrainConfig, learner: Learner, dtype: str, train: Callable[..., Any]
) -> dict[str, list[DataFile]]:
    """Train the run that a learner learns from, from where it was stopped; gives the files that it was trained on.

    Args:
        teaching: From `teaching_settings`.
        learner: Is told what it learns from.
        dtype: As for `uld.training.learners.make_learner`.
        train: `uld.training.run.train`.

    Raises:
        ULDError: bad input; or `Interrupted`.
    """
    folder = Path(teaching.output)
    finished, begun = is_run(folder), (folder / RUN_SETTINGS).is_file()
    PartialState().wait_for_everyone()  # all have looked before the first writes
    if not finished:
        logger.info("a run of %s is trained first, in %s", teaching.method, folder)
        try:
            train(teaching, resume=begun)
        except Interrupted as error:
            output = folder.parent.parent
            raise Interrupted(
                f"stopped while its teacher was trained: continue with uld train --output {output} --resume"
            ) from error
    hub = {"trust_remote_code": teaching.trust_remote_code}
    learner.learn_from(ULDForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], **hub))
    return Manifest.read(folder).data
