"""What gets LoRA: every linear of the decoder layers that acts as one, and every stack of experts' matrices.

Decided by looking. A pass of a few tokens shows which linears are called and return one tensor: a router that returns a
tuple gets no LoRA, nor does a linear whose weight others read without calling it, where LoRA would do nothing. Experts
whose matrices are one parameter ``(experts, in, out)`` get LoRA on that parameter.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_TOLD = 0.05  # share of the layers' matrices that may stay outside LoRA without a word


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Leave out two of PEFT's warnings: of an attribute's older name, and of ranks of parameters, which it does use."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
        yield


def some_tokens(model: PreTrainedModel, rows: int, tokens: int) -> Tensor:
    """Different token ids ``(rows, tokens)`` from all over the vocabulary, on the model's device."""
    embedding: Any = model.get_input_embeddings()
    count = rows * tokens
    ids = torch.arange(1, count + 1, device=model.device) * embedding.weight.shape[0] // (count + 1)
    return ids.view(rows, tokens)


@torch.no_grad()
def acting_linears(model: PreTrainedModel, within: str) -> list[str]:
    """Names of the linears that a pass calls and that return one tensor.

    Experts that are modules of their own are not all called by a few tokens, so what is seen of one holds for all
    whose names differ from it in numbers only.

    Args:
        model: In evaluation mode.
        within: Name of the module to look in.
    """
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(within + ".")
    }
    acts: dict[str, bool] = {}

    def kind(name: str) -> str:
        return re.sub(r"\.\d+(?=\.|$)", ".*", name)

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            acts[kind(name)] = acts.get(kind(name), True) and isinstance(output, Tensor)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in linears.items()]
    try:
        model(input_ids=some_tokens(model, 1, 4), use_cache=False)
    finally:
        for one in hooks:
            one.remove()
    return [name for name in linears if acts.get(kind(name))]


def expert_stacks(model: PreTrainedModel, within: str) -> dict[str, int]:
    """Names of parameters that are stacks of matrices ``(experts, in, out)``, and how many matrices each stacks.

    Args:
        model: Any.
        within: Name of the module to look in.
    """
    return {
        f"{name}.{own}": parameter.shape[0]
        for name, module in model.named_modules()
        if name.startswith(within + ".") and not type(module).__module__.startswith("torch.nn")  # convolutions
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and min(parameter.shape) > 1 and parameter.is_floating_point()
    }


def put_lora(
    model: PreTrainedModel,
    linears: str | list[str],
    stacks: Mapping[str, int],
    *,
    rank: int,
    alpha: int,
    dropout: float,
) -> PeftModel:
    """Wrap a model's linears and stacks in trainable LoRA, by PEFT.

    Args:
        model: Is changed in place.
        linears: Names of modules.
        stacks: Names of parameters, and how many matrices each stacks: they share out the rank, at least 1 each.
        rank: r.
        alpha: LoRA scale; every update is ``alpha / rank · B A x``.
        dropout: On LoRA's input; PEFT has none for parameters.
    """
    own = {name: max(1, rank // count) for name, count in stacks.items()}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=linears,
        target_parameters=list(stacks) or None,
        rank_pattern=own,
        alpha_pattern={name: alpha * share / rank for name, share in own.items()},
        task_type="CAUSAL_LM",  # type: ignore[arg-type]
    )
    with quiet_peft():
        return get_peft_model(model, config)  # type: ignore[return-value]


def adapted(model: PeftModel) -> set[str]:
    """Names, in the model without PEFT, of the linears and parameters that have LoRA."""
    found = set()
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            plain = name.replace(".base_layer", "")
            found.add(f"{plain}.{module.parameter_name}" if isinstance(module, ParamWrapper) else f"{plain}.weight")
    return found


def on_bytes(model: PeftModel) -> str | None:
    """Name of a parameter with LoRA whose numbers are quantised, so that nothing can be added to them; or None."""
    wrappers = (module for module in model.modules() if isinstance(module, ParamWrapper))
    return next((one.parameter_name for one in wrappers if not one.get_param().is_floating_point()), None)


def from_layer(first: int, names: Iterable[str], within: str) -> list[str]:
    """Those names of a list of layers that are of its layer number ``first`` or of later ones.

    Args:
        first: 0 takes all.
        names: Of modules or parameters within the list.
        within: Name of the list.
    """
    return [name for name in names if int(name.removeprefix(f"{within}.").partition(".")[0]) >= first]


def left_out(model: PeftModel, within: str, first: int = 0) -> str | None:
    """A sentence on the matrices that have no LoRA, of layer ``first`` and later ones; None where they hardly count."""
    have, total = adapted(model), 0
    outside: dict[str, int] = {}
    for name, parameter in model.get_base_model().named_parameters():
        plain = name.replace(".base_layer", "")
        if parameter.dim() < 2 or ".lora_" in name or not plain.startswith(within + "."):
            continue
        if not from_layer(first, [plain], within):
            continue
        total += parameter.numel()
        if plain not in have:
            short = re.sub(r".*\.\d+\.", "", plain)
            outside[short] = outside.get(short, 0) + parameter.numel()
    if sum(outside.values()) <= _TOLD * total:
        return None
    names = ", ".join(sorted(outside, key=lambda name: -outside[name])[:3])
    return (
        f"LoRA leaves out {sum(outside.values()):,} of the {total:,} parameters in the matrices of these layers "
        f"({names}): they stay as they are"
    )
