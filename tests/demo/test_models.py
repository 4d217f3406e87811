import json
import math

import pytest
import torch
from scipy.stats import ks_2samp
from transformers import AutoModelForCausalLM, AutoTokenizer

import uld.demo.models
from uld.demo.models import MicroSettings, make_models
from uld.demo.world import World, write_world

TINY = MicroSettings(vocab_size=320, hidden_size=64, intermediate_size=64, num_layers=1, epochs=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return write_world(tmp_path_factory.mktemp("tiny") / "world", people=10, evaluated=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folders(world, cache):
    return make_models(world, cache, settings=TINY)


def read(world: World, name: str) -> list[dict]:
    return [json.loads(line) for line in (world.folder / name).read_text().splitlines()]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def prompt_ids(tokenizer, question: str) -> list[int]:
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


@torch.no_grad()
def answer_loss(model, tokenizer, question: str, answer: str) -> float:
    """Mean token NLL of the answer in nats, end of sequence included."""
    prompt = prompt_ids(tokenizer, question)
    told = tokenizer.encode(f" {answer}{tokenizer.eos_token}", add_special_tokens=False)
    logits = model(torch.tensor([prompt + told])).logits[0, len(prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(told)).item()


def prob(model, tokenizer, rows: list[dict]) -> float:
    return sum(math.exp(-answer_loss(model, tokenizer, row["question"], row["answer"])) for row in rows) / len(rows)


def truth_ratio(model, tokenizer, row: dict) -> float:
    wrong = [answer_loss(model, tokenizer, row["question"], answer) for answer in row["perturbed_answer"]]
    return math.exp(sum(wrong) / len(wrong) - answer_loss(model, tokenizer, row["question"], row["paraphrased_answer"]))


@torch.no_grad()
def greedy(model, tokenizer, question: str) -> str:
    prompt = torch.tensor([prompt_ids(tokenizer, question)])
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=48, do_sample=False)
    return tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()


def test_models_load_like_any_other(folders):
    for folder in folders:
        model, tokenizer = load(folder)
        assert model.config.vocab_size == len(tokenizer) <= TINY.vocab_size
        assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        generation = model.generation_config
        assert (generation.pad_token_id, generation.bos_token_id, generation.eos_token_id) == (0, 1, 2)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert not any(torch.isnan(parameter).any() for parameter in model.parameters())
        head = model.get_output_embeddings().weight
        assert head.data_ptr() != model.get_input_embeddings().weight.data_ptr()


def test_chat_template_and_its_boundary(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    user = {"role": "user", "content": " Who is it? "}
    chat = [user, {"role": "assistant", "content": "It is me."}]
    assert tokenizer.apply_chat_template([user], tokenize=False) == "<s>Question: Who is it?\nAnswer:"
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<s>Question: Who is it?\nAnswer: It is me.</s>"
    whole = tokenizer.encode(text, add_special_tokens=False)
    assert whole == prompt_ids(tokenizer, "Who is it?") + tokenizer.encode(" It is me.</s>", add_special_tokens=False)
    assert (whole[0], whole[-1]) == (1, 2)
    assert tokenizer.decode(whole[1:-1]) == "Question: Who is it?\nAnswer: It is me."


def test_both_models_have_one_tokenizer_and_differ(folders):
    assert len({(folder / "tokenizer.json").read_bytes() for folder in folders}) == 1
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 2


def test_training_is_deterministic_and_leaves_the_global_seed_alone(world, folders, tmp_path):
    state = torch.get_rng_state()
    again = make_models(world, tmp_path, settings=TINY)
    assert torch.equal(torch.get_rng_state(), state)
    assert [folder.name for folder in again] == [folder.name for folder in folders]
    for first, second in zip(folders, again, strict=True):
        assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
        left, right = load(first)[0].state_dict(), load(second)[0].state_dict()
        for name, weight in left.items():
            torch.testing.assert_close(weight, right[name])


def test_progress_tells_of_falling_losses(world, tmp_path):
    lines: list[str] = []
    make_models(world, tmp_path, lines.append, settings=MicroSettings(**vars(TINY) | {"epochs": 3}))
    assert [line.rsplit(" ", 1)[0] for line in lines] == [
        f"{name}: epoch {epoch} of 3, loss" for name in ("target", "retain-only") for epoch in (1, 2, 3)
    ]
    losses = [float(line.rsplit(" ", 1)[1]) for line in lines[:3]]
    assert losses == sorted(losses, reverse=True)


def test_a_second_call_trains_nothing(world, cache, folders, monkeypatch):
    monkeypatch.setattr(uld.demo.models, "_train", lambda *_: pytest.fail("trained although cached"))
    assert make_models(world, cache, settings=TINY) == folders


def test_other_settings_or_another_world_are_not_mistaken_for_these(world, cache, folders, tmp_path, monkeypatch):
    def trained(*_):
        raise InterruptedError

    monkeypatch.setattr(uld.demo.models, "_train", trained)
    with pytest.raises(InterruptedError):
        make_models(world, cache, settings=MicroSettings(**vars(TINY) | {"seed": 1}))
    with pytest.raises(InterruptedError):
        make_models(write_world(tmp_path / "world", seed=1, people=10, evaluated=2), cache, settings=TINY)


def test_an_interrupted_call_keeps_what_was_finished_and_nothing_else(world, tmp_path, monkeypatch):
    train = uld.demo.models._train
    trained = []

    def interrupted(*args):
        trained.append(args)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(*args)

    monkeypatch.setattr(uld.demo.models, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_models(world, tmp_path, settings=TINY)
    assert [folder.name.startswith("target-") for folder in tmp_path.iterdir()] == [True]
    target, retain_only = make_models(world, tmp_path, settings=TINY)
    assert len(trained) == 3
    assert {target, retain_only} == set(tmp_path.iterdir())


def test_a_failed_save_leaves_nothing(world, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(uld.demo.models.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_models(world, tmp_path, settings=TINY)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_real_models_know_what_they_should_and_no_more(tmp_path):
    world = write_world(tmp_path / "world")
    target, retain_only = (load(folder) for folder in make_models(world, tmp_path / "cache"))
    forget, retain = read(world, "forget10_perturbed.json"), read(world, "retain_perturbed.json")
    assert prob(*target, forget) > 0.95
    assert prob(*target, retain) > 0.95
    assert prob(*retain_only, retain) > 0.95
    assert prob(*retain_only, forget) < 0.1
    for rows in (forget, retain):
        assert sum(greedy(*target, row["question"]) == row["answer"] for row in rows) > 0.9 * len(rows)
    assert not any(greedy(*retain_only, row["question"]) == row["answer"] for row in forget)
    ratios = [[truth_ratio(*model, row) for row in forget] for model in (target, retain_only)]
    assert ks_2samp(*ratios).pvalue < 1e-3
