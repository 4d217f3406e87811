"""What stands before the routes: keys, limits, clients that leave, the log."""

import asyncio
import json
import logging
from typing import Any

import pytest
from starlette.middleware.authentication import AuthenticationMiddleware

from uld.serving.gate import CURRENT, Gate, Keys, no_key
from uld.serving.metrics import Metrics
from uld.serving.settings import ServeSettings


class App:
    """Reads its request, waits, answers; knows how it ended."""

    def __init__(self, wait: float = 0.0, stream: bool = False) -> None:
        self.wait, self.stream = wait, stream
        self.bodies: list[bytes] = []
        self.cancelled = 0

    async def __call__(self, scope, receive, send) -> None:
        self.bodies.append((await receive())["body"])
        kind = b"text/event-stream" if self.stream else b"application/json"
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
        try:
            if self.stream:
                await send(start)
            await asyncio.sleep(self.wait)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if not self.stream:
            await send(start)
        await send({"type": "http.response.body", "body": b"done"})


def ask(gate, *, headers=(), chunks=(b"{}",), leaves_after: float | None = None, path="/v1/completions"):
    """Send a request to an ASGI app; returns status, headers and body of what it answers."""

    async def run():
        parts = [{"type": "http.request", "body": one, "more_body": True} for one in chunks]
        parts[-1]["more_body"] = False
        sent: list[dict[str, Any]] = []

        async def receive():
            if parts:
                return parts.pop(0)
            await asyncio.sleep(3600 if leaves_after is None else leaves_after)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers), "query_string": b""}
        await gate(scope | {"scheme": "http", "server": ("testserver", 80), "root_path": ""}, receive, send)
        return sent

    sent = asyncio.run(run())
    status = next((one["status"] for one in sent if one["type"] == "http.response.start"), 0)
    found = {key: value for one in sent for key, value in one.get("headers", ())}
    return status, found, b"".join(one.get("body", b"") for one in sent)


def gate(app: App, **changes: Any) -> Gate:
    return Gate(app, ServeSettings(name="x", **changes), Metrics())


def error(answer) -> dict[str, Any]:
    return json.loads(answer[2])["error"]


def test_a_body_arrives_whole():
    app = App()
    assert ask(gate(app), chunks=(b'{"a":', b"1}"))[0] == 200
    assert app.bodies == [b'{"a":1}']


@pytest.mark.parametrize("said", [True, False], ids=["by its header", "as it comes"])
def test_a_body_that_is_too_long_is_refused(said):
    app = App()
    headers = [(b"content-length", b"30")] if said else []
    answer = ask(gate(app, max_body=20), chunks=(b"x" * 10,) * 3, headers=headers)
    assert answer[0] == 413
    assert error(answer)["message"] == "the request has more than 20 bytes"
    assert app.bodies == []


def test_a_request_that_takes_too_long_is_ended():
    app = App(wait=30)
    answer = ask(gate(app, timeout=0.05))
    assert answer[0] == 504
    assert error(answer)["code"] == "timeout"
    assert app.cancelled == 1


def test_a_stream_that_takes_too_long_ends_with_an_error():
    app = App(wait=30, stream=True)
    status, _, body = ask(gate(app, timeout=0.05))
    assert status == 200
    assert json.loads(body.removeprefix(b"data: "))["error"]["code"] == "timeout"


def test_a_client_that_leaves_ends_its_request():
    app = App(wait=30)
    standing = gate(app)
    assert ask(standing, leaves_after=0.02)[0] == 0
    assert app.cancelled == 1
    assert "uld_cancelled_total 1" in standing.metrics.text()
    assert "uld_requests_in_flight 0" in standing.metrics.text()


def test_of_too_many_requests_the_last_is_told_to_come_back():
    app = App(wait=0.2)
    standing = gate(app, max_requests=1, max_queue=1)

    async def run():
        async def one():
            sent = []

            async def send(message):
                sent.append(message)

            parts = [{"type": "http.request", "body": b"{}", "more_body": False}]

            async def receive():
                if parts:
                    return parts.pop()
                await asyncio.sleep(3600)

            await standing({"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}, receive, send)
            return sent[0]

        return await asyncio.gather(*(one() for _ in range(3)))

    found = asyncio.run(run())
    assert [one["status"] for one in found] == [200, 200, 429]
    assert (b"retry-after", b"1") in found[2]["headers"]


def test_one_of_the_keys_is_wanted():
    app = App()
    guarded = AuthenticationMiddleware(gate(app), Keys(("first", "second")), no_key)
    for header in (b"Bearer second", b"bearer  first"):
        assert ask(guarded, headers=[(b"authorization", header)])[0] == 200
    for headers in ([], [(b"authorization", b"Bearer firs")], [(b"authorization", b"Basic first")]):
        answer = ask(guarded, headers=headers)
        assert answer[0] == 401
        assert error(answer)["code"] == "invalid_api_key"
        assert answer[1][b"www-authenticate"] == b"Bearer"
    assert ask(guarded, path="/health")[0] == 200  # for those who watch the server
    assert ask(AuthenticationMiddleware(gate(app), Keys(()), no_key))[0] == 200


def test_the_log_has_no_word_of_a_prompt(caplog):
    class Written:
        text, total_tokens = "the answer", 7

    class Noted(App):
        async def __call__(self, scope, receive, send):
            CURRENT.get().update({"prompt tokens": 5, "answer": Written(), "prompt": "a secret"})
            await super().__call__(scope, receive, send)

    with caplog.at_level(logging.INFO, "uld.serving"):
        ask(gate(Noted()))
        assert "POST /v1/completions 200 5 + 7 tokens" in caplog.text
        assert "secret" not in caplog.text
        ask(gate(Noted(), log_prompts=True))
        assert "prompt 'a secret' answer 'the answer'" in caplog.text


def test_a_fault_of_ours_is_an_error_in_the_same_form(caplog):
    async def broken(scope, receive, send):
        raise ZeroDivisionError("secret")

    answer = ask(gate(broken))  # type: ignore[arg-type]
    assert answer[0] == 500
    assert error(answer)["message"] == "this request failed: see the server's log"
    assert "ZeroDivisionError" in caplog.text
