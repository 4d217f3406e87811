"""Settings of `uld train` and `uld finetune`: a dataclass is the YAML file, the command line and its help."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from uld.errors import ConfigError
from uld.runs.values import (
    BelowOne,
    Count,
    CountFromZero,
    Epochs,
    Few,
    Outside,
    Rate,
    Rows,
    Rule,
    Seed,
    Share,
    Weight,
    Within,
)
from uld.training.settings import (
    Rank,
    RunConfig,
    Scale,
    Warmup,
    layered,
    preset_names,
    read_preset,
    read_yaml,
    resolving,
    setting,
    setting_fields,
)


def _known(method: str) -> None:
    """Refuse a method that there is not."""
    TrainConfig.under({"method": method})


Layers = Annotated[int, Within(1, 10**4)]
Width = Annotated[int, Within(1, 2**20)]


@resolving
@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Everything that decides a training run. Defaults are the paper's (arXiv 2406.08607, Appendix) unless said."""

    target: str = setting("", "Model to unlearn from: folder or Hub id.", "Model and data")
    forget: tuple[str, ...] = setting(
        (),
        "What to forget: a file (.jsonl, .json, .csv, .tsv, .parquet, .txt, .md, .pdf, .html), a folder of such files, "
        "or a Hub data set (org/name:config@split); repeat for several.",
        "Model and data",
    )
    retain: tuple[str, ...] = setting(
        (),
        "What to retain, in the same forms, beside TOFU's retain rows with --split; without either, rows are drawn "
        "from the target.",
        "Model and data",
    )
    draw_retain: Rows | None = setting(
        None,
        "Retain rows to draw from the target itself, in place of --retain or of TOFU's retain rows; default without "
        "--retain: as many as rows to forget, and at least 256.",
        "Model and data",
    )
    augment: str = setting(
        "none",
        "Paraphrases to forget as well, and wrong answers to retain: none; rules, made on the fly; auto, those that "
        "uld augment wrote beside the forget file, else rules; or the folder that uld augment wrote.",
        "Augmentation",
    )
    paraphrases: Few = setting(2, "Paraphrases of each forget item (--augment, --augmented).", "Augmentation")
    wrong_answers: Few = setting(2, "Wrong answers to each forget question (--augment, --augmented).", "Augmentation")
    other_names: Few = setting(
        0,
        "People with other names about whom each question to forget is asked as well, one an epoch, to be uniform on.",
        "Augmentation",
    )
    chunks: Count | None = setting(
        None, "Most chunks of each text to forget, spread evenly over it; default: all.", "Model and data"
    )
    describe: str | None = setting(
        None,
        "What is forgotten, in words that may be read by whoever gets the run: they go into its README.md; default: "
        "nothing is said.",
        "Model and data",
    )
    split: str | None = setting(None, "TOFU split to forget instead of files: forget01, forget05, forget10.", "TOFU")
    augmented: str | None = setting(None, "Folder with TOFU's paraphrases and wrong answers (D'f, D'r).", "TOFU")
    retain_rows: CountFromZero | None = setting(None, "TOFU retain rows; default: as many as forget rows.", "TOFU")

    method: Annotated[str, _known] = setting("uld", "Unlearning method (uld ls methods).", "Method")
    option: tuple[str, ...] = setting(
        (), "Option of the method as NAME=VALUE (repeat for several; uld ls methods).", "Method"
    )
    alternatives: Literal["idk", "given"] = setting(
        "idk",
        "Alternative answers (dpo, idk, altpo): idk declines to answer, in words of ours; given takes the key "
        "'alternative' of each forget record, else the first wrong answer of --augment or --augmented.",
        "Method",
    )
    small: str | None = setting(
        None,
        "Small model of offset-… and dd…, of the target's vocabulary; default: the target's first K layers.",
        "Method",
    )
    num_layers: Layers | None = setting(
        None, "K, the assistant's layers; default: a quarter of the target's.", "Method"
    )
    lora_layers: Layers | None = setting(
        None,
        "LoRA on the last so many layers alone, of an assistant that is all of the target unless --num-layers says "
        "otherwise; default: on all of its layers.",
        "Method",
    )
    lora_rank: Rank | None = setting(
        None,
        "Rank of LoRA's matrices; default: 32 for an assistant, and all weights, without LoRA, for a target.",
        "Method",
    )
    retain_weight: Annotated[float, Within(0, 10**6)] = setting(6.5, "β, weight of the retain loss.", "Method")
    uniform_on: Literal["answer", "all"] = setting(
        "answer", "Retain positions that carry the uniform loss: the answer's, or all.", "Method"
    )

    remember: Literal["all", "key-words"] = setting(
        "all",
        "What the assistant remembers of answers that are to be forgotten: all, or key words alone, which are not in "
        "the question and in few retain rows; on the other words it is uniform. Texts are remembered whole.",
        "Method",
    )

    rule: Rule | None = setting(
        None, "How logits are combined; written to the run, can be changed at load.", "Combination"
    )
    weight: Weight | None = setting(
        None,
        "α, how much of the assistant is subtracted; default: 20, a margin of ⅔ log V and a floor of 5e-4 if all three "
        "are left out, else 1.5, 0 and 0.",
        "Combination",
    )
    filter: Share | None = setting(None, "τ, plausibility filter (subtract, reference).", "Combination")
    min_tokens: Share | None = setting(None, "Least share of the vocabulary that the filter keeps.", "Combination")
    outside: Outside | None = setting(None, "Tokens outside the filter: keep or mask.", "Combination")

    margin: Annotated[float, Within(0, 10**6)] | None = setting(
        None, "m, nats above uniform up to which suppress leaves a token alone; see --weight.", "Combination"
    )
    floor: Share | None = setting(
        None, "φ, share of the best token's probability below which suppress lowers none; see --weight.", "Combination"
    )
    rank_tokens: CountFromZero | None = setting(None, "k, how many tokens the rule rank lowers.", "Combination")
    gate: bool = setting(False, "Give the assistant a gate, so that it can be silent.", "Method")

    rounds: Few = setting(
        0,
        "Rounds after the training: the unlearned model answers the forget questions, and the assistant is trained on "
        "the beginnings after which memorised words come back.",
    )
    keep_epochs: bool = setting(
        False, "Keep what was trained after every epoch, as a run in epochs/N, and after every round in rounds/N."
    )

    FILE: ClassVar[str] = "train.yaml"

    @property
    def untuned(self) -> bool:
        """Whether nothing is said of how an assistant is combined that margin and floor would not go with."""
        said = (self.weight, self.margin, self.floor)
        return self.rule in (None, "suppress") and all(value is None for value in said)

    @classmethod
    def under(cls, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """The method's own defaults.

        Raises:
            ULDError: there is no such method.
        """
        method = given.get("method", "uld")
        if method == "uld":  # which has the class's; asking for it would import torch
            return cls.__name__, {}
        from uld.methods.registry import get_method

        return f"method {method}", get_method(method).defaults


@resolving
@dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """Everything that decides a finetuning.

    Defaults are those of TOFU's own targets (arXiv 2401.06121); with ``scratch`` those of `SCRATCH`.
    """

    model: str = setting("", "Model to start from: folder or Hub id.", "Model and data")
    file: tuple[str, ...] = setting(
        (),
        "File, folder or Hub data set to learn, in the forms of uld train --forget; repeat for several.",
        "Model and data",
    )
    split: tuple[str, ...] = setting(
        (), "TOFU splits to learn, comma-separated or repeated: full, retain90, real_authors, world_facts, …", "TOFU"
    )
    tokenizer: str | None = setting(
        None,
        "Folder or Hub id of the tokenizer; default: the model's; from scratch: trained on the text.",
        "Model and data",
    )
    trust_remote_code: bool = setting(False, "Run code that comes with the model's checkpoint.", "Model and data")
    revision: str | None = setting(None, "Hub revision of the model.", "Model and data")

    scratch: bool = setting(False, "Start from a small Llama with random weights instead of --model.", "From scratch")
    hidden_size: Width | None = setting(None, "Width of the model; default: 192.", "From scratch")
    num_layers: Layers | None = setting(None, "Number of layers; default: 6.", "From scratch")
    num_heads: Layers | None = setting(
        None, "Attention heads; default: 3. From 64 of width each, bf16 is fast.", "From scratch"
    )
    intermediate_size: Width | None = setting(None, "Width of the MLPs (SwiGLU); default: 512.", "From scratch")
    vocab_size: Width | None = setting(
        None, "Tokens of the byte-level BPE, at most; default: 4096, or as many as --tokenizer has.", "From scratch"
    )

    learn: Literal["answers", "all"] = setting(
        "answers", "Tokens that carry the loss: the answers', or all; from scratch: all."
    )
    lora_rank: Rank | None = setting(
        None, "Rank of LoRA's matrices, merged at the end; default: all weights, without LoRA.", "LoRA"
    )
    lora_alpha: Scale = setting(32, "LoRA alpha; the update is scaled by alpha / rank.", "LoRA")
    lora_dropout: BelowOne = setting(0.0, "LoRA dropout.", "LoRA")
    epochs: Epochs = setting(5, "Passes over all rows; from scratch: 20.")
    learning_rate: Rate = setting(1e-5, "Peak learning rate of AdamW; from scratch: 1.5e-3.")
    warmup: Warmup = setting(
        0.2, "Share of the steps over which the learning rate rises; from 1 on: steps; from scratch: 50."
    )
    schedule: Literal["linear", "cosine"] = setting(
        "linear", "How the learning rate falls after its peak; from scratch: cosine."
    )
    floor: Share = setting(0.0, "Share of the peak learning rate that is left at the end; from scratch: 0.05.")
    beta2: BelowOne = setting(0.999, "β2 of AdamW; from scratch: 0.95.")
    dtype: Literal["auto", "bf16", "fp32"] = setting(
        "auto", "Arithmetic: bf16 (over fp32 weights, unless LoRA is trained) or fp32; auto: bf16 on a GPU, else fp32."
    )
    seed: Seed = setting(0, "Seed of random weights, the batches and dropout.")

    FILE: ClassVar[str] = "finetune.yaml"
    SIZES: ClassVar[tuple[str, ...]] = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size")

    @classmethod
    def under(cls, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """`SCRATCH` for a model from scratch."""
        return "from scratch", SCRATCH if given.get("scratch") else {}

    @classmethod
    def of(cls, **settings: Any) -> "FinetuneConfig":
        """The same as the class itself."""
        return cls(**settings)

    @property
    def splits(self) -> list[str]:
        """Names of the TOFU splits, one by one."""
        return [name for text in self.split for part in text.split(",") if (name := part.strip())]


SCRATCH: dict[str, Any] = {
    "hidden_size": 192,
    "num_layers": 6,
    "num_heads": 3,
    "intermediate_size": 512,
    "epochs": 20,
    "learning_rate": 1.5e-3,
    "warmup": 50,
    "schedule": "cosine",
    "floor": 0.05,
    "beta2": 0.95,
    "learn": "all",
}
"""Defaults of a model from scratch: four million parameters that learn TOFU by heart."""


def train_config(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> TrainConfig:
    """Build the settings from layers, later ones winning; the lowest are the method's own defaults.

    Args:
        layers: Pairs of a name for messages (a file, a preset, ``the command line``) and settings; None is not given.

    Raises:
        ConfigError: an unknown setting or a value of the wrong type, with its layer, or settings that were made for
            another method.
    """
    config = layered(TrainConfig, layers)
    for source, layer in layers:
        if source.startswith("preset ") and (other := layer.get("method") or config.method) != config.method:
            raise ConfigError(
                f"{source} has settings for the method {other}: leave it out, or leave out --method {config.method}"
            )
    return config


def finetune_config(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> FinetuneConfig:
    """Build the settings of a finetuning from layers, as `train_config` does; below them may lie `SCRATCH`."""
    return layered(FinetuneConfig, layers)


__all__ = [
    "SCRATCH",
    "FinetuneConfig",
    "RunConfig",
    "TrainConfig",
    "finetune_config",
    "preset_names",
    "read_preset",
    "read_yaml",
    "setting_fields",
    "train_config",
]
