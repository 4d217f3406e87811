"""Many clients for minutes, of every bad kind, against `uld serve`: does it stay right, small and polite?

Most clients ask one of some questions, whole or streamed, and compare with what the model in this process answers. The
others read slowly, leave in the middle, send too much, broken JSON, wrong keys and prompts of 100,000 tokens. Counted
are statuses, wrong answers and refusals that are not in the form of OpenAI's API; the memory of the server and its
processes is noted every minute. Writes ``docs/results/serving/soak.json`` and the table of ``docs/serving.md``.

    python benchmarks/soak.py --run RUN --clients 200 --minutes 10 --engine transformers
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
from server import ENGINES, KEY, NAME, Model, Server, into_page, parser_of, serving, write

from uld.evaluation.tofu_rows import task_rows

TOKENS, MOST, GROWTH = 24, 512, 1.1
GONE = (httpx2.ReadError, httpx2.RemoteProtocolError, httpx2.WriteError, httpx2.ConnectError)
CHAT = "/v1/chat/completions"


class Soak:
    """Clients of a server, and what they saw."""

    def __init__(self, server: Server, asked: list[tuple[str, str]], until: float) -> None:
        """Ask these questions, which have these answers, until then."""
        self.server, self.asked, self.until = server, asked, until
        self.statuses: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.faults: Counter[str] = Counter()
        self.client = httpx2.AsyncClient(
            base_url=server.url, timeout=600, limits=httpx2.Limits(max_connections=None, max_keepalive_connections=50)
        )

    def body(self, number: int, **more: Any) -> dict[str, Any]:
        """A request with one of the questions."""
        question = self.asked[number][0]
        return {"model": NAME, "messages": [{"role": "user", "content": question}], "max_tokens": TOKENS, **more}

    def judge(self, kind: str, answer: httpx2.Response, expected: tuple[int, ...]) -> None:
        """Count a status; a refusal has to be a clear error."""
        self.statuses[kind][str(answer.status_code)] += 1
        if answer.status_code not in (200, 429, *expected):
            self.faults[f"{kind}: status {answer.status_code}"] += 1
        if answer.status_code != 200:
            try:
                error = answer.json()["error"]
                fine = {"message", "type", "code"} <= error.keys() and bool(error["message"])
            except (ValueError, KeyError, TypeError, AttributeError):
                fine = False
            fine &= answer.status_code != 429 or "retry-after" in answer.headers
            self.faults[f"{kind}: not in OpenAI's form"] += not fine

    def compare(self, kind: str, number: int, text: str) -> None:
        """Count an answer that is not its question's."""
        if text.strip() != self.asked[number][1]:
            self.faults[f"{kind}: another answer"] += 1

    async def post(self, content: bytes, key: str = KEY) -> httpx2.Response:
        """Send a body, whatever it is."""
        return await self.client.post(CHAT, content=content, headers=headers(key))

    async def one(self, kind: str, rng: random.Random) -> None:
        """A client: asks again and again."""
        while time.monotonic() < self.until:
            try:
                await KINDS[kind][1](self, kind, rng)
            except GONE as error:
                if kind not in ("cut", "oversized"):  # a server may close on them
                    self.faults[f"{kind}: {type(error).__name__}"] += 1
            await asyncio.sleep(rng.uniform(0.05, 0.5))


def headers(key: str = KEY) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


async def whole(soak: Soak, kind: str, rng: random.Random) -> None:
    number = rng.randrange(len(soak.asked))
    answer = await soak.post(json.dumps(soak.body(number)).encode())
    soak.judge(kind, answer, ())
    if answer.status_code == 200:
        soak.compare(kind, number, answer.json()["choices"][0]["message"]["content"])
    elif answer.status_code == 429:
        await asyncio.sleep(float(answer.headers.get("retry-after", 1)))


async def streamed(soak: Soak, kind: str, rng: random.Random, pause: float = 0.0, leave: bool = False) -> None:
    number = rng.randrange(len(soak.asked))
    content, text, ended = json.dumps(soak.body(number, stream=True)).encode(), "", False
    async with soak.client.stream("POST", CHAT, content=content, headers=headers()) as answer:
        if answer.status_code != 200:
            await answer.aread()
            soak.judge(kind, answer, ())
            return
        soak.statuses[kind]["200"] += 1
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
                if leave and text:
                    return
            await asyncio.sleep(pause)
    if not leave and not ended:
        soak.faults[f"{kind}: a stream without its end"] += 1
    if not leave:
        soak.compare(kind, number, text)


async def slow(soak: Soak, kind: str, rng: random.Random) -> None:
    await streamed(soak, kind, rng, pause=rng.uniform(0.1, 0.5))


async def cut(soak: Soak, kind: str, rng: random.Random) -> None:
    if rng.random() < 0.5:
        await streamed(soak, kind, rng, leave=True)
        return
    host, _, port = soak.server.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 500\r\n\r\n"
    writer.write(head.encode() + b'{"messages": [')
    await writer.drain()
    await asyncio.sleep(rng.uniform(0, 1))
    writer.close()
    soak.statuses[kind]["left"] += 1


async def oversized(soak: Soak, kind: str, rng: random.Random) -> None:
    soak.judge(kind, await soak.post(b'{"prompt": "' + b"a" * (1 << 21) + b'"}'), (413,))


async def broken(soak: Soak, kind: str, rng: random.Random) -> None:
    bodies = [b"{", b"[1]", b"", b"\xff\xfe", b'{"messages": 1}', b'{"messages": [], "weight": 0}', b"[" * 100_000]
    soak.judge(kind, await soak.post(rng.choice(bodies)), (400,))


async def stranger(soak: Soak, kind: str, rng: random.Random) -> None:
    soak.judge(kind, await soak.post(json.dumps(soak.body(0)).encode(), key="another"), (401,))


async def long(soak: Soak, kind: str, rng: random.Random) -> None:
    body = soak.body(0) | {"messages": [{"role": "user", "content": "and " * 100_000}]}
    soak.judge(kind, await soak.post(json.dumps(body).encode()), (400,))
    await asyncio.sleep(rng.uniform(1, 5))


Kind = Callable[[Soak, str, random.Random], Awaitable[None]]
KINDS: dict[str, tuple[int, Kind]] = {
    "whole": (8, whole),
    "streamed": (4, streamed),
    "slow": (2, slow),
    "cut": (2, cut),
    "oversized": (1, oversized),
    "broken": (1, broken),
    "stranger": (1, stranger),
    "long": (1, long),
}
"""Kinds of clients: how many of twenty, and what one does."""


def resident(server: Server) -> int:
    """Bytes in memory of a server and its processes."""
    own = psutil.Process(server.process.pid)
    total = 0
    for one in (own, *own.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


async def soaked(server: Server, asked: list[tuple[str, str]], clients: int, minutes: float) -> dict[str, Any]:
    """Let the clients ask; what they saw."""
    begun = time.monotonic()
    soak = Soak(server, asked, begun + 60 * minutes)
    kinds = [kind for kind, (share, _) in KINDS.items() for _ in range(share)]
    memory = [resident(server)]

    async def note() -> None:
        while (wait := begun + 60 * len(memory) - time.monotonic()) < soak.until - time.monotonic() + 0.1:
            await asyncio.sleep(max(0, wait))
            memory.append(resident(server))
            health = await soak.client.get("/health")
            if health.status_code != 200:
                soak.faults[f"/health: {health.status_code}"] += 1

    working = [soak.one(kinds[n * 7 % len(kinds)], random.Random(n)) for n in range(clients)]  # 7: all kinds early
    await asyncio.gather(note(), *working)
    await whole(soak, "whole", random.Random(-1))  # still right afterwards
    await soak.client.aclose()
    return {
        "clients": clients,
        "minutes": minutes,
        "seconds until the last was answered": round(time.monotonic() - begun, 1),
        "statuses": {kind: dict(sorted(found.items())) for kind, found in soak.statuses.items()},
        "faults": {name: number for name, number in soak.faults.items() if number},
        "resident bytes at each minute": memory,
        "memory, end over minute 2": memory[-1] / memory[2] if len(memory) > 3 else None,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--dry", action="store_true", help="Write nothing: a try.")
    options = parser.parse_args()
    rows = [task_rows(task, "forget10", options.data / "tofu")[:12] for task in ("forget", "retain")]
    questions = [row["question"] for task in rows for row in task]
    asked = list(zip(questions, Model.load(options.run).answers(questions, TOKENS), strict=True))
    found, bad = {}, []
    for engine in options.engine or ENGINES:
        with tempfile.TemporaryDirectory() as work:
            with serving(options.run, engine, options, Path(work), "--max-tokens", str(MOST)) as server:
                found[engine] = asyncio.run(soaked(server, asked, options.clients, options.minutes))
            found[engine]["tracebacks in the log"] = server.log.read_text(errors="replace").count("Traceback")
        one = found[engine]
        print(engine, json.dumps(one, indent=1), flush=True)
        grown = one["memory, end over minute 2"]
        if one["faults"] or one["tracebacks in the log"] or (grown is not None and grown > GROWTH):
            bad.append(f"{engine}: {one['faults']}, {one['tracebacks in the log']} tracebacks, memory × {grown}")
    if not options.dry:
        call = f"soak.py --run RUN --clients {options.clients} --minutes {options.minutes:g}"
        whole_file = write("soak", call, {"engines": found})
        table = []
        for engine, one in whole_file["engines"].items():
            total = Counter[str]()
            for statuses in one["statuses"].values():
                total.update(statuses)
            counts = ", ".join(f"{status}: {number:,}" for status, number in sorted(total.items()))
            grown = one["memory, end over minute 2"]
            cells = [engine, f"{one['clients']} × {one['minutes']:g} min", counts, str(sum(one["faults"].values()))]
            table.append([*cells, "–" if grown is None else f"{grown:.2f}"])
        into_page("soak", ["engine", "clients", "answers by status", "faults", "memory, end over minute 2"], table)
    sys.exit("\n".join(bad) or 0)


if __name__ == "__main__":
    main()
