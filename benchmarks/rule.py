"""What a margin, a floor, α = inf and a gate cost: a decoding step and the scoring of twenty settings, against ``suppress`` without.

Decoding is that of ``decode.py``: a Llama of 370 million parameters, K = 6 of 24 layers, one pass. Scoring is that of
``scoring.py``: forget10's perturbed rows on the four-million-parameter model. All things take turns in one run.
"""

import math

import torch
from common import arguments, device, in_turn, random_llama, ratio, report, series, shown, unlearned

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.evaluation.scoring import Scorer
from uld.evaluation.tofu_rows import answers_of, task_rows
from uld.model.caches import as_given
from uld.model.causal_lm import load_target
from uld.model.combine import Combination
from uld.model.gate import add_gate
from uld.model.load import load_tokenizer

STEPS, CONTEXT, QUESTIONS, SETTINGS = 8, 64, 30, 20
RULES = {
    "as before": Combination(),
    "margin": Combination(margin=3.0),
    "margin and floor": Combination(weight=5.0, margin=3.0, floor=0.001),
    "α = inf": Combination(weight=math.inf, margin=3.0, floor=0.001),
}


def main() -> None:
    options = arguments(__doc__).parse_args()
    rows, numbers = [], {}
    dtype = torch.bfloat16 if device() == "cuda" else torch.float32
    with torch.inference_mode():
        target = random_llama(dtype)
    model = unlearned(target)
    gated = unlearned(target)
    add_gate(gated.assistant, 1024).requires_grad_(False)

    def steps(which, how, ids):
        def run() -> None:
            which.combination = how
            for _ in range(STEPS):
                which(input_ids=ids[:, -1:], **as_given(cache), use_cache=True)

        cache = which.new_cache()
        which(input_ids=ids, **as_given(cache), use_cache=True, logits_to_keep=1)
        return run

    with torch.inference_mode():
        for batch in (1, 16):
            ids = torch.randint(1, 32_000, (batch, CONTEXT), device=target.device)
            things, seconds = {}, {}
            for _ in range(series()):
                things = {name: steps(model, how, ids) for name, how in RULES.items()}
                things["gate"] = steps(gated, RULES["as before"], ids)
                seconds = in_turn(things)
            found = {name: ratio(seconds, name, "as before") for name in things if name != "as before"}
            numbers[f"step, batch {batch}"] = {"seconds": seconds, "ratios": found}
            rows.append([f"step, batch {batch}", *map(shown, found.values())])

        place = options.models / "tofu-4m-full"
        small, small_gated = (unlearned(load_target(place), depth=3) for _ in range(2))
        add_gate(small_gated.assistant, small.target.config.hidden_size).requires_grad_(False)
        tokenizer = load_tokenizer(place)
        form = PromptFormat(tokenizer)
        questions = task_rows("forget", "forget10", options.data / "tofu")[:QUESTIONS]
        texts = [form.encode(Record.qa(q["question"], answer), 2**31) for q in questions for answer in answers_of(q)]
        things = {}
        for name, how in RULES.items():
            weights = [math.inf] if how.weight == math.inf else [1 + step / 4 for step in range(SETTINGS)]
            several = [how.override(weight=weight) for weight in weights]
            things[name] = Scorer.of(small, tokenizer, (several * SETTINGS)[:SETTINGS])
        things["gate"] = Scorer.of(small_gated, tokenizer, things["as before"].combinations)
        seconds = in_turn({name: lambda scorer=scorer: scorer.score(texts) for name, scorer in things.items()})
    found = {name: ratio(seconds, name, "as before") for name in things if name != "as before"}
    numbers[f"{SETTINGS} settings"] = {"seconds": seconds, "ratios": found}
    rows.append([f"scoring {SETTINGS} settings", *map(shown, found.values())])
    columns = ["time / suppress as before", *(name for name in found)]
    report("rule", columns, rows, numbers)


if __name__ == "__main__":
    main()
