"""Who asks about texts and finds other words, where rules do not: an endpoint, or a model on this machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uld.augment.endpoint import Endpoint, Reply
from uld.augment.generate import Wanted
from uld.augment.run import AskAll, Result, augment_by_model

MOST_TOKENS = 2048
"""Of an answer to a prompt that asks for questions or other words."""


@dataclass(frozen=True)
class Asker:
    """A model that is asked.

    Attributes:
        ask_all: Asks numbered prompts and hands over the answers.
        by: What decides the answers, as plain JSON types; it becomes part of the folder's settings.
        tries: How often a prompt is asked whose answer cannot be read.
    """

    ask_all: AskAll
    by: dict[str, Any]
    tries: int

    def augment(self, forget: str | Path, output: Path, wanted: Wanted, **how: Any) -> Result:
        """`augment_by_model` with this model; ``how`` are its other arguments."""
        return augment_by_model(forget, output, wanted, self.ask_all, by=self.by, tries=self.tries, **how)


def endpoint_asker(endpoint: Endpoint, seed: int) -> Asker:
    """An endpoint.

    Raises:
        EndpointError: it has no key.
    """
    endpoint.key()
    by = {"by": "endpoint", "named": endpoint.model, "temperature": endpoint.temperature, "seed": seed}
    return Asker(
        lambda left, done: endpoint.ask_all(left, done, seed), by | {"max_tokens": endpoint.max_tokens}, tries=3
    )


def local_asker(
    named: str,
    load: Callable[[], tuple[Any, Any]],
    template: str | None = None,
    *,
    said: str | None = None,
    seed: int,
    max_tokens: int = MOST_TOKENS,
) -> Asker:
    """A model on this machine, asked greedily, one prompt after the other.

    Args:
        named: Its place.
        load: Gives model and tokenizer; called when the first prompt comes.
        template: Prompt template; None: its chat template.
        said: The template as the user named it, which a run's own is not.
        seed: Stands in the folder's settings.
        max_tokens: Most tokens of an answer.
    """

    def ask_all(left: Sequence[tuple[int, str]], done: Callable[[int, Reply], bool]) -> None:
        from uld.augment.local import ask

        model, tokenizer = load()
        for number, prompt in left:
            done(number, ask(model, tokenizer, template, prompt, max_tokens))

    by = {"by": "local", "named": named, "template": said, "seed": seed, "max_tokens": max_tokens}
    return Asker(ask_all, by, tries=1)  # a greedy answer is the same each time
