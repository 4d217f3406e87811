"""``uld``, a model of EleutherAI's lm-eval: a run or any causal LM, under the name that its ``--model`` takes.

lm-eval's own Hugging Face model does all the work on the loaded model. Importing this module registers the name.
"""

import os
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.errors import ULDError, guess
from uld.model.context import readable_tokens
from uld.model.device import best_device
from uld.model.load import load
from uld.model.unlearned import ULDForCausalLM
from uld.runs.values import Length, given_or_none

try:
    from lm_eval.api.registry import model_registry
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ULDError(f'lm-eval is missing ({error}): pip install -e ".[harness]" in the folder of uld') from error

_HFLM: Any = HFLM  # its decorator hides its type
NAME = "uld"
_NUMBERS = ("weight", "margin", "floor", "filter", "min_tokens", "rank_tokens")
_OF_LM_EVAL = (  # what `HFLM` does with a model that is loaded already; the rest of its arguments it would pass over
    *("max_batch_size", "truncation", "logits_cache", "add_bos_token", "prefix_token_id", "softmax_dtype"),
    *("mixed_precision_dtype", "think_end_token", "enable_thinking", "chat_template_args"),
)


class ULDLM(_HFLM):
    """An unlearned model, or an ordinary one, as lm-eval sees it."""

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        *,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        date: str | None = None,
        target: str | None = None,
        rule: str | None = None,
        weight: float | None = None,
        margin: float | None = None,
        floor: float | None = None,
        filter: float | None = None,
        min_tokens: float | None = None,
        outside: str | None = None,
        rank_tokens: int | None = None,
        dtype: str = "auto",
        device: str | None = None,
        max_length: int | None = None,
        batch_size: int | str = 1,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        """Load a run or model, or take one that is loaded.

        Args:
            pretrained: Run folder, model folder or Hub id; or a model, which is taken as it is.
            tokenizer: Folder or Hub id, default: the model's; a model that is loaded needs the tokenizer itself.
            date: Day that a chat template with a clock writes; default: the run's.
            target: Where the run's target is now.
            rule: Override of the run's rule.
            weight: Of its α.
            margin: Of its margin, nats.
            floor: Of its floor φ.
            filter: Of its τ.
            min_tokens: Of the filter's least share.
            outside: ``keep`` or ``mask``.
            rank_tokens: Of the k of ``rank``.
            dtype: auto, bf16, fp16 or fp32; torch's names are understood, too.
            device: cpu, cuda, mps …; default: the best there is.
            max_length: Tokens that the model reads at once; default: by its config.
            batch_size: Rows of a batch, or lm-eval's ``auto``.
            trust_remote_code: Run code that comes with the target.
            options: See `HFLM`: those that have a meaning for a loaded model.

        Raises:
            ULDError: an argument that there is not, a value out of range, several processes, or what `load` raises.
        """
        if unknown := sorted(options.keys() - set(_OF_LM_EVAL)):
            known = [*_OF_LM_EVAL, "pretrained", *(name for name in ULDLM.__init__.__kwdefaults__ or {})]
            hint = guess(unknown[0], known) or f": it takes {', '.join(sorted(known))}"
            raise ULDError(f"the model uld takes no argument {unknown[0]}{hint}")
        max_length = given_or_none("max_length", max_length, Length)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ULDError("lm-eval runs an unlearned model in one process only: start it without a launcher")
        if isinstance(pretrained, str):
            numbers = dict(zip(_NUMBERS, (weight, margin, floor, filter, min_tokens, rank_tokens), strict=True))
            changes: dict[str, Any] = {"rule": rule, "outside": outside, "target": target, "tokenizer": tokenizer}
            changes["date"] = date
            changes |= {name: _number(name, value) for name, value in numbers.items() if value is not None}
            if trust_remote_code:
                changes["trust_remote_code"] = True
            given = {name: value for name, value in changes.items() if value is not None}
            pretrained, tokenizer = _loaded(pretrained, dtype, device, given)
        super().__init__(
            pretrained=pretrained, tokenizer=tokenizer, max_length=max_length, batch_size=batch_size, **options
        )

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once: those given, or as many as it can."""
        return self._max_length or readable_tokens(self._model, self.tokenizer)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results; of an unlearned model also rule, α and τ."""
        about = super().get_model_info() | {"model_dtype": str(self._model.dtype)}
        if isinstance(self._model, ULDForCausalLM):
            about |= self._model.combined_as
        return about


def _loaded(
    path: str, dtype: str, device: str | None, given: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if str(device).startswith("cuda") and not torch.cuda.is_available():  # lm-eval's default
        device = None
    model, tokenizer = load(path, dtype=dtype, **given)
    try:
        return model.to(device or best_device()), tokenizer  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ULDError(f"cannot use the device {device or best_device()}: {str(error).splitlines()[0]}") from error


def _number(name: str, value: Any) -> float:
    try:
        return int(value) if name == "rank_tokens" else float(value)
    except (TypeError, ValueError) as error:
        raise ULDError(f"{name} must be a number, not {value!r}") from error


if NAME not in model_registry:  # a newer lm-eval may hold the name already, from this package's entry point
    model_registry.register(NAME, target=ULDLM)
