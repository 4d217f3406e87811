"""Asks a model on this machine, one prompt after the other, greedily: the same answers every time."""

from typing import Any

from uld.augment.endpoint import Reply
from uld.data.prompt import PromptFormat
from uld.errors import ULDError
from uld.model.context import context_length
from uld.model.generate import generate_answers


def ask(model: Any, tokenizer: Any, template: str | None, prompt: str, max_tokens: int) -> Reply:
    """One answer.

    Args:
        model: A causal LM of transformers, a run among them.
        tokenizer: Its tokenizer.
        template: Prompt template; None: the chat template.
        prompt: The user's turn.
        max_tokens: Most tokens of the answer; fewer where the model's context ends.

    Raises:
        ULDError: the prompt leaves no room in the model's context.
    """
    ids = PromptFormat(tokenizer, template).prompt_ids(prompt)
    longest = context_length(model)
    room = min(max_tokens, longest - len(ids))
    if room < 1:
        raise ULDError(
            f"a prompt has {len(ids)} tokens, and the model takes fewer than {longest}: lower --chunk-words, or choose "
            "another model"
        )
    text = generate_answers(model, tokenizer, [ids], max_new_tokens=room)[0]
    return Reply(text, len(ids), len(tokenizer(text, add_special_tokens=False).input_ids))
