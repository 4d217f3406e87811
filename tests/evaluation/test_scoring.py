"""Scores and greedy answers in batches equal those of one row at a time, from plain full logits."""

import copy
import random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WatermarkingConfig,
)

import uld.evaluation.scoring
from uld.data.prompt import Encoded
from uld.errors import ULDError
from uld.evaluation.benchmark import Subject
from uld.evaluation.scoring import Scorer
from uld.model.assistant import add_lora, build_assistant
from uld.model.combine import Combination
from uld.model.generate import SAMPLING, generate_answers, generate_ids, length_batches
from uld.model.unlearned import ULDForCausalLM

VOCAB, PAD, EOS = 60, 0, 2
COMBINATIONS = [
    Combination(),
    Combination(weight=0.0),
    Combination(weight=0.5),
    Combination("subtract", weight=1.5, filter=0.3, min_tokens=0.0),
    Combination("subtract", weight=1.0, filter=0.0),
    Combination("reference", weight=0.8, filter=0.05),
]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=4,
                num_attention_heads=2,
                max_position_embeddings=128,
                pad_token_id=PAD,
                bos_token_id=1,
                eos_token_id=EOS,
            )
        ).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # a random head is too weak to say anything with confidence
    return model


@pytest.fixture(scope="module")
def unlearned(llama) -> ULDForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        peft = add_lora(build_assistant(llama, 2), rank=4, alpha=8)
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
    return ULDForCausalLM.join(llama, peft, Combination())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2", unk_token="w3")


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    """Prompts with several answers, very short and long ones; two learnt turns; rows without a prompt."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(4, VOCAB) for _ in range(count)]

    found = []
    for length in (1, 3, 17, 40):
        prompt = tokens(length)
        for answer in (1, 2, 9, 30):
            found.append(Encoded(prompt + tokens(answer), [False] * length + [True] * answer))
    found.append(Encoded(tokens(12), [False] * 3 + [True] * 3 + [False] * 4 + [True] * 2))
    found.append(Encoded(tokens(20), [True] * 20))  # nothing predicts the first token
    found.append(Encoded(found[-1].ids[:7], [True] * 7))
    rng.shuffle(found)
    return found


@torch.no_grad()
def naive(model, row: Encoded) -> float:
    """Summed NLL in nats of the learnt tokens, from the whole row's logits."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0].double()
    losses = -logits.log_softmax(-1)[torch.arange(len(row.ids) - 1), torch.tensor(row.ids[1:])]
    return losses[torch.tensor(row.learn[1:])].sum().item()


def close(values):
    return pytest.approx(values, rel=1e-5, abs=1e-5)


def test_an_ordinary_model_scores_as_one_row_at_a_time(llama, rows):
    (scores,) = Scorer(llama, PAD).score(rows)
    assert [score.loss for score in scores] == close([naive(llama, row) for row in rows])
    assert [score.tokens for score in scores] == [sum(row.learn[1:]) for row in rows]
    assert scores[0].avg_loss == scores[0].loss / scores[0].tokens


def test_an_unlearned_model_scores_what_its_forward_returns(unlearned, rows):
    (scores,) = Scorer(unlearned, PAD).score(rows)
    assert [score.loss for score in scores] == close([naive(unlearned, row) for row in rows])


def test_many_combinations_score_as_one_at_a_time(unlearned, llama, rows):
    found = Scorer(unlearned, PAD, COMBINATIONS).score(rows)
    assert len(found) == len(COMBINATIONS)
    own = unlearned.combination
    try:
        for how, scores in zip(COMBINATIONS, found, strict=True):
            unlearned.combination = how
            assert [score.loss for score in scores] == close([naive(unlearned, row) for row in rows]), how
    finally:
        unlearned.combination = own
    assert [score.loss for score in found[1]] == close([naive(llama, row) for row in rows])  # α = 0 is the target
    assert found[0][0].loss != pytest.approx(found[1][0].loss, rel=1e-2)


def test_a_masked_token_costs_infinity(unlearned, rows):
    mask = Combination("subtract", weight=1.0, filter=0.9, min_tokens=0.0, outside="mask")
    keep = Combination("subtract", weight=1.0, filter=0.9, min_tokens=0.0)
    masked, kept = Scorer(unlearned, PAD, [mask, keep]).score(rows)
    assert sum(score.loss == float("inf") for score in masked) > len(rows) / 2
    assert all(0 < score.loss < float("inf") for score in kept)


@pytest.mark.parametrize("model", ["llama", "unlearned"])
def test_a_head_of_an_unknown_kind_goes_through_the_model(request, monkeypatch, rows, model):
    model = request.getfixturevalue(model)

    def refuse(_):
        raise ULDError("unusual")

    monkeypatch.setattr(uld.evaluation.scoring, "check_head", refuse)
    (scores,) = Scorer(model, PAD).score(rows)
    assert [score.loss for score in scores] == close([naive(model, row) for row in rows])


@pytest.fixture(scope="module")
def branching() -> list[Encoded]:
    """Answers to a few prompts that share beginnings of several lengths, with repeats and other learnt tokens."""
    rng = random.Random(1)
    rows = []
    for length in (1, 4, 9):
        prompt, answer = ([rng.randrange(4, 34) for _ in range(count)] for count in (length, 10))
        for kept in (0, 3, 3, 7, 10):
            ids = prompt + answer[:kept] + [rng.randrange(4, 34) for _ in range(rng.randrange(1, 6))]
            rows.append(Encoded(ids, [False] * length + [True] * (len(ids) - length)))
        rows += [rows[-1], Encoded(rows[-1].ids, [False] * (length + 2) + rows[-1].learn[length + 2 :])]
        rows.append(Encoded(prompt + answer, [False] * length + [True] * 10))  # the beginning of others
    rng.shuffle(rows)
    return rows


def test_every_family_scores_as_one_row_at_a_time(family, make_target, make_unlearned, branching):
    target = make_target(family)
    unlearned = make_unlearned(target, num_layers=2)
    within = [row for row in branching if len(row.ids) <= 8]
    for forms in ((target,), (unlearned, make_unlearned(target, num_layers=2, fused=False))):
        expected = {id(row): naive(forms[0], row) for row in branching}
        for model in forms:
            for rows in (branching, within) if family in ("mistral", "gemma2") else (branching,):  # windows of 8 tokens
                scores = Scorer(model, PAD).score(rows)[0]
                assert [score.loss for score in scores] == close([expected[id(row)] for row in rows])


def test_what_rows_begin_with_is_computed_once(llama, branching, monkeypatch):
    seen = []
    hidden = Scorer._hidden
    monkeypatch.setattr(Scorer, "_hidden", lambda self, inputs: seen.append(inputs) or hidden(self, inputs))
    monkeypatch.setattr(uld.evaluation.scoring, "LENGTH_MULTIPLE", 1)
    rows = [row for row in branching if row.learn.index(True) > 1]
    Scorer(llama, PAD).score(rows)
    prefixes = {tuple(row.ids[:i]) for row in rows for i in range(1, len(row.ids))}
    assert sum(int((one["input_ids"] != PAD).sum()) for one in seen) == len(prefixes)


@pytest.mark.parametrize("tokens", [1, 30, 40])
def test_a_tree_may_be_cut(llama, branching, monkeypatch, tokens):
    monkeypatch.setattr(uld.evaluation.scoring, "_TREE_TOKENS", tokens)
    (scores,) = Scorer(llama, PAD).score(branching)
    assert [score.loss for score in scores] == close([naive(llama, row) for row in branching])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_both_kinds_of_attention_take_trees(branching, make_target, implementation):
    model = make_target("llama", attn_implementation=implementation)
    scorer = Scorer(model, PAD)
    assert scorer.longest > 1000
    assert [score.loss for score in scorer.score(branching)[0]] == close([naive(model, row) for row in branching])


def test_a_model_that_does_not_follow_the_mask_gets_no_trees(branching):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2)).eval()
    scorer = Scorer(model, PAD)
    assert scorer.longest == 0
    assert [score.loss for score in scorer.score(branching)[0]] == close([naive(model, row) for row in branching])


def test_a_combination_is_that_of_every_assistant(make_target, make_unlearned, branching):
    target = make_target("llama")
    one, other = (make_unlearned(target, num_layers=layers, seed=layers) for layers in (2, 3))
    model = ULDForCausalLM.join(target, [one.assistant, other.assistant], [Combination()] * 2)
    found = Scorer(model, PAD, COMBINATIONS).score(branching)
    for how, scores in zip(COMBINATIONS, found, strict=True):
        model.combination = how
        assert [score.loss for score in scores] == close([naive(model, row) for row in branching]), how


def test_scores_do_not_depend_on_the_order_of_rows(unlearned, rows):
    (forth,), (back,) = (Scorer(unlearned, PAD).score(order) for order in (rows, rows[::-1]))
    assert [score.loss for score in forth] == close([score.loss for score in back[::-1]])


def test_what_is_sampled_is_the_models_own_distribution_whatever_its_file_asks_for(llama, tokenizer, monkeypatch):
    prompts, how = [[5, 6, 5, 6], [7, 8, 9, 10, 11, 12, 13]], {"max_new_tokens": 12, **SAMPLING}

    def sample() -> list[str]:
        torch.manual_seed(0)
        return generate_answers(llama, tokenizer, prompts, **how)

    free = sample()
    asked: dict[str, Any] = {"temperature": 0.3, "top_k": 1, "top_p": 0.1, "min_p": 0.9, "typical_p": 0.1}
    asked |= {"top_h": 0.1, "epsilon_cutoff": 0.9, "eta_cutoff": 0.9, "watermarking_config": WatermarkingConfig()}
    for name, value in asked.items():
        with monkeypatch.context() as patch:
            patch.setattr(llama.generation_config, name, value)
            assert sample() == free, name


def test_only_an_unlearned_model_has_combinations(llama):
    with pytest.raises(ULDError, match="no combination to vary"):
        Scorer(llama, PAD, [Combination()])


def test_batches_hold_every_row_once_and_keep_to_the_budget():
    lengths = [random.Random(0).randrange(1, 90) for _ in range(200)]
    batches = list(length_batches(lengths, 256))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        padded = -(-max(lengths[i] for i in batch) // 16) * 16
        assert padded * len(batch) <= 256 or len(batch) == 1
    assert [lengths[batch[0]] for batch in batches] == sorted((lengths[batch[0]] for batch in batches), reverse=True)
    assert [len(batch) for batch in length_batches([1000, 3], 256)] == [1, 1]
    assert list(length_batches([0, 0], 256)) == [[0, 1]]  # rows of no token: a model may say nothing at all


@pytest.mark.parametrize("model", ["llama", "unlearned"])
def test_answers_of_a_padded_batch_are_those_of_each_prompt_alone(request, tokenizer, model):
    model = request.getfixturevalue(model)
    prompts = [[5], [7, 8, 9, 10, 11, 12, 13], [14, 15, 16], [21] * 19]
    together = generate_answers(model, tokenizer, prompts, max_new_tokens=12)
    alone = [generate_answers(model, tokenizer, [prompt], max_new_tokens=12)[0] for prompt in prompts]
    assert together == alone
    assert len(set(together)) > 1 and all(together)


def test_answers_end_at_end_of_sequence(llama, tokenizer, monkeypatch):
    prompts = [[5], [7, 8, 9, 10, 11, 12, 13], [14, 15, 16]]
    monkeypatch.setattr(llama.generation_config, "eos_token_id", None)
    free = [text.split() for text in generate_answers(llama, tokenizer, prompts, max_new_tokens=12)]
    end = next(word for word in free[0][3:] if word not in free[0][:3])
    monkeypatch.setattr(llama.generation_config, "eos_token_id", int(end[1:]))
    stopped = [text.split() for text in generate_answers(llama, tokenizer, prompts, max_new_tokens=12)]
    assert stopped == [words[: words.index(end) + 1] if end in words else words for words in free]
    assert len(stopped[0]) < len(free[0])


@pytest.mark.parametrize("own", [None, 1, [1, 3]])
def test_answers_end_at_the_tokenizers_end_of_sequence_whatever_the_model_names(llama, tokenizer, monkeypatch, own):
    """A base model that learnt a chat tokenizer's answers still names the end that it had before."""
    monkeypatch.setattr(llama.generation_config, "eos_token_id", own)
    free = generate_ids(llama, tokenizer, [[5]], max_new_tokens=12)[0].tolist()
    end = next(two for one, two, three in zip(free, free[1:], free[2:], strict=False) if len({one, two, three}) == 3)
    ending = copy.deepcopy(tokenizer)
    ending.add_special_tokens({"eos_token": f"w{end}"})
    said = [f"w{one}" for one in free[: free.index(end)]]
    assert generate_answers(llama, ending, [[5]], max_new_tokens=12) == [" ".join(said)]
    written = Subject(llama, ending, "qa").written([[5]], [12])[0]
    assert (written.text.split(), written.ids, written.end) == (said, free[: free.index(end)], end)
    assert llama.generation_config.eos_token_id == own


@pytest.mark.parametrize("model", ["llama", "unlearned"])
def test_a_models_own_settings_do_not_change_what_greedy_means(request, tokenizer, monkeypatch, model):
    model = request.getfixturevalue(model)
    prompts = [[5, 6, 5, 6], [7, 8, 9, 10, 11, 12, 13], [14, 15, 16]]
    plain = generate_answers(model, tokenizer, prompts, max_new_tokens=12)
    for name, value in {
        "repetition_penalty": 50.0,
        "no_repeat_ngram_size": 1,
        "encoder_repetition_penalty": 9.0,
        "encoder_no_repeat_ngram_size": 1,
        "min_new_tokens": 12,
        "min_length": 40,
        "penalty_alpha": 0.6,
        "top_k": 4,
        "guidance_scale": 3.0,
        "exponential_decay_length_penalty": (1, 9.0),
    }.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=12) == plain
    asked = generate_answers(model, tokenizer, prompts, max_new_tokens=12, no_repeat_ngram_size=1)
    assert asked != plain and all(len(set(text.split())) == len(text.split()) for text in asked)
    never = int(plain[0].split()[0][1:])
    monkeypatch.setattr(model.generation_config, "suppress_tokens", [never])  # the model's own
    assert f"w{never}" not in generate_answers(model, tokenizer, prompts, max_new_tokens=12)[0].split()
