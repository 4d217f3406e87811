"""What a request trains: the settings that follow from its target and its documents."""

from collections.abc import Mapping
from math import ceil
from typing import Any

from uld.augment.output import FILES
from uld.data.documents import read_sources
from uld.data.other_names import with_other_names
from uld.data.prompt import PromptFormat
from uld.errors import ConfigError
from uld.model.assistant import default_num_layers
from uld.model.causal_lm import load_config
from uld.model.load import tokenizer_for
from uld.request import material
from uld.request.settings import PARAPHRASES, PRETRAINED, WRONG_ANSWERS, Request
from uld.training.config import TrainConfig, train_config

STEPS_WANTED, LEAST_EPOCHS = (64, 200), (3, 5)
"""Optimiser steps and epochs, at least, where no epochs are given: a short request is read more often. The first of
each is for an assistant with LoRA on its last layers, which knows the answers to begin with."""
ROUNDS = 1
"""Rounds behind the training of an assistant with LoRA on its last layers: what the model lets back in behind words of
its own is learnt as well."""


def settings_of(request: Request) -> dict[str, Any]:
    """Settings of the training, those of a pretrained model where the request says nothing."""
    return PRETRAINED | {"seed": request.seed} | dict(request.settings)


def form_of(request: Request) -> PromptFormat:
    """How the target is asked, in training and after it.

    Raises:
        ULDError: there is no such tokenizer, or it has no such template.
    """
    own = settings_of(request)
    how = {"revision": own.get("revision"), "date": own.get("date")}
    trust = bool(own.get("trust_remote_code"))
    tokenizer = tokenizer_for(request.target, own.get("tokenizer"), trust_remote_code=trust, **how)
    return PromptFormat(tokenizer, own.get("template"))


def train_settings(request: Request) -> TrainConfig:
    """All settings of the training, from the files of the steps before."""
    own = settings_of(request)
    if "num_layers" not in own:
        own.setdefault("lora_layers", default_num_layers(_layers_of_target(request)))
        own.setdefault("remember", "key-words")
        own.setdefault("rounds", ROUNDS if _has_questions(request) else 0)
    own.setdefault("epochs", epochs_of(own, rows_of(request)))
    own.setdefault("other_names", _other_names(request, own["epochs"]))
    own |= {
        "target": request.target,
        "forget": (*request.documents, *material.asked_about(request.work)),
        "retain": (str(request.work / material.RETAIN),),
        "augment": str(request.work / material.REWORDED),
        "paraphrases": PARAPHRASES,
        "wrong_answers": WRONG_ANSWERS,
        "output": request.output,
    }
    return train_config([("uld forget", own)])


def rows_of(request: Request) -> int:
    """About as many rows as an epoch has: lines of what is trained on and was made by the steps before."""
    made = [request.work / material.REWORDED / name for name in FILES.values()]
    files = [request.work / material.FORGET, request.work / material.RETAIN, *(path for path in made if path.is_file())]
    texts = (path.read_text(encoding="utf-8") for path in files)
    return sum(1 for text in texts for line in text.split("\n") if line)  # a text may hold other line ends


def _has_questions(request: Request) -> bool:
    """Whether anything but texts is to be forgotten."""
    return any(record.text is None for record in read_sources([str(request.work / material.FORGET)])[0])


def epochs_of(settings: Mapping[str, Any], rows: int) -> int:
    """Passes over the rows where the request says nothing.

    Args:
        settings: Of the training.
        rows: Of an epoch.
    """
    first = settings.get("num_layers") is not None and settings.get("lora_layers") is None
    return max(LEAST_EPOCHS[first], ceil(STEPS_WANTED[first] / max(1, ceil(rows / settings["batch_size"]))))


def _layers_of_target(request: Request) -> int:
    """L.

    Raises:
        ULDError: there is no such model.
    """
    hub = {"revision": request.settings["revision"]} if "revision" in request.settings else {}
    trust = bool(request.settings.get("trust_remote_code"))
    config = load_config(request.target, trust_remote_code=trust, **hub)
    return config.get_text_config(decoder=True).num_hidden_layers


def _other_names(request: Request, epochs: int) -> int:
    """In every epoch somebody else whom each question that names anybody is asked about; none where none does."""
    forget, retain = (read_sources([str(request.work / name)])[0] for name in (material.FORGET, material.RETAIN))
    try:
        with_other_names(forget, retain, 1, request.seed)
    except ConfigError:
        return 0
    return epochs
