"""The two ways of transformers' server to write answers, over a model that is loaded: shared batches, or one by one.

`Batched` hands requests to transformers' continuous batching, `OneByOne` to ``generate``. Both are what its handlers
call a generation manager.
"""

import asyncio
import copy
import logging
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.cli.serving.utils import (
    BaseGenerateManager,
    CBWorkerDeadError,
    InferenceThread,
    _GenerationCancelled,
    _StreamError,
)
from transformers.generation.streamers import BaseStreamer

from uld.errors import ULDError, is_out_of_memory, words
from uld.model.paged import refuse_differing
from uld.serving.answers import Answer
from uld.serving.gate import CURRENT
from uld.serving.metrics import Metrics
from uld.serving.refusals import Refused
from uld.serving.sampling import processors

logger = logging.getLogger(__name__)

_PAGE = 32  # tokens; requests to a small model are short


class Engine(BaseGenerateManager):
    """What both ways share: limits, the reading of whole answers, counting."""

    def __init__(self, model: Any, max_tokens: int, metrics: Metrics) -> None:
        """Take a loaded model.

        Args:
            model: The unlearned model, or any causal LM.
            max_tokens: Most tokens of a prompt with its answer.
            metrics: Where tokens are counted.
        """
        self.model, self.max_tokens, self.metrics = model, max_tokens, metrics
        ends = model.generation_config.eos_token_id
        self.ends: list[int] = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)

    @abstractmethod
    def write(self, ids: list[int], settings: Any, answer: Answer) -> None:
        """Begin to write an answer."""

    @property
    def alive(self) -> bool:
        """Whether answers can be written."""
        return True

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str, response_parser: Any = None
    ) -> tuple[asyncio.Queue[Any], Any]:
        """Begin an answer; see transformers' handlers. Its text comes as it is written: no parser looks at it.

        Raises:
            Refused: prompt and answer are longer than a request may be.
        """
        ids = list(inputs["input_ids"])
        self._fit(ids, gen_config)
        note, begun = CURRENT.get(), time.monotonic()
        answer = _Counted(processor.fast, gen_config, self.metrics, begun)
        self.metrics.add("uld_prompt_tokens_total", len(ids))
        if note is not None:
            note |= {"prompt tokens": len(ids), "answer": answer, "prompt": inputs.get("text")}
        self.write(ids, gen_config, answer)
        return answer.queue, answer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, list[int]]:
        """Write a whole answer; a client that is gone stops it.

        Returns:
            Its text, the number of the prompt's tokens, its tokens.
        """
        queue, answer = self.generate_streaming(model, processor, inputs, gen_config, request_id)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, _StreamError):
                    raise RuntimeError(item.msg)
        except asyncio.CancelledError:
            answer.cancel()
            raise
        return answer.text, len(inputs["input_ids"]), answer.ids

    def _fit(self, ids: Sequence[int], settings: Any) -> None:
        """Refuse what does not fit; an answer whose length nobody named gets what room there is."""
        if not ids:
            raise Refused(400, "the tokenizer makes no token of this prompt", code="invalid_value", param="prompt")
        room = self.max_tokens - len(ids)
        asked = settings.max_new_tokens
        if room < 1 or (asked is not None and asked > room):
            what = f"{len(ids)} tokens" if room < 1 else f"{len(ids)} tokens and an answer of up to {asked}"
            raise Refused(
                400,
                f"the prompt has {what}, and this server takes {self.max_tokens} in all",
                code="context_length_exceeded",
            )
        if asked is None:
            settings.max_new_tokens = room


class _Counted(Answer):
    """An answer whose tokens are counted."""

    def __init__(self, tokenizer: Any, settings: Any, metrics: Metrics, begun: float) -> None:
        self.ending: Any = lambda: None
        self._settings, self._metrics, self._begun = settings, metrics, begun
        super().__init__(tokenizer, settings.stop_strings, lambda: self.ending())

    def finish(self) -> None:
        """Nothing more comes; one that ended of itself with its last token has not run out of them."""
        ends = self._settings.eos_token_id
        if self.stopped or self.ids[-1:] == [ends] or (isinstance(ends, list) and set(self.ids[-1:]) & set(ends)):
            self._settings.max_new_tokens = None  # else transformers' handlers say that it was cut off
        super().finish()

    def feed(self, tokens: Sequence[int]) -> None:
        before = len(self.ids)
        super().feed(tokens)
        if (new := len(self.ids) - before) and not before:
            self._metrics.add("uld_first_token_seconds_sum", time.monotonic() - self._begun)
            self._metrics.add("uld_first_token_seconds_count")
        self._metrics.add("uld_answer_tokens_total", new)


class Batched(Engine):
    """Requests share batches: transformers' continuous batching."""

    def __init__(self, model: Any, max_tokens: int, metrics: Metrics, max_requests: int) -> None:
        """Make the paged cache's manager.

        Args:
            model: See `Engine`.
            max_tokens: See `Engine`.
            metrics: See `Engine`.
            max_requests: Requests in a batch.

        Raises:
            ULDError: the model finds something else with a paged cache (`uld.model.paged`).
        """
        super().__init__(model, max_tokens, metrics)
        size: dict[str, Any] = {}
        if model.device.type == "cpu":  # elsewhere transformers plans with the memory of the device
            blocks = max_requests * (1 + max_tokens // _PAGE)  # room for all, so that nothing is ever read twice
            size = {"page_size": _PAGE, "max_batch_tokens": 512, "num_blocks": blocks}
        config = ContinuousBatchingConfig(
            max_requests_per_batch=max_requests, auto_switch_to_flash=False, use_cuda_graph=False, **size
        )
        if not hasattr(model, "paged"):  # a target that a method has trained
            refuse_differing(model, config)
        how = GenerationConfig(do_sample=True, max_new_tokens=max_tokens, eos_token_id=self.ends or -1)
        self._manager = model.init_continuous_batching(how, config)
        self._manager.logit_processor, self.left_out = processors(model)
        try:
            self._manager.warmup()  # makes the cache, here and now
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ULDError(
                f"the keys of {max_requests} requests of {max_tokens:,} tokens do not fit into memory: lower "
                "--max-requests or --max-tokens"
            ) from error
        self._manager.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that runs the model does."""
        return self._manager.is_running() and self._manager.background_thread_status.fatal_error is None

    def write(self, ids: list[int], settings: Any, answer: Answer) -> None:
        """Add a request to the batch."""
        if not self.alive:
            raise CBWorkerDeadError("the engine has ended: see the server's log")
        name = uuid.uuid4().hex  # never a client's own, which two could give
        handlers, leftover = self._manager.output_router.result_handlers, self._manager.output_router.output_queue

        def put(output: Any) -> None:
            answer.feed(output.generated_tokens[len(answer.ids) :])
            if output.error is not None:
                answer.fail("the engine could not write this answer")
            elif output.is_finished():
                answer.finish()

        def take(output: Any) -> None:
            _alone(answer, put, output)

        def end() -> None:
            self._manager.cancel_request(name)
            handlers.pop(name, None)
            while not leftover.empty():  # what came between: nobody reads it
                leftover.get_nowait()

        answer.ending = end  # type: ignore[attr-defined]
        self._manager.register_result_handler(name, take)
        heat = float(settings.temperature) if settings.do_sample else 0.0
        how = {"temperature": heat, "top_p": float(settings.top_p or 1.0)}
        more = {"max_new_tokens": settings.max_new_tokens, "eos_token_id": self.ends or -1, "streaming": True}
        if self._manager.add_request(ids, request_id=name, **more, **how) is None:
            handlers.pop(name, None)
            raise CBWorkerDeadError("the engine is ending")

    def stop(self) -> None:
        """End the thread; requests that are not done fail."""
        if self._manager.is_running():
            self._manager.stop(block=True, timeout=10, hard_stop=True)


class OneByOne(Engine):
    """A request after the other, through ``generate``."""

    def __init__(self, model: Any, max_tokens: int, metrics: Metrics) -> None:
        """See `Engine`."""
        super().__init__(model, max_tokens, metrics)
        self._thread = InferenceThread()
        self.left_out: list[str] = []

    def write(self, ids: list[int], settings: Any, answer: Answer) -> None:
        """Put a request behind those that wait."""
        loop = asyncio.get_running_loop()
        own = copy.deepcopy(settings)
        own.stop_strings = None  # the answer itself knows
        streamer = _Forward(loop, answer)

        def run() -> None:
            try:
                if answer.done:
                    return
                given = torch.tensor([ids], device=self.model.device)
                mask = torch.ones_like(given)
                self.model.generate(given, attention_mask=mask, generation_config=own, streamer=streamer)
            except _GenerationCancelled:
                return
            except Exception as error:  # whatever it is, this request failed and the next may not
                loop.call_soon_threadsafe(answer.fail, words(error))

        self._thread.submit(run)

    def stop(self) -> None:
        """Nothing: its thread ends with the process."""


class _Forward(BaseStreamer):
    """Hands tokens over from the thread of the model."""

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Answer) -> None:
        self._loop, self._answer, self._prompt = loop, answer, True

    def put(self, value: torch.Tensor) -> None:
        if self._answer.done:
            raise _GenerationCancelled
        if not self._prompt:
            self._loop.call_soon_threadsafe(_alone, self._answer, self._answer.feed, value.tolist())
        self._prompt = False  # which comes first

    def end(self) -> None:
        self._loop.call_soon_threadsafe(_alone, self._answer, self._answer.finish)


def _alone(answer: Answer, step: Callable[..., None], *given: Any) -> None:
    """Do a step of an answer; where that fails it ends this answer, and none that was delivered with it."""
    try:
        step(*given)
    except Exception as error:  # whatever it is
        logger.exception("an answer could not be put into text")
        answer.fail(words(error))
