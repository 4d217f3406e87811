"""``uld generate`` and ``uld chat``: talk to a model."""

import sys
from typing import Annotated, Any

import typer

from uld.cli.common import (
    Device,
    Dtype,
    Filter,
    MinTokens,
    Model,
    Outside,
    Rule,
    Target,
    Template,
    TrustRemoteCode,
    Weight,
    guarded,
    load_model,
)
from uld.errors import ULDError

MaxNewTokens = Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0: greedy; otherwise sampling at this temperature.")]
Seed = Annotated[int, typer.Option(help="Seed of sampling.")]


@guarded
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Questions; without any, lines of standard input.")
    ] = None,
    model: Model = "",
    compare: Annotated[bool, typer.Option("--compare", help="Show the target's answer, too.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without a prompt template.")] = False,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.0,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams.")] = 1,
    seed: Seed = 0,
    target: Target = None,
    rule: Rule = None,
    weight: Weight = None,
    filter: Filter = None,
    min_tokens: MinTokens = None,
    outside: Outside = None,
    dtype: Dtype = "auto",
    device: Device = None,
    template: Template = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answer questions with the unlearned model."""
    questions = prompts or [line.strip() for line in sys.stdin if line.strip()]
    if not questions:
        raise ULDError("nothing to answer: give a question, or lines on standard input")
    talker = _Talker(locals(), model)
    for question in questions:
        ids = talker.raw_ids(question) if raw else talker.form.prompt_ids(question)
        if compare:
            typer.echo(f"> {question}")
            typer.echo("target:    " + talker.answer(talker.before, ids, num_beams=num_beams))
            typer.echo("unlearned: " + talker.answer(talker.model, ids, num_beams=num_beams))
        elif num_beams > 1:  # beams cannot be streamed
            typer.echo(talker.answer(talker.model, ids, num_beams=num_beams))
        else:
            talker.stream(ids)


@guarded
def chat(
    model: Model = "",
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    target: Target = None,
    rule: Rule = None,
    weight: Weight = None,
    filter: Filter = None,
    min_tokens: MinTokens = None,
    outside: Outside = None,
    dtype: Dtype = "auto",
    device: Device = None,
    template: Template = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to the unlearned model. /weight 1.5 changes α, /new forgets the conversation, /quit (or Ctrl-D) ends."""
    talker = _Talker(locals(), model)
    typer.echo("/weight N changes α, /new starts over, /quit ends", err=True)
    turns: list[tuple[str, str]] = []
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            return
        if said == "/quit":
            return
        if said == "/new":
            turns = []
        elif said.startswith("/"):
            talker.command(said)
        elif said:
            turns.append(("user", said))
            turns.append(("assistant", talker.stream(talker.form.prompt_ids(turns)) or "-"))


class _Talker:
    """A loaded model with its prompt format and decoding settings."""

    def __init__(self, options: dict[str, Any], model: str) -> None:
        if not model:
            raise ULDError("name a run or a model with --model")
        changes = {name: options[name] for name in ("rule", "weight", "filter", "min_tokens", "outside")}
        if options["target"]:
            changes["target"] = options["target"]
        loading = {name: options[name] for name in ("dtype", "device", "trust_remote_code")}
        self.model, self.tokenizer = load_model(model, **loading, **changes)
        from transformers import set_seed

        from uld.data.prompt import PromptFormat

        set_seed(options["seed"])
        self.form = PromptFormat(self.tokenizer, options["template"])
        self.settings: dict[str, Any] = {"max_new_tokens": options["max_new_tokens"]}
        if options["temperature"] > 0:
            self.settings |= {"do_sample": True, "temperature": options["temperature"]}

    @property
    def before(self) -> Any:
        """The target alone."""
        if not hasattr(self.model, "target"):
            raise ULDError("--compare needs a run: this is an ordinary model")
        return self.model.target

    def raw_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)

    def answer(self, model: Any, ids: list[int], **options: Any) -> str:
        """One whole answer."""
        from uld.evaluation.scoring import generate_answers

        return generate_answers(model, self.tokenizer, [ids], **{**self.settings, **options})[0]

    def stream(self, ids: list[int]) -> str:
        """Print an answer as it comes and return it."""
        import torch
        from transformers import TextStreamer

        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        inputs = torch.tensor([ids], device=self.model.device)
        settings: dict[str, Any] = {"do_sample": False, "pad_token_id": self.tokenizer.pad_token_id} | self.settings
        out = self.model.generate(inputs, attention_mask=torch.ones_like(inputs), streamer=streamer, **settings)
        return self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()

    def command(self, said: str) -> None:
        """Carry out a line that begins with a slash."""
        name, _, value = said[1:].partition(" ")
        if name != "weight" or not hasattr(self.model, "combination"):
            typer.echo(f"there is no /{name} here: /weight N (of a run), /new, /quit", err=True)
            return
        try:
            self.model.combination = self.model.combination.override(weight=float(value))
        except (ValueError, ULDError) as error:
            typer.echo(str(error), err=True)
