"""`load`: a run, a target that a method has trained, or any ordinary causal LM, with its tokenizer."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from uld.data.clock import check_date, pin
from uld.data.prompt import remember_template
from uld.errors import ArtifactError, ULDError, explained
from uld.model.adapters import load_trained_target
from uld.model.causal_lm import HUB, load_target
from uld.model.combine import Combination
from uld.model.device import named_dtype
from uld.model.unlearned import ULDForCausalLM
from uld.model.vocabulary import embedding_rows, own_ids, refuse_foreign
from uld.runs.hub import run_folder
from uld.runs.manifest import ADAPTER, CHECKPOINTS, Manifest, is_run
from uld.runs.values import given_or_none, shown

logger = logging.getLogger(__name__)


def load(
    path: str | Path | Sequence[str | Path],
    *,
    tokenizer: str | Path | None = None,
    date: str | None = None,
    **kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a run (the unlearned model), or any ordinary causal LM, with its tokenizer.

    Args:
        path: Run folder, model folder, or Hub id of either; or several runs of one target, to unlearn them all.
        tokenizer: Another place to take the tokenizer from.
        date: Day (2024-12-31) that a chat template with a clock writes; default: the run's, else see
            `uld.data.clock.pinned`.
        kwargs: See `ULDForCausalLM.from_pretrained`; ``dtype`` may also be named as on the command line (``bf16``).

    Returns:
        Model in evaluation mode and tokenizer.

    Raises:
        ULDError: neither a run nor a model, a model without a tokenizer, a tokenizer that is another model's, or
            a dtype or a date that is none.
    """
    check_date(date)
    if "torch_dtype" in kwargs:  # its older name
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
    if "dtype" in kwargs:
        kwargs["dtype"] = named_dtype(kwargs["dtype"])
    model: PreTrainedModel
    manifest = None
    trust = {"trust_remote_code": bool(kwargs.get("trust_remote_code"))}
    hub = {name: kwargs[name] for name in HUB if name in kwargs}
    several = list(path) if isinstance(path, Iterable) and not isinstance(path, str | Path | bytes) else [path]
    if odd := [one for one in several if not isinstance(one, str | Path)]:
        raise ULDError(f"uld.load takes a folder or a Hub id, or a list of runs, not {shown(odd[0])}")
    tokenizer = given_or_none("tokenizer", tokenizer, str)
    if not isinstance(path, str | Path):
        path = several
    if isinstance(path, str | Path):
        path = run_folder(path, **hub) or path
    own = hub if isinstance(path, str | Path) and not is_run(path) else {}
    if not isinstance(path, str | Path):
        model = ULDForCausalLM.from_pretrained(path, **kwargs)
        _tell_of_prompts(path, model.manifests, date)
        path, manifest = run_folder(path[0], **hub) or path[0], model.manifest
    elif (manifest := Manifest.read(path) if is_run(path) else None) is not None and manifest.trains != "target":
        model = ULDForCausalLM.from_pretrained(path, **kwargs)
    else:
        if manifest is None and any(os.path.exists(os.path.join(path, name)) for name in (ADAPTER, CHECKPOINTS)):
            raise ArtifactError(f"{path} is an unfinished run: finish it with --resume (of uld train or uld finetune)")
        changes = sorted(set(kwargs) & set(Combination.__dataclass_fields__))
        if any(kwargs.pop(name) is not None for name in changes):
            raise ULDError(f"{path} is an ordinary model, not an unlearned one: --{changes[0]} has no meaning for it")
        kwargs.pop("fused", None)
        model = load_trained_target(Path(path), manifest, **kwargs) if manifest else load_target(path, **kwargs)
    if date is None and manifest is not None:
        date = manifest.date
    place, given = (tokenizer, {}) if tokenizer else (path, own)
    found = load_tokenizer(place, date=date, **trust, **given)
    refuse_foreign(own_ids(found), embedding_rows(model), str(place))
    if manifest is not None:
        remember_template(found, manifest.template)
    return model, found


def _tell_of_prompts(places: Sequence[str | Path], manifests: Sequence[Manifest], date: str | None) -> None:
    """Say it where runs that are loaded together were trained behind other prompts: one tokenizer asks for all."""
    first = manifests[0]
    for place, one in zip(places, manifests, strict=True):
        other = "prompt template" if one.template != first.template else "date"
        if one.template != first.template or (date is None and one.date != first.date):
            logger.warning(
                "%s was trained with another %s than %s, and all are asked as %s was: it may forget less than alone",
                *(place, other, places[0], places[0]),
            )


def tokenizer_for(
    model: str, named: str | None, *, revision: str | None = None, **kwargs: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer that is named, or else the model's, of the model's revision.

    Args:
        model: Folder or Hub id.
        named: Another place.
        revision: Of the model.
        kwargs: See `load_tokenizer`.

    Raises:
        ULDError: there is none.
    """
    return load_tokenizer(named, **kwargs) if named else load_tokenizer(model, revision=revision, **kwargs)


def load_tokenizer(
    path: str | Path, *, date: str | None = None, trust_remote_code: bool | None = False, **kwargs: Any
) -> PreTrainedTokenizerBase:
    """Load a tokenizer; where it has no padding token, end-of-sequence stands in. Its chat template reads no clock.

    Args:
        path: Folder or Hub id.
        date: See `uld.data.clock.pinned`.
        trust_remote_code: Run code that comes with it.
        kwargs: Revision and the like.

    Raises:
        ULDError: there is none.
    """
    mend = "save one beside the model, or name one with --tokenizer"
    with explained(f"{path} has no tokenizer that can be loaded ({mend})"):
        # Left out, trust_remote_code makes transformers ask whoever sits at the terminal.
        tokenizer: Any = AutoTokenizer.from_pretrained(str(path), trust_remote_code=bool(trust_remote_code), **kwargs)
        known = min(tokenizer.vocab_size, len(tokenizer))
    if known == 0:
        raise ULDError(f"{path} has no tokenizer: {mend}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    pin(tokenizer, date)
    return tokenizer
