import random
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uld.data.collate import (
    FORGET,
    LENGTH_MULTIPLE,
    NO_LOSS,
    RETAIN,
    Collator,
    PlanLoader,
    PlanSampler,
    Rows,
    epoch_plan,
    token_plan,
)
from uld.data.prompt import Encoded


def encoded(rng: random.Random, tokens: int) -> Encoded:
    prompt = rng.randint(1, tokens - 1)
    return Encoded([rng.randint(3, 99) for _ in range(tokens)], [False] * prompt + [True] * (tokens - prompt))


def some_rows(forget: int, retain: int, seed: int = 0, uniform_on: str = "answer") -> Rows:
    rng = random.Random(seed)
    both = [[encoded(rng, rng.randint(2, 60)) for _ in range(count)] for count in (forget, retain)]
    return Rows.of_sides(*both, uniform_on=uniform_on)


SIZES = st.integers(0, 300)


@settings(max_examples=150, deadline=None)
@given(forget=SIZES, retain=SIZES, batch_size=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_an_epoch_sees_every_row_once_with_both_sides_in_proportion(
    forget: int, retain: int, batch_size: int, seed: int
) -> None:
    rng = random.Random(seed)
    kinds = [FORGET] * forget + [RETAIN] * retain
    rng.shuffle(kinds)
    lengths = [rng.randint(2, 90) for _ in kinds]
    plan = epoch_plan(kinds, lengths, batch_size, seed)
    assert sorted(i for batch in plan for i in batch) == list(range(len(kinds)))
    assert [len(batch) for batch in plan[:-1]] == [batch_size] * (len(plan) - 1)
    assert len(plan) == -(-len(kinds) // batch_size)
    for batch in plan:
        share = forget * len(batch) / len(kinds)
        assert abs(sum(kinds[i] == FORGET for i in batch) - share) <= 1


def test_the_plan_is_decided_by_its_seed() -> None:
    kinds, lengths = [FORGET] * 40 + [RETAIN] * 100, [random.Random(i).randint(2, 90) for i in range(140)]
    plans = [epoch_plan(kinds, lengths, 8, seed) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def padding_share(plan: list[list[int]], lengths: list[int]) -> float:
    positions = sum(len(batch) * max(lengths[i] for i in batch) for batch in plan)
    return 1 - sum(lengths) / positions


def test_rows_of_like_length_go_together() -> None:
    rng = random.Random(0)
    kinds = [FORGET] * 1200 + [RETAIN] * 2400
    lengths = [max(10, int(rng.gauss(70, 25))) if kind == FORGET else max(10, int(rng.gauss(50, 20))) for kind in kinds]
    planned = padding_share(epoch_plan(kinds, lengths, 32, 0), lengths)
    order = list(range(len(kinds)))
    rng.shuffle(order)
    by_chance = padding_share([order[i : i + 32] for i in range(0, len(order), 32)], lengths)
    assert planned < 0.25 < 0.45 < by_chance


def test_long_batches_come_at_any_time() -> None:
    """Rows sorted by length must not mean that training runs from short to long rows."""
    lengths = [2 + i % 200 for i in range(4000)]
    means = [sum(lengths[i] for i in batch) / len(batch) for batch in epoch_plan([RETAIN] * 4000, lengths, 20, 0)]
    longer = sum(b > a for a, b in pairwise(means)) / (len(means) - 1)
    assert 0.4 < longer < 0.6


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 4), (2, 3), (4, 2)])
def test_processes_and_accumulation_share_the_plan_of_one(world: int, accumulation: int) -> None:
    rows = some_rows(53, 90)
    alone = PlanSampler(rows, 24, seed=5)
    alone.set_epoch(2)
    parts = []
    for rank in range(world):
        sampler = PlanSampler(rows, 24, seed=5, rank=rank, world=world, accumulation=accumulation)
        sampler.set_epoch(2)
        parts.append(list(sampler))
        assert len(sampler) == len(parts[-1]) == accumulation * len(alone)
    for step, whole in enumerate(alone):
        micro = [part[step * accumulation + a] for part in parts for a in range(accumulation)]
        assert sorted(i for one in micro for i in one) == sorted(whole)
        assert max(map(len, micro)) - min(map(len, micro)) <= 1
        for kind in (FORGET, RETAIN):
            counts = [sum(rows[i].kind == kind for i in one) for one in micro]
            assert max(counts) - min(counts) <= 1


def test_a_short_last_batch_leaves_some_processes_without_a_row() -> None:
    rows = some_rows(5, 4)
    last = [list(PlanSampler(rows, 4, rank=rank, world=4))[-1] for rank in range(4)]
    assert sorted(map(len, last)) == [0, 0, 0, 1]


def test_every_epoch_has_a_plan_of_its_own() -> None:
    sampler = PlanSampler(some_rows(30, 30), 8, seed=1)
    plans = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        plans.append(list(sampler))
    assert plans[0] == plans[2] != plans[1]
    other = PlanSampler(some_rows(30, 30), 8, seed=2)
    assert list(other) not in plans


def test_the_loader_follows_the_epoch_and_gives_every_row_once() -> None:
    rows = some_rows(21, 30)
    loader = PlanLoader(rows, batch_sampler=PlanSampler(rows, 8), collate_fn=Collator(0))
    expected = Counter(tuple(row.encoded.ids) for row in rows.rows)
    epochs = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        seen = [
            tuple(ids[mask.bool()].tolist())
            for batch in loader
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert Counter(seen) == expected
        epochs.append(seen)
    assert epochs[0] != epochs[1]


@settings(max_examples=50, deadline=None)
@given(
    forget=st.integers(0, 6), retain=st.integers(0, 6), seed=st.integers(0, 999), on=st.sampled_from(["answer", "all"])
)
def test_a_batch_equals_a_naive_one(forget: int, retain: int, seed: int, on: str) -> None:
    rows = some_rows(forget, retain, seed, on).rows
    batch = Collator(pad_token_id=1)(rows)
    shape = tuple(batch["input_ids"].shape)
    whole = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "kind")}
    assert all(tensor.shape == shape and tensor.dtype == torch.int64 for tensor in whole.values())
    assert batch["side"].tolist() == ([row.kind for row in rows] or [0]) and batch["reference"].isnan().all()
    assert shape[0] == max(1, len(rows)) and shape[1] % 16 == 0
    longest = max((len(row.encoded.ids) for row in rows), default=1)
    assert longest <= shape[1] < longest + 16
    for i, row in enumerate(rows):
        ids, learn = row.encoded.ids, row.encoded.learn
        for t in range(shape[1]):
            assert batch["input_ids"][i, t] == (ids[t] if t < len(ids) else 1)
            assert batch["attention_mask"][i, t] == (t < len(ids))
            predicts = t + 1 < len(ids) and (learn[t + 1] or (on == "all" and row.kind == RETAIN))
            assert batch["kind"][i, t] == (row.kind if predicts else NO_LOSS)
            if predicts:
                assert batch["labels"][i, t] == ids[t + 1]


def test_no_rows_make_a_batch_without_a_loss() -> None:
    batch = Collator(7)([])
    assert batch["input_ids"].tolist() == [[7] * 16]
    assert not batch["kind"].any()
    assert batch["attention_mask"].tolist() == [[1] + [0] * 15]  # attention over nothing would be NaN


def test_forget_rows_never_carry_a_loss_on_their_prompt() -> None:
    one = Encoded([3, 4, 5, 6], [False, False, True, True])
    rows = Rows.of_sides([one], [one], uniform_on="all")
    assert [(row.encoded, row.kind, row.everywhere) for row in rows.rows] == [(one, FORGET, False), (one, RETAIN, True)]
    assert len(rows) == 2 and rows[1].kind == RETAIN
    kinds = Collator(0)(rows.rows)["kind"][:, :4].tolist()
    assert kinds == [[NO_LOSS, FORGET, FORGET, NO_LOSS], [RETAIN, RETAIN, RETAIN, NO_LOSS]]


@given(
    rows=st.lists(st.tuples(st.sampled_from([FORGET, RETAIN]), st.integers(1, 90)), min_size=1, max_size=120),
    budget=st.integers(16, 800),
    seed=st.integers(0, 3),
)
def test_a_token_plan_holds_every_row_once_within_its_budget(rows, budget, seed):
    kinds, lengths = zip(*rows, strict=True)
    plan = token_plan(kinds, lengths, budget, seed)
    assert sorted(i for batch in plan for i in batch) == list(range(len(rows)))
    for batch in plan:
        padded = len(batch) * max(-(-lengths[i] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE for i in batch)
        assert padded <= budget or len(batch) == 1
    assert plan == token_plan(kinds, lengths, budget, seed)


def test_a_token_plan_keeps_proportion_and_fills_its_budget():
    rng = random.Random(0)
    kinds = [FORGET] * 300 + [RETAIN] * 600
    lengths = [rng.randint(10, 150) for _ in kinds]
    plan = token_plan(kinds, lengths, 2048, seed=0)
    for batch in plan:
        assert abs(sum(kinds[i] == FORGET for i in batch) - len(batch) / 3) <= 2
    assert sum(lengths) / (len(plan) * 2048) > 0.75


def test_alternatives_count_in_the_budget_of_tokens():
    rng = random.Random(0)
    forget, retain = ([encoded(rng, rng.randint(4, 60)) for _ in range(40)] for _ in range(2))
    alternatives = [encoded(rng, rng.randint(4, 60)) for _ in forget]
    rows = Rows.of_sides(forget, retain, alternatives=alternatives)
    plan = list(PlanSampler(rows, 32, seed=1, batch_tokens=512))
    sizes = [Collator(0)([rows[i] for i in batch])["input_ids"].numel() for batch in plan]
    assert max(sizes) <= 512 and sum(sizes) / len(sizes) > 350
    assert sorted(i for batch in plan for i in batch) == list(range(80))


def test_token_batches_are_the_same_in_every_epoch_but_come_in_another_order():
    rows = some_rows(40, 80)
    sampler = PlanSampler(rows, 32, seed=1, batch_tokens=512)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(first) == len(second) == len(sampler)
    halves = [list(PlanSampler(rows, 32, seed=1, batch_tokens=512, rank=rank, world=2)) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(batch) for batch in first]


def test_rows_in_turn_follow_the_epoch_and_keep_their_place_in_the_plan() -> None:
    rng = random.Random(0)
    turns = [[encoded(rng, tokens) for tokens in sizes] for sizes in ((9, 40, 3), (5,), (20, 7))]
    rows = Rows.of_sides([encoded(rng, 6)], [encoded(rng, 8)], uniform_on="all", in_turn=turns)
    assert [row.tokens for row in rows.rows] == [6, 8, 40, 5, 20]
    sampler = PlanSampler(rows, 2, seed=3)
    loader = PlanLoader(rows, batch_sampler=sampler, collate_fn=list)
    for epoch in (0, 1, 2, 3, 4, 1):  # as where a training goes on in the middle
        loader.set_epoch(epoch)
        given_out = [row.encoded for batch in loader for row in batch]
        expected = [rows.rows[0].encoded, rows.rows[1].encoded, *(some[epoch % len(some)] for some in turns)]
        assert sorted(map(id, given_out)) == sorted(map(id, expected))
        assert all(row.kind == RETAIN and row.everywhere for row in (rows[i] for i in range(1, 5)))
    assert sampler.lengths == [6, 8, 40, 5, 20]
    sampler.set_epoch(2)  # as transformers does behind batches that are skipped
    assert [rows[i].encoded for i in range(2, 5)] == [some[2 % len(some)] for some in turns]
