"""What an assistant costs a server: tokens a second and time to the first token, target and unlearned in turn.

Two servers (one of the target, one of the target with an assistant of default depth) stand side by side, each a process
of its own, and are asked in turn through HTTP, by 1, 8 and 32 clients at a time, 128 tokens an answer, none ending by
itself. Both are those of ``uld serve``: the engine's own server behind uld's gate, for the target also.

The ratio stands beside two bounds. Arithmetic: a token passes L + K layers and the head twice instead of L and once.
Bytes: transformers' one pass reads every weight once, so that bound is 1; vLLM holds an assistant's layers as weights of
their own, and reads L + K layers and one head. Which of them binds depends on how many tokens a step has: the bytes a
step reads take as long as ``machine`` reads them, its arithmetic as long as ``machine`` computes, both measured here.

    python benchmarks/serving.py --engine transformers --models MODELS
    python benchmarks/serving.py --engine vllm --models MODELS --vllm-python build/vllm-env/bin/python
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import httpx2
import torch
from common import ROOT, arguments, rates, ratio, unlearned
from server import OUT, into_page, write

CLIENTS, TOKENS, ROUNDS, EACH = (1, 8, 32), 128, 3, 2  # each client asks twice
SIDES = ("target", "unlearned")
QUESTIONS = [f"What did the {n}th of the twelve sisters write about the sea, and when?" for n in range(64)]


def serve(engine: str, model: str, side: str, tokens: int, clients: int) -> None:
    """Be one of the two servers."""
    import logging

    from uld.serving.settings import ServeSettings, bind

    logging.basicConfig(level=logging.INFO)
    settings = ServeSettings(name=side, max_requests=clients, max_tokens=tokens + 64)
    taken = bind("127.0.0.1", 0)
    print(taken.getsockname()[1], flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # an end that the engine's own processes hear of, as uld's is
    os.dup2(2, 1)  # vLLM's log goes where nobody has to read it
    if engine == "vllm":
        from uld.serving.vllm.export import export
        from uld.serving.vllm.run import VllmSettings
        from uld.serving.vllm.run import serve as run_vllm

        with tempfile.TemporaryDirectory() as work:
            folder = Path(model)
            if side == "unlearned":
                folder = export([made_run(model, Path(work, "run"))], Path(work, "exported"))
            run_vllm(folder, settings, VllmSettings(arguments="--enforce-eager"), taken)
        return
    import uld
    from uld.serving.run import serve as run

    loaded, tokenizer = uld.load(model)
    if side == "unlearned":
        loaded = unlearned(loaded, depth_of(model))
    loaded.generation_config.eos_token_id = None
    run(loaded, tokenizer, settings, taken)


def made_run(model: str, folder: Path) -> Path:
    """A run of the target with an assistant that was not trained: it costs what a trained one does."""
    import uld
    from uld.runs.manifest import CombinationSettings, Manifest, fingerprint

    target, tokenizer = uld.load(model)
    made = unlearned(target, depth_of(model))
    shared = [
        (name.removeprefix("base_model.model.").replace(".base_layer", ""), value)
        for name, value in made.assistant.named_parameters()
        if "lora_" not in name
    ]
    how = CombinationSettings(**vars(made.combinations[0]))
    about = {"target": str(Path(model).resolve()), "target_fingerprint": fingerprint(shared), "combination": how}
    made.manifests = [Manifest(method="uld", num_layers=depth_of(model), **about)]
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def depth_of(model: str) -> int:
    from uld.model.assistant import default_num_layers

    return default_num_layers(json.loads(Path(model, "config.json").read_text())["num_hidden_layers"])


def bounds(model: Path, engine: str, clients_of: list[int], machine: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The best ratio that there can be at each number of clients, and which bound it is.

    Args:
        model: Folder of the target.
        engine: transformers or vllm.
        clients_of: Numbers of clients.
        machine: From `common.rates`: FLOP/s, and bytes/s of weights that are read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    layers, depth = config.num_hidden_layers, depth_of(str(model))
    layer = sum(one.numel() for name, one in whole.named_parameters() if ".layers.0." in name)
    head = whole.get_output_embeddings().weight.numel()
    size = torch.finfo(config.dtype or torch.float32).bits // 8
    products = {"target": layers * layer + head, "unlearned": (layers + depth) * layer + 2 * head}
    read = {"target": layers * layer + head, "unlearned": (layers + (depth if engine == "vllm" else 0)) * layer + head}
    found = {}
    for clients in clients_of:
        flops = {side: 2 * clients * products[side] / machine["flops"] for side in SIDES}
        bytes_ = {side: size * read[side] / machine["bytes"] for side in SIDES}
        binds = "bytes" if bytes_["unlearned"] > flops["unlearned"] else "FLOPs"
        times = bytes_ if binds == "bytes" else flops
        found[str(clients)] = {"binds": binds, "bound": times["target"] / times["unlearned"]}
    return found


async def load(port: int, side: str, clients: int, tokens: int, each: int) -> tuple[float, list[float]]:
    """Ask with so many clients at a time; returns tokens a second, and seconds to the first token of each answer."""
    firsts: list[float] = []
    more = {"ignore_eos": True, "stream_options": {"include_usage": True}} if side.startswith("vllm") else {}

    async def one(client: httpx2.AsyncClient, number: int) -> None:
        for turn in range(each):
            body = {
                "prompt": QUESTIONS[(number * each + turn) % 64],
                "max_tokens": tokens,
                "temperature": 0,
                "stream": True,
                **more,
            }
            start, seen = time.perf_counter(), False
            async with client.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {") and not seen:
                        seen = True
                        firsts.append(time.perf_counter() - start)
                    if '"usage":{' in line.replace(": ", ":"):
                        assert json.loads(line[6:])["usage"]["completion_tokens"] == tokens, line

    start = time.perf_counter()
    async with httpx2.AsyncClient(timeout=600) as client:
        await asyncio.gather(*(one(client, number) for number in range(clients)))
    return clients * each * tokens / (time.perf_counter() - start), firsts


def ready(server: subprocess.Popen) -> int:
    """The port of a server, once it answers."""
    port = int(server.stdout.readline())
    for _ in range(1200):
        if server.poll() is not None:
            raise SystemExit("a server did not come up")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=300)
            return port
        except OSError:
            time.sleep(0.5)
    raise SystemExit("a server did not come up")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--serve", nargs=5, metavar=("ENGINE", "MODEL", "SIDE", "TOKENS", "CLIENTS"), help="Be a server."
    )
    parser.add_argument("--model", default="tofu-4m-full", help="Folder of the target, below --models.")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--vllm-python", default=str(ROOT / "build" / "vllm-env" / "bin" / "python"))
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--each", type=int, default=EACH, help="Questions of a client.")
    parser.add_argument("--dry", action="store_true", help="Write nothing: a try.")
    given = parser.parse_args()
    if given.serve:
        engine, model, side, tokens, most = given.serve
        serve(engine, model, side, int(tokens), int(most))
        return
    model = str(given.models / given.model)
    source = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(source)}
    python = given.vllm_python if given.engine == "vllm" else sys.executable
    words = [given.engine, model, "SIDE", str(given.tokens), str(max(given.clients))]
    servers = {}
    try:
        for side in SIDES:
            words[2] = side
            servers[side] = subprocess.Popen(
                [python, __file__, "--serve", *words], stdout=subprocess.PIPE, text=True, env=environment
            )
        ports = {side: ready(server) for side, server in servers.items()}

        def run(side: str, clients: int) -> tuple[float, list[float]]:
            return asyncio.run(load(ports[side], f"{given.engine} {side}", clients, given.tokens, given.each))

        for side in SIDES:  # the first answers build kernels
            run(side, max(given.clients))
        machine_rates = rates(torch.float32)
        limits = bounds(Path(model), given.engine, given.clients, machine_rates)
        rows, numbers = [], {}
        for clients in given.clients:
            speeds: dict[str, list[float]] = {side: [] for side in SIDES}
            firsts: dict[str, list[float]] = {side: [] for side in SIDES}
            for _ in range(given.rounds):
                for side in SIDES:
                    speed, first = run(side, clients)
                    speeds[side].append(speed)
                    firsts[side] += first
            rate = ratio(speeds, "unlearned", "target")
            cells = []
            for side in SIDES:
                cells += [f"{statistics.median(speeds[side]):.1f}", spread(firsts[side])]
            limit = limits[str(clients)]
            cells += [f"{rate['median']:.2f} ({rate['least']:.2f}–{rate['greatest']:.2f})"]
            rows.append([str(clients), *cells, f"{limit['bound']:.2f} ({limit['binds']})"])
            own = {"tokens/s": speeds, "first token, s": firsts, "ratio": rate, **limit}
            numbers[str(clients)] = own | {"of the bound": rate["median"] / limit["bound"]}
    finally:
        for server in servers.values():
            server.terminate()
        for server in servers.values():
            server.wait(120)
    head = [
        "clients",
        "target, tokens/s",
        "first token p50 / p99, s",
        "unlearned, tokens/s",
        "first token",
        "ratio",
        "bound",
    ]
    table = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]
    print("\n".join(table), flush=True)
    if given.dry:
        return
    config = json.loads((Path(model) / "config.json").read_text())
    about = {"model": given.model, "layers": config["num_hidden_layers"], "depth": depth_of(model)}
    about |= {"machine's rates": machine_rates, "load": os.getloadavg()[0], "table": table, "clients": numbers}
    call = f"serving.py --engine {given.engine} --model {given.model}"
    call += f" --each {given.each}" if given.each != EACH else ""
    write(f"speed-{given.model}", call, {"engines": {given.engine: about | {"command": f"python benchmarks/{call}"}}})
    into_page("speed", *page())


def page() -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of all that was measured."""
    head = ["model", "engine", "clients", "target, tokens/s", "unlearned, tokens/s", "ratio", "bound", "of the bound"]
    head += ["first token p50 / p99, s: target", "unlearned"]
    rows = []
    for file in sorted(OUT.glob("speed-*.json"), reverse=True):
        for engine, found in json.loads(file.read_text())["engines"].items():
            for clients, one in found["clients"].items():
                speeds = [f"{statistics.median(one['tokens/s'][side]):,.0f}" for side in SIDES]
                ratios = [
                    f"{one['ratio']['median']:.2f}",
                    f"{one['bound']:.2f} ({one['binds']})",
                    f"{one['of the bound']:.2f}",
                ]
                firsts = [spread(one["first token, s"][side]) for side in SIDES]
                rows.append([found["model"], engine, clients, *speeds, *ratios, *firsts])
    return head, rows


def spread(seconds: list[float]) -> str:
    """Median and 99th percentile."""
    ordered = sorted(seconds)
    last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"{ordered[len(ordered) // 2]:.2f} / {last:.2f}"


if __name__ == "__main__":
    main()
