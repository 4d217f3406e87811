"""A served micro model: transformers' server object around it, asked in process."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest


@pytest.fixture(scope="session")
def unlearned(make_target: Callable[..., Any], make_unlearned: Callable[..., Any]) -> Any:
    """A tiny Llama with an assistant that lowers what it is sure of; no answer ends by itself.

    It is asked directly: an engine has a copy, as its thread must not meet another in it.
    """
    from uld.model.combine import Combination

    model = make_unlearned(make_target("llama"), 2, Combination(weight=3.0, margin=0.5, floor=0.01))
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def make_client(unlearned: Any, letters: Any) -> Iterator[Callable[..., Any]]:
    """Serve a model under settings and ask it, in process: ``make_client(logprobs=False)``."""
    for needed in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(needed, reason="the extra serve is not installed")
    pytest.importorskip("transformers", minversion="5.23", reason="the extra serve wants transformers 5.23")
    from starlette.testclient import TestClient

    from uld.serving.app import Prompter, build
    from uld.serving.metrics import Metrics
    from uld.serving.run import make_engine
    from uld.serving.settings import ServeSettings

    engines: dict[tuple[bool, int], Any] = {}
    models: list[Any] = []  # kept, so that no other has the id of one

    def make(tokenizer: Any = None, model: Any = unlearned, **changes: Any) -> Any:
        settings = ServeSettings(name="forgetful", max_requests=4, max_tokens=96, **changes)
        kept = settings.batching, id(model)
        if kept not in engines:
            own = copy.deepcopy(model)  # made anew, its numbers would depend on what other threads draw meanwhile
            models.append(model)
            engines[kept] = make_engine(own, letters, settings, Metrics())
        engine = engines[kept]
        app = build(model, Prompter(tokenizer or letters, None), engine, settings, engine.metrics)
        return stack.enter_context(TestClient(app))  # with one event loop for all its requests, as a server has it

    with ExitStack() as stack:
        yield make
    for engine in engines.values():
        engine.stop()


@pytest.fixture(scope="module", params=["shared batches", "one by one"])
def client(make_client: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    """The model, served in either way."""
    return make_client(batching=request.param == "shared batches")


@pytest.fixture(scope="module")
def batched(make_client: Callable[..., Any]) -> Any:
    """The model, served in shared batches."""
    return make_client()
