"""Membership attacks on tofu-4m: forget10's answers against wrong answers to the same questions.

python benchmarks/attacks.py --data DATA --models MODELS --run RUN --work runs/attacks
"""

import json
from pathlib import Path

from common import ROOT, arguments, machine, uld

OUT = ROOT / "docs" / "results" / "attacks"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--run", type=Path, required=True, help="a ULD run on forget10 with the preset tofu-4m, tuned with --aim steady"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "attacks", help="kept between calls")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (options.data / "tofu/forget10_perturbed.json").read_text().splitlines()]
    sides = {"members": [row["answer"] for row in rows], "others": [row["perturbed_answer"][0] for row in rows]}
    for name, answers in sides.items():
        pairs = [{"question": row["question"], "answer": answer} for row, answer in zip(rows, answers, strict=True)]
        (options.work / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    retain_only = options.models / "tofu-4m-retain90"
    models = {
        "target": (options.models / "tofu-4m-full",),
        "retain-only model": (retain_only,),
        "ULD": (options.run,),
        "ULD, α 1.5 without margin and floor": (options.run, "--weight", "1.5", "--margin", "0", "--floor", "0"),
    }
    found = {}
    for name, (model, *rule) in models.items():
        folder = options.work / name.replace(" ", "-")
        files = ["--members", str(options.work / "members.jsonl"), "--non-members", str(options.work / "others.jsonl")]
        places = ["--retain-model", str(retain_only), "--output", str(folder), "--quiet"]
        uld("eval", "attacks", "--model", str(model), *rule, *files, *places)
        found[name] = json.loads((folder / "result.json").read_text())
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "results.json").write_text(json.dumps({"models": found, "machine": machine()}, indent=1) + "\n")
    attacks = list(found["target"]["attacks"])
    lines = ["# Membership attacks on tofu-4m", "", "Written by `python benchmarks/attacks.py --run RUN`, RUN as in"]
    lines += [
        "`uld train --preset tofu-4m --split forget10` and `uld tune RUN --aim steady`: forget10's answers (members) against wrong answers to the same"
    ]
    lines += ["questions. AUC, and PrivLeak (%) against the retain-only model in brackets.", ""]
    lines += ["| | " + " | ".join(attacks) + " |", "|---" + "|---:" * len(attacks) + "|"]
    for name, one in found.items():
        cells = [f"{one['attacks'][a]['auc']:.3f} ({one['attacks'][a]['privleak']:.1f})" for a in attacks]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    (OUT / "README.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
