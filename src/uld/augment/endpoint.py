"""Asks an OpenAI-compatible endpoint, several requests at a time, each again where it failed for a passing reason.

Retries (429, 408, 409, 5xx, broken and timed-out connections), back-off with jitter and Retry-After are the ``openai``
package's own. `uld.augment.transport` sees to it that a request goes where it should and ends. The key, and a password
in the URL, stand in no message and no file.
"""

import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import quote

from uld.augment.transport import Address, EndpointError, redirected
from uld.augment.transport import client as http_client
from uld.text.terminal import one_line

NO_KEY = "none"
_BODIES = 3  # tries of a request that is answered with something that is no chat completion
_MOST_TOKENS = 10**9  # of one request; what says more does not count them
_QUOTED = 200  # letters of what an endpoint says
_PIECE = 8  # letters of a secret that are one in themselves

__all__ = ["Endpoint", "EndpointError", "Reply", "encodable"]


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

    def _address(self) -> Address | None:
        """Where the endpoint is; None for OpenAI's own."""
        base = self.base or os.environ.get("OPENAI_BASE_URL")
        return Address.read(base) if base else None

    def _client(self) -> Any:
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise EndpointError(
                'endpoints need the openai package: pip install -e ".[augment]" in the folder of uld'
            ) from error
        address = self._address()
        try:
            return AsyncOpenAI(
                base_url=address.url if address else None,
                api_key=self.key(),
                max_retries=self.retries,
                timeout=self.timeout,
                http_client=http_client(address, self.timeout, self.concurrency),
            )
        except EndpointError:
            raise
        except Exception as error:  # the library refuses hosts and proxies in several ways, and quotes them
            raise EndpointError(
                f"{self._where()} cannot be asked: check --api-base, and the proxies in the environment"
            ) from error

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
                    self._without_secrets(encodable(answer.choices[0].message.content or "")),
                    _count(getattr(usage, "prompt_tokens", None)),
                    _count(getattr(usage, "completion_tokens", None)),
                )
            except Exception as error:
                for one in (error, error.__cause__):  # some versions of the package wrap what the transport says
                    if isinstance(one, EndpointError):
                        raise one from None
                # The package tries again what failed, but not what came with status 200 and is no chat completion.
                body = not isinstance(error, APIError) or isinstance(error, APIResponseValidationError)
                if not body or attempt == _BODIES - 1:
                    raise self._told(error) from None
            await asyncio.sleep(0.5 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _where(self) -> str:
        """The endpoint as a message names it."""
        address = self._address()
        return address.shown if address else "the endpoint"

    def _secrets(self) -> list[str]:
        """What the endpoint is told and no message and file may hold."""
        secrets = [] if self.key_env == NO_KEY else [self.key()]
        address = self._address()
        if address and address.login:
            user, password = address.login
            secrets += [password, base64.b64encode(f"{user}:{password}".encode()).decode()]
        return [form for one in secrets if one for form in {one, json.dumps(one)[1:-1], quote(one, safe="")}]

    def _without_secrets(self, text: str) -> str:
        """An answer in which the key does not stand: it is kept in a file."""
        for secret in self._secrets():
            if len(secret) >= _PIECE:
                text = text.replace(secret, "…")
        return text

    def _quoted(self, text: str) -> str:
        """What an endpoint says, cut short; a part of a secret in it is enough to say nothing of it."""
        for secret in self._secrets():
            pieces = [secret[i : i + _PIECE] for i in range(max(1, len(secret) - _PIECE + 1))]
            if any(piece in text for piece in pieces):
                return "what it says quotes the key or the password and is not shown"
        return one_line(" ".join(text.split()))[:_QUOTED]

    def _told(self, error: Exception) -> EndpointError:
        """An error in one sentence, without anything that might hold the key."""
        import openai

        where = self._where()
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
            return EndpointError(f"{where} allows no more requests for now (429): lower --concurrency, or try later")
        if isinstance(error, openai.APIStatusError):
            moved = redirected(error.response)
            said = f"answered with an error ({error.status_code}): {self._quoted(message_of(error))}"
            return EndpointError(moved or f"{where} {said}")
        return EndpointError(f"{where} answered with something that is no chat completion: check --api-base")


def encodable(text: str) -> str:
    """A text with a question mark for half of a surrogate pair, which a model may write and no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _count(tokens: Any) -> int:
    """A number of tokens; 0 where an endpoint does not say, or says what cannot be."""
    return tokens if type(tokens) is int and 0 <= tokens <= _MOST_TOKENS else 0


def _all(tasks: list["asyncio.Task[None]"]) -> Awaitable[Any]:
    """Wait for all; the first error counts at once."""
    return asyncio.gather(*tasks)


def message_of(error: Any) -> str:
    """What an endpoint says in its error; older versions of the client quote the whole body."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return said if isinstance(said, str) else str(error.message)
