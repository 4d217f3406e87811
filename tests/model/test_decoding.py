"""Every kind of cache, however a model decodes, writes what no cache at all writes, or is refused in one sentence."""

import logging

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    DynamicCache,
    EncoderDecoderCache,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPTNeoConfig,
    GptOssConfig,
    OpenAIGPTConfig,
    StaticCache,
)
from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS

from uld.errors import ULDError
from uld.model.caches import CACHE, FusedCache, PairedCache
from uld.model.generate import nucleus

SIZE = {
    "vocab_size": 34,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
GPT = {"vocab_size": 34, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 24, "initializer_range": 0.25}
CONFIGS = {
    "gemma3": Gemma3TextConfig(**SIZE, **MIXED, query_pre_attn_scalar=8),
    "gpt_oss": GptOssConfig(**SIZE, **MIXED, num_local_experts=4, num_experts_per_tok=2),
    "gpt2": GPT2Config(**GPT, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "openai_gpt": OpenAIGPTConfig(**GPT, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "gpt_neo": GPTNeoConfig(
        **{"vocab_size": 34, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48},
        **{"attention_types": [[["global", "local"], 1]], "window_size": 8, "initializer_range": 0.25},
        **{"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
}
FAMILIES = ("llama", "mistral", "gemma2", "gemma3", "gpt_oss")  # all but the first have windows of 8 tokens
PROMPTS = {
    "unpadded": {"input_ids": torch.tensor([[9, 4, 31, 17, 22, 5]]), "attention_mask": torch.ones(1, 6).long()},
    "padded": {
        "input_ids": torch.tensor([[9, 4, 31, 17, 22, 5], [0, 0, 0, 12, 8, 30]]),
        "attention_mask": torch.tensor([[1] * 6, [0, 0, 0, 1, 1, 1]]),
    },
}
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "sampled-beams": {"do_sample": True, "num_beams": 2, "top_k": 20},
    "sampled": {"do_sample": True, "num_return_sequences": 3, "temperature": 1.5},
}
NO_GPU = ("offloaded", "offloaded_static", "offloaded_hybrid", "offloaded_hybrid_chunked")


@pytest.fixture(scope="module")
def made(make_target, make_unlearned):
    """Each family's unlearned model, made once; the settings of the one before are undone."""
    kept = {}

    def get(family, fused=True):
        if family not in kept:
            if family in CONFIGS:
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    target = AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
            else:
                target = make_target(family, num_layers=4)
            kept[family] = make_unlearned(target, 2), {}
        model, texts = kept[family]
        model.fused = fused
        return model, texts

    return get


def write(model, prompts="unpadded", how="greedy", **options):
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, **MODES[how], **options}
    torch.manual_seed(5)
    return model.generate(**PROMPTS[prompts], **settings)[:, 6:].tolist()


def uncached(made, family, prompts, how):
    """What separate passes without a cache write."""
    model, texts = made(family, fused=False)
    if (prompts, how) not in texts:
        texts[prompts, how] = write(model, prompts, how, use_cache=False)
    return texts[prompts, how]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_writes_what_no_cache_writes(made, family, fused):
    refused = set()
    for kind in (None, *(ALL_CACHE_IMPLEMENTATIONS if family == "gemma3" else ("static",))):
        for prompts in PROMPTS:
            wanted = uncached(made, family, prompts, "greedy")
            model, _ = made(family, fused)
            try:
                assert write(model, prompts, cache_implementation=kind) == wanted, (kind, prompts)
            except ULDError as error:
                assert f"no cache of the kind {kind}: " in str(error)
                refused.add(kind)
    assert refused - {"quantized"} <= ({*NO_GPU} if not torch.cuda.is_available() else set())


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("kind", [None, "static"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_every_way_to_decode_writes_what_no_cache_writes(made, family, kind, fused):
    for prompts in PROMPTS:
        for how in MODES:
            wanted = uncached(made, family, prompts, how)
            model, _ = made(family, fused)
            assert write(model, prompts, how, cache_implementation=kind) == wanted, (prompts, how)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("how", [{"prefill_chunk_size": 4}, {"max_cache_len": 40}], ids=str)
def test_settings_of_a_static_cache(made, fused, how):
    wanted = uncached(made, "mistral", "unpadded", "greedy")
    model, _ = made("mistral", fused)
    assert write(model, cache_implementation="static", **how) == wanted


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_a_generation_config_may_name_the_kind(made, fused, monkeypatch):
    wanted = uncached(made, "llama", "unpadded", "greedy")
    model, _ = made("llama", fused)
    monkeypatch.setattr(model.generation_config, "cache_implementation", "static")
    out = model.generate(
        **PROMPTS["unpadded"], do_sample=False, max_new_tokens=6, min_new_tokens=6, return_dict_in_generate=True
    )
    assert out.sequences[:, 6:].tolist() == wanted
    assert isinstance(out[CACHE], StaticCache) and out[CACHE].is_compileable


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_a_quantised_cache_works_for_each_model_apart_or_asks_for_its_package(made, fused):
    model, _ = made("llama", fused)
    with pytest.raises(ULDError, match=r"no cache of the kind quantized: .*optimum-quanto.*leave out"):
        write(model, cache_implementation="quantized")
    weight, model.combination = model.combination, model.combination.override(weight=0.0)
    try:  # in fp8 keys are rounded by the largest of all rows, so those of the assistant must not be among the target's
        kind = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
        try:
            write(model.target, "padded", **kind)
        except ValueError as error:
            assert "Unknown quantization backend" in str(error)
            pytest.skip("this version of transformers keeps no cache in fp8")
        assert write(model, "padded", **kind) == write(model.target, "padded", **kind)
    finally:
        model.combination = weight


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_tokens_can_be_taken_back_beyond_a_window(made, family, fused):
    wanted = uncached(made, family, "unpadded", "greedy")
    model, _ = made(family, fused)
    assert write(model, prompt_lookup_num_tokens=3) == wanted
    assert write(model, assistant_model=model.target) == wanted
    with pytest.raises(ULDError, match="take tokens back, which only a growing cache can do"):
        write(model, prompt_lookup_num_tokens=3, cache_implementation="static")


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("kind", [None, "static"])
def test_a_cache_goes_from_one_generation_into_the_next(made, kind, fused):
    model, _ = made("gemma3", fused)
    settings = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    more = {"max_cache_len": 40} if kind else {}
    first = model.generate(
        **PROMPTS["unpadded"], **settings, cache_implementation=kind, return_dict_in_generate=True, **more
    )
    longer = torch.cat([first.sequences, torch.tensor([[7, 19, 25]])], 1)
    wanted = model.generate(longer, **settings, use_cache=False)
    assert torch.equal(model.generate(longer, **{CACHE: first[CACHE]}, **settings), wanted)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_several_ends_and_a_least_length(made, fused, monkeypatch):
    free = uncached(made, "llama", "padded", "greedy")
    model, _ = made("llama", fused)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [free[0][2], free[1][4]])
    for least in (None, 4):
        settings = {"min_new_tokens": least, "max_new_tokens": 8}
        wanted = write(model, "padded", use_cache=False, **settings)
        assert wanted != free
        for kind in (None, "static"):
            assert write(model, "padded", cache_implementation=kind, **settings) == wanted


def test_a_compiled_step_writes_the_same_and_is_compiled_only_when_asked_for(made, monkeypatch):
    wanted = uncached(made, "llama", "unpadded", "greedy")
    model, _ = made("llama")
    calls = []
    compiled = type(model).get_compiled_call
    monkeypatch.setattr(type(model), "get_compiled_call", lambda *a: calls.append(1) or compiled(*a))
    how = CompileConfig(backend="eager", mode=None, fullgraph=False, dynamic=None)
    how._compile_all_devices = True
    assert write(model, cache_implementation="static") == wanted and not calls
    assert write(model, cache_implementation="static", compile_config=how) == wanted and calls


def test_a_cache_is_read_by_the_passes_that_it_was_made_for(made):
    wanted = uncached(made, "llama", "unpadded", "greedy")
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    for fused, kind in ((True, FusedCache), (False, PairedCache)):
        model, _ = made("llama", fused)
        cache = model.new_cache()
        assert isinstance(cache, kind)
        model.fused = not fused
        assert model.generate(**PROMPTS["unpadded"], **{CACHE: cache}, **settings)[:, 6:].tolist() == wanted


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_caches_of_other_models_are_refused(made, make_target, make_unlearned, fused):
    model, _ = made("llama", fused)
    config = model.target.config
    deeper = make_unlearned(model.target, 3)
    others = [
        DynamicCache(),
        StaticCache(config, max_cache_len=20),
        EncoderDecoderCache(DynamicCache(), DynamicCache()),
        FusedCache(DynamicCache(config=config), [2, 2, 2, 1]),
        PairedCache(DynamicCache(config=config)),
        deeper.new_cache(),
    ]
    for other in others:
        with pytest.raises(ULDError, match=r"was not made for this model: pass model\.new_cache\(\) instead"):
            model(PROMPTS["unpadded"]["input_ids"], past_key_values=other)


def test_a_paged_cache_is_not_for_padded_prompts(made):
    model, _ = made("llama")
    with pytest.raises(ULDError, match=r"prompts without padding: give them to model\.generate_batch, as lists"):
        model.generate(PROMPTS["unpadded"]["input_ids"], cache_implementation="paged", max_new_tokens=2)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_a_family_without_a_cache_writes_without_one(made, fused):
    wanted = uncached(made, "openai_gpt", "unpadded", "greedy")
    model, _ = made("openai_gpt", fused)
    assert write(model) == wanted
    assert model(PROMPTS["unpadded"]["input_ids"]).get(CACHE) is None
    with pytest.raises(ULDError, match="transformers makes no cache for OpenAIGPTLMHeadModel: set use_cache=False"):
        model.new_cache()


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_a_cache_that_a_family_does_not_manage_is_not_used(made, fused, monkeypatch, caplog):
    wanted = uncached(made, "gpt_neo", "unpadded", "greedy")
    model, _ = made("gpt_neo", fused)
    with pytest.raises(ULDError, match=r"no cache of the kind static: GPTNeoForCausalLM would write something else"):
        write(model, cache_implementation="static")
    assert write(model) == wanted
    monkeypatch.setattr(model, "_managed", {})
    monkeypatch.setattr(DynamicCache, "get_seq_length", lambda *_: 0)  # positions that a cache does not move on
    with caplog.at_level(logging.INFO, "uld"):
        assert write(model) == wanted
    assert "text is generated without one" in caplog.text


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_a_text_beyond_the_last_position_is_refused(made, fused):
    model, _ = made("gpt2", fused)
    settings = {"min_new_tokens": 1}
    assert write(model, max_new_tokens=19, min_new_tokens=19)  # the last token needs no position
    with pytest.raises(ULDError, match=r"6 tokens with 20 new ones takes 25 positions, and GPT2LMHeadModel has "):
        write(model, max_new_tokens=20, **settings)
    rotary, _ = made("llama", fused)
    long = PROMPTS["unpadded"]["input_ids"].repeat(1, 21)  # 126 of its 128 positions
    assert rotary.generate(long, do_sample=False, max_new_tokens=8, min_new_tokens=8).shape[1] == 134


@pytest.mark.parametrize("vocab", [7, 3000, 20000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])  # from nearly uniform, where nearly all of it is sorted, to peaked
def test_the_nucleus_is_that_of_a_whole_sort(vocab, spread):
    scores = torch.randn(4, vocab, generator=torch.Generator().manual_seed(1)) * spread
    scores[0, ::2] = -torch.inf
    share = torch.tensor([[0.95], [0.5], [1.0], [1e-9]])
    kept = nucleus(scores, share).isfinite()
    for row, p, mine in zip(scores.double(), share[:, 0].tolist(), kept, strict=True):
        order = row.argsort(descending=True)
        chances = row.softmax(-1)[order]
        sure = chances.cumsum(-1) - chances
        assert mine[order[sure < p - 1e-5]].all()  # fp32 may decide otherwise within rounding
        assert not mine[order[sure > p + 1e-5]].any()
        assert mine[order[0]]
    assert torch.equal(nucleus(scores, share)[2], scores[2])
    assert nucleus(scores, share)[kept].equal(scores[kept])


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("where", ["option", "generation config"])
def test_an_early_exit_is_refused_and_leaves_the_target_whole(made, fused, where):
    """transformers puts it into the target's config for a while: an error in between would leave it there."""
    wanted = uncached(made, "llama", "unpadded", "greedy")
    model, _ = made("llama", fused)
    how = {"assistant_early_exit": 1} if where == "option" else {}
    if not how:
        how = {"generation_config": GenerationConfig(do_sample=False, max_new_tokens=6, assistant_early_exit=1)}
    with pytest.raises(ULDError, match="assistant_early_exit would cut off layers of the target alone: leave it out"):
        model.generate(**PROMPTS["unpadded"], **how)
    assert model.target.config.num_hidden_layers == 4 and write(model) == wanted
