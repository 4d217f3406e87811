"""TOFU scoring: one answer at a time against ours, and twenty settings of the combination against one.

On forget10's perturbed rows (7 answers a question) with an assistant that is trained or, without ``--run``, random.
"""

import itertools
from pathlib import Path

import torch
from common import arguments, in_turn, ratio, report, shown, unlearned

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.evaluation.scoring import Scorer
from uld.evaluation.tofu_rows import answers_of, task_rows
from uld.methods.losses import cross_entropy
from uld.model.causal_lm import load_target
from uld.model.combine import Combination
from uld.model.load import load, load_tokenizer

QUESTIONS = 60
GRID = [
    *(Combination(rule="suppress", weight=weight) for weight in (0.5, 1.0, 1.5, 2.0)),
    *(
        Combination(rule="subtract", weight=weight, filter=filter, outside=outside)
        for weight, filter, outside in itertools.product((0.5, 1.0, 1.5, 2.0), (0.01, 0.1), ("keep", "mask"))
    ),
]


@torch.inference_mode()
def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path, help="a finished run on tofu-4m-full")
    options = parser.parse_args()
    place = options.models / "tofu-4m-full"
    model = load(options.run)[0] if options.run else unlearned(load_target(place), depth=3)
    tokenizer = load_tokenizer(place)
    form = PromptFormat(tokenizer)
    questions = task_rows("forget", "forget10", options.data / "tofu")[:QUESTIONS]
    rows = [form.encode(Record.qa(q["question"], answer), 2**31) for q in questions for answer in answers_of(q)]
    pad: int = tokenizer.pad_token_id  # type: ignore[assignment]
    one, grid = Scorer(model, pad), Scorer(model, pad, GRID)  # type: ignore[arg-type]

    def one_at_a_time() -> list[float]:
        losses = []
        for row in rows:
            ids = torch.tensor([row.ids])
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            learn = torch.tensor(row.learn[1:])
            losses.append(cross_entropy(logits[learn], ids[0, 1:][learn]).sum().item())
        return losses

    difference = max(abs(a - b.loss) / max(1, a) for a, b in zip(one_at_a_time(), one.score(rows)[0], strict=True))
    seconds = in_turn(
        {"one at a time": one_at_a_time, "ours": lambda: one.score(rows), "grid": lambda: grid.score(rows)}
    )
    found = {
        "one answer at a time / ours": ratio(seconds, "one at a time", "ours"),
        f"{len(GRID)} settings / one setting": ratio(seconds, "grid", "ours"),
    }
    table = [[name, shown(value)] for name, value in found.items()]
    table.append(["largest relative difference of a loss", f"{difference:.1e}"])
    report("scoring", [f"{len(rows)} answers to {QUESTIONS} questions", "ratio"], table, {"seconds": seconds, **found})


if __name__ == "__main__":
    main()
