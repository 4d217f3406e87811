"""What stands before the routes: keys, limits of size, number and time, clients that leave, the log.

Plain ASGI. A request's body is read here, whole and within its limit, so that from then on the only thing that the
client can still say is that it is gone; then the task that answers it is cancelled, and its generation ends.
"""

import asyncio
import hmac
import json
import logging
import time
import uuid
from contextvars import ContextVar
from typing import Any

from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.requests import HTTPConnection
from starlette.responses import Response

from uld.serving.metrics import Metrics
from uld.serving.refusals import Refused
from uld.serving.settings import ServeSettings

logger = logging.getLogger(__name__)

CURRENT: ContextVar[dict[str, Any] | None] = ContextVar("request", default=None)
"""What is noted of the request at hand, for its line in the log."""
ROUTES = {"/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/models": "GET", "/health": "GET"}
"""The routes of transformers' server that are served."""
_OPEN = ("/health", "/metrics")
"""Routes for those who run the server: they need no key and always get in."""


class Keys(AuthenticationBackend):
    """Asks for one of the keys, as a bearer token."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        """Take the keys; without any, everybody may ask."""
        self._keys = [key.encode() for key in keys]

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        """Look at a request.

        Raises:
            AuthenticationError: it has none of the keys.
        """
        if not self._keys or conn.url.path in _OPEN:
            return None
        kind, _, given = conn.headers.get("authorization", "").partition(" ")
        found = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]  # all, whichever it is
        if kind.lower() != "bearer" or not any(found):
            raise AuthenticationError("this server wants an API key: Authorization: Bearer KEY")
        return AuthCredentials(), SimpleUser("client")


def no_key(conn: HTTPConnection, error: AuthenticationError) -> Response:
    """What is answered to a request without a key."""
    return Refused(401, str(error), code="invalid_api_key").response


class Gate:
    """Lets requests in, one by one, within the limits."""

    def __init__(self, app: Any, settings: ServeSettings, metrics: Metrics) -> None:
        """Stand before an app."""
        self.app, self.settings, self.metrics = app, settings, metrics
        self._inside = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] in _OPEN:
            await self.app(scope, receive, send)
            return
        begun, status, streams = time.monotonic(), 0, False
        name = uuid.uuid4().hex  # a client's own could be another's as well
        scope["headers"] = [one for one in scope["headers"] if one[0] != b"x-request-id"]
        scope["headers"].append((b"x-request-id", name.encode()))
        note: dict[str, Any] = {}
        CURRENT.set(note)

        async def sent(message: Any) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                streams = any(b"event-stream" in value for _, value in message["headers"])
            await send(message)

        self.metrics.add("uld_requests_in_flight")
        self._inside += 1
        try:
            await self._answered(scope, receive, sent)
        except Refused as refusal:
            if not status:
                await refusal.response(scope, receive, sent)
            elif streams:  # the last that a client reads of it
                event = f"data: {json.dumps(refusal.body)}\n\n".encode()
                await send({"type": "http.response.body", "body": event, "more_body": False})
        except Exception:
            logger.exception("request %s failed", name)
            if not status:
                await Refused(500, "this request failed: see the server's log").response(scope, receive, sent)
        finally:
            self._inside -= 1
            self.metrics.add("uld_requests_in_flight", -1)
            self._log(scope, note, name, status, time.monotonic() - begun)

    async def _answered(self, scope: Any, receive: Any, send: Any) -> None:
        """Read the body, and run the app until it is done, too late, or not wanted any more."""
        if self._inside > self.settings.max_requests + self.settings.max_queue:
            raise Refused(429, "too many requests wait here: try again later", code="rate_limit_exceeded", wait=1)
        try:
            async with asyncio.timeout(self.settings.timeout):
                body = await self._body(scope, receive)
                if body is None:
                    return
                given = whole = False

                async def replayed() -> Any:
                    nonlocal given
                    if given:
                        await asyncio.Event().wait()
                    given = True
                    return {"type": "http.request", "body": body, "more_body": False}

                async def last_seen(message: Any) -> None:
                    nonlocal whole
                    whole = message["type"] == "http.response.body" and not message.get("more_body")
                    await send(message)

                answering = asyncio.ensure_future(self.app(scope, replayed, last_seen))
                leaving = asyncio.ensure_future(_gone(receive))
                try:
                    await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
                    if whole:  # a server also says so when the answer is sent
                        await asyncio.wait((answering,))
                finally:
                    for task in (answering, leaving):
                        if not task.done():
                            task.cancel()
                    await asyncio.wait((answering, leaving))
                if answering.cancelled():
                    self.metrics.add("uld_cancelled_total")
                else:
                    answering.result()
        except TimeoutError:
            self.metrics.add("uld_cancelled_total")
            raise Refused(504, f"this took longer than {self.settings.timeout:g} seconds", code="timeout") from None

    async def _body(self, scope: Any, receive: Any) -> bytes | None:
        """The whole body; None where the client left before its end.

        Raises:
            Refused: it is too long.
        """
        most = self.settings.max_body
        too_long = Refused(413, f"the request has more than {most:,} bytes", code="request_too_large")
        length = next((value for key, value in scope["headers"] if key == b"content-length"), b"0")
        if length.isdigit() and int(length) > most:
            raise too_long
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > most:
                raise too_long
            if not message.get("more_body"):
                return bytes(body)

    def _log(self, scope: Any, note: dict[str, Any], name: str, status: int, seconds: float) -> None:
        """Count a request, and write its line: no word of prompt or answer, unless that is wanted."""
        known = scope["path"] if scope["path"] in ROUTES else "other"  # never a client's own words
        self.metrics.add("uld_requests_total", route=known, status=status or 499)
        self.metrics.add("uld_request_seconds_sum", seconds, route=known)
        answer = note.get("answer")
        tokens = f" {note['prompt tokens']} + {answer.total_tokens} tokens" if answer is not None else ""
        logger.info("%s %s %s%s %.3f s %s", scope["method"], known, status or "left", tokens, seconds, name)
        if self.settings.log_prompts and answer is not None:
            logger.info("%s prompt %r answer %r", name, note.get("prompt"), answer.text)


async def _gone(receive: Any) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
