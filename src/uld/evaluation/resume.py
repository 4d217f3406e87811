"""Evaluations that can be stopped: which one a folder holds."""

import hashlib
import json
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.model.unlearned import ULDForCausalLM
from uld.runs.manifest import fingerprint
from uld.runs.rows import claim


def describe(model: PreTrainedModel, form: PromptFormat, **settings: Any) -> dict[str, Any]:
    """Everything that decides an evaluation's numbers, as written beside its log."""
    sample: Any = form.tokenizer.decode(form.encode(Record.qa("QUESTION", "ANSWER"), max_length=2**31).ids)
    about: dict[str, Any] = {
        "model": str(model.name_or_path),
        "weights": fingerprint(model.named_parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompt": sample,
        "tokenizer": tokenizer_digest(form.tokenizer),
    }
    if isinstance(model, ULDForCausalLM):
        about |= model.combined_as
    return about | settings


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of all that decides a tokenizer's tokens: vocabulary, merges and further steps, and the chat template."""
    whole = getattr(tokenizer, "backend_tokenizer", None)
    steps = json.loads(whole.to_str()) if whole is not None else {"class": type(tokenizer).__name__}
    for passing in ("padding", "truncation"):  # what the last call asked for
        steps.pop(passing, None)
    parts = [steps, sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "chat_template", None)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def begin(folder: str | Path, model: PreTrainedModel, form: PromptFormat, **settings: Any) -> Path:
    """Take a folder for an evaluation, or find it taken by the same one; the first of several processes goes first.

    Args:
        folder: Made if it is missing.
        model: What is evaluated.
        form: How it is asked.
        settings: Everything else that decides the numbers, as plain JSON types.

    Returns:
        The folder.

    Raises:
        ArtifactError: it holds another evaluation, or something else.
    """
    about = describe(model, form, **settings)
    with PartialState(cpu=model.device.type == "cpu").main_process_first():
        claim(Path(folder), about)
    return Path(folder)
