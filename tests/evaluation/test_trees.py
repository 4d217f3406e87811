"""Rows in trees score as each row does alone, in families of every kind of attention."""

import random

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from uld.data.prompt import Encoded
from uld.errors import ULDError
from uld.evaluation import scoring
from uld.evaluation.scoring import Scorer
from uld.evaluation.trees import NEVER, Tree, grow

VOCAB, PAD = 34, 0
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    **IDS,
}
KV = {**BASE, "num_key_value_heads": 2, "head_dim": 8}
GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.25}
SHORT = {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.25}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES = {
    # nothing local
    "llama": ("LlamaConfig", KV),
    "gpt2": ("GPT2Config", {**GPT, **IDS}),
    "gptj": ("GPTJConfig", {**GPT, **IDS, "rotary_dim": 4}),
    "opt": ("OPTConfig", {**BASE, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.25}),
    "phi": ("PhiConfig", BASE),
    "cohere": ("CohereConfig", {**KV, "logit_scale": 0.5}),
    "mixtral": ("MixtralConfig", {**KV, **EXPERTS}),
    # windows, under several names
    "mistral": ("MistralConfig", {**KV, "sliding_window": 8}),
    "gemma2": ("Gemma2Config", {**KV, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {**KV, "sliding_window": 8, "layer_types": SLIDING, "query_pre_attn_scalar": 8}),
    "gpt_oss": ("GptOssConfig", {**KV, **EXPERTS, "sliding_window": 8, "layer_types": SLIDING}),
    "qwen2": ("Qwen2Config", {**KV, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "llama4": ("Llama4TextConfig", {**KV, **EXPERTS, "intermediate_size_mlp": 48, "attention_chunk_size": 16}),
    "modernbert": ("ModernBertDecoderConfig", {**BASE, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "intermediate_size": 48,
            **IDS,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 12,
            "max_position_embeddings": 128,
            "initializer_range": 0.25,
        },
    ),
    # position biases
    "bloom": ("BloomConfig", {**SHORT, **IDS}),
    "falcon": ("FalconConfig", {**BASE, "alibi": True, "multi_query": False, "parallel_attn": False}),
    "mpt": (
        "MptConfig",
        {"vocab_size": VOCAB, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 128, **IDS},
    ),
    # recurrence, convolution, linear attention
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {**BASE, "lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    ),
    "qwen3_5": ("Qwen3_5TextConfig", {**KV, **LINEAR}),
    "lfm2": (
        "Lfm2Config",
        {**BASE, "num_key_value_heads": 2, "conv_L_cache": 3, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    "mamba": ("MambaConfig", {**BASE, "state_size": 4, "time_step_rank": 4}),
    "minimax": (
        "MiniMaxConfig",
        {**KV, **EXPERTS, "layer_types": ["linear_attention", "full_attention", "full_attention"]},
    ),
}


def rows_of(*groups, seed=0):
    """Rows: for each group a prompt of so many tokens, and answers of so many."""
    rng = random.Random(seed)
    rows = []
    for prompt, answers in groups:
        start = [rng.randrange(4, VOCAB) for _ in range(prompt)]
        for length in answers:
            answer = [rng.randrange(4, VOCAB) for _ in range(length)]
            rows.append(Encoded(start + answer, [False] * prompt + [True] * length))
    return rows


BATCHES = {
    "within every window": rows_of((3, (2, 3, 3, 2)), (4, (2, 2))),
    "short rows of one prompt, many": rows_of((6, (4,) * 9), seed=1),
    "beyond every window": rows_of((20, (6, 9, 4)), (30, (20, 20, 6)), seed=2),
    "short and long": rows_of((3, (2, 3)), (4, (2,)), (25, (9, 9)), seed=3),
}


@torch.no_grad()
def alone(model, row):
    """Summed NLL in nats of the learnt tokens of one row, unpadded, of the model's own forward."""
    logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].double()
    losses = -logits.log_softmax(-1)[torch.arange(len(row.ids) - 1), torch.tensor(row.ids[1:])]
    return losses[torch.tensor(row.learn[1:])].sum().item()


def make(family):
    name, settings = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings)).eval()
        for parameter in model.parameters():  # some families start so small that nothing depends on anything
            if parameter.dim() > 1 and parameter.std() < 0.1:
                parameter.data.normal_(std=0.25)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_score_as_each_does_alone(family):
    model = make(family)
    scorer = Scorer(model, PAD)
    for name, rows in BATCHES.items():
        found = [score.loss for score in scorer.score(rows)[0]]
        assert found == pytest.approx([alone(model, row) for row in rows], abs=1e-3), name


@pytest.mark.parametrize("family", ["gpt_neo", "gemma3"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_of_several_models_each_has_to_take_a_tree(family, fused, make_unlearned):
    model = make_unlearned(make(family), 2, fused=fused)
    scorer = Scorer(model, PAD)
    for name, rows in BATCHES.items():
        found = [score.loss for score in scorer.score(rows)[0]]
        assert found == pytest.approx([alone(model, row) for row in rows], abs=1e-3), name


def test_a_window_only_of_the_assistant_counts(make_unlearned):
    model = make_unlearned(make("llama"), 2, fused=False)
    small = make_unlearned(make("mistral"), 2).assistant
    model.assistants[0] = small
    scorer = Scorer(model, PAD)
    for rows in BATCHES.values():
        found = [score.loss for score in scorer.score(rows)[0]]
        assert found == pytest.approx([alone(model, row) for row in rows], abs=1e-3)
    assert scorer.longest < 30


def test_rows_below_a_window_keep_their_trees():
    rows = BATCHES["within every window"]
    for family in ("mistral", "gemma3", "gpt_neo", "llama4"):
        scorer = Scorer(make(family), PAD)
        scorer.score(rows)
        assert scorer.longest == NEVER and scorer.trust.largest == NEVER, family
        scorer.score(BATCHES["beyond every window"])
        assert min(scorer.longest, scorer.trust.largest) < 50, family
        trees = grow(dict(enumerate(rows)), scorer.longest, scorer.trust.largest, 1024)
        assert len(trees) < len(rows), family


def test_a_model_without_windows_is_asked_once_for_each_larger_size(monkeypatch):
    asked = []
    compute = Scorer._alone
    monkeypatch.setattr(Scorer, "_alone", lambda self, row, masked: asked.append(row) or compute(self, row, masked))
    scorer = Scorer(make("llama"), PAD)
    large, small = BATCHES["beyond every window"], BATCHES["within every window"]
    scorer.score(large)
    first = len(asked)
    assert 1 <= first <= 2 and scorer.longest == NEVER
    for rows in (large, small, large[:4]):
        scorer.score(rows)
    assert len(asked) == first


def test_a_model_that_looks_ahead_is_refused(monkeypatch):
    size = {"hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48, "num_hidden_layers": 2}
    prompt = {"prompt_length": 4, "prompt_types": 4, "segment_types": 4}
    monkeypatch.setitem(FAMILIES, "cpmant", ("CpmAntConfig", {"vocab_size": VOCAB, **size, **prompt}))
    with pytest.raises(ULDError, match="CpmAntForCausalLM sees the tokens behind the one that it reads"):
        Scorer(make("cpmant"), PAD)


def test_a_model_that_does_not_bear_padding_reads_each_row_alone(monkeypatch):
    model = make("llama")
    forward = type(model.model).forward

    def counts_padding(self, input_ids, **kwargs):
        out = forward(self, input_ids, **kwargs)
        out.last_hidden_state = out.last_hidden_state * (1 + (input_ids == PAD).sum())
        return out

    rows = BATCHES["short and long"]
    wanted = [alone(model, row) for row in rows]
    monkeypatch.setattr(type(model.model), "forward", counts_padding)
    scorer = Scorer(model, PAD)
    assert not scorer.trust.pads
    assert [score.loss for score in scorer.score(rows)[0]] == pytest.approx(wanted, abs=1e-3)


def test_rows_of_nan_are_scored_as_such():
    model = make("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    assert all(score.loss != score.loss for score in Scorer(model, PAD).score(BATCHES["short and long"])[0])


@pytest.mark.parametrize("family", ["gpt2", "opt", "gptj"])
def test_a_row_beyond_the_last_position_is_refused(family):
    scorer = Scorer(make(family), PAD)
    rows = rows_of((60, (69, 60)))
    assert scorer.score(rows)[0][0].loss > 0  # its last token needs no position
    with pytest.raises(ULDError, match=r"a row of 130 tokens takes 129 positions, and \w+ has no more than 128"):
        scorer.score(rows_of((60, (70,))))


def test_padding_keeps_to_the_positions_that_there_are(monkeypatch):
    monkeypatch.setitem(FAMILIES, "narrow", ("GPT2Config", {**GPT, **IDS, "n_positions": 21}))
    model = make("narrow")
    rows = rows_of((10, (8, 11)))
    found = [score.loss for score in Scorer(model, PAD).score(rows)[0]]
    assert found == pytest.approx([alone(model, row) for row in rows], abs=1e-3)


def test_positions_that_are_computed_have_no_end():
    model = make("llama")
    rows = rows_of((100, (60, 40)))
    found = [score.loss for score in Scorer(model, PAD).score(rows)[0]]
    assert found == pytest.approx([alone(model, row) for row in rows], abs=1e-3)


def test_nodes_of_a_row_are_its_ancestors():
    tree = Tree()
    rows = [[1, 2, 3, 9], [1, 2, 4, 5, 9], [1, 6, 9]]
    for number, ids in enumerate(rows):
        tree.add(number, Encoded(ids, [True] * len(ids)))
    for _, row, last in tree.rows:
        assert [tree.ids[node] for node in tree.nodes_of(last)] == row.ids[:-1]
    assert tree.branches and len(tree.ids) < scoring._TREE_TOKENS
