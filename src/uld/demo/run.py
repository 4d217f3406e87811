"""The demo: world, models, unlearning, evaluation, before and after, all by the ordinary parts of the package."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uld.config import read_preset, train_config
from uld.data.tofu import load_tofu
from uld.demo.models import make_models
from uld.demo.world import write_world
from uld.evaluation.scoring import generate_answers
from uld.evaluation.tofu import evaluate
from uld.evaluation.tofu_result import aggregate
from uld.modeling import load
from uld.training import train

_SHOWN = 4


def default_cache() -> Path:
    """Where the demo keeps its world and models: ``$XDG_CACHE_HOME/uld/demo`` or ``~/.cache/uld/demo``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uld" / "demo"


def run_demo(output: str | None, cache: str | None, seed: int, say: Callable[[str], None]) -> Path:
    """Run the demo.

    Args:
        output: Run folder; None takes a new one under ``runs/``.
        cache: Folder of the world and the models; None takes `default_cache`.
        seed: Chooses the world.
        say: Takes each line to show.

    Returns:
        The run folder.

    Raises:
        ULDError: a folder cannot be written.
    """
    started = time.perf_counter()
    home = Path(cache) if cache else default_cache()
    world = write_world(home / f"world-{seed}", seed)
    data = world.folder
    say(f"1. An invented world of {world.people} people ({data}); to be forgotten: {', '.join(world.forget)}")
    say("2. A micro model that knows all of them, and one that never saw those to be forgotten")
    target, retain_only = make_models(world, home, progress=lambda line: say(f"   {line}"))
    run = Path(output) if output else _new_run()
    say(f"3. Unlearning: an assistant on the first layers learns what is to be forgotten ({run})")
    settings = read_preset("demo") | {
        "target": str(target),
        "output": str(run),
        "split": "forget10",
        "data": str(data),
        "augmented": str(data),
    }
    result = train(train_config([("preset demo", settings)]))
    say(f"   {result.steps} steps in {result.seconds:.0f} s, adapter {result.adapter_bytes / 1024:.0f} KiB")
    say("4. TOFU's evaluation of the model before and after, against the one that never knew")
    unlearned, tokenizer = load(run)
    before, _ = load(target)
    never, _ = load(retain_only)
    options: dict[str, Any] = {"data": data, "max_new_tokens": 48, "progress": False}
    folder = run / "eval"
    retained = evaluate(never, tokenizer, "forget10", folder / "retain-model", **options)
    for name, model in (("before", before), ("after", unlearned), ("never knew", never)):
        place = folder / {"never knew": "retain-model"}.get(name, name)
        log = retained if name == "never knew" else evaluate(model, tokenizer, "forget10", place, **options)
        say(f"\n{name}:\n{aggregate(log, retained).table()}")
    for name, split in (("to be forgotten", "forget10_perturbed"), ("to be kept", "retain_perturbed")):
        say(f"5. Answers about people {name}")
        rows = load_tofu(split, data)
        for row in rows[:: max(1, len(rows) // _SHOWN)][:_SHOWN]:
            from uld.data.prompt import PromptFormat

            ids = PromptFormat(tokenizer).prompt_ids(row["question"])
            answers = [generate_answers(model, tokenizer, [ids], max_new_tokens=48)[0] for model in (before, unlearned)]
            say(f"   {row['question']}\n     before: {answers[0]}\n     after:  {answers[1]}")
    say(f"\nDone in {time.perf_counter() - started:.0f} s. Ask it yourself: uld chat --model {run}")
    return run


def _new_run() -> Path:
    """The first free ``runs/demo-N``."""
    number = 1
    while (path := Path("runs") / f"demo-{number}").exists():
        number += 1
    return path
