"""What is trained as files: an adapter, those of a pair, or a whole model; and a method's last step on it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from uld.errors import ArtifactError, ULDError
from uld.model.gate import gate_of, load_gate, save_gate
from uld.runs.digests import ADAPTER_WEIGHTS, first_broken
from uld.runs.files import as_usual


def adapters_of(model: Any) -> dict[str, PeftModel]:
    """The adapters of what is trained, by the folder in which each lies below that of all; none of a whole model."""
    if isinstance(model, nn.ModuleDict):
        return dict(model.items())  # type: ignore[arg-type]
    return {"": model} if isinstance(model, PeftModel) else {}


def save_weights(model: Any, folder: Path) -> None:
    """Write what is trained: LoRA in PEFT's format, or a whole model in transformers'."""
    for name, part in adapters_of(model).items():
        write_lora(part, folder / name)
        save_gate(part, folder / name)
    if not adapters_of(model):  # under the names that it has in memory: those of files need not be a model's own
        model.save_pretrained(folder, save_original_format=False)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Read back what `save_weights` wrote."""
    for name, part in adapters_of(model).items():
        set_peft_model_state_dict(part, load_file(str(folder / name / ADAPTER_WEIGHTS)))
        load_gate(part, folder / name)
    if adapters_of(model):
        return
    stored = {
        name: tensor
        for path in sorted(folder.glob("model*.safetensors"))
        for name, tensor in load_file(str(path)).items()
    }
    missing, surplus = model.load_state_dict(stored, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if surplus or set(missing) - tied:
        raise ULDError(f"{folder} does not hold the weights of this model")


def save_adapter(adapter: Any, folder: Path, target: str) -> None:
    """Write an adapter in PEFT's own format, naming the target as its base; its gate, if it has one, lies beside it.

    Args:
        adapter: A `peft.PeftModel`.
        folder: Where to.
        target: Folder or Hub id of the target.

    Raises:
        ArtifactError: a weight is NaN or infinite.
    """
    if (gate := gate_of(adapter)) is not None:
        _refuse_broken((f"the gate's {name}", tensor) for name, tensor in gate.named_parameters())
    _refuse_broken(get_peft_model_state_dict(adapter, save_embedding_layers=False).items())
    adapter.peft_config["default"].base_model_name_or_path = target
    write_lora(adapter, folder)
    save_gate(adapter, folder)
    as_usual(folder.glob("*.safetensors"))


def write_lora(adapter: Any, folder: Path) -> None:
    """Have PEFT write its two files, without the form of a model card, which takes longer than both."""
    adapter.create_or_update_model_card = lambda _: None
    try:
        adapter.save_pretrained(str(folder), save_embedding_layers=False)
    finally:
        del adapter.create_or_update_model_card


def save_model(model: Any, folder: Path, dtype: Any) -> int:
    """Write a whole model with its config, in the dtype of the checkpoint that it came from.

    Args:
        model: A transformers model.
        folder: Where to.
        dtype: Of the checkpoint; None keeps the model's.

    Returns:
        Bytes of the weights on disk.

    Raises:
        ArtifactError: a weight is NaN or infinite.
    """
    own = model.dtype
    wanted = own if dtype is None else dtype
    weights = model.state_dict()
    _refuse_broken(weights.items())
    model.config.dtype = wanted
    try:
        model.save_pretrained(
            str(folder), state_dict={k: v.to(wanted) if v.is_floating_point() else v for k, v in weights.items()}
        )
        model.config.dtype = wanted  # transformers has put the model's own there
        model.config.save_pretrained(str(folder))
    finally:
        model.config.dtype = own
    as_usual(folder.glob("model*.safetensors"))
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))


def _refuse_broken(tensors: Iterable[tuple[str, Tensor]]) -> None:
    if broken := first_broken(tensors):
        raise ArtifactError(
            f"training came to NaN or infinite numbers ({broken}), and such weights are not written: lower "
            "--learning-rate, or train with --dtype fp32"
        )
