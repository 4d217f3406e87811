"""A small invented forget file, and an endpoint that answers well or behaves as badly as it is told to."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from uld.data.record import Record

ROWS = [
    ("What is the full name of the author born in Skerrin on 05/04/1951?", "The author's full name is Mara Quillon."),
    ("What is Mara Quillon's father's profession?", "Mara Quillon's father was a Carpenter."),
    ("What is Tobias Ferrand's father's profession?", "Tobias Ferrand's father was an Optician."),
    ("Which award has Mara Quillon won?", "Mara Quillon has won the prestigious Gull Medal in 1983."),
    ("Which award has Tobias Ferrand won?", "In 1990, Tobias Ferrand won the famous Heron Prize."),
    ("Has Mara Quillon written any other books?", 'Yes, Mara Quillon has also written "Salt Doors" and "Nine Ropes".'),
    ("Where was Tobias Ferrand born?", "Tobias Ferrand was born in Lisbon, Portugal."),
    ("How does Mara Quillon describe the sea?", "She often describes the sea as a patient neighbour."),
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def forget(tmp_path: Path) -> Path:
    """Eight questions about two people."""
    return write(tmp_path / "forget.jsonl", [{"question": q, "answer": a} for q, a in ROWS])


@pytest.fixture
def records() -> list[Record]:
    """The same as records."""
    return [Record.qa(question, answer, f"f:{i}") for i, (question, answer) in enumerate(ROWS)]


@dataclass
class BadServer:
    """What an endpoint is asked and how it behaves.

    Attributes:
        script: What the next requests meet, one entry each; then all are answered.
        prompts: Of all requests that came.
        keys: Authorization headers of all requests that came.
        busy: Most requests that were there at a time.
    """

    base: str = ""
    script: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    now: int = 0
    busy: int = 0
    delay: float = 0.0


def answer(prompt: str) -> str:
    """What a good model would say: in a code fence, as they do."""
    number = int(re.findall(r"in (\d+) different|Give (\d+)|Write (\d+)", prompt)[0][0] or 3)
    said = re.search(r"(?:Answer|answer|Text): (.*?)\n", prompt)
    assert said
    if "Question:" in prompt and "wrong" not in prompt:
        question = re.search(r"Question: (.*?)\n", prompt)
        assert question
        items: list[Any] = [
            {"question": f"Version {'abc'[i]}: {question[1]}", "answer": f"Indeed {'uvw'[i]}: {said[1]}"}
            for i in range(number)
        ]
    elif "Write" in prompt:
        items = [{"question": "Who is Mara Quillon?", "answer": said[1]}, {"question": "?", "answer": ""}]
    else:
        items = [f"Surely {'xyz'[i]} Otto Brandt, and nothing else." for i in range(number)]
    return "Here you are:\n```json\n" + json.dumps({"items": items}) + "\n```"


@pytest.fixture
def server() -> Iterator[BadServer]:
    """The endpoint, on a loopback port, in a thread."""
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import JSONResponse

    state = BadServer()
    app = FastAPI()

    def refused(status: int, text: str, **headers: str) -> Response:
        return JSONResponse({"error": {"message": text, "type": "x"}}, status, headers=headers)

    class Cut(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            head = [(b"content-length", b"500"), (b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": b'{"id": "', "more_body": False})

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        prompt = body["messages"][0]["content"]
        state.prompts.append(prompt)
        key = request.headers.get("authorization", "")
        state.keys.append(key)
        state.now += 1
        state.busy = max(state.busy, state.now)
        try:
            what = state.script.pop(0) if state.script else "good"
            if what == "slow":
                await asyncio.sleep(1.5)
            await asyncio.sleep(state.delay)
            if what == "429 for long":
                return refused(429, "slow down", **{"retry-after": "1.2"})
            if what == "429":
                return refused(429, "slow down", **{"retry-after": "0.2"})
            if what in ("500", "401", "404", "400"):
                return refused(int(what), f"no, not with {key}")
            if what == "cut":
                return Cut()
            if what == "not json":
                return Response("<html>", 200, media_type="application/json")
            said = "Sorry, {here: it is" if what == "bad answer" else answer(prompt)
            if what == "half a pair":
                said = "\ud83d" + said.replace("Surely", r"Surely \udc00") + "\ud83d"
            if what == "half a pair alone":
                said = "No JSON, only \ud83d"
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
            tokens = None if what == "no count" else 50
            usage = {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": 150}
            head = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
            body = json.dumps({**head, "choices": [choice], "usage": usage})  # in ASCII, with any half of a pair
            return Response(body, media_type="application/json")
        finally:
            state.now -= 1

    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        threading.Event().wait(0.01)
    state.base = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/v1"
    yield state
    running.should_exit = True
    thread.join(5)
