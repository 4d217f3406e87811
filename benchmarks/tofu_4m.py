"""TOFU forget10 on the four-million-parameter models: trains, evaluates and writes ``docs/results/tofu-4m-forget10/``.

Target, retain-only model, ULD (preset ``tofu-4m``) and ULD with the reference code's arithmetic (``tofu-4m`` and
``reference``) over three seeds; the α curve of every rule; how the preset's α was chosen; memory; answers before and
after. What is finished is kept in ``--work`` and not done again. Since α was not chosen blind on seeds 0–2, the preset
is confirmed on seeds and splits whose forget quality nobody had seen when the protocol (`CONFIRM`) was committed.

    python benchmarks/tofu_4m.py --data DATA --models MODELS --work runs/tofu-4m
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import ROOT, arguments, uld

OUT = ROOT / "docs" / "results" / "tofu-4m-forget10"
SEEDS = (0, 1, 2)
RULE_THEN = {"weight": 1.5, "margin": 0.0, "floor": 0.0}  # the preset's, before there were margins and floors
METHODS = {"ULD": ["tofu-4m"], "ULD, reference arithmetic": ["tofu-4m", "reference"]}
RULES = {"suppress": "ULD", "subtract": "ULD", "reference": "ULD, reference arithmetic"}  # and whose runs show it
WEIGHTS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
UTILITY_BUDGET = 0.01  # of the probability of held-out retain answers: the default of `uld tune`
SHOWN = 5
BEFORE = (
    "Made with the rule before it had a margin and a floor (both are 0 here). The runs themselves were not kept; what runs of "
    "the same preset give with margin and floor as `uld tune` picks them: [tofu-4m-steady](../tofu-4m-steady/README.md)."
)
DISCLOSURE = (
    "This choice was not blind. The budget was 2 % at first, set after curves of forget quality against α "
    "of an earlier preset (no uniform loss on prompts) had been seen to peak at 1.5. On the present runs "
    "2 % gives α = 2.0; the budget was then lowered to 1 %, the default of `uld tune`, before their "
    "forget quality was computed. The table above shows what other choices of α would have given: read "
    "the forget quality at α = 1.5 as chosen with knowledge of earlier test results."
)
# Fixed and committed before any of these runs was started: the preset as it stands (its α included), and next to it the
# α that `uld tune --aim budget` with its default budget chooses for each run. Whatever comes out is reported.
CONFIRM = [("forget10", 3), ("forget10", 4), ("forget10", 5)]
CONFIRM += [("forget05", 0), ("forget05", 1), ("forget05", 2), ("forget01", 0)]
COLUMNS = ["forget_quality", "forget_rouge_l", "model_utility", "retain_rouge_l", "forget_prob", "forget_truth_ratio"]
COLUMNS += [f"{t}_{m}" for t in ("retain", "real_authors", "world_facts") for m in ("prob", "rouge_l", "truth_ratio")]


def run_name(method: str, seed: int, split: str = "forget10") -> str:
    return f"{'-'.join(METHODS[method])}{'' if split == 'forget10' else '-' + split}-seed{seed}"


def retain_only(split: str) -> str:
    return "retain-only" if split == "forget10" else f"retain-only-{split}"


def train_flags(
    options: argparse.Namespace, method: str, seed: int, output: Path, split: str = "forget10"
) -> list[str]:
    presets = [word for name in METHODS[method] for word in ("--preset", name)]
    if "reference" not in METHODS[method]:
        presets += [f"--{name}={value}" for name, value in RULE_THEN.items()]
    where = ["--target", f"{options.models}/tofu-4m-full", "--data", f"{options.data}/tofu"]
    where += ["--augmented", f"{options.data}/tofu_augmented", "--output", str(output)]
    return ["train", *presets, "--split", split, "--seed", str(seed), *where, "--quiet"]


def train(options: argparse.Namespace, method: str, seed: int, split: str = "forget10") -> None:
    output = options.work / run_name(method, seed, split)
    if (output / "uld.json").exists():
        return
    resume = ["--resume"] if (output / "train.yaml").exists() else []
    uld(*train_flags(options, method, seed, output, split), *resume, threads=options.threads)
    print(f"trained {output}", flush=True)


def timing(options: argparse.Namespace) -> dict[str, float]:
    """Seconds that a whole training takes alone on all cores: one epoch is measured, and counted as often as trained."""
    path = options.work / "timing.json"
    if path.exists():
        return json.loads(path.read_text())
    from uld.runs.manifest import Manifest
    from uld.training.config import read_preset

    seconds = {}
    for method in METHODS:
        output = options.work / f"timing-{'-'.join(METHODS[method])}"
        epochs = read_preset("tofu-4m")["epochs"]
        uld(*train_flags(options, method, 0, output), "--epochs", "1", "--overwrite", threads=os.cpu_count() or 1)
        seconds[method] = Manifest.read(output).training["seconds"] * epochs
    path.write_text(json.dumps(seconds))
    return seconds


def evaluate(
    options: argparse.Namespace, model: Path, name: str, split: str = "forget10", flags: tuple[str, ...] = ()
) -> None:
    where = ["--output", str(options.work / "eval" / name), "--data", f"{options.data}/tofu", "--quiet"]
    if name != retain_only(split):
        where += ["--retain-log", str(options.work / "eval" / retain_only(split))]
    uld("eval", "tofu", "--model", str(model), "--split", split, "--json", *flags, *where, threads=options.threads)
    print(f"evaluated {name}", flush=True)


def tuned_weight(options: argparse.Namespace, name: str) -> float:
    """The α that `uld tune --aim budget` chooses for a run; the run itself keeps the preset's."""
    path = options.work / f"tuned-{name}.json"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copytree(options.work / name, Path(folder) / name)
            uld("tune", str(copy), "--aim", "budget", threads=options.threads)
            path.write_bytes((copy / "tune.json").read_bytes())
    return json.loads(path.read_text())["point"]["weight"]


def confirm(options: argparse.Namespace, split: str, seed: int) -> None:
    """One run that nobody had looked at: the preset as it stands, and with the α that tuning chooses."""
    name = run_name("ULD", seed, split)
    train(options, "ULD", seed, split)
    evaluate(options, options.work / name, name, split)
    weight = tuned_weight(options, name)
    if weight != RULE_THEN["weight"]:
        evaluate(options, options.work / name, f"{name}-tuned", split, ("--weight", str(weight)))


def result(options: argparse.Namespace, name: str, split: str = "forget10") -> dict[str, Any]:
    from uld.evaluation.tofu_log import read_log
    from uld.evaluation.tofu_result import aggregate

    folder = options.work / "eval"
    return aggregate(read_log(folder / name), read_log(folder / retain_only(split))).to_dict()


def curves(options: argparse.Namespace, method: str, name: str) -> list[dict[str, Any]]:
    """F.Q. and M.U. (six parts: without generation there is no ROUGE) of a method's rules and every α for one run."""
    path = options.work / f"curve-{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    from uld.evaluation.metrics import model_utility
    from uld.evaluation.tofu import score_grid
    from uld.evaluation.tofu_log import read_log
    from uld.evaluation.tofu_result import aggregate
    from uld.model.combine import Combination
    from uld.model.load import load

    model, tokenizer = load(options.work / name)
    rules: list[Any] = [rule for rule, of in RULES.items() if of == method]
    settings = [Combination(rule=rule, weight=weight) for rule in rules for weight in WEIGHTS]
    logs = score_grid(model, tokenizer, "forget10", settings, data=f"{options.data}/tofu")  # type: ignore[arg-type]
    retain = read_log(options.work / "eval" / "retain-only")
    rows = []
    for how, log in zip(settings, logs, strict=True):
        found = aggregate(log, retain)
        parts = [
            getattr(found, f"{t}_{m}")
            for t in ("retain", "real_authors", "world_facts")
            for m in ("prob", "truth_ratio")
        ]
        row = {"rule": how.rule, "weight": how.weight, "forget_quality": found.forget_quality}
        row |= {"utility_without_rouge": model_utility(parts), "forget_prob": found.forget_prob}
        rows.append(row | {"retain_prob": found.retain_prob})
    path.write_text(json.dumps(rows))
    print(f"curve of {name}", flush=True)
    return rows


def choose_weight(options: argparse.Namespace) -> dict[str, Any]:
    """The preset's α: the largest whose cost on retain rows, neither trained nor evaluated on, fits the budget."""
    path = options.work / "choice.json"
    if path.exists():
        return json.loads(path.read_text())
    from uld.data.prompt import PromptFormat
    from uld.data.record import Record
    from uld.data.tofu import load_tofu, training_set
    from uld.evaluation.scoring import Scorer
    from uld.model.combine import Combination
    from uld.model.load import load
    from uld.training.config import read_preset

    data, preset = f"{options.data}/tofu", read_preset("tofu-4m")
    trained = training_set("forget10", data, retain_rows=preset["retain_rows"]).retain
    taken = {record.content for record in trained}
    taken |= {Record.qa(row["question"], row["answer"]).content for row in load_tofu("retain_perturbed", data)}
    records = [Record.qa(row["question"], row["answer"]) for row in load_tofu("retain90", data)]
    held_out = [record for record in records if record.content not in taken][::4]
    model, tokenizer = load(options.work / run_name("ULD", 0))
    form = PromptFormat(tokenizer)
    settings = [Combination(weight=weight) for weight in (0.0, *WEIGHTS)]
    scores = Scorer(model, tokenizer.pad_token_id, settings).score([form.encode(r, 2**31) for r in held_out])  # type: ignore[arg-type]
    import math

    probs = [statistics.fmean(math.exp(-score.avg_loss) for score in one) for one in scores]
    kept = {weight: prob / probs[0] for weight, prob in zip(WEIGHTS, probs[1:], strict=True)}
    choice = max(weight for weight, share in kept.items() if share >= 1 - UTILITY_BUDGET)
    found = {"rows": len(held_out), "kept": kept, "budget": UTILITY_BUDGET, "weight": choice}
    path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def confirmed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs of `CONFIRM`: target, preset as it stands, and the α that tuning chooses."""
    rows = []
    for split, seed in CONFIRM:
        name = run_name("ULD", seed, split)
        weight = tuned_weight(options, name)
        tuned = name if weight == RULE_THEN["weight"] else f"{name}-tuned"
        target = "target" if split == "forget10" else f"target-{split}"
        row: dict[str, Any] = {"split": split, "seed": seed, "tuned_weight": weight}
        row |= {
            key: result(options, log, split) for key, log in (("target", target), ("preset", name), ("tuned", tuned))
        }
        rows.append(row)
    return rows


def confirmation(rows: list[dict[str, Any]]) -> list[str]:
    """The section of the page about them."""
    lines = [
        "",
        "## Confirmation on runs that nobody had looked at",
        "",
        "Since the choice of α was not blind, seeds and splits were fixed whose runs did not exist yet, committed, and then "
        "trained once each with the preset as it stands (α = 1.5). Beside it: the α that "
        "`uld tune --aim budget` (keep 99 % of held-out retain answers' probability) chooses for that run. All of them are "
        "here.",
        "",
        "| split | seed | target F.Q. | F.Q. | M.U. (target's) | retain ROUGE-L (target's) | tuned α | F.Q. | M.U. |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        before, preset, tuned = row["target"], row["preset"], row["tuned"]
        cells = [row["split"], str(row["seed"]), f"{before['forget_quality']:.1e}", f"{preset['forget_quality']:.2g}"]
        cells += [f"{preset['model_utility']:.4f} ({before['model_utility']:.4f})"]
        cells += [f"{preset['retain_rouge_l']:.1%} ({before['retain_rouge_l']:.1%})"]
        cells += [f"{row['tuned_weight']:g}", f"{tuned['forget_quality']:.2g}", f"{tuned['model_utility']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for split in dict.fromkeys(row["split"] for row in rows):
        some = [row for row in rows if row["split"] == split]
        base = some[0]["target"]
        parts = []
        for key, label in (("preset", "preset"), ("tuned", "tuned α")):
            utility, rouge = (
                statistics.fmean(row[key][part] for row in some) for part in ("model_utility", "retain_rouge_l")
            )
            parts.append(
                f"{label}: F.Q. {quality([row[key]['forget_quality'] for row in some])}, "
                f"M.U. {utility / base['model_utility'] - 1:+.2%}, retain ROUGE-L {rouge / base['retain_rouge_l'] - 1:+.2%}"
            )
        lines.append(f"- {split}, {len(some)} seed{'s' if len(some) > 1 else ''}: {'; '.join(parts)}.")
    return lines


def memory(options: argparse.Namespace) -> dict[str, int]:
    """Peak resident bytes of a process that only imports, and of one that loads the whole target."""
    target = f"{options.models}/tofu-4m-full"
    code = {
        "libraries": "import uld.training.run",
        "target": f"import uld.training.run\nfrom uld.model.causal_lm import load_target\nload_target({target!r})",
    }
    tail = "\nimport resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    peak = {}
    for name, text in code.items():
        done = subprocess.run([sys.executable, "-c", text + tail], capture_output=True, text=True, check=True)
        peak[name] = int(done.stdout.split()[-1])
    return peak


def answers(options: argparse.Namespace) -> dict[str, Any]:
    """Verbatim answers before and after; the texts themselves go to ``--work`` only, since they quote TOFU."""
    from uld.evaluation.tofu_log import read_log

    before, after = (read_log(options.work / "eval" / name) for name in ("target", run_name("ULD", 0)))
    found: dict[str, Any] = {"verbatim": {}, "rows": {}}
    text = []
    for task in ("forget", "retain"):
        pairs = list(zip(before[task].generated or [], after[task].generated or [], strict=True))
        rouge = list(zip(before[task].rougeL or [], after[task].rougeL or [], strict=True))
        same = [(b[1].strip() == b[2].strip(), a[1].strip() == a[2].strip()) for b, a in pairs]
        found["verbatim"][task] = [sum(one) / len(same) for one in zip(*same, strict=True)]
        rows = range(0, len(pairs), len(pairs) // SHOWN)[:SHOWN]
        found["rows"][task] = [[row, *same[row], *rouge[row]] for row in rows]
        for row in rows:
            (prompt, old, truth), (_, new, _) = pairs[row]
            text.append(f"{task} row {row}\n{prompt}\n  truth:  {truth}\n  before: {old}\n  after:  {new}\n")
    (options.work / "answers.txt").write_text("\n".join(text))
    return found


def spread(values: list[float], form: str, factor: float = 1.0) -> str:
    mean, low, high = statistics.fmean(values) * factor, min(values) * factor, max(values) * factor
    return format(mean, form) if low == high else f"{mean:{form}} ({low:{form}}–{high:{form}})"


def quality(values: list[float]) -> str:
    """Mean of log10, as a p-value, with its range."""
    import math

    mean = 10 ** statistics.fmean(math.log10(value) for value in values)
    return f"{mean:.2g}" if len(values) == 1 else f"{mean:.2g} ({min(values):.1e}–{max(values):.1e})"


def plot(rows: dict[str, list[list[dict[str, Any]]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4))
    for method, runs in rows.items():
        for rule in RULES:
            if RULES[rule] != method:
                continue
            for panel, key in zip(panels, ("forget_quality", "utility_without_rouge"), strict=True):
                series = [[row[key] for row in run if row["rule"] == rule] for run in runs]
                low, high = ([pick(values) for values in zip(*series, strict=True)] for pick in (min, max))
                middle = [statistics.median(values) for values in zip(*series, strict=True)]
                (line,) = panel.plot(WEIGHTS, middle, marker="o", label=rule)
                panel.fill_between(WEIGHTS, low, high, alpha=0.2, color=line.get_color())
    panels[0].set(yscale="log", ylim=(1e-20, 2), xlabel="α", title="forget quality (p-value)")
    panels[0].axhline(0.05, color="grey", linestyle=":")
    panels[1].set(xlabel="α", title="model utility (six parts, without ROUGE)")
    panels[0].legend()
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(OUT / "alpha.png", dpi=130)


def write(options: argparse.Namespace) -> None:
    import torch

    from uld.runs.machine import library_versions
    from uld.runs.manifest import Manifest

    names = {"target": ["target"], "retain-only model": ["retain-only"]}
    names |= {method: [run_name(method, seed) for seed in SEEDS] for method in METHODS}
    results = {name: [result(options, run) for run in runs] for name, runs in names.items()}
    facts = {m: [Manifest.read(options.work / run).training for run in names[m]] for m in METHODS}
    curve = {method: [curves(options, method, run) for run in names[method]] for method in METHODS}
    alone = timing(options)
    unseen = confirmed(options)
    choice, peak, shown = choose_weight(options), memory(options), answers(options)
    target_bytes = (options.models / "tofu-4m-full" / "model.safetensors").stat().st_size
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    OUT.mkdir(parents=True, exist_ok=True)
    everything = {
        "results": results,
        "training": facts,
        "alpha": curve,
        "choice": choice,
        "peak_rss": peak,
        "seconds_alone": alone,
    }
    everything |= {
        "confirmation": unseen,
        "answers": shown,
        "machine": machine,
        "versions": library_versions(),
        "threads": options.threads,
    }
    (OUT / "results.json").write_text(json.dumps(everything, indent=1) + "\n")
    plot(curve)

    lines = ["# TOFU forget10 on tofu-4m", "", BEFORE, ""]
    lines += [f"Written by `python benchmarks/tofu_4m.py` ({machine['cores']} cores, torch {torch.__version__}).", ""]
    lines += [
        "All 400 rows of each task set, last epoch, mean over seeds 0–2 with the range in brackets "
        "(F.Q.: mean of log10). M.U. is the harmonic mean of all nine parts.",
        "",
        "| | F.Q. | forget ROUGE-L (%) | M.U. | retain ROUGE-L (%) | forget Prob | training s "
        "| adapter / target bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        cells = [quality([one["forget_quality"] for one in found])]
        cells += [spread([one["forget_rouge_l"] for one in found], ".1f", 100)]
        cells += [spread([one["model_utility"] for one in found], ".4f")]
        cells += [spread([one["retain_rouge_l"] for one in found], ".1f", 100)]
        cells += [spread([one["forget_prob"] for one in found], ".3f")]
        if name in facts:
            cells += [f"{alone[name]:.0f}"]
            size = (options.work / names[name][0] / "adapter" / "adapter_model.safetensors").stat().st_size
            cells += [f"{size:,} / {target_bytes:,} = {size / target_bytes:.1%}"]
        else:
            cells += ["–", "–"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    base = results["target"][0]
    utility, rouge = (
        statistics.fmean(one[key] for one in results["ULD"]) for key in ("model_utility", "retain_rouge_l")
    )
    lines += [
        "",
        f"ULD against the target: M.U. {utility / base['model_utility'] - 1:+.2%}, "
        f"retain ROUGE-L {rouge / base['retain_rouge_l'] - 1:+.2%}. "
        f"Training seconds: alone on {machine['cores']} cores, from one measured epoch.",
        "",
        "## The nine parts of M.U.",
        "",
        f"| | {' | '.join(column.replace('_', ' ') for column in COLUMNS[6:])} |",
        f"|---|{'---|' * 9}",
    ]
    for name, found in results.items():
        lines.append(f"| {name} | {' | '.join(spread([o[c] for o in found], '.3f') for c in COLUMNS[6:])} |")
    lines += ["", "## α, rule by rule", "", "![F.Q. and M.U. against α](alpha.png)", ""]
    lines += [
        "F.Q. (mean of log10, range over seeds) and M.U. without ROUGE. `suppress` and `subtract` on the runs of "
        "preset `tofu-4m`, `reference` on those of `tofu-4m` + `reference`.",
        "",
        f"| α | {' | '.join(f'{rule} F.Q. | {rule} M.U.' for rule in RULES)} |",
        f"|---|{'---|' * 6}",
    ]
    for weight in WEIGHTS:
        cells = []
        for rule in RULES:
            rows = [row for run in curve[RULES[rule]] for row in run if row["rule"] == rule and row["weight"] == weight]
            cells += [quality([row["forget_quality"] for row in rows])]
            cells += [spread([row["utility_without_rouge"] for row in rows], ".3f")]
        lines.append(f"| {weight} | {' | '.join(cells)} |")
    lines += [
        "",
        "## How the preset was chosen",
        "",
        "Learning rate, β, K and epochs by the training losses of earlier runs at this size; the uniform loss on prompts, "
        "too, because without it real authors and world facts suffered; α by the cost in utility: "
        f"the largest α in steps of 0.25 that keeps at least {1 - UTILITY_BUDGET:.0%} of the target's probability on "
        f"{choice['rows']} answers of retain90 that are neither trained nor evaluated on (seed 0).",
        "",
        f"| α | {' | '.join(choice['kept'])} |",
        f"|---|{'---|' * len(choice['kept'])}",
        f"| probability kept | {' | '.join(f'{share:.2%}' for share in choice['kept'].values())} |",
        "",
        f"So α = {choice['weight']}.",
        "",
        DISCLOSURE,
        *confirmation(unseen),
        "",
        "## Memory",
        "",
        f"Peak resident memory: libraries alone {peak['libraries'] / 2**20:,.0f} MiB, with the whole target loaded "
        f"{peak['target'] / 2**20:,.0f} MiB, training {facts['ULD'][0]['peak_rss_bytes'] / 2**20:,.0f} MiB "
        "(activations of 32 rows and allocator pools; of the weights, training holds K layers, embedding and head).",
        "",
        "## Answers before and after (seed 0)",
        "",
        "Greedy answers that equal the memorised one word for word: "
        + "; ".join(f"{t} {b:.1%} before, {a:.1%} after" for t, (b, a) in shown["verbatim"].items())
        + ". Five rows of each, by row number, since TOFU's texts are not part of this project "
        "(the command writes them to `answers.txt` in its work folder):",
        "",
        "| task | row | verbatim before | verbatim after | ROUGE-L before | ROUGE-L after |",
        "|---|---|---|---|---|---|",
    ]
    for task, rows in shown["rows"].items():
        for row, old, new, first, second in rows:
            lines.append(
                f"| {task} | {row} | {'yes' if old else 'no'} | {'yes' if new else 'no'} | {first:.2f} | {second:.2f} |"
            )
    (OUT / "README.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "tofu-4m", help="kept between calls")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    options = parser.parse_args()
    options.threads = max(1, (os.cpu_count() or 1) // options.jobs)
    options.work.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        evaluate(options, options.models / "tofu-4m-retain90", "retain-only")
        first = [pool.submit(evaluate, options, options.models / "tofu-4m-full", "target")]

        def cell(method: str, seed: int) -> None:
            train(options, method, seed)
            evaluate(options, options.work / run_name(method, seed), run_name(method, seed))

        first += [pool.submit(cell, method, seed) for seed in SEEDS for method in METHODS]
        for split in {split for split, _ in CONFIRM} - {"forget10"}:
            retain = f"tofu-4m-retain{100 - int(split.removeprefix('forget'))}"
            evaluate(options, options.models / retain, retain_only(split), split)
            evaluate(options, options.models / "tofu-4m-full", f"target-{split}", split)
        first += [pool.submit(confirm, options, split, seed) for split, seed in CONFIRM]
        for job in first:
            job.result()
    write(options)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    print(f"{OUT}: done, {seconds:.0f} s of processor time")


if __name__ == "__main__":
    main()
