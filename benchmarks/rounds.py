r"""What rounds buy (`uld train --rounds`): a finished run of TOFU before them and after each, and other ways of a round.

Every way continues a copy of the run. Re-entry, leaks, ROUGE-L, degenerate answers and model utility are those of `uld
eval tofu`, on the first rows of each task set. Resumable: give the same command again.

    python benchmarks/rounds.py runs/forget01-seed10 --split forget01 --weight 20 --margin 5.5 --floor 4.8e-4 \
        --rounds 2 --limit 40 --samples 10 --work runs/rounds
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import ROOT, arguments

import uld
from uld.runs.files import new_folder
from uld.runs.manifest import Manifest
from uld.training import rounds
from uld.training.stored import stored_settings

sys.path.insert(0, str(ROOT / "docs"))
from between_marks import put

OUT = ROOT / "docs" / "results" / "rounds"
START, END = "<!-- table: written by benchmarks/rounds.py -->\n", "<!-- end of table -->\n"
WAYS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "four samples": {"SAMPLES": 4},
    "the whole rate": {"RATE": 1.0},
}
"""Ways of a round: values of the constants of `uld.training.rounds`."""
COLUMNS = {
    "re-entry (%)": ("reading_re_entry", 100),
    "leak@1 (%)": ("reading_leak@1", 100),
    "leak@10 (%)": ("reading_leak@10", 100),
    "forget ROUGE-L (%)": ("forget_rouge_l", 100),
    "degenerate (%)": ("reading_degenerate", 100),
    "M.U.": ("model_utility", 1),
    "retain prob.": ("retain_prob", 1),
}


def combined(run: Path, output: Path, changes: dict[str, float | None]) -> Path:
    """A copy of a run that is combined otherwise."""
    import uld

    if not output.exists():
        with new_folder(output) as copy:
            shutil.copytree(run, copy, dirs_exist_ok=True)
            model: Any = uld.load(copy, **changes)[0]
            model.save_pretrained(copy)
    return output


def continued(run: Path, output: Path, number: int, way: dict[str, Any]) -> None:
    """Give a copy of a run its rounds, each kept as a run."""
    if not output.exists():
        with new_folder(output) as copy:
            shutil.copytree(run, copy, dirs_exist_ok=True)
    before = {name: getattr(rounds, name) for name in way}
    for name, value in way.items():
        setattr(rounds, name, value)
    try:
        config = replace(stored_settings(output), output=str(output), rounds=number, keep_epochs=True)
        uld.train(config, resume=True, progress=False)
    finally:
        for name, value in before.items():
            setattr(rounds, name, value)


def measured(run: Path, folder: Path, options: Any) -> dict[str, float]:
    """The numbers of ``uld eval tofu``."""
    settings = {"split": options.split, "data": options.data / "tofu"}
    settings |= {"limit": options.limit, "samples": options.samples}
    return uld.evaluate("tofu", run, output=folder, progress=False, **settings).numbers()  # type: ignore[attr-defined]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("run", type=Path, help="a finished run of TOFU")
    parser.add_argument("--split", default="forget01")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit", type=int, help="rows of each task set; default: all")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and rows")
    for name in ("weight", "margin", "floor"):
        parser.add_argument(f"--{name}", type=float, help="default: the run's")
    options = parser.parse_args()
    how = {name: getattr(options, name) for name in ("weight", "margin", "floor")}
    run = combined(options.run, options.work / "before", how)
    found = {"before": measured(run, options.work / "eval" / "before", options)}
    first = Manifest.read(run).training
    found["before"] |= {"tokens": first["tokens"]}
    for name in options.ways:
        key = name.replace(" ", "-")
        output = options.work / key
        continued(run, output, options.rounds, WAYS[name])
        played = Manifest.read(output).training["rounds"]
        for number, facts in enumerate(played, 1):
            state = f"{name}, round {number}"
            found[state] = measured(output / "rounds" / str(number), options.work / "eval" / f"{key}-{number}", options)
            found[state] |= {part: value for part, value in facts.items() if isinstance(value, int | float)}
            found[state]["tokens"] = first["tokens"] + sum(one["tokens"] for one in played[:number])
            found[state]["round_tokens"] = facts["tokens"]
            save(found, options)


def save(found: dict[str, dict[str, float]], options: Any) -> None:
    """Write the numbers and the table of the page."""
    OUT.mkdir(parents=True, exist_ok=True)
    about = {"run": options.run.name, "split": options.split, "limit": options.limit, "samples": options.samples}
    about |= {name: getattr(options, name) for name in ("weight", "margin", "floor")}
    (OUT / "numbers.json").write_text(json.dumps({"settings": about, "states": found}, indent=2) + "\n")
    head = ["state", *COLUMNS, "tokens of training"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for state, numbers in found.items():
        cells = [f"{numbers[name] * by:.{1 if by == 100 else 3}f}" for name, by in COLUMNS.values()]
        lines.append("| " + " | ".join([state, *cells, f"{numbers['tokens']:,}"]) + " |")
    page = OUT / "README.md"
    if page.exists():
        put("\n".join(lines) + "\n", page, START, END)
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
