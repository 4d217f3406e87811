"""What the rest of a decoding step's time is, and what other ways of doing it take.

The parts of one pass of target and assistant on the Llama of 370 million parameters in bf16 at batch 1, each measured by
itself (so they add up only roughly), and for scoring what token trees save.
"""

import torch
from common import DEPTH, RANK, arguments, in_turn, padded, random_llama, report, unlearned
from torch import nn
from transformers import DynamicCache

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.evaluation import scoring
from uld.evaluation.tofu_rows import answers_of, task_rows
from uld.model.assistant import decoder_layers
from uld.model.caches import as_given
from uld.model.causal_lm import load_target
from uld.model.combine import Combination, combine
from uld.model.load import load_tokenizer

REPEATS, QUESTIONS = 9, 30


def middle(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 2]


@torch.inference_mode()
def decoding() -> tuple[list[list[str]], dict[str, float]]:
    """Microseconds a step of each part."""
    target = random_llama(torch.bfloat16)
    model = unlearned(target)
    linears = [one for one in decoder_layers(target)[1][:DEPTH].modules() if isinstance(one, nn.Linear)]
    every = [one for one in decoder_layers(target)[1].modules() if isinstance(one, nn.Linear)]
    downs = [p for n, p in model.assistant.named_parameters() if "lora_A" in n]
    ups = [p for n, p in model.assistant.named_parameters() if "lora_B" in n]
    one = {width: torch.randn(1, width, dtype=torch.bfloat16) for width in {p.shape[1] for p in (*downs, *ups)}}
    outs = {p.shape[0]: torch.randn(1, p.shape[0], dtype=torch.bfloat16) for p in ups}
    readers = [downs[i : i + 3] for i in range(0, len(downs), 7)] + [
        downs[i + 4 : i + 6] for i in range(0, len(downs), 7)
    ]
    stacked = [torch.cat(group) for group in readers]
    exact = [p.float() for p in downs]
    how = Combination()

    def products(weights: list[torch.Tensor], rows: int) -> None:
        for weight in weights:
            nn.functional.linear(inputs[rows, weight.shape[1]], weight)

    widths = {p.weight.shape[1] for p in every} | {target.config.hidden_size}
    inputs = {(rows, w): torch.randn(rows, w, dtype=torch.bfloat16) for rows in (1, 2, 16, 32) for w in widths}
    shared, head = [p.weight for p in linears], [target.get_output_embeddings().weight]
    logits = {rows: torch.randn(2, rows, target.config.vocab_size, dtype=torch.bfloat16) for rows in (1, 16)}
    caches = {"target": DynamicCache(config=target.config), "model": model.new_cache()}
    ids = torch.randint(1, target.config.vocab_size, (1, 64))
    for name, cache in caches.items():
        (target if name == "target" else model)(input_ids=ids, **as_given(cache), use_cache=True)

    def step(which: str) -> None:
        (target if which == "target" else model)(input_ids=ids[:, -1:], **as_given(caches[which]), use_cache=True)

    things = {
        "a step of the target": lambda: step("target"),
        "a step of target and assistant in one pass": lambda: step("model"),
        f"{len(downs)} LoRA-A products of one row": lambda: [nn.functional.linear(one[p.shape[1]], p) for p in downs],
        f"{len(ups)} LoRA-B products with their sum": lambda: [outs[p.shape[0]].addmm_(one[RANK], p.t()) for p in ups],
        "the shared layers' linears, one row": lambda: products(shared, 1),
        "the shared layers' linears, two rows": lambda: products(shared, 2),
        "the shared layers' linears, 16 rows": lambda: products(shared, 16),
        "the shared layers' linears, 32 rows": lambda: products(shared, 32),
        "the head, one row": lambda: products(head, 1),
        "the head, two rows": lambda: products(head, 2),
        "combining logits, one row": lambda: combine(logits[1][0], logits[1][1], how),
        "combining logits, 16 rows": lambda: combine(logits[16][0], logits[16][1], how),
        "instead: LoRA-A of q, k, v and of gate, up, each its own product": lambda: [
            nn.functional.linear(one[p.shape[1]], p) for group in readers for p in group
        ],
        "instead: the same, stacked": lambda: [nn.functional.linear(one[p.shape[1]], p) for p in stacked],
        "instead: LoRA-A by torch.mv": lambda: [torch.mv(p, one[p.shape[1]][0]) for p in downs],
        "instead: LoRA-A in fp32": lambda: [nn.functional.linear(wide[p.shape[1]], p) for p in exact],
    }
    wide = {width: value.float() for width, value in one.items()}
    found = {name: middle(values) * 1e6 for name, values in in_turn(things, REPEATS).items()}
    return [[name, f"{value:,.0f}"] for name, value in found.items()], found


@torch.inference_mode()
def trees(options: object) -> tuple[list[list[str]], dict[str, float]]:
    """What shared beginnings save in scoring TOFU's answers."""
    places = vars(options)
    place = places["models"] / "tofu-4m-full"
    model, tokenizer = unlearned(load_target(place), depth=3), load_tokenizer(place)
    form = PromptFormat(tokenizer)
    questions = task_rows("forget", "forget10", places["data"] / "tofu")[:QUESTIONS]
    rows = [form.encode(Record.qa(q["question"], answer), 2**31) for q in questions for answer in answers_of(q)]
    scorer = scoring.Scorer(model, int(tokenizer.pad_token_id or 0))  # type: ignore[arg-type]
    alone = scoring.Scorer(model, int(tokenizer.pad_token_id or 0))  # type: ignore[arg-type]
    alone.trust.longest = 0  # as for a model that follows no mask of ours: every row a chain of its own
    answers = [rows[i : i + len(rows) // QUESTIONS] for i in range(0, len(rows), len(rows) // QUESTIONS)]
    prompts = [next(i for i, learnt in enumerate(one[0].learn) if learnt) - 1 for one in answers]

    def from_cache() -> list[float]:
        losses: list[float] = []
        for one, start in zip(answers, prompts, strict=True):
            cache = model.new_cache()
            model.all_hidden(cache, input_ids=torch.tensor([one[0].ids[:start]]), use_cache=True)
            cache.batch_select_indices(torch.zeros(len(one), dtype=torch.long))
            ids, mask = padded([row.ids[start:] for row in one], max(len(row.ids) for row in one) - start)
            seen = torch.cat([torch.ones(len(one), start, dtype=torch.long), mask], 1)
            hidden = model.all_hidden(cache, input_ids=ids, attention_mask=seen, use_cache=True)
            learnt = mask[:, 1:].bool()
            found = scorer._pieces([each[:, :-1][learnt] for each in hidden], ids[:, 1:][learnt], scorer._label_losses)
            losses += [part.sum().item() for part in found[0].split(learnt.sum(1).tolist())]
        return losses

    ours = [score.loss for score in scorer.score(rows)[0]]
    difference = max(abs(a - b) / max(1, b) for a, b in zip(from_cache(), ours, strict=True))
    ways = {"trees": lambda: scorer.score(rows), "chains": lambda: alone.score(rows), "cache": from_cache}
    seconds = {name: middle(values) for name, values in in_turn(ways).items()}
    nodes = {shared: sum(len(tree.ids) for tree in scoring._trees(rows, shared)) for shared in (True, False)}
    cached = sum(
        start + sum(len(row.ids) - 1 - start for row in one) for one, start in zip(answers, prompts, strict=True)
    )
    found = {
        "nodes": nodes[True],
        "tokens": nodes[False],
        "tokens, prompts once": cached,
        "chains / trees": seconds["chains"] / seconds["trees"],
        "cache / trees": seconds["cache"] / seconds["trees"],
        "cache, relative difference": difference,
    }
    table = [
        [f"tokens of {len(rows)} answers to {QUESTIONS} questions, as rows", f"{nodes[False]:,}"],
        ["the same as trees", f"{nodes[True]:,}"],
        ["the same with every prompt once", f"{cached:,}"],
        ["time of rows / time of trees", f"{found['chains / trees']:.2f}"],
        [
            "instead: a question's prompt kept in a cache, its answers as one batch / trees",
            f"{found['cache / trees']:.2f}",
        ],
    ]
    return table, found


def main() -> None:
    options = arguments(__doc__).parse_args()
    table, numbers = decoding()
    more, counted = trees(options)
    report("parts", ["part", "µs (scoring: as it says)"], [*table, *more], numbers | counted)


if __name__ == "__main__":
    main()
