"""The names of special tokens in a user's own words: ``</s>`` in a document is read as the token, not as letters.

So do transformers' chat templates, TRL, lm-eval and servers, because a prompt that is written by hand needs it; and
what a model is asked must be what it was trained on, so that only one reading can be right. But a turn may end there,
and answers are shown and compared without such tokens. So it is told.
"""

import logging
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

_TOLD = "uld_told"  # attribute of a tokenizer: names that were told of, once for all formats of it


def special_names(tokenizer: Any) -> list[str]:
    """How the special tokens of a tokenizer are written, longest first; a single letter is read as it is either way.

    Tokenizers that are none of transformers' own, such as mistral-common's, read no special token in a text.
    """
    if not isinstance(tokenizer, PreTrainedTokenizer | PreTrainedTokenizerFast):
        return []
    added = (str(one) for one in tokenizer.added_tokens_decoder.values() if one.special)
    names = {name for name in (*tokenizer.all_special_tokens, *added) if len(name) > 1}
    return sorted(names, key=lambda name: (-len(name), name))


def tell_of_special(tokenizer: Any, names: Iterable[str], texts: Iterable[str], source: str) -> None:
    """Say once of each special token that it stands in texts that are no prompt of the user's own.

    Args:
        tokenizer: Reads the texts.
        names: Of `special_names`.
        texts: Questions, answers, documents.
        source: ``file:line`` or the like, for the message.
    """
    told: set[str] = getattr(tokenizer, _TOLD, None) or set()
    whole = "\n".join(texts)
    for name in names:
        if name in whole and name not in told:
            told.add(name)
            if _is_read(tokenizer, name):
                logger.warning(
                    "%s: %r is a special token of the tokenizer and is read as that token, not as text, here and "
                    "wherever else it stands: write it in another way if it belongs to the text, or take it out",
                    source or "a text",
                    name,
                )
    setattr(tokenizer, _TOLD, told)


def _is_read(tokenizer: Any, name: str) -> bool:
    """Whether a tokenizer reads a special token in a text; with ``split_special_tokens`` it does not."""
    ids = tokenizer(name, add_special_tokens=False, verbose=False).input_ids
    return tokenizer.convert_tokens_to_ids(name) in ids
