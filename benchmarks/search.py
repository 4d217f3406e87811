"""Search the settings of an assistant on the training side, many trainings side by side on one GPU, and judge the winner.

A plan (``plans/*.yaml``) names a target, its retain-only model, and what to try. Every try is trained, and measured as
`uld tune` does: on paraphrases of the forget set, wrong answers and retain rows that no training saw. `winner` chooses
among the tries by these numbers alone. Then it is trained with other seeds, tuned and evaluated on the benchmark. Every
try is also scored on the benchmark, without generated answers, for the page; nothing is chosen by that.

What is finished is kept in ``--work``, trainings from their last checkpoint on; when ``--minutes`` are over, what runs is
stopped and what is there is written: the same command continues. The losses of all trainings, also of those that were
stopped, and the numbers of target and retain-only model go into ``--losses``.

    python benchmarks/search.py plans/smollm2.yaml --models MODELS --data DATA --work runs/search --jobs 8 --minutes 7
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import time
import traceback
from pathlib import Path
from typing import Any

import yaml
from common import arguments, machine

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.999999)
"""Shares of the retain answers' probability that may be lost: the first that any try can keep is taken for all."""
REFERENCES = ("retain-only", "target")
STEP = 1.5  # between an α and its neighbours


def read_plan(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A plan with its paths below the folders of models and data."""
    plan = yaml.safe_load(path.read_text())
    for name in ("target", "retain_only"):
        plan[name] = str(options.models / plan[name])
    common = {"target": plan["target"], "data": str(options.data / plan["data"]), "split": plan["split"]}
    common["augmented"] = str(options.data / "tofu_augmented")
    plan["common"] = common | plan.get("common", {})
    for settings in (plan["common"], *plan["tries"].values(), *plan["finals"].values()):
        if "retain" in settings:
            settings["retain"] = [str(options.data / one) for one in settings["retain"]]
    return plan


def train(plan: dict[str, Any], name: str, settings: dict[str, Any], work: Path, few: bool) -> Path:
    """A run folder, trained unless it is there."""
    import uld

    folder = work / "runs" / name
    if (folder / "uld.json").exists():
        return folder
    from uld.training.config import train_config

    own = plan["common"] | settings | {"output": str(folder)}
    if few:
        own |= {"split": "forget01", "retain": [], "retain_rows": 8, "epochs": 1, "batch_size": 64, "dtype": "fp32"}
        own |= {"paraphrases": 1, "wrong_answers": 1}
    uld.train(train_config([(name, own)]), resume=(folder / "train.yaml").exists(), progress=False)
    return folder


def loaded(place: str | Path, **setting: float) -> tuple[Any, Any]:
    """Model, where it computes fastest, and tokenizer."""
    import uld
    from uld.model.device import best_device

    model, tokenizer = uld.load(place, **setting)
    return model.to(best_device()), tokenizer


def tuned(folder: Path, budget: float, few: bool) -> dict[str, Any]:
    """What ``uld tune`` measures and picks for a run, written into it."""
    from uld.evaluation.held_out import tofu_probes
    from uld.evaluation.tuning import Grid, tune

    path = folder / f"tune-{budget:g}.json"
    if not path.exists():
        model, tokenizer = loaded(folder)
        probes, retain = tofu_probes(folder)
        tune(folder, model, tokenizer, probes, retain, budget=budget, grid=Grid(margins=(3.0,)) if few else Grid())
        write(path, json.loads((folder / "tune.json").read_text()))
    return json.loads(path.read_text())


def evaluate(
    plan: dict[str, Any], place: str | Path, split: str, folder: Path, setting: dict[str, float], few: bool, **how: Any
) -> None:
    """A model's rows of the benchmark under a setting of the combination; kept as a log."""
    from uld.evaluation.tofu import evaluate as evaluate_tofu

    model, tokenizer = loaded(place, **setting)
    how = {"data": plan["common"]["data"], "progress": False} | how | limit(few)
    evaluate_tofu(model, tokenizer, split, folder, **how)


def limit(few: bool) -> dict[str, Any]:
    return {"limit": 2, "max_new_tokens": 4} if few else {}


def scored(plan: dict[str, Any], folder: Path, few: bool) -> list[dict[str, Any]]:
    """A run on the benchmark under the plan's settings, without generated answers."""
    from uld.evaluation.tofu import score_grid
    from uld.evaluation.tofu_log import read_log
    from uld.evaluation.tofu_result import aggregate

    only = folder.parents[1] / "eval" / "retain-only"
    model, tokenizer = loaded(folder)
    own = model.combination
    settings = [own] + [own.override(margin=m, weight=w) for m in plan["margins"] for w in plan["weights"]]
    limit = 2 if few else None
    logs = score_grid(model, tokenizer, plan["split"], settings, data=plan["common"]["data"], limit=limit)
    wait_for(only / "eval_log_aggregated.json")
    retained = read_log(only)
    return [
        {"setting": how.to_dict(), "result": aggregate(log, retained).to_dict()}
        for how, log in zip(settings, logs, strict=True)
    ]


def wait_for(path: Path) -> None:
    """Until another process has written a file."""
    while not path.exists():
        time.sleep(1)


def write(path: Path, value: Any) -> Any:
    from uld.runs.files import write_text
    from uld.text.json_text import dumps

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, dumps(value, indent=1) + "\n")
    return value


def about(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "uld.json").read_text())
    return {"training": manifest["training"], "combination": manifest["combination"]}


def attempt(plan: dict[str, Any], name: str, settings: dict[str, Any], work: Path, few: bool) -> dict[str, Any]:
    """One try: trained, measured on the training side, scored on the benchmark."""
    clock = [time.time()]
    folder = train(plan, name, settings, work, few)
    clock.append(time.time())
    found = tuned(folder, BUDGETS[-1], few)
    clock.append(time.time())
    write(work / "tries" / f"{name}.json", {"name": name, "settings": settings, "tune": found, **about(folder)})
    scores = scored(plan, folder, few)
    clock.append(time.time())
    seconds = dict(zip(("train", "tune", "score"), (b - a for a, b in itertools.pairwise(clock)), strict=True))
    whole = {"name": name, "settings": settings, "tune": found, "scores": scores, "seconds": seconds}
    return write(work / "tries" / f"{name}.json", whole | about(folder))


def final(
    plan: dict[str, Any], name: str, settings: dict[str, Any], budget: float, work: Path, few: bool
) -> dict[str, Any]:
    """One run of what was picked: trained with a seed of its own, tuned, evaluated with generated answers."""
    folder = train(plan, name, settings, work, few)
    choice = tuned(folder, budget, few)["point"]
    picked = {key: choice[key] for key in ("weight", "margin", "floor")}
    split = settings.get("split", plan["split"])
    evaluate(plan, folder, split, work / "eval" / name, picked, few)
    for factor in (1 / STEP, STEP):
        near = picked | {"weight": picked["weight"] * factor}
        evaluate(plan, folder, split, work / "eval" / f"{name}-x{factor:.2g}", near, few, generate=False)
    whole = {"name": name, "settings": settings, "budget": budget, "picked": choice}
    return write(work / "finals" / f"{name}.json", whole | about(folder))


def reference(plan: dict[str, Any], name: str, work: Path, few: bool) -> None:
    """The target or the retain-only model on the benchmark."""
    place = plan["target" if name == "target" else "retain_only"]
    evaluate(plan, place, plan["split"], work / "eval" / name, {}, few)


def winner(tries: list[dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """The try whose settings are taken, by training-side numbers alone, and the budget that it keeps.

    The budget is the first of `BUDGETS` that any try can keep. Each try counts with the setting that `uld tune` picks
    within it. Of those whose advantage of right answers over wrong ones is within a standard error of the lowest, the
    one that keeps most of the held-out retain answers' probability wins.
    """
    from uld.errors import ULDError
    from uld.evaluation.choosing import Point, choose

    for budget in BUDGETS:
        found = []
        for one in tries:
            try:
                names = Point.__dataclass_fields__
                points = [Point(**{k: v for k, v in point.items() if k in names}) for point in one["tune"]["points"]]
                found.append((choose(points, budget, "steady")[0], one))
            except ULDError:
                continue
        if found:
            lowest = min((point for point, _ in found), key=lambda point: point.advantage)
            alike = [pair for pair in found if pair[0].advantage <= lowest.advantage + lowest.error]
            return max(alike, key=lambda pair: pair[0].kept)[1], budget
    raise SystemExit("no try was finished")


MARKS = (100, 300, 500, 700)
"""Steps at which losses are shown: means over the twenty steps before."""


def losses(plan: dict[str, Any], work: Path, out: Path) -> None:
    """Forget and uniform loss along every training, as JSON and as a table."""
    from uld.evaluation.tofu_log import read_log
    from uld.evaluation.tofu_result import aggregate
    from uld.training.journal import read_metrics

    found: dict[str, Any] = {}
    for path in sorted((work / "runs").glob("*/metrics.jsonl")):
        if not (steps := read_metrics(path)):
            continue
        means = {}
        for mark in sorted({mark for mark in MARKS if mark <= len(steps)} | {len(steps)}):
            some = steps[max(0, mark - 20) : mark]
            means[mark] = {name: sum(one[name] for one in some) / len(some) for name in ("forget_loss", "uniform_loss")}
        name = path.parent.name
        seconds = statistics.median(one["seconds"] for one in steps)
        own = {
            "settings": plan["tries"].get(name, plan["finals"].get(name)),
            "finished": (path.parent / "uld.json").exists(),
        }
        found[name] = own | {"steps": len(steps), "seconds_a_step": seconds, "losses": means}
    write(out / "losses.json", {"common": plan["common"], "trainings": found})
    lines = [f"| | {' | '.join(map(str, MARKS))} | last step | |", f"|{'---|' * (len(MARKS) + 3)}"]
    for name, one in found.items():
        cells = [one["losses"].get(mark) for mark in (*MARKS, one["steps"])]
        shown = ["–" if cell is None else f"{cell['forget_loss']:.2f} / {cell['uniform_loss']:.2f}" for cell in cells]
        state = "" if one["finished"] else "stopped"
        lines.append(f"| {name} | {' | '.join(shown)} ({one['steps']}) | {state} |")
    (out / "losses.txt").write_text("\n".join(lines) + "\n")
    logs = {name: read_log(work / "eval" / name) for name in REFERENCES if (work / "eval" / name).is_dir()}
    if len(logs) == len(REFERENCES):
        results = {name: aggregate(log, logs["retain-only"]).to_dict() for name, log in logs.items()}
        write(out / "references.json", results)


def job(call: str, *args: Any) -> tuple[str, Any]:
    """What a worker does; a failure is written beside the results and ends nothing else."""
    work: Path = next(one for one in args if isinstance(one, Path))
    name = args[1]
    try:
        start = time.time()
        found = globals()[call](*args)
        print(f"{call} {name}: {time.time() - start:.0f} s", flush=True)
        return name, found
    except BaseException as error:
        path = work / "failed" / f"{call}-{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc())
        print(f"{call} {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        return name, None


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--tries", type=float, default=0.6, help="share of the time after which one try is enough")
    parser.add_argument("--losses", type=Path, help="folder for what is there; nothing else is done")
    parser.add_argument("--few", action="store_true", help="a few steps and rows each, to see that all of it runs")
    options = parser.parse_args()
    work: Path = options.work
    if options.losses is not None:
        return losses(yaml.safe_load(options.plan.read_text()), work, options.losses)
    plan = read_plan(options.plan, options)
    work.mkdir(parents=True, exist_ok=True)
    start = time.time()

    def left(share: float = 1.0) -> float:
        return max(0.0, start + share * 60 * options.minutes - time.time())

    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for name in plan.get("references", REFERENCES):
            pool.apply_async(job, ("reference", plan, name, work, options.few))
        waiting = {
            name: pool.apply_async(job, ("attempt", plan, name, settings, work, options.few))
            for name, settings in plan["tries"].items()
        }
        while any(not one.ready() for one in waiting.values()) and left():
            if not left(options.tries) and any((work / "tries").glob("*.json")):
                break
            time.sleep(1)
        tries = [json.loads(path.read_text()) for path in sorted((work / "tries").glob("*.json"))]
        best, budget = winner(tries)
        among = [one["name"] for one in tries]
        write(work / "winner.json", {"name": best["name"], "budget": budget, "among": among, "machine": machine()})
        print(f"winner: {best['name']} within {budget:.1%}", flush=True)
        finals = [
            pool.apply_async(job, ("final", plan, name, best["settings"] | settings, budget, work, options.few))
            for name, settings in plan["finals"].items()
        ]
        for one in (*finals, *waiting.values()):
            one.wait(left())
        pool.terminate()


if __name__ == "__main__":
    main()
