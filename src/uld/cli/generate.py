"""``uld generate`` and ``uld chat``: talk to a model."""

import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from uld.cli.common import ModelOptions, say, with_model
from uld.errors import ULDError
from uld.runs import values

MaxNewTokens = Annotated[int, typer.Option(min=1, max=10**6, help="Most tokens of an answer.")]
Temperature = Annotated[
    float, typer.Option(min=0.0, max=100.0, help="0: greedy; otherwise sampling at this temperature.")
]
_COLDEST = 1e-3  # below it logits overflow
Seed = Annotated[int, typer.Option(**values.bounds(values.Seed), help="Seed of sampling.")]


@with_model()
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Questions; without any, lines of standard input.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also show the target's answer.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without a prompt template.")] = False,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.0,
    num_beams: Annotated[int, typer.Option(min=1, max=1024, help="Beams.")] = 1,
    seed: Seed = 0,
    *,
    options: ModelOptions,
) -> None:
    """Answer questions with the unlearned model, one after the other."""
    questions = _questions(prompts)
    talker = _Talker(options, max_new_tokens, temperature, seed)
    if compare and not hasattr(talker.model, "target"):
        raise ULDError(f"--compare needs a run with an assistant, and {options.model} has none")
    asked = [talker.raw_ids(question) if raw else talker.form.prompt_ids(question) for question in questions]
    for ids in asked:
        talker.check_length(ids)
    for question, ids in zip(questions, asked, strict=True):
        if compare:
            say(f"> {question}")
            say("target:    " + talker.answer(talker.before, ids, num_beams=num_beams))
            say("unlearned: " + talker.answer(talker.model, ids, num_beams=num_beams))
        elif num_beams > 1:  # beams cannot be streamed
            say(talker.answer(talker.model, ids, num_beams=num_beams))
        else:
            talker.stream(ids)


@with_model()
def chat(
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    *,
    options: ModelOptions,
) -> None:
    """Talk to the unlearned model. /weight 1.5 changes α, /new forgets the conversation, /quit (or Ctrl-D) ends."""
    talker = _Talker(options, max_new_tokens, temperature, seed)
    say("/weight N changes α, /new starts over, /quit ends; Ctrl-C cuts an answer short", err=True)
    turns: list[tuple[str, str]] = []
    while True:
        try:
            said = "".join(_texts(_typed(), "standard input"))
        except (EOFError, KeyboardInterrupt):
            say()
            return
        if said == "/quit":
            return
        if said == "/new":
            turns = []
        elif said.startswith("/"):
            say(talker.command(said), err=True)
        elif said:
            ids = talker.form.prompt_ids([*turns, ("user", said)])
            try:
                talker.check_length(ids)
                turns += [("user", said), ("assistant", talker.stream(ids) or "-")]
            except ULDError as error:
                say(f"{error}; /new starts over", err=True)
            except KeyboardInterrupt:  # the question and its half answer are not part of the conversation
                say()


def _typed() -> Iterator[str]:
    """One line, asked for when it is wanted."""
    yield input("> ")


def _questions(prompts: list[str] | None) -> list[str]:
    """Questions from the command line, or the lines of standard input."""
    if not prompts and sys.stdin.isatty():
        raise ULDError("nothing to answer: give a question, or lines on standard input (uld chat to talk)")
    questions = _texts(prompts, "the question") if prompts else _texts(sys.stdin, "standard input")
    if not questions:
        raise ULDError("nothing to answer: give a question, or lines on standard input")
    return questions


def _texts(lines: Iterable[str], source: str) -> list[str]:
    """Lines that are not blank."""
    try:
        bare = (line.strip().removeprefix("\ufeff").strip() for line in lines)  # a byte-order mark is no text
        texts = [line for line in bare if line]
        "".join(texts).encode()  # Python may let other bytes through, as halves of surrogate pairs
    except UnicodeError as error:
        raise ULDError(f"{source} is not UTF-8: save it as UTF-8") from error
    return texts


class _Talker:
    """A loaded model with its prompt format and decoding settings."""

    def __init__(self, options: ModelOptions, max_new_tokens: int, temperature: float, seed: int) -> None:
        if 0 < temperature < _COLDEST:
            raise ULDError(f"--temperature must be 0 (greedy) or at least {_COLDEST}, not {temperature}")
        self.model, self.tokenizer = options.load()
        from transformers import set_seed

        from uld.data.prompt import PromptFormat

        set_seed(seed)
        self.form = PromptFormat(self.tokenizer, options.prompt_template())
        self.settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
        if temperature > 0:
            self.settings |= {"do_sample": True, "temperature": temperature}

    @property
    def before(self) -> Any:
        """The target alone."""
        return self.model.target

    def raw_ids(self, text: str) -> list[int]:
        return self.form.text_ids(text)

    def check_length(self, ids: list[int]) -> None:
        """Refuse what is longer than the model's context."""
        from uld.model.context import refuse_long_prompt

        refuse_long_prompt(self.model, ids)

    def answer(self, model: Any, ids: list[int], **options: Any) -> str:
        """One whole answer."""
        from uld.model.generate import generate_answers

        return generate_answers(model, self.tokenizer, [ids], **{**self.settings, **options})[0]

    def stream(self, ids: list[int]) -> str:
        """Print an answer as it comes and return it."""
        from transformers import TextStreamer

        from uld.model.generate import generate_ids

        class Stripped(TextStreamer):
            begun = False

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                text = text if self.begun else text.lstrip()
                self.begun = self.begun or bool(text)
                super().on_finalized_text(text, stream_end)

        streamer = Stripped(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        out = generate_ids(self.model, self.tokenizer, [ids], streamer=streamer, **self.settings)
        return self.tokenizer.decode(out[0], skip_special_tokens=True).strip()

    def command(self, said: str) -> str:
        """Carry out a line that begins with a slash; return what to say about it."""
        name, _, value = said[1:].partition(" ")
        if name != "weight" or not hasattr(self.model, "combination"):
            return f"there is no /{name} here: /weight N (of a run), /new, /quit"
        try:
            self.model.combination = self.model.combination.override(weight=float(value))
        except ValueError:
            return f"/weight takes a number ≥ 0, as in /weight 1.5, not {value!r}"
        except ULDError as error:
            return str(error)
        return f"α = {self.model.combination.weight:g}"
