"""Asks an OpenAI-compatible endpoint, several requests at a time, each again where it failed for a passing reason.

Retries (429, 408, 409, 5xx, broken and timed-out connections), back-off with jitter and Retry-After are the ``openai``
package's own. The key is read from the environment and stands in no message and no file.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random
from typing import Any

from uld.errors import ULDError

NO_KEY = "none"
_BODIES = 3  # tries of a request that is answered with something that is no chat completion


class EndpointError(ULDError):
    """The endpoint cannot be used, or gave up on a request."""


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        text: Its answer.
        tokens_in: Tokens of the prompt, as the endpoint counts them.
        tokens_out: Tokens of the answer.
    """

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where and how to ask.

    Attributes:
        base: URL up to ``/v1``; None: the package's default, OpenAI's own or ``OPENAI_BASE_URL``.
        key_env: Environment variable that holds the key; ``none`` sends none.
        model: As the endpoint calls it.
        concurrency: Requests at a time.
        retries: Most repetitions of a request.
        timeout: Seconds that a request may take.
        max_tokens: Most tokens of an answer.
        temperature: Of sampling.
    """

    base: str | None
    key_env: str
    model: str
    concurrency: int = 4
    retries: int = 5
    timeout: float = 120.0
    max_tokens: int = 2048
    temperature: float = 0.7

    def key(self) -> str:
        """The key.

        Raises:
            EndpointError: the variable is not set, or holds what no header can carry.
        """
        if self.key_env == NO_KEY:
            return "none"
        if not (key := os.environ.get(self.key_env, "").strip()):
            raise EndpointError(
                f"the environment variable {self.key_env} holds no key: set it, name another with --api-key-env, or "
                "give --api-key-env none where the endpoint needs no key"
            )
        if not (key.isascii() and key.isprintable()):
            raise EndpointError(
                f"the key in {self.key_env} has characters that no key can have (not ASCII, or a line break): set the "
                "right one"
            )
        return key

    def ask_all(self, prompts: Iterable[tuple[int, str]], done: Callable[[int, Reply], bool], seed: int = 0) -> None:
        """Ask, and hand over each answer as it comes.

        Args:
            prompts: Numbers and prompts, drawn as they are needed.
            done: Takes a number and its answer; gives whether to ask that again.
            seed: With the number and the attempt it makes the request's own.

        Raises:
            EndpointError: after the retries, or at once where they would not help; what is under way is cut off.
        """
        asyncio.run(self._ask_all(prompts, done, seed))

    async def _ask_all(self, prompts: Iterable[tuple[int, str]], done: Callable[[int, Reply], bool], seed: int) -> None:
        waiting = iter(prompts)
        async with AsyncExitStack() as stack:
            client: Any = await stack.enter_async_context(self._client())

            async def work() -> None:
                for number, prompt in waiting:  # one iterator for all workers: each prompt goes to one of them
                    own = Random(f"{seed}:{number}")
                    while done(number, await self._ask(client, prompt, own.randrange(2**31))):
                        pass

            tasks = [asyncio.create_task(work()) for _ in range(self.concurrency)]
            try:
                await _all(tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _client(self) -> Any:
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise EndpointError("endpoints need the openai package: pip install 'uld-llm[augment]'") from error
        try:
            return AsyncOpenAI(base_url=self.base, api_key=self.key(), max_retries=self.retries, timeout=self.timeout)
        except Exception as error:  # httpx refuses what is no URL in several ways
            if isinstance(error, EndpointError):
                raise
            raise EndpointError(f"{self.base} is no address of an endpoint (--api-base): {error}") from error

    async def _ask(self, client: Any, prompt: str, seed: int) -> Reply:
        from openai import APIError, APIResponseValidationError

        for attempt in range(_BODIES):
            try:
                answer = await client.chat.completions.create(
                    model=self.model,
                    messages=[{"role": "user", "content": prompt}],
                    temperature=self.temperature,
                    max_tokens=self.max_tokens,
                    seed=seed,
                )
                usage = answer.usage
                return Reply(
                    encodable(answer.choices[0].message.content or ""),
                    _count(usage.prompt_tokens) if usage else 0,
                    _count(usage.completion_tokens) if usage else 0,
                )
            except Exception as error:
                # The package tries again what failed, but not what came with status 200 and is no chat completion.
                body = not isinstance(error, APIError) or isinstance(error, APIResponseValidationError)
                if not body or attempt == _BODIES - 1:
                    raise self._told(error) from error
            await asyncio.sleep(0.5 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _told(self, error: Exception) -> EndpointError:
        """An error in one sentence, without anything that might hold the key."""
        import openai

        where = self.base or "the endpoint"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return EndpointError(f"{where} refuses the key of {self.key_env} ({error.status_code}): set the right one")
        if isinstance(error, openai.NotFoundError):
            return EndpointError(f"{where} has no model {self.model!r} (404): check --model and --api-base")
        if isinstance(error, openai.APITimeoutError):
            return EndpointError(
                f"{where} took longer than {self.timeout:g} s, {self.retries + 1} times: raise --timeout"
            )
        if isinstance(error, openai.APIConnectionError):
            return EndpointError(f"{where} cannot be reached or broke off: check --api-base, and that it is running")
        if isinstance(error, openai.RateLimitError):
            return EndpointError(f"{where} allows no more requests for now (429): lower --concurrency, or go on later")
        if isinstance(error, openai.APIStatusError):
            key = os.environ.get(self.key_env) or "\x00"
            said = " ".join(str(error.message).replace(key, "…").split())[:200]
            return EndpointError(f"{where} answered with an error ({error.status_code}): {said}")
        return EndpointError(f"{where} answered with something that is no chat completion: check --api-base")


def encodable(text: str) -> str:
    """A text with a question mark for half of a surrogate pair, which a model may write and no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _count(tokens: Any) -> int:
    """A number of tokens; 0 where an endpoint does not say."""
    return tokens if isinstance(tokens, int) else 0


def _all(tasks: list["asyncio.Task[None]"]) -> Awaitable[Any]:
    """Wait for all; the first error counts at once."""
    return asyncio.gather(*tasks)
