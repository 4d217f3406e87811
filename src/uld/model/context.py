"""How much a model can read: what its config says, and whether it breaks behind that or only gets worse.

A model with a table of positions has none for what is longer; one that computes them (rotary, ALiBi) reads it. A pass
over one token more than the config says tells which, before a row that is too long is an error in the middle of
something.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.errors import ULDError
from uld.model.fields import field

UNLIMITED = 2**31 - 1
_LM_EVALS = 2048  # tokens that lm-eval takes where neither config nor tokenizer says
_UNKNOWN = 10**18  # what a tokenizer says that knows no longest input is larger

_breaking: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def context_length(model: PreTrainedModel) -> int:
    """Tokens that a model has positions for; a very large number where its config does not say."""
    return int(field(model.config, "max_position_embeddings", UNLIMITED))


def readable_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a model can read at once, by its config or its tokenizer; 2,048 where neither says."""
    if (length := context_length(model)) < UNLIMITED:
        return length
    longest = int(tokenizer.model_max_length)
    return longest if longest < _UNKNOWN else _LM_EVALS


def refuse_long_prompt(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Refuse a prompt that leaves no room for an answer.

    Args:
        model: That is to answer.
        ids: Tokens of the prompt.

    Raises:
        ULDError: it is as long as the model's context, or longer.
    """
    if len(ids) >= (longest := context_length(model)):
        raise ULDError(f"the prompt has {len(ids)} tokens, the model takes fewer than {longest}")


def check_positions(models: Iterable[Any], tokens: int, what: str) -> None:
    """Refuse what is longer than a model has positions for.

    Args:
        models: All that are to read it; one whose positions know no end is not in the way.
        tokens: How many they are to read.
        what: What has so many tokens, for the message.

    Raises:
        ULDError: one of the models breaks behind its last position, and that comes before the last token.
    """
    for model in models:
        limit = context_length(model)
        if tokens > limit and _breaks_behind(model, limit):
            raise ULDError(
                f"{what} takes {tokens} positions, and {type(model).__name__} has no more than {limit}: "
                "use shorter texts, or ask for fewer new tokens"
            )


@torch.inference_mode()
def _breaks_behind(model: Any, limit: int) -> bool:
    """Whether a model cannot read one token more than its config says."""
    if model not in _breaking:
        config = model.config
        special = {field(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        token = next(i for i in range(9) if i not in special)
        ids = torch.full((1, limit + 1), token, device=model.device)
        few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        _breaking[model] = False
        try:
            with _CheckedIndices():
                model(input_ids=ids, use_cache=False, **few)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError, ValueError):
            _breaking[model] = True
    return _breaking[model]


class _CheckedIndices(TorchDispatchMode):
    """Makes an index out of range an error before the device sees it: on a GPU it would end the process."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check what looks up rows of a table."""
        aten = torch.ops.aten
        given: tuple[Any, ...] = (*args, None, None)
        table, index = given[:2]
        if func is aten.embedding.default:
            _check(index, table.shape[0])
        elif func is aten.index.Tensor:
            for size, one in zip(table.shape, index, strict=False):
                _check(one, size)
        elif func in (aten.index_select.default, aten.gather.default):
            _check(args[2], table.shape[index])
        return func(*args, **kwargs or {})


def _check(index: Any, size: int) -> None:
    if index is not None and index.dtype in (torch.int32, torch.int64) and index.numel() and int(index.max()) >= size:
        raise IndexError(f"an index reaches {int(index.max())}, of {size}")
