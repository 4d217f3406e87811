"""Where a tokenizer and a model meet: no token may lie behind the model's last embedding."""

from collections.abc import Iterable
from typing import Any

from uld.errors import ULDError


def own_ids(tokenizer: Any) -> list[int]:
    """Tokens that come up whatever the text is: padding, beginning and end, and the last of the ordinary vocabulary.

    Further added tokens need not have an embedding (a text model may come with a marker for images); where a text or a
    template does hold one, it is in the rows.
    """
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.vocab_size - 1)
    return [one for one in special if one is not None]


def embedding_rows(model: Any) -> int:
    """Tokens that a model has an embedding for."""
    return int(model.get_input_embeddings().weight.shape[0])


def refuse_foreign(ids: Iterable[int], rows: int, name: str) -> None:
    """Refuse tokens that a model does not have.

    Args:
        ids: Tokens that it is about to read.
        rows: Tokens that it has an embedding for.
        name: The model or the place of the tokenizer, for the message.

    Raises:
        ULDError: one of them is none of the model's.
    """
    if (largest := max(ids, default=0)) >= rows:
        raise ULDError(
            f"{name}: the tokenizer gives a token {largest}, but the model knows only {rows} tokens (0 to {rows - 1}): "
            "name the model's own tokenizer with --tokenizer, or resize the model's embeddings "
            "(resize_token_embeddings) and save it again"
        )
