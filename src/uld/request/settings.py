"""What a request to forget says: the settings of ``uld forget``."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from uld.augment.endpoint import Endpoint
from uld.errors import ConfigError
from uld.runs.values import Count, CountFromZero, given, shown
from uld.training.config import TrainConfig, setting_fields, train_config
from uld.training.settings import kind_of

PARAPHRASES, WRONG_ANSWERS = 2, 2
"""Of each question, learnt; one paraphrase and as many wrong answers more are held back."""
PRETRAINED: dict[str, Any] = {
    "gate": True,
    "lora_rank": 32,
    "lora_alpha": 64,
    "learning_rate": 2e-3,
    "retain_weight": 2.0,
    "batch_size": 16,
    "max_length": 256,
}
"""Settings of an assistant that learns on a pretrained model (docs/results/smollm2); layers, epochs and what is
remembered follow from the target and the documents (`uld.request.steps.train_settings`)."""
_OURS = (
    *("target", "forget", "retain", "draw_retain", "augment", "paraphrases", "wrong_answers", "output", "split"),
    *("augmented", "retain_rows", "data"),
)
_TUNED = ("weight", "margin", "floor")


@dataclass(frozen=True)
class Source:
    """Who asks about documents and finds other words: the rules, unless a model is named.

    Attributes:
        local: Model folder, run or Hub id of a model on this machine.
        model: An endpoint's name for a model.
        api_base: The endpoint.
        api_key_env: Environment variable with its key; ``none`` where it needs none.
    """

    local: str | None = None
    model: str | None = None
    api_base: str | None = None
    api_key_env: str = "OPENAI_API_KEY"

    def endpoint(self) -> Endpoint:
        """The endpoint of ``model``."""
        return Endpoint(base=self.api_base, key_env=self.api_key_env, model=self.model or "")

    def words(self) -> list[str]:
        """As ``uld augment`` is told."""
        if self.local is not None:
            return ["--local", self.local]
        if self.model is not None:
            key = ["--api-key-env", self.api_key_env] if self.api_key_env != Source.api_key_env else []
            return ["--model", self.model, *(["--api-base", self.api_base] if self.api_base else []), *key]
        return ["--rules"]


@dataclass(frozen=True)
class Request:
    """A request to forget.

    Attributes:
        target: The model: folder or Hub id.
        documents: What it must forget: files, folders or Hub data sets, as for ``uld train --forget``.
        output: The run folder to make; what it takes to get there goes beside it (`Request.work`).
        retain: What must stay, in the same forms.
        source: Who asks and rephrases.
        questions: Questions about each chunk of a text.
        draw: Retain rows to draw from the target; default: as many as make the given ones as many as there are to
            forget, and always 128.
        retain_model: A model that never saw the documents, to stand beside the result.
        thresholds: A file of thresholds for the check; default: those of ``uld check``.
        seed: Of the rules, the drawing and the training.
        settings: Settings of `TrainConfig` other than the defaults; None leaves the default.
    """

    target: str
    documents: tuple[str, ...]
    output: str
    retain: tuple[str, ...] = ()
    source: Source = field(default_factory=Source)
    questions: int = 4
    draw: int | None = None
    retain_model: str | None = None
    thresholds: str | None = None
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be carried out.

        Raises:
            ULDError: says what, and how to mend it.
        """
        for name, value in (("target", self.target), ("documents", self.documents), ("output", self.output)):
            if not value:
                raise ConfigError(f"no {name}: name {'them' if name == 'documents' else 'one'} with --{name}")
        object.__setattr__(self, "questions", given("questions", self.questions, Count))
        if self.draw is not None:
            object.__setattr__(self, "draw", given("draw", self.draw, CountFromZero))
        if Path(self.output).name in ("", ".."):
            raise ConfigError(f"--output {self.output} is no folder to make: name a new one, such as runs/mine")
        if not isinstance(self.settings, Mapping):
            raise ConfigError(f'settings must be values by their names, as {{"epochs": 3}}, not {shown(self.settings)}')
        own = {name: os.fspath(one) if isinstance(one, os.PathLike) else one for name, one in self.settings.items()}
        object.__setattr__(self, "settings", {name: one for name, one in own.items() if one is not None})
        if self.source.local is not None and self.source.model is not None:
            raise ConfigError("two are to ask the questions: leave out --local or --model")
        if self.source.api_base is not None and self.source.model is None:
            raise ConfigError("--api-base needs the endpoint's name for the model: give --model")
        if self.draw == 0 and not self.retain:
            raise ConfigError("nothing would stay: --draw 0 needs a retain set (--retain)")
        if taken := [name for name in self.settings if name in _OURS]:
            raise ConfigError(f"--set {taken[0]} is what uld forget sees to itself: leave it out")
        if tuned := [name for name in self.settings if name in _TUNED]:
            raise ConfigError(
                f"uld forget chooses margin, floor and α on held-out rows, so --set {tuned[0]} would not be kept: "
                f"leave it out, and load the run with --{tuned[0]}"
            )
        if self.settings.get("method", "uld") != "uld":
            raise ConfigError("uld forget trains an assistant: for --set method use uld train, and then uld check")
        train_config([("--set", self.settings)])

    @property
    def work(self) -> Path:
        """Folder of what is made on the way; it quotes the documents."""
        output = Path(self.output)
        return output.with_name(f"{output.name}-request")

    def about(self) -> dict[str, Any]:
        """What decides the run, to know the same request by; what it is checked against may change."""
        names = ("target", "documents", "retain", "questions", "draw", "seed")
        asked = {name: getattr(self, name) for name in names}
        return {**asked, "source": vars(self.source), "settings": dict(self.settings)}


def known_settings() -> list[str]:
    """Names of the settings of a training that may be given."""
    return [one.name for one in setting_fields(TrainConfig) if one.name not in _OURS]


def is_text(name: str) -> bool:
    """Whether a setting of a training is a text, or several."""
    kind = next(kind_of(one) for one in setting_fields(TrainConfig) if one.name == name)
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return (get_origin(kind) or kind) in (str, tuple, Literal)
