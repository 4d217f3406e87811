"""What stands between the gate and vLLM's routes: only what is served gets through. Plain ASGI."""

import json
from typing import Any

from uld.serving.gate import ROUTES
from uld.serving.refusals import Refused
from uld.serving.settings import ServeSettings
from uld.serving.vllm.fields import KINDS, for_vllm


class Front:
    """Lets through routes by `uld.serving.gate.ROUTES`, and requests by `uld.serving.vllm.fields.for_vllm`."""

    def __init__(self, app: Any, settings: ServeSettings, *, steering: bool, samples: bool) -> None:
        """Stand before vLLM's app.

        Args:
            app: vLLM's.
            settings: Limits, keys, names.
            steering: Whether requests may steer which tokens are chosen.
            samples: Whether answers are sampled where a request does not say.
        """
        self.app, self.settings, self.steering, self.samples = app, settings, steering, samples

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request.

        Raises:
            Refused: it is not served.
        """
        if scope["type"] == "lifespan" or scope.get("path") in ("/health", "/metrics", "/metrics/"):
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http" or scope["path"] not in ROUTES:
            raise Refused(404, "there is no such route here")
        if scope["method"] != ROUTES[scope["path"]]:
            raise Refused(405, "this route does not take this method")
        if scope["path"] in KINDS:
            receive = self._checked((await receive())["body"], scope, receive)
        await self.app(scope, receive, send)

    def _checked(self, given: bytes, scope: Any, receive: Any) -> Any:
        """A ``receive`` that hands on the request as vLLM is to get it."""
        try:
            body = json.loads(given)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise Refused(400, "the body is not a JSON object")
        asked = for_vllm(
            body,
            scope["path"],
            self.settings.name,
            logprobs=self.settings.logprobs,
            steering=self.steering,
            samples=self.samples,
        )
        try:
            text = json.dumps(asked, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:  # half of a letter, or NaN
            raise Refused(400, "the request holds what is no text or no number", code="invalid_value") from error
        kept = (b"content-length", b"content-type", b"transfer-encoding", b"authorization")
        headers = [one for one in scope["headers"] if one[0] not in kept]
        scope["headers"] = [*headers, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(text))]
        sent = False

        async def replayed() -> Any:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": text, "more_body": False}

        return replayed
