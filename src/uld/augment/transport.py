"""How a request reaches an endpoint and ends there: at one address, within a time and a size.

The documents that are to be forgotten go to the address that the user gave, and on to no other: a redirect is followed
only within the same origin (scheme, host, port). What is sent back may take so long and be so large, and is not packed:
a packed answer of a few kilobytes can fill the memory.
"""

import asyncio
import importlib
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from uld.errors import ULDError
from uld.text.terminal import one_line

MOST_BYTES = 16 * 2**20
"""Largest body of an answer."""
_HOPS = 3  # redirects of a request within the origin
_KEPT = (307, 308)  # the redirects that send the same request again; the others would ask for something else
_SHOWN = 200  # letters of an address that a message shows


class EndpointError(ULDError):
    """The endpoint cannot be used, or gave up on a request."""


@dataclass(frozen=True)
class Address:
    """Where an endpoint is.

    Attributes:
        url: Without user and password.
        shown: As a message may show it: without what might be a secret.
        login: User and password, if the URL had any.
        is_local: Whether it is this machine, which no proxy needs to see.
    """

    url: str
    shown: str
    login: tuple[str, str] | None
    is_local: bool

    @classmethod
    def read(cls, url: str) -> "Address":
        """Take a URL apart.

        Raises:
            EndpointError: it is none.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = SplitResult("", "", "", "", ""), None, None
        if parts.scheme not in ("http", "https") or not host or any(one.isspace() or one < " " for one in url):
            raise EndpointError(
                f"{shown(url)} is no address of an endpoint: --api-base takes one like http://localhost:8000/v1"
            )
        place = f"[{host}]" if ":" in host else host
        place += f":{port}" if port is not None else ""
        login = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
        return cls(parts._replace(netloc=place).geturl(), shown(url), login, _is_local(host))


def shown(url: str) -> str:
    """A URL as a message may show it, also one that cannot be read: without user, password, query and fragment."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    rest = rest.rpartition("@")[2].partition("?")[0].partition("#")[0]
    return one_line(f"{scheme}{separator}{rest}"[:_SHOWN]) or "''"


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def client(address: Address | None, timeout: float, connections: int) -> Any:
    """An HTTP client for the ``openai`` package that keeps to the address and the limits.

    Args:
        address: Of the endpoint; None for OpenAI's own.
        timeout: Seconds that a request may take as a whole, from the first byte sent to the last one read.
        connections: Most at a time.
    """
    import openai

    class Bounded(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]
            try:
                async with asyncio.timeout(timeout):
                    return await _answer(super().send, request, options)
            except TimeoutError:
                library = importlib.import_module(type(request).__module__.partition(".")[0])  # httpx, or its successor
                raise library.ReadTimeout("the whole request took too long", request=request) from None

    return Bounded(
        timeout=timeout,
        auth=address.login if address else None,
        limits=_limits(openai, connections),
        headers={"Accept-Encoding": "identity"},
        mounts={f"all://{urlsplit(address.url).netloc}": None} if address and address.is_local else None,
    )


async def _answer(send: Callable[..., Awaitable[Any]], request: Any, options: dict[str, Any]) -> Any:
    """Send a request, follow where it may be followed, and read the answer.

    Raises:
        EndpointError: it is packed or too large.
    """
    options |= {"stream": True, "follow_redirects": False}
    origin = _origin(request.url)
    response = await send(request, **options)
    for _ in range(_HOPS):
        following = response.next_request
        if following is None or response.status_code not in _KEPT or _origin(following.url) != origin:
            break
        await response.aclose()
        request = following
        response = await send(request, **options)
    where = shown(str(request.url))
    try:
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise EndpointError(f"{where} answers with a packed body, which it was not asked for: check --api-base")
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > MOST_BYTES:
                raise EndpointError(
                    f"{where} answers with more than {MOST_BYTES // 2**20} MiB, which is no answer: check --api-base"
                )
    finally:
        await response.aclose()
    return type(response)(response.status_code, headers=response.headers, content=bytes(body), request=request)


def redirected(response: Any) -> str:
    """What a redirect that was not followed is told as; empty where an answer is none."""
    location = response.headers.get("location")
    if not (300 <= response.status_code < 400 and location):
        return ""
    try:
        target = urljoin(str(response.request.url), location)
    except ValueError:
        target = location
    asked = shown(str(response.request.url))
    return (
        f"{asked} sends requests on to {shown(target)} ({response.status_code}): nothing was sent there; name "
        "the address that is meant with --api-base, if it may see what is to be forgotten"
    )


def _origin(url: Any) -> tuple[Any, ...]:
    return url.scheme, url.host, url.port


def _limits(openai: Any, connections: int) -> Any:
    """The client's limits, in the words of the HTTP library that this version of the package is built on."""
    base = next(kind for kind in openai.DefaultAsyncHttpxClient.__mro__ if kind.__name__ == "AsyncClient")
    return importlib.import_module(base.__module__.partition(".")[0]).Limits(max_connections=connections)
