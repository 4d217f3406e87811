"""Prompts for an engine that makes them itself: a template of uld's as the chat template of a tokenizer."""

import json
import logging
from typing import Any

from uld.data.prompt import PromptFormat
from uld.errors import ULDError

logger = logging.getLogger(__name__)

_TRIED: tuple[list[tuple[str, str]], ...] = (
    [("user", "Who is it, and why?")],
    [("user", " two lines\nof it: é")],
    [("user", "Who?"), ("assistant", "Nobody."), ("user", "Why?")],
)


def for_vllm(tokenizer: Any, template: str | None) -> None:
    """Give a tokenizer a chat template that writes the prompts of training; none where nobody has said how.

    Tried on a few conversations: where the tokens are others, the tokenizer is left without one, and chat requests are
    refused.

    Args:
        tokenizer: Is changed.
        template: Name, inline, or None for its own chat template.
    """
    form = PromptFormat(tokenizer, template)
    if form.assumed:
        return
    if form.template is not None:
        tokenizer.chat_template = as_jinja(form.template, tokenizer.decode(form.prefix), tokenizer.eos_token)
    for turns in _TRIED:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            wanted = form.prompt_ids(turns)
        except ULDError:
            continue  # a template that takes one turn alone
        try:
            found = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # whatever a template raises
            found = error
        if found != wanted:
            tokenizer.chat_template = None
            logger.warning(
                "from this tokenizer's template vLLM would write other prompts than those of training, so chat "
                "requests are not served: ask /v1/completions"
            )
            return


def as_jinja(template: str, begin: str, end: str | None) -> str:
    """A template of uld as a chat template.

    Args:
        template: Inline: ``{question}`` and, at its end, ``{answer}``.
        begin: Text of the tokens that every turn begins with.
        end: Text of the token that ends an answer, if there is one.
    """
    frame = template.removesuffix("{answer}")
    prompt = frame.rstrip(" ")
    before, _, after = prompt.partition("{question}")
    gap = frame[len(prompt) :]
    first, between = json.dumps(begin), json.dumps("" if end else "\n")
    turn = "'assistant' if loop.index0 % 2 else 'user'"
    said = json.dumps("only user and assistant take turns in this template")
    return (
        "{% for m in messages %}"
        f"{{% if m['role'] != ({turn}) %}}{{{{ raise_exception({said}) }}}}{{% endif %}}"
        f"{{% if m['role'] == 'user' %}}{{{{ {first} }}}}{{% if not loop.first %}}{{{{ {between} }}}}{{% endif %}}"
        f"{{{{ {json.dumps(before)} + m['content'] | trim + {json.dumps(after)} }}}}"
        f"{{% else %}}{{{{ {json.dumps(gap)} + m['content'] | trim + {json.dumps(end or '')} }}}}{{% endif %}}"
        "{% endfor %}"
    )
