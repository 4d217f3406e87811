"""What the paraphrases and wrong answers are worth, and the retain set: ULD on TOFU forget10 with each of them in turn.

Every row is one training with the preset ``tofu-4m`` and one seed. What is finished is kept in ``--work`` and not done
again.

    python benchmarks/augmentation.py --data DATA --models MODELS --work runs/augmentation
"""

import json
from pathlib import Path
from typing import Any

from common import ROOT, arguments, machine, uld

OUT = ROOT / "docs" / "results" / "augmentation"
GIVEN = ["--augmented", "{data}/tofu_augmented"]
ROWS = {
    "given paraphrases and wrong answers": GIVEN,
    "none": [],
    "rules": ["--augment", "rules"],
    "a drawn retain set": [*GIVEN, "--draw-retain", "1600"],
}
SHOWN = {"forget_quality": "F.Q.", "forget_prob": "forget Prob", "forget_rouge_l": "forget ROUGE-L"}
SHOWN |= {"model_utility": "M.U.", "retain_prob": "retain Prob", "retain_rouge_l": "retain ROUGE-L"}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "augmentation", help="kept between calls")
    options = parser.parse_args()
    target, tofu = options.models / "tofu-4m-full", f"{options.data}/tofu"
    results = {}
    for name, words in ROWS.items():
        run = options.work / name.replace(" ", "-")
        if not (run / "uld.json").exists():
            begun = ["--resume"] if (run / "train.yaml").exists() else []
            own = [word.format(data=options.data) for word in words]
            where = ["--target", str(target), "--split", "forget10", "--data", tofu, "--output", str(run)]
            uld("train", "--preset", "tofu-4m", *where, *own, *begun, "--quiet")
        retain = ["--retain-model", str(options.models / "tofu-4m-retain90")]
        uld("eval", "tofu", "--model", str(run), "--split", "forget10", "--data", tofu, *retain, "--quiet")
        results[name] = json.loads((run / "eval" / "tofu-forget10" / "result.json").read_text())
        write(results)


def write(results: dict[str, dict[str, Any]]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "results.json").write_text(json.dumps({"rows": results, "machine": machine()}, indent=1) + "\n")
    lines = ["# Augmentation and retain sets on forget10", "", "Written by `python benchmarks/augmentation.py`.", ""]
    lines += ["| ULD with | " + " | ".join(SHOWN.values()) + " |", "|---" + "|---:" * len(SHOWN) + "|"]
    for name, one in results.items():
        cells = [f"{one[key]:.1e}" if one[key] < 0.001 else f"{one[key]:.3f}" for key in SHOWN]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Settings: `uld train --preset tofu-4m --split forget10` with"]
    lines += [
        "",
        *(f"- {name}: `{' '.join(words).format(data='DATA') or '(nothing)'}`" for name, words in ROWS.items()),
    ]
    (OUT / "README.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
