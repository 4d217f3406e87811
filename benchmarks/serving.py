"""What an assistant costs a server: tokens a second and time to the first token, target and unlearned in turn.

Two servers of `uld.serving` (one of the target, one of the target with an assistant of default depth) stand side by side,
each a process of its own, and are asked in turn through HTTP, by 1 and by 8 clients at a time, 128 tokens an answer, none
ending by itself. The ratio stands beside its bound: L/(L+K) where arithmetic is what a step waits for. Where a step waits
for weights, a one-pass step reads each once, and the bound is 1.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import httpx2
from common import arguments, ratio, report, unlearned

CLIENTS, TOKENS, ROUNDS, EACH = (1, 8), 128, 3, 2
QUESTIONS = [f"What did the {n}th of the twelve sisters write about the sea, and when?" for n in range(64)]


def serve(model: str, side: str) -> None:
    """Be one of the two servers."""
    import logging

    import uld
    from uld.model.assistant import default_num_layers
    from uld.serving.run import serve as run
    from uld.serving.settings import ServeSettings, bind

    logging.basicConfig(level=logging.INFO)
    loaded, tokenizer = uld.load(model)
    if side == "unlearned":
        loaded = unlearned(loaded, default_num_layers(loaded.config.num_hidden_layers))
    loaded.generation_config.eos_token_id = None
    settings = ServeSettings(name=side, max_requests=max(CLIENTS), max_tokens=TOKENS + 64)
    taken = bind("127.0.0.1", 0)
    print(taken.getsockname()[1], flush=True)
    run(loaded, tokenizer, settings, taken)


async def load(port: int, clients: int) -> tuple[float, list[float]]:
    """Ask with so many clients at a time; returns tokens a second, and seconds to the first token of each answer."""
    firsts: list[float] = []

    async def one(client: httpx2.AsyncClient, number: int) -> None:
        for turn in range(EACH):
            body = {
                "prompt": QUESTIONS[(number * EACH + turn) % 64],
                "max_tokens": TOKENS,
                "temperature": 0,
                "stream": True,
            }
            start, seen = time.perf_counter(), False
            async with client.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {") and not seen:
                        seen = True
                        firsts.append(time.perf_counter() - start)
                    if '"usage"' in line:
                        assert json.loads(line[6:])["usage"]["completion_tokens"] == TOKENS, line

    start = time.perf_counter()
    async with httpx2.AsyncClient(timeout=600) as client:
        await asyncio.gather(*(one(client, number) for number in range(clients)))
    return clients * EACH * TOKENS / (time.perf_counter() - start), firsts


def ready(server: subprocess.Popen) -> int:
    """The port of a server, once it answers."""
    port = int(server.stdout.readline())
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=300)
            return port
        except OSError:
            time.sleep(0.5)
    raise SystemExit("a server did not come up")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--serve", nargs=2, metavar=("MODEL", "SIDE"), help="Be one of the servers.")
    parser.add_argument("--model", default="tofu-4m-full", help="Folder of the target, below --models.")
    given = parser.parse_args()
    if given.serve:
        serve(*given.serve)
        return
    model = str(given.models / given.model)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    sides = ("target", "unlearned")
    servers = {
        side: subprocess.Popen(
            [sys.executable, __file__, "--serve", model, side], stdout=subprocess.PIPE, text=True, env=environment
        )
        for side in sides
    }
    try:
        ports = {side: ready(server) for side, server in servers.items()}
        for port in ports.values():  # the first answers build kernels
            asyncio.run(load(port, max(CLIENTS)))
        rows, numbers = [], {}
        for clients in CLIENTS:
            speeds: dict[str, list[float]] = {side: [] for side in sides}
            firsts: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(ROUNDS):
                for side in sides:
                    speed, first = asyncio.run(load(ports[side], clients))
                    speeds[side].append(speed)
                    firsts[side] += first
            rate = ratio(speeds, "unlearned", "target")
            cells = []
            for side in sides:
                ordered = sorted(firsts[side])
                last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
                cells += [f"{statistics.median(speeds[side]):.1f}", f"{ordered[len(ordered) // 2]:.2f} / {last:.2f}"]
            rows.append([str(clients), *cells, f"{rate['median']:.2f} ({rate['least']:.2f}–{rate['greatest']:.2f})"])
            numbers[str(clients)] = {"tokens/s": speeds, "first token, s": firsts, "ratio": rate}
    finally:
        for server in servers.values():
            server.terminate()
            server.wait()
    layers = json.loads((Path(model) / "config.json").read_text())["num_hidden_layers"]
    depth = -(-layers // 4)
    numbers |= {"model": given.model, "layers": layers, "depth": depth, "bound": layers / (layers + depth)}
    head = ["clients", "target, tokens/s", "first token p50 / p99, s", "unlearned, tokens/s", "first token", "ratio"]
    print(f"bound L/(L+K) = {layers / (layers + depth):.2f}, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores")
    report("serving", head, rows, numbers)


if __name__ == "__main__":
    main()
