"""The retain-only model of TOFU forget10 made again with `uld finetune`, beside the one that came with the test models.

Both are evaluated on all rows; each is the other's retain-only model for the forget quality. What is finished is kept in
``--work`` and not done again; the training takes about 25 minutes of one core.

    python benchmarks/retain_model.py --data DATA --models MODELS --work runs/finetune
"""

import json
from pathlib import Path

from common import ROOT, arguments, machine, uld

from uld.evaluation.tofu_log import read_log
from uld.evaluation.tofu_result import aggregate

OUT = ROOT / "docs" / "results" / "tofu-4m-retain90"
SHOWN = {"forget_quality": "F.Q. against the other", "model_utility": "M.U.", "forget_prob": "forget Prob"}
SHOWN |= {"forget_truth_ratio": "forget truth ratio", "forget_rouge_l": "forget ROUGE-L"}
SHOWN |= {f"retain_{part}": f"retain {name}" for part, name in (("prob", "Prob"), ("truth_ratio", "truth ratio"))}
SHOWN |= {f"{t}_prob": f"{t.replace('_', ' ')} Prob" for t in ("real_authors", "world_facts")}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "finetune", help="kept between calls")
    options = parser.parse_args()
    given, made = options.models / "tofu-4m-retain90", options.work / "tofu-4m-retain90"
    recipe = ["--scratch", "--split", "retain90,real_authors,world_facts", "--dtype", "bf16"]
    if not (made / "finetune.json").exists():
        begun = ["--resume"] if (made / "finetune.yaml").exists() else []
        places = ["--data", f"{options.data}/tofu", "--tokenizer", str(given), "--output", str(made)]
        uld("finetune", *recipe, *places, *begun, "--quiet")
    models = {"given": given, "made again": made, "target": options.models / "tofu-4m-full"}
    logs = {}
    for name, model in models.items():
        folder = options.work / "eval" / name.replace(" ", "-")
        where = ["--data", f"{options.data}/tofu", "--output", str(folder), "--json", "--quiet"]
        uld("eval", "tofu", "--model", str(model), "--split", "forget10", *where)
        logs[name] = read_log(folder)
    found = {
        "given": aggregate(logs["given"], logs["made again"]).to_dict(),
        "made again": aggregate(logs["made again"], logs["given"]).to_dict(),
    }
    judged = {name: aggregate(logs["target"], logs[name]).forget_quality for name in found}
    metrics = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    last = [line["loss"] for line in metrics[-len(metrics) // 20 :]]
    OUT.mkdir(parents=True, exist_ok=True)
    result = {"models": found, "target_forget_quality": judged, "loss_of_last_epoch": sum(last) / len(last)}
    (OUT / "results.json").write_text(json.dumps(result | {"machine": machine()}, indent=1) + "\n")
    lines = ["# tofu-4m-retain90, made again", ""]
    lines += ["Written by `python benchmarks/retain_model.py`: the recipe of the test models through", ""]
    lines += [f"    uld finetune {' '.join(recipe)} --data TOFU --tokenizer TOKENIZER --output OUT", ""]
    lines += [f"Loss over the last epoch: {result['loss_of_last_epoch']:.3f} nats a token over whole sequences.", ""]
    lines += ["| | given | made again |", "|---|---|---|"]
    for key, label in SHOWN.items():
        lines.append(f"| {label} | {found['given'][key]:.4f} | {found['made again'][key]:.4f} |")
    lines.append(f"| target's F.Q. against it | {judged['given']:.2e} | {judged['made again']:.2e} |")
    (OUT / "README.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
