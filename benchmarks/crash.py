"""Kills commands between every two of their writes and at random, gives the same command again, compares the results.

A killed process is a real one (SIGKILL to its whole group), forked from a parent that has the imports done. What a command
writes is told by Python's own audit events, so that a kill comes exactly between two writes. Trials that are done are
kept in ``--work``: what was stopped continues there. Writes ``docs/results/crash.json``.
"""

import contextlib
import functools
import gc
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for name, value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
    os.environ[name] = value

import matplotlib  # noqa: E402
import torch  # noqa: E402
from common import ROOT, arguments, machine  # noqa: E402

torch.set_num_threads(1)
matplotlib.use("Agg")

import matplotlib.pyplot  # noqa: E402

import uld.cli.main  # noqa: E402
import uld.compare.work  # noqa: E402
import uld.evaluation.grid  # noqa: E402
import uld.evaluation.tofu  # noqa: E402
import uld.evaluation.tuning  # noqa: E402
import uld.report.build  # noqa: E402
import uld.training.draw  # noqa: E402
import uld.training.finetune  # noqa: E402
import uld.training.run  # noqa: E402
from uld.runs.machine import library_versions  # noqa: E402

for name in ("rouge_score.rouge_scorer", "transformers.models.llama.modeling_llama"):
    importlib.import_module(name)  # once, and not in every process that is forked
gc.collect()
gc.freeze()  # what is forked collects its own garbage alone

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
VOLATILE = {"seconds", "peak_rss_bytes", "machine"}  # what no two undisturbed calls have in common
REPORT = {"tables.md", "tables.csv", "tables.tex", "report.html"}  # show the seconds; all else in them is in the cells
PRODUCT = re.compile(
    r"adapter|config\.json|generation_config|tokenizer|special_tokens|chat_template|model.*safetensors"
)
TEMPORARY = re.compile(r"^\.(.+?)\.[^.]{8}\.uld$")
Event = tuple[str, str]  # what is done, to which path in the folder


@dataclass(frozen=True)
class Command:
    """A command into ``out``, and how it is given again.

    Attributes:
        words: As users type them; or a function of the folder that holds ``out``.
        finished: Marks that it came to its end, for those that are continued by ``--resume``.
        settings: Is there when it has begun, for the same.
        start: Folder that ``out`` begins as a copy of.
    """

    words: list[str] | Callable[[], None]
    finished: str | None = None
    settings: str | None = None
    start: str | None = None


def fixtures(work: Path) -> None:
    """An invented world, two barely trained models of it, a run that forgets one of ten people, and files."""
    from uld.demo.models import MicroSettings, make_models
    from uld.demo.world import write_world
    from uld.training.config import train_config

    world = write_world(work / "world", people=10, evaluated=2)
    size = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_layers": 2}
    target, retain_only = make_models(
        world, work, settings=MicroSettings(**size, epochs=2, batch_size=8, warmup_steps=5)
    )  # type: ignore[arg-type]
    for name, place in (("target", target), ("retain-only", retain_only)):
        (work / name).symlink_to(place.name)
    places = {"target": str(work / "target"), "output": str(work / "run"), "data": str(work / "world")}
    small = {"split": "forget10", "num_layers": 1, "lora_rank": 4, "epochs": 2, "retain_rows": 4, "max_length": 128}
    uld.training.run.train(train_config([("micro", places | small)]), progress=False)
    rows = [json.loads(line) for line in (work / "world" / "forget10.json").read_text().splitlines()][:4]
    for name, made in {
        "forget": [{"question": row["question"], "answer": row["answer"]} for row in rows],
        "probes": [
            {"question": row["question"], "answer": row["answer"], "wrong_answers": ["no", "never"]} for row in rows
        ],
    }.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (work / "grid.yaml").write_text(
        json.dumps(
            {
                "target": str(work / "target"),
                "retain_only": {"forget10": str(work / "retain-only")},
                "data": str(work / "world"),
                "settings": {"max_length": 128, "retain_rows": 4, "lora_rank": 4},
                "methods": {"uld": {"num_layers": 1, "epochs": 2, "batch_size": 16, "save_steps": 1}},
                "cells": [
                    {
                        "tables": ["table2"],
                        "methods": ["uld"],
                        "splits": ["forget10"],
                        "seeds": [0],
                        "keep_epochs": True,
                    }
                ],
            }
        )
    )
    (work / "ready").touch()


def commands(work: Path) -> dict[str, Command]:
    out, target = str(work / "trial" / "out"), str(work / "target")
    run = ["--target", target, "--data", str(work / "world"), "--split", "forget10", "--retain-rows", "4"]
    run += ["--max-length", "128", "--epochs", "2", "--batch-size", "8", "--save-steps", "1", "-q", "--output", out]
    forget = str(work / "forget.jsonl")
    drawn = ["--target", target, "--forget", forget, "--draw-retain", "4", "--max-length", "64", "--num-layers", "1"]
    drawn += ["--epochs", "2", "--batch-size", "4", "--save-steps", "1", "-q", "--output", out]
    learn = ["--model", target, "--file", forget, "--max-length", "128", "--epochs", "2", "--batch-size", "2"]
    learn += ["--save-steps", "1", "-q", "--output", out]
    tofu = ["eval", "tofu", "--model", str(work / "run"), "--split", "forget10", "--data", str(work / "world")]
    tofu += ["--limit", "2", "--max-new-tokens", "4", "-q", "--output", out]
    probes = ["--forget", str(work / "probes.jsonl"), "--retain", forget, "--weight", "0.5,1", "--budget", "0.99"]
    model = {"settings": "train.yaml", "finished": "uld.json"}
    return {
        "train": Command(["train", *run, "--num-layers", "1", "--lora-rank", "4", "--keep-epochs"], **model),
        "train (references)": Command(["train", *run, "--method", "npo+kl"], **model),
        "train (drawn retain set)": Command(["train", *drawn, "--lora-rank", "4"], **model),
        "train --overwrite": Command(
            ["train", *run, "--num-layers", "1", "--lora-rank", "4", "--overwrite"], start="run"
        ),
        "finetune": Command(["finetune", *learn], settings="finetune.yaml", finished="finetune.json"),
        "eval tofu": Command([*tofu, "--retain-model", str(work / "retain-only")]),
        "eval tofu (grid)": Command([*tofu, "--weight", "0.5,1"]),
        "augment --rules": Command(["augment", forget, "--rules", "--output", out]),
        "augment (a model)": Command(lambda: augment(Path(forget), Path(out))),
        "tune": Command(["tune", out, *probes], start="run"),
        "draw": Command(
            [
                "draw",
                "--model",
                target,
                "--forget",
                forget,
                "--rows",
                "4",
                "--max-length",
                "64",
                "--output",
                f"{out}/d",
            ],
            finished="d",
        ),
        "save_pretrained": Command(lambda: save(work / "run", Path(out)), start="run"),
        "compare": Command(["compare", str(work / "grid.yaml"), "--output", out, "-q"]),
    }


def augment(forget: Path, out: Path) -> None:
    """``uld augment`` with a model that answers at once."""
    from uld.augment.endpoint import Reply
    from uld.augment.generate import Wanted
    from uld.augment.run import augment_by_model

    def ask_all(left: Any, done: Any) -> None:
        for number, prompt in left:
            done(number, Reply(json.dumps({"items": [f"{len(prompt)} words"] * 2}), 3, 2))

    augment_by_model(forget, out, Wanted(1, 1, 0), ask_all, by={"by": "stub"}, chunk_words=100, tries=1)


def save(run: Path, out: Path) -> None:
    """`save_pretrained` of a model with another α over a run that is there."""
    import uld

    model, _ = uld.load(run, weight=3.0)
    model.save_pretrained(out)


def label(path: str) -> str:
    """What a path is a part of, as the table of docs/architecture.md calls it."""
    parts = [TEMPORARY.sub(r"\1", part) for part in Path(path).parts][1:]
    if parts[:2] in (["work", "runs"], ["work", "eval"]):
        parts = parts[3:] if parts[1] == "runs" else ["work/eval"]
    if not parts or parts[-1].endswith(".lock") or "locks" in parts:
        return "the folder and its lock"
    if parts[0] == "checkpoints":
        return re.sub(r"\d+", "N", "/".join(parts[:2]))
    if PRODUCT.match(parts[0]):
        return "weights, config, tokenizer"
    return "rows" if re.fullmatch(r"(forget|retain|real_authors|world_facts)\.jsonl", parts[-1]) else parts[0]


def hooked(root: Path, heard: Callable[[str, str], None]) -> None:
    """Have every write below a folder told before it is done, from now until the process ends."""
    prefix = f"{root}{os.sep}"

    def place(path: Any, folder: int = -1) -> str | None:
        if isinstance(path, int):
            return None
        text = os.fsdecode(path)
        if folder not in (-1, None) and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
        text = os.path.abspath(text)
        return text.removeprefix(prefix) if text.startswith(prefix) else None

    def hook(event: str, args: tuple[Any, ...]) -> None:
        found: str | None = None
        if event == "open" and isinstance(args[2], int) and args[2] & WRITES:
            found = place(args[0])
        elif event in ("os.rename", "os.link"):
            found = place(args[1], args[3])
        elif event in ("os.remove", "os.rmdir"):
            found = place(args[0], args[1])
        elif event == "os.mkdir":
            found = place(args[0], args[2])
        elif event == "uld.append":
            found = place(args[0])
        if found is not None:
            heard(event, found)

    sys.addaudithook(hook)


def tell_appends() -> None:
    """Lines that are written to files that are open raise audit events as well."""
    from uld.runs.rows import RowFile
    from uld.training.journal import Journal

    add, step = RowFile.add, Journal.on_step_end

    def told_add(self: Any, *args: Any) -> None:
        sys.audit("uld.append", str(self._path))
        add(self, *args)

    def told_step(self: Any, *args: Any, **kwargs: Any) -> None:
        sys.audit("uld.append", str(self.path))
        step(self, *args, **kwargs)

    RowFile.add, Journal.on_step_end = told_add, told_step  # type: ignore[method-assign]


def forked(task: Callable[[], None], log: Path, *, after: float | None = None) -> int:
    """Exit code of a task in a process group of its own; killed after some seconds, if they are given."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in (1, 2):
                os.dup2(stream, number)
            task()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what the killed one has left running
    return os.waitstatus_to_exitcode(status)


def call(words: list[str] | Callable[[], None]) -> None:
    """One command, in a process that is its own."""
    import multiprocessing

    evaluate = uld.evaluation.tofu.evaluate  # a cell evaluates few rows here
    uld.compare.cell.evaluate = functools.partial(evaluate, limit=2, max_new_tokens=4)
    real = multiprocessing.get_context
    uld.compare.work.multiprocessing.get_context = lambda method=None: real("fork")  # type: ignore[assignment]
    tell_appends()
    if callable(words):
        words()
        return
    sys.argv = ["uld", *words]
    uld.cli.main.main()


def state(out: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones and empty folders as well, with a digest of what is always the same in it."""
    found = {}
    for path in sorted(out.rglob("*") if out.is_dir() else []):
        name = str(path.relative_to(out))
        if path.is_dir():
            if not any(path.iterdir()):
                found[name] = "empty folder"
            continue
        content = b"a report" if path.name in REPORT and path.stat().st_size else path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            lines = content.splitlines() if path.suffix == ".jsonl" else [content]
            content = json.dumps([plain(json.loads(line)) for line in lines]).encode()
        found[name] = hashlib.sha256(content).hexdigest()[:16]
    return found


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key not in VOLATILE}
    return [plain(part) for part in value] if isinstance(value, list) else value


class Trials:
    """Trials of one command."""

    def __init__(self, work: Path, name: str, command: Command) -> None:
        """Give the command once, undisturbed, and note what it writes."""
        self.work, self.name, self.command = work, name, command
        self.root = work / "trial"
        self.out, self.log = self.root / "out", work / "log"
        self.fresh()
        events = work / "events"
        events.unlink(missing_ok=True)
        start = time.perf_counter()
        code = forked(lambda: self.traced(events), self.log)
        self.seconds = time.perf_counter() - start
        if code:
            sys.exit(f"{name}: exit code {code}\n{self.log.read_text()}")
        self.events: list[Event] = [tuple(json.loads(line)) for line in events.read_text().splitlines()]
        self.whole = state(self.root)

    def fresh(self) -> None:
        """Begin with what the command begins with."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        self.log.unlink(missing_ok=True)
        if self.command.start is not None:
            shutil.copytree(self.work / self.command.start, self.out)

    def traced(self, events: Path) -> None:
        """The command, its writes noted in a file."""

        def heard(event: str, path: str) -> None:
            os.write(handle, (json.dumps([event, path]) + "\n").encode())

        handle = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        hooked(self.root, heard)
        call(self.command.words)

    def killed_at(self, number: int) -> None:
        """The command, killed before its n-th write, whichever of its processes writes it."""
        count = self.work / "count"
        count.write_bytes(b"")
        handle = os.open(count, os.O_WRONLY | os.O_APPEND)

        def heard(event: str, path: str) -> None:
            os.write(handle, b".")
            if os.fstat(handle).st_size > number:
                os.killpg(0, signal.SIGKILL)

        hooked(self.root, heard)
        call(self.command.words)

    def pairs(self) -> dict[tuple[str, str], list[int]]:
        """Numbers of the writes that follow on another kind of write, by both."""
        found: dict[tuple[str, str], list[int]] = {}
        before = ""
        for number, (_, path) in enumerate(self.events):
            now = label(path)
            found.setdefault((before, now), []).append(number)
            before = now
        return found

    def again(self) -> list[str] | Callable[[], None] | None:
        """The same command as its users give it after a stop; None where it had come to its end."""
        words = self.command.words
        if callable(words) or self.command.settings is None or self.command.finished is None:
            return words
        if (self.out / self.command.finished).exists():
            left = (self.out / "checkpoints").exists() or (self.out / ".lock").exists()
            return [*words, "--resume"] if left else None
        return [*words, "--resume"] if (self.out / self.command.settings).exists() else words

    def trial(self, number: int | None, after: float | None) -> dict[str, Any]:
        """Kill the command, give it again, compare."""
        self.fresh()
        if number is not None:
            code = forked(lambda: self.killed_at(number), self.log)
        else:
            code = forked(lambda: call(self.command.words), self.log, after=after)
        finished = self.command.finished if self.command.settings is None else None
        complete = finished is not None and (self.out / finished).exists()
        words = self.again()
        ended = 0 if words is None else forked(lambda: call(words), self.log)
        found = state(self.root)
        differs = sorted(one for one in {*found, *self.whole} if found.get(one) != self.whole.get(one))
        # A command that refuses to replace what it had come to the end of has lost nothing.
        lost = ended not in ((0, 2) if complete else (0,)) or bool(differs)
        told = self.log.read_text()[-2000:].replace(str(self.root), "OUT") if lost else ""
        return {"killed": code == -signal.SIGKILL, "ended": ended, "differs": differs, "lost": lost, "told": told}


def plan(
    trials: Trials, covered: set[tuple[str, str]], each: int, at_random: int, chance: random.Random
) -> Iterator[dict[str, Any]]:
    """Where a command is killed: between what no command before it writes one behind the other, then at any time."""
    for (before, now), numbers in trials.pairs().items():
        new = (before, now) not in covered
        covered.add((before, now))
        for _ in range(each if new else 0):
            yield {"after": before, "before": now, "number": chance.choice(numbers)}
    for _ in range(at_random):
        yield {"seconds": round(chance.uniform(0, 1.1 * trials.seconds), 3)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=10, help="kills between every two writes")
    parser.add_argument("--random", type=int, default=8, help="kills of each command at any time")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "crash")
    parser.add_argument("--only", nargs="*", help="commands to try; what was found of the others stays")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "ready").exists() and forked(lambda: fixtures(work), work / "log"):
        sys.exit((work / "log").read_text())
    kept = work / f"trials-{options.seed}.jsonl"
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    by_command: dict[str, Any] = {}
    covered: set[tuple[str, str]] = set()
    lost: list[dict[str, Any]] = []
    for name, command in commands(work).items():
        trials = Trials(work, name, command)
        if options.only and name not in options.only:
            covered |= set(trials.pairs())
            continue
        chance = random.Random(f"{options.seed} {name}")
        results = []
        for number, one in enumerate(plan(trials, covered, options.each, options.random, chance)):
            key = {"command": name, "trial": number, **one}
            found = next((old for old in done if all(old.get(k) == v for k, v in key.items())), None)
            if found is None:
                found = key | trials.trial(one.get("number"), one.get("seconds"))
                with kept.open("a") as file:
                    file.write(json.dumps(found) + "\n")
            results.append(found)
            if found["lost"]:
                lost.append(found)
                print(f"LOST {found}", flush=True)
        pairs: dict[tuple[str, str], int] = {}
        for one in results:
            if one["killed"] and "number" in one:
                pair = (one["after"] or "(start)", one["before"])
                pairs[pair] = pairs.get(pair, 0) + 1
        by_command[name] = {
            "commit": head(),
            "kills": sum(one["killed"] for one in results),
            "at_random": sum(one["killed"] and "seconds" in one for one in results),
            "lost": sum(one["lost"] for one in results),
            "between": [[*pair, kills] for pair, kills in pairs.items()],
        }
        print(f"{name}: {by_command[name]['kills']} kills, {by_command[name]['lost']} lost", flush=True)
        write(options, by_command, lost)
    print(f"{sum(one['kills'] for one in by_command.values())} kills, {len(lost)} lost")


def head() -> str:
    """Commit of the code that is tried."""
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()


def write(options: Any, by_command: dict[str, Any], lost: list[dict[str, Any]]) -> None:
    """What has been found so far, as ``docs/results/crash.json``."""
    path = ROOT / "docs" / "results" / "crash.json"
    before = json.loads(path.read_text()) if options.only and path.exists() else {"commands": {}, "lost_trials": []}
    by_command = before["commands"] | by_command
    lost = [one for one in before["lost_trials"] if one["command"] not in options.only] + lost
    about = {
        "command": f"python benchmarks/crash.py --seed {options.seed} --each {options.each} --random {options.random}",
        "machine": machine(),
        "versions": library_versions(),
        "seed": options.seed,
        "kills": sum(one["kills"] for one in by_command.values()),
        "lost": len(lost),
        "lost_trials": lost,
        "between": "how often each command was killed behind the first kind of write and before the second; a pair that "
        "an earlier command has was tried there",
        "commands": by_command,
    }
    path.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
