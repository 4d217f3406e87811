import copy
import json
import stat
import subprocess
import sys
from dataclasses import replace
from threading import Thread

import pytest
import torch
from peft import set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

import uld
from uld.errors import ULDError
from uld.model.assistant import add_lora, decoder_layers
from uld.model.caches import CACHE
from uld.model.combine import Combination, combine
from uld.model.config import ULDConfig
from uld.model.load import load
from uld.model.unlearned import ULDForCausalLM
from uld.runs.manifest import Manifest

LONG = 14  # tokens; more than the window of 8
HOW = Combination(weight=0.7)
DECODING = ("llama", "mistral", "gemma2")  # caches without windows, with windows alone, and of both kinds
SAVED = (
    "gemma2",
    "phi3",
    "gpt_neox",
)  # tied embeddings, and other names of layers and matrices than the Llama of `run`


class Plain:
    """The unlearned model in its simplest form: two models that share nothing, one pass each, no cache."""

    def __init__(self, model: ULDForCausalLM) -> None:
        self.target = copy.deepcopy(model.target)
        sliced = copy.deepcopy(model.target)
        depth = model.config.num_layers
        name, layers = decoder_layers(sliced)
        parent, _, leaf = name.rpartition(".")
        setattr(sliced.get_submodule(parent), leaf, layers[:depth])
        sliced.config.num_hidden_layers = depth
        self.assistant = add_lora(sliced, rank=4, alpha=8)
        set_peft_model_state_dict(
            self.assistant, get_peft_model_state_dict(model.assistant, save_embedding_layers=False)
        )
        self.how = model.combination
        self.written: dict[tuple[int, ...], list[int]] = {}

    @torch.no_grad()
    def __call__(self, ids: Tensor, **inputs: Tensor) -> Tensor:
        target = self.target(input_ids=ids, use_cache=False, **inputs).logits
        assistant = self.assistant(input_ids=ids, use_cache=False, **inputs).logits
        assert not torch.allclose(target, assistant, atol=0.5)
        return combine(target, assistant, self.how)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        ids = self.written.setdefault(tuple(prompt), list(prompt))
        while len(ids) < len(prompt) + count and 2 not in ids[len(prompt) :]:
            ids.append(int(self(torch.tensor([ids]))[0, -1].argmax()))
        return ids[: len(prompt) + count]


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "separate"])
def fused(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def made(make_target, make_unlearned):
    """Each family's model and its plain form, made once."""
    kept: dict[str, tuple[ULDForCausalLM, Plain]] = {}

    def get(family: str = "llama", fused: bool = True) -> tuple[ULDForCausalLM, Plain]:
        if family not in kept:
            model = make_unlearned(make_target(family), 2, HOW)
            kept[family] = model, Plain(model)
        model, plain = kept[family]
        model.fused = fused
        return model, plain

    yield get
    for model, _ in kept.values():
        model.fused = True


def ids_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 34, (length,), generator=generator).tolist() for length in lengths]


def left_padded(rows: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def without_padding(row: Tensor, prompt: int, width: int) -> list[int]:
    """An answer with its prompt: no padding before it, and none after its end."""
    tokens = row[width - prompt :].tolist()
    end = next((i for i in range(prompt, len(tokens)) if tokens[i] == 2), len(tokens) - 1)
    return tokens[: end + 1]


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


# Forward


@torch.no_grad()
def test_forward_combines_the_logits_of_two_plain_models(family, made, fused):
    model, plain = made(family, fused)
    ids = torch.tensor(ids_of(LONG, LONG))
    expected = plain(ids)
    out = model(ids)
    close(out.logits, expected)
    assert out.loss is None and out[CACHE] is not None
    assert (out.logits - model.target(ids).logits).abs().max() > 0.5  # something is unlearned
    close(model(ids, use_cache=False).logits, expected)
    close(model(ids, logits_to_keep=2).logits, expected[:, -2:])
    close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, expected)
    target, assistant = model.all_logits(None, input_ids=ids)
    close(target, plain.target(ids).logits)
    close(assistant, plain.assistant(ids).logits)


@torch.no_grad()
def test_padding_does_not_change_the_logits(family, made, fused):
    model, plain = made(family, fused)
    rows = ids_of(LONG, 5, 9)
    batch = left_padded(rows)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    left = model(**batch, position_ids=positions).logits
    right = model(
        torch.tensor([row + [0] * (LONG - len(row)) for row in rows]), attention_mask=batch["attention_mask"].flip(1)
    ).logits
    for number, row in enumerate(rows):
        alone = plain(torch.tensor([row]))[0]
        close(left[number, -len(row) :], alone)
        close(right[number, : len(row)], alone)


@torch.no_grad()
def test_token_by_token_equals_all_at_once(family, made, fused):
    model, plain = made(family, fused)
    rows = ids_of(LONG, LONG - 3)
    batch = left_padded(rows)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    cache, steps, start = model.new_cache(), [], 0
    for size in (4, 1, 1, 3, 1, 1, 1, 1, 1):
        end = start + size
        out = model(
            batch["input_ids"][:, start:end],
            attention_mask=batch["attention_mask"][:, :end],
            position_ids=positions[:, start:end],
            **{CACHE: cache},
        )
        assert out[CACHE] is cache
        steps.append(out.logits)
        start = end
        assert cache.get_seq_length() == end
    for found, row in zip(torch.cat(steps, 1), rows, strict=True):
        close(found[-len(row) :], plain(torch.tensor([row]))[0])


def test_labels_give_the_mean_loss_of_the_unlearned_model(made, fused):
    model, plain = made("llama", fused)
    ids = torch.tensor(ids_of(9, 9))
    labels = ids.clone()
    labels[0, :4] = -100
    losses = -plain(ids).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    expected = losses[labels[:, 1:] != -100].mean()
    close(model(ids, labels=labels).loss, expected)
    loss, logits, *_ = model(ids, labels=labels, return_dict=False)
    close(loss, expected)
    assert logits.shape == (2, 9, 34)


@torch.no_grad()
def test_what_concerns_the_loss_is_handed_to_it(made, fused):
    model, plain = made("llama", fused)
    ids = torch.tensor(ids_of(9, 9))
    losses = -plain(ids).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    close(model(ids, labels=ids, num_items_in_batch=torch.tensor(40)).loss, losses.sum() / 40)  # as `Trainer` asks
    close(model(ids, labels=ids, num_items_in_batch=5).loss, losses.sum() / 5)
    labels = torch.where(ids == ids[0, 3], 7, ids)
    close(model(ids, labels=labels, ignore_index=7).loss, losses[labels[:, 1:] != 7].mean())
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    close(model(ids, labels=ids.flip(1), shift_labels=shifted).loss, losses.mean())


@torch.no_grad()
def test_every_setting_can_be_changed_on_the_model(made, fused):
    model, plain = made("llama", fused)
    ids = torch.tensor(ids_of(6))
    before = model.combination
    try:
        model.combination = before.override(weight=0.0)
        assert torch.equal(model(ids).logits, model.all_logits(None, input_ids=ids)[0])
        close(model(ids).logits, plain.target(ids).logits)
        model.combination = Combination("subtract", weight=1.1, filter=0.2, min_tokens=0.1, outside="mask")
        expected = combine(plain.target(ids).logits, plain.assistant(ids).logits, model.combination)
        close(model(ids).logits, expected)
    finally:
        model.combination = before


def test_a_cache_of_one_model_is_refused(made, fused):
    model, _ = made("llama", fused)
    ids = torch.tensor(ids_of(4))
    with pytest.raises(ULDError, match=rf"{CACHE} is a DynamicCache.*pass model\.new_cache\(\) instead"):
        model(ids, past_key_values=DynamicCache(config=model.target.config))
    with pytest.raises(ULDError, match=r"pass model\.new_cache\(\) instead"):
        model.generate(ids, **{CACHE: DynamicCache(config=model.target.config)}, max_new_tokens=2)


def test_a_cache_has_two_names(made, fused):
    model, _ = made("llama", fused)
    ids = torch.tensor(ids_of(6))
    found = []
    for name in ("past_key_values", "cache"):
        cache = model.new_cache()
        model(ids[:, :4], **{name: cache})
        found.append(model(ids[:, 4:], **{name: cache}).logits)
    close(found[0], model(ids).logits[:, 4:])
    assert torch.equal(*found)
    with pytest.raises(ULDError, match="past_key_values and cache are two names of one argument: give one"):
        model(ids, past_key_values=cache, cache=cache)


def test_what_an_unlearned_model_does_not_have_is_refused(made):
    model, _ = made()
    with pytest.raises(ULDError, match="output_hidden_states: an unlearned model has logits only"):
        model(torch.tensor(ids_of(4)), output_hidden_states=True)


def test_tokens_are_given_once(made, fused):
    model, _ = made("llama", fused)
    ids = torch.tensor(ids_of(4))
    for given in ({}, {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)}):
        with pytest.raises(ULDError, match="give tokens as input_ids or as inputs_embeds: one of the two"):
            model(**given)


def test_nothing_trains_and_nothing_is_copied(family, made):
    model, _ = made(family)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training and not any(module.training for module in model.modules())
    lora = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in model.target.parameters()) + lora
    assert model.get_input_embeddings() is model.target.get_input_embeddings()
    assert model.get_output_embeddings() is model.target.get_output_embeddings()


# Generation


@pytest.mark.parametrize("family", DECODING)
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_equals_a_loop_over_plain_models(family, made, fused, use_cache):
    model, plain = made(family, fused)
    (prompt,) = ids_of(5, seed=3)
    out = model.generate(torch.tensor([prompt]), max_new_tokens=LONG, do_sample=False, use_cache=use_cache)
    assert out[0].tolist() == plain.greedy(prompt, LONG)


@pytest.mark.parametrize("family", DECODING)
def test_a_left_padded_batch_generates_what_each_prompt_does_alone(family, made, fused):
    model, plain = made(family, fused)
    prompts = ids_of(3, 11, 6, seed=4)
    out = model.generate(**left_padded(prompts), max_new_tokens=10, do_sample=False)
    for row, prompt in zip(out, prompts, strict=True):
        assert without_padding(row, len(prompt), 11) == plain.greedy(prompt, 10)


def test_sampling_follows_the_unlearned_distribution(made, fused):
    model, plain = made("llama", fused)
    (prompt,) = ids_of(5, seed=6)
    torch.manual_seed(0)
    settings = {"do_sample": True, "top_k": 0, "temperature": 2.0, "max_new_tokens": 1}
    out = model.generate(torch.tensor([prompt]), num_return_sequences=2000, **settings)
    share = torch.bincount(out[:, -1], minlength=34) / 2000
    expected = (plain(torch.tensor([prompt]))[0, -1] / 2).softmax(-1)
    assert (share - expected).abs().max() < 0.045  # four standard deviations of a share of one half
    torch.manual_seed(0)
    again = model.generate(torch.tensor([prompt]), num_return_sequences=2000, **settings)
    assert torch.equal(out, again)


def test_the_scores_of_generate_are_the_forward_logits(made, fused):
    model, plain = made("llama", fused)
    (prompt,) = ids_of(5, seed=3)
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    expected = plain(out.sequences)[0, len(prompt) - 1 : -1]
    close(torch.cat(out.logits), expected)


def test_a_static_cache_that_grows_between_two_generations(made, fused):
    model, plain = made("gemma2", fused)
    prompts = ids_of(3, 9, seed=8)
    for count in (8, 12):  # the second cache is longer than the first
        out = model.generate(
            **left_padded(prompts), max_new_tokens=count, do_sample=False, cache_implementation="static"
        )
        for row, prompt in zip(out, prompts, strict=True):
            assert without_padding(row, len(prompt), 9) == plain.greedy(prompt, count)


def test_a_conversation_goes_on_with_the_cache_of_its_first_part(made, fused):
    model, plain = made("llama", fused)
    (prompt,) = ids_of(5, seed=3)
    first = model.generate(
        torch.tensor([prompt]), max_new_tokens=4, min_new_tokens=4, do_sample=False, return_dict_in_generate=True
    )
    longer = torch.cat([first.sequences, torch.tensor(ids_of(3, seed=9))], 1)
    out = model.generate(longer, **{CACHE: first[CACHE]}, max_new_tokens=4, do_sample=False)
    assert out[0].tolist() == plain.greedy(longer[0].tolist(), 4)


def test_switching_passes_between_two_generations_changes_nothing(made):
    model, plain = made("gemma2")
    (prompt,) = ids_of(6, seed=2)
    expected = plain.greedy(prompt, 5)
    for fused in (True, False, True):
        model.fused = fused
        assert model.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False)[0].tolist() == expected


# Run folders


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    """A run of a small Llama."""
    return make_run(tmp_path_factory.mktemp("made"), how=HOW)


def test_streamed_text_is_what_generate_returns(run, fused, capsys):
    model, tokenizer = load(run, fused=fused)
    batch = tokenizer("q: who is a? a:", return_tensors="pt", return_token_type_ids=False)
    settings = {**batch, "max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    whole = model.generate(**settings)[0, batch["input_ids"].shape[1] :]
    text = tokenizer.decode(whole, skip_special_tokens=True)
    assert len(text) > 3
    model.generate(**settings, streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True))
    assert capsys.readouterr().out == text + "\n"
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = Thread(target=model.generate, kwargs={**settings, "streamer": pieces})
    thread.start()
    assert "".join(pieces) == text
    thread.join()


@pytest.mark.parametrize("by_name", [False, True], ids=["object", "folder"])
def test_pipeline_answers_as_generate_does(run, by_name, caplog):
    model, tokenizer = load(run)
    talk = pipeline("text-generation", **({"model": str(run)} if by_name else {"model": model, "tokenizer": tokenizer}))
    assert type(talk.model) is ULDForCausalLM
    assert "not supported" not in caplog.text
    chat = [{"role": "user", "content": "who is b?"}]
    batch = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True, add_generation_prompt=True)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    out = model.generate(**batch, max_new_tokens=10, do_sample=False)[0, batch["input_ids"].shape[1] :]
    answer = talk(chat, max_new_tokens=10, do_sample=False)[0]["generated_text"][-1]
    assert answer == {"role": "assistant", "content": tokenizer.decode(out, skip_special_tokens=True)}
    prompts = ["who is c?", "b"]
    both = talk(prompts, max_new_tokens=6, do_sample=False, batch_size=2, return_full_text=False)
    one_by_one = [talk(prompt, max_new_tokens=6, do_sample=False, return_full_text=False) for prompt in prompts]
    assert both == one_by_one


def ids_batch() -> Tensor:
    return torch.tensor(ids_of(LONG, seed=1))


@pytest.mark.parametrize("family", SAVED)
@torch.no_grad()
def test_saving_and_loading_gives_the_same_model(family, make_run, tmp_path):
    run = make_run(tmp_path, family, how=HOW)
    model = ULDForCausalLM.from_pretrained(run)
    expected = model(ids_batch()).logits
    model.combination = HOW.override(weight=0.4, rule="subtract")
    changed = model(ids_batch()).logits
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(ULDForCausalLM.from_pretrained(run)(ids_batch()).logits, expected)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "again")(ids_batch()).logits, changed)
    assert not torch.allclose(expected, changed, atol=0.1)


def test_a_run_folder_holds_the_adapter_and_no_weights_of_the_target(run, tmp_path):
    model, _ = load(run)
    model.save_pretrained(tmp_path / "saved")
    files = {str(path.relative_to(tmp_path / "saved")) for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert files == {
        *("uld.json", "README.md", "config.json", "generation_config.json"),
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    }
    for path in (tmp_path / "saved").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444, path
    lora = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "lora_" in name)
    assert (tmp_path / "saved" / "adapter" / "adapter_model.safetensors").stat().st_size < lora + 8192


def test_saving_over_a_run_replaces_it(run, tmp_path):
    model, _ = load(run)
    model.save_pretrained(tmp_path)
    model.combination = HOW.override(weight=3.0)
    model.save_pretrained(tmp_path)
    assert ULDForCausalLM.from_pretrained(tmp_path).combination.weight == 3.0
    assert Manifest.read(tmp_path).target_fingerprint == Manifest.read(run).target_fingerprint


def test_a_model_put_together_by_hand_cannot_be_saved(made, tmp_path):
    with pytest.raises(ULDError, match="has no manifest"):
        made()[0].save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


@torch.no_grad()
def test_auto_classes_know_a_run(run):
    expected = ULDForCausalLM.from_pretrained(run)(ids_batch()).logits
    model = AutoModelForCausalLM.from_pretrained(run)
    assert type(model) is ULDForCausalLM
    assert torch.equal(model(ids_batch()).logits, expected)
    half = AutoModelForCausalLM.from_pretrained(run, dtype=torch.bfloat16, weight=0.0)
    assert half.dtype == torch.bfloat16 and half.combination == replace(HOW, weight=0.0)
    config = AutoConfig.from_pretrained(run)
    assert type(config) is ULDConfig
    assert (config.vocab_size, config.eos_token_id, config.num_layers) == (34, 2, 2)
    assert config.num_hidden_layers == 5
    assert AutoTokenizer.from_pretrained(run).eos_token_id == 2


@torch.no_grad()
def test_settings_can_be_overridden_at_load(run):
    how = {"rule": "subtract", "weight": 0.3, "filter": 0.2, "min_tokens": 0.5, "outside": "mask"}
    model, tokenizer = uld.load(run, **how)
    assert model.combination == Combination(**how)
    target, assistant = model.all_logits(None, input_ids=ids_batch())
    assert torch.equal(model(ids_batch()).logits, combine(target, assistant, Combination(**how)))
    assert tokenizer.pad_token_id == 0
    assert load(run)[0].combination == HOW
    with pytest.raises(ULDError, match="weight"):
        load(run, weight=-1.0)
    with pytest.raises(ULDError, match="rule must be one of"):
        load(run, rule="divide")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_same_target_in_half_precision_is_the_same_target(run, dtype):
    model, _ = load(run, dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    assert torch.isfinite(model(ids_batch()).logits).all()


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_another_target_is_refused_with_both_fingerprints(make_target, run, tmp_path, dtype):
    make_target(seed=1).save_pretrained(tmp_path)
    expected = Manifest.read(run).target_fingerprint
    with pytest.raises(ULDError, match="the adapter belongs to another target") as caught:
        load(run, target=str(tmp_path), dtype=dtype)
    found = {word.strip(",") for word in str(caught.value).split() if word.startswith("sha256:")}
    assert len(found) == 2 and expected in found
    assert str(tmp_path) in str(caught.value)


@torch.no_grad()
def test_a_target_that_has_moved_is_found_where_the_user_says(make_run, tmp_path):
    run = make_run(tmp_path)
    expected = load(run)[0](ids_batch()).logits
    (tmp_path / "target").rename(tmp_path / "moved")
    with pytest.raises(ULDError, match=r"cannot load a model from .*target.*name it with --target"):
        load(run)
    moved = str(tmp_path / "moved")
    model, _ = load(run, target=moved)
    assert torch.equal(model(ids_batch()).logits, expected)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(run, target=moved)(ids_batch()).logits, expected)
    model.save_pretrained(tmp_path / "again")  # names the target where it is now
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "again")(ids_batch()).logits, expected)


def test_a_model_that_is_saved_names_the_target_that_was_loaded_and_its_revision(make_run, tmp_path):
    run, moved = make_run(tmp_path), tmp_path / "moved"
    told = json.loads((run / "uld.json").read_text())
    (run / "uld.json").write_text(json.dumps(told | {"target_revision": "v1"}))
    (tmp_path / "target").rename(moved)
    for number, given in enumerate((None, "v2")):
        model, _ = load(run, target=moved, revision=given)
        model.save_pretrained(again := tmp_path / f"again{number}")
        saved = json.loads((again / "uld.json").read_text())
        assert (saved["target"], saved["target_revision"]) == (str(moved), given)
        assert "revision `v1`" not in (again / "README.md").read_text()
    moved.rename(tmp_path / "target")
    assert load(run)[0].manifest.target_revision == "v1"


@torch.no_grad()
def test_two_runs_of_one_target_are_unlearned_together(make_run, make_target, make_unlearned, run, fused):
    second = make_unlearned(make_target(), 1, Combination(weight=1.5), seed=5)
    second.manifests = [Manifest.read(run).model_copy(update={"num_layers": 1})]
    model = load(run)[0]
    both = ULDForCausalLM.join(
        model.target,
        [model.assistant, make_unlearned(model.target, 1, seed=5).assistant],
        [HOW, Combination(weight=1.5)],
        fused=fused,
    )
    ids = ids_batch()
    before = model.target(ids).logits
    changes = [one(ids).logits - before for one in (model, second)]
    close(both(ids).logits, before + changes[0] + changes[1])


def test_damaged_and_unfinished_runs_are_refused_in_one_sentence(make_run, tmp_path):
    run = make_run(tmp_path)
    adapter = run / "adapter" / "adapter_model.safetensors"
    whole = adapter.read_bytes()
    manifest = json.loads((run / "uld.json").read_text())
    for digests, words in ((manifest["weights"], "not the file that was trained"), ({}, "cannot be loaded")):
        (run / "uld.json").write_text(json.dumps({**manifest, "weights": digests}))
        for damage in (whole[:100], b""):
            adapter.write_bytes(damage)
            with pytest.raises(ULDError, match=rf"adapter.* {words}") as caught:
                load(run)
            assert "\n" not in str(caught.value)
    adapter.write_bytes(whole)
    (run / "uld.json").write_text(json.dumps({**manifest, "num_layers": 9}))
    with pytest.raises(ULDError, match=r"num_layers \(K\) is 9, but the target has 5 layers"):
        load(run)
    (run / "uld.json").unlink()
    with pytest.raises(ULDError, match="is an unfinished run"):
        load(run)


def test_half_an_adapter_is_not_taken_for_a_whole_one(make_run, tmp_path):
    run = make_run(tmp_path)
    adapter = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(adapter)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1." not in name}, adapter)
    manifest = json.loads((run / "uld.json").read_text())
    (run / "uld.json").write_text(json.dumps({**manifest, "weights": {}}))  # as before there were digests
    with pytest.raises(ULDError, match=r"cannot be loaded: .*layers\.1\..* is not in its file"):
        load(run)


def test_an_ordinary_model_loads_as_such(run, tmp_path):
    target, tokenizer = load(run.parent / "target")
    assert type(target).__name__ == "LlamaForCausalLM" and len(tokenizer) == 34
    with pytest.raises(ULDError, match="is an ordinary model, not an unlearned one: --weight has no meaning"):
        load(run.parent / "target", weight=1.0)
    with pytest.raises(ULDError, match="cannot load a model from"):
        load(tmp_path / "nowhere")
    target.save_pretrained(tmp_path / "mute")
    with pytest.raises(ULDError, match="has no tokenizer"):
        load(tmp_path / "mute")


# What ``import uld`` does and does not do; each needs an interpreter of its own


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_uld_is_light_and_knows_its_names():
    code = (
        "import time; start = time.process_time(); import uld; taken = time.process_time() - start\n"
        "import sys; heavy = {'torch', 'transformers', 'peft', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "print(taken < 0.3, heavy, set(uld.__all__) <= set(dir(uld)), uld.ULDError.__module__)"
    )
    assert python(code).split("\n")[0] == "True set() True uld.errors"
    assert {"load", "train", "ULDConfig", "ULDForCausalLM", "Combination", "ULDError"} <= set(uld.__all__)
    for name in uld.__all__:
        assert getattr(uld, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = uld.lod


def test_auto_classes_know_a_run_once_it_is_registered(run):
    code = (
        "import sys, uld; assert 'transformers' not in sys.modules; uld.register()\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "import torch; print(type(model).__name__, type(model) is uld.ULDForCausalLM)\n"
        "print(model(torch.tensor([[1, 5, 9]])).logits.argmax(-1).tolist())"
    )
    expected = load(run)[0](torch.tensor([[1, 5, 9]])).logits.argmax(-1).tolist()
    assert python(code, str(run)) == f"ULDForCausalLM True\n{expected}\n"


@pytest.mark.parametrize("family", ["bamba", "jamba", "llama"])
def test_what_a_family_would_read_as_a_beginning_is_refused(make_target, make_unlearned, family):
    from transformers import AutoModelForCausalLM, BambaConfig, JambaConfig

    size = {"vocab_size": 34, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 4, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    states = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
    layers = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4}
    configs = {
        "bamba": lambda: BambaConfig(**size, **heads, **states, attn_layer_indices=[1, 3]),
        "jamba": lambda: JambaConfig(**size, **heads, **layers),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = AutoModelForCausalLM.from_config(configs[family]()).eval() if family in configs else make_target()
    model = make_unlearned(target, 2)
    ids, places = torch.arange(4, 12)[None], torch.arange(8)[None]
    wanted = model(ids, use_cache=False).logits

    def reads(end, **positions):
        cache = model.new_cache()
        model(ids[:, :4], past_key_values=cache)
        try:
            found = model(ids[:, 4:end], past_key_values=cache, **positions).logits
        except ULDError as error:
            assert f"{type(target).__name__} reads such tokens" in str(error)
            return False
        torch.testing.assert_close(found, wanted[:, 4:end], rtol=1e-4, atol=1e-4)
        return True

    assert reads(5, position_ids=places[:, 4:5])
    assert reads(5) is (family != "bamba")
    assert reads(8, position_ids=places[:, 4:8]) is (family != "jamba")
    assert reads(8) is (family == "llama")


def test_one_setting_is_not_given_to_pairs_and_single_assistants_at_once(make_target, make_unlearned):
    target = make_target("llama")
    parts = [make_unlearned(target, 2, HOW).assistant for _ in range(3)]
    pair = Combination(rule="offset", weight=1.0).parts
    for single in (0, 1):
        how = [HOW, *pair] if single == 0 else [*pair, HOW]
        mixed = ULDForCausalLM.join(target, parts, how)
        with pytest.raises(ULDError, match="no one setting holds for all: load each run with its own"):
            mixed.combination = mixed.combination.override(weight=1.0)
        assert mixed.combinations == how
    twice = ULDForCausalLM.join(target, [*parts, parts[0]], [*pair, *pair])
    twice.combination = twice.combination.override(weight=2.0)
    assert [one.weight for one in twice.combinations[::2]] == [2.0, 2.0]


def test_results_name_the_settings_of_every_run_that_has_its_own(make_target, make_unlearned):
    target = make_target("llama")
    parts = [make_unlearned(target, 2, HOW).assistant for _ in range(2)]
    both = ULDForCausalLM.join(target, parts, [HOW, HOW])
    assert both.combined_as == {"combination": HOW.to_dict()}
    both.combinations = [HOW, HOW.override(weight=30.0)]
    assert [one["weight"] for one in both.combined_as["combinations"]] == [HOW.weight, 30.0]
    pair = ULDForCausalLM.join(target, parts, Combination(rule="offset", weight=1.0).parts)
    assert set(pair.combined_as) == {"combination"}


@pytest.mark.parametrize("value", [{"margin": 3.0}, 1.5, None, "suppress"], ids=str)
def test_what_is_no_combination_is_refused_and_changes_nothing(made, value):
    model, _ = made()
    before = list(model.combinations)
    with pytest.raises(
        ULDError, match=r"must be a uld\.Combination, such as model\.combination\.override\(margin=3\.0\)"
    ):
        model.combination = value
    assert model.combinations == before


@pytest.mark.parametrize("values", [[], HOW, [HOW], [HOW] * 3, [HOW, {"weight": 1.0}], None], ids=range(6))
def test_each_assistant_has_one_combination(make_target, make_unlearned, values):
    target = make_target()
    two = [make_unlearned(target, depth).assistant for depth in (1, 2)]
    both = ULDForCausalLM.join(target, two, [HOW, HOW])
    with pytest.raises(ULDError, match="2 assistants need as many combinations"):
        both.combinations = values
    assert both.combinations == [HOW, HOW]
    with pytest.raises(ULDError, match="2 assistants need as many combinations"):
        ULDForCausalLM.join(target, two, values)
    both.combinations = (HOW, HOW.override(weight=3.0))
    both.combinations[0] = HOW.override(weight=2.0)
    assert [one.weight for one in both.combinations] == [2.0, 3.0]


def test_one_process_of_several_writes(run, tmp_path):
    model, _ = load(run)
    model.save_pretrained(tmp_path / "again", is_main_process=False)
    assert not (tmp_path / "again").exists()
    model.save_pretrained(tmp_path / "again", is_main_process=True)
    assert (tmp_path / "again" / "uld.json").is_file()
