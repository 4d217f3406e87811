"""``uld augment``: paraphrases, wrong answers and questions from a forget file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from uld.cli.common import ModelOptions, say
from uld.errors import ULDError
from uld.runs.values import Few, bounds

EPILOG = (
    "Example: uld augment forget.jsonl --rules\n\nuld augment forget.jsonl --api-base http://localhost:8000/v1 "
    "--model MODEL\n\nuld train --forget forget.jsonl --augment auto …"
)


def _option(text: str, *names: str, panel: str, **limits: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **limits)


HOW, MUCH, API = "Source", "How much", "Endpoint"


def augment(
    forget: Annotated[
        str, typer.Argument(help="What to forget: a file, a folder or a Hub data set, as for uld train.")
    ],
    output: Annotated[str | None, typer.Option(help="Folder; default: NAME-augmented beside it.")] = None,
    rules: Annotated[bool, _option("By rules: no model, seconds, English.", "--rules", panel=HOW)] = False,
    local: Annotated[str | None, _option("By a local model: run folder, model folder or Hub id.", panel=HOW)] = None,
    api_base: Annotated[str | None, _option("By an OpenAI-compatible endpoint: its URL up to /v1.", panel=HOW)] = None,
    model: Annotated[str | None, _option("The endpoint's name for the model.", "--model", "-m", panel=HOW)] = None,
    paraphrases: Annotated[int, _option("Paraphrases of each item.", panel=MUCH, **bounds(Few))] = 2,
    wrong_answers: Annotated[int, _option("Wrong answers to each question.", panel=MUCH, **bounds(Few))] = 2,
    ask: Annotated[bool, _option("Also ask questions about texts.", "--ask", panel=MUCH)] = False,
    questions: Annotated[int, _option("Questions about each chunk (--ask).", panel=MUCH, min=1, max=10**4)] = 4,
    chunk_words: Annotated[int, _option("Most words of a text's chunk.", panel=MUCH, min=20, max=10**9)] = 150,
    target: Annotated[
        str | None,
        _option(
            "Model that is to forget: run folder, model folder or Hub id; questions whose answers it does not know are "
            "dropped (--ask).",
            panel=MUCH,
        ),
    ] = None,
    least: Annotated[
        float,
        _option(
            "Least probability, a token, that the target gives to what an answer adds to its question; 0 keeps every "
            "question.",
            "--known",
            panel=MUCH,
            min=0.0,
            max=1.0,
        ),
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the rules, or of the model's sampling.")] = 0,
    api_key_env: Annotated[
        str, _option("Environment variable with the key; none: the endpoint needs no key.", panel=API)
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int, _option("Requests at a time.", panel=API, min=1, max=256)] = 4,
    retries: Annotated[int, _option("Most repetitions of a failed request.", panel=API, min=0, max=1000)] = 5,
    timeout: Annotated[
        float, _option("Seconds of a request, to its last byte.", panel=API, min=0.1, max=10**6)
    ] = 120.0,
    temperature: Annotated[float, _option("Of sampling.", panel=API, min=0.0, max=100.0)] = 0.7,
    price_in: Annotated[
        float, _option("Price of a million prompt tokens, for the sum.", panel=API, min=0.0, max=10**9)
    ] = 0.0,
    price_out: Annotated[float, _option("Price of a million answer tokens.", panel=API, min=0.0, max=10**9)] = 0.0,
    max_tokens: Annotated[int, _option("Most tokens of a model's answer.", panel=API, min=16, max=10**6)] = 2048,
    template: Annotated[
        str | None, _option("Prompt template of --local and --target; default: their own.", panel=HOW)
    ] = None,
    device: Annotated[
        str | None, _option("Device of --local and --target; default: the best there is.", panel=HOW)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Make paraphrases to forget and wrong answers to retain from a forget file; uld train --augment takes them.

    An endpoint sees the documents that are to be forgotten: choose one that may.
    """
    from uld.augment.asker import endpoint_asker, local_asker
    from uld.augment.endpoint import Endpoint
    from uld.augment.generate import Wanted
    from uld.augment.output import folder_beside
    from uld.augment.run import augment_by_rules

    if sum((rules, local is not None, model is not None)) != 1:
        raise ULDError("say who is to do it: one of --rules, --local MODEL, or --model NAME with --api-base URL")
    if api_base is not None and model is None:
        raise ULDError("--api-base needs the endpoint's name for the model: give --model")
    wanted = Wanted(paraphrases, wrong_answers, questions if ask else 0)
    folder = Path(output) if output is not None else folder_beside(forget)
    judge: Any = None
    if target is not None:
        if not ask:
            raise ULDError("--target judges questions about texts: give --ask as well, or leave it out")
        judge = _known(ModelOptions(model=target, device=device, template=template), least)
    if rules:
        result = augment_by_rules(
            forget, folder, wanted, seed=seed, chunk_words=chunk_words, known=judge, progress=not quiet
        )
    else:
        bar = _Bar(price_in, price_out, quiet)
        if model is not None:
            endpoint = Endpoint(
                base=api_base,
                key_env=api_key_env,
                model=model,
                concurrency=concurrency,
                retries=retries,
                timeout=timeout,
                max_tokens=max_tokens,
                temperature=temperature,
            )
            asker = endpoint_asker(endpoint, seed)
        else:
            assert local is not None
            options = ModelOptions(model=local, device=device, template=template)
            options.check("--local")
            form = options.prompt_template()
            asker = local_asker(local, options.load, form, said=template, seed=seed, max_tokens=max_tokens)
        try:
            result = asker.augment(
                forget, folder, wanted, chunk_words=chunk_words, tell=bar, known=judge, progress=not quiet
            )
        finally:
            bar.close()
        if result.progress:
            say(bar.sum(result.progress))
    kept = ", ".join(f"{name} {number}" for name, number in result.kept.items()) or "nothing"
    say(f"{result.output}: from {result.records} records: {kept}")
    for kind, reasons in result.dropped.items():
        told = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
        say(f"dropped, {kind.replace('_', ' ')}: {told}")


def _known(options: ModelOptions, least: float) -> Any:
    """Judges questions by what a target knows; it is loaded when the first one comes."""
    options.check("--target")
    from uld.augment.known import Known

    return Known(options.model, options.load, options.prompt_template(), least)


class _Bar:
    """Requests done, tokens and price so far."""

    def __init__(self, price_in: float, price_out: float, quiet: bool) -> None:
        self.prices = (price_in, price_out)
        self.quiet = quiet
        self.bar: Any = None

    def __call__(self, progress: Any) -> None:
        if self.quiet:
            return
        if self.bar is None:
            from uld.text.progress import bar

            self.bar = bar(progress.total, "asking", "request", done=progress.done, logged=False)
        self.bar.update(progress.done - self.bar.n)
        self.bar.set_postfix_str(self.sum(progress), refresh=True)

    def sum(self, progress: Any) -> str:
        """Tokens, and what they cost where prices are given."""
        price = f", {progress.cost(*self.prices):.4f}" if any(self.prices) else ""
        return f"{progress.tokens_in} + {progress.tokens_out} tokens{price}"

    def close(self) -> None:
        """Leave the line as it is."""
        if self.bar is not None:
            self.bar.close()
