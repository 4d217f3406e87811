"""Both engines draw from one distribution: temperature, top-k and top-p, as the request and the model's file say."""

import copy

import pytest
import torch

from uld.model.generate import nucleus

WORDS = 120  # more than the 50 that generate's own top-k leaves


@pytest.fixture(scope="module")
def wide(make_target):
    """A target with a wide vocabulary, which lets many of them be drawn."""
    made = make_target("llama", num_layers=2, vocab_size=WORDS, initializer_range=0.1)
    made.generation_config.eos_token_id = None
    return made


@pytest.fixture
def drawn_from(make_client, wide, letters, monkeypatch):
    """The probabilities of the first token of an answer, under settings of the file: ``drawn_from(file, batching)``."""
    real, seen = torch.multinomial, []

    def multinomial(chances, *args, **kwargs):
        seen.append(chances.detach().clone())
        return real(chances, *args, **kwargs)

    def ask(file, batching, **fields):
        model = copy.deepcopy(wide)
        model.generation_config.update(**file)
        client = make_client(model=model, batching=batching)
        seen.clear()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "multinomial", multinomial)
            answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 1, **fields})
        assert answer.status_code == 200, answer.text
        return seen[-1].flatten() if seen else None

    return ask


def expected(wide, letters, heat, most, share):
    """Temperature, then the likeliest tokens, then those of them that have a share of the probability."""
    with torch.no_grad():
        scores = wide(torch.tensor([letters("abc").input_ids])).logits[0, -1:].float() / heat
    least = scores.topk(most).values[:, -1:]
    scores = scores.masked_fill(scores < least, -torch.inf)
    return nucleus(scores, torch.tensor([[share]])).softmax(-1).flatten()


@pytest.mark.parametrize("batching", [True, False])
@pytest.mark.parametrize(
    ("file", "fields", "drawn"),
    [
        ({}, {"temperature": 1}, (1.0, WORDS, 1.0)),
        ({}, {"temperature": 1.5, "top_p": 0.6}, (1.5, WORDS, 0.6)),
        ({"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}, {}, (0.7, 20, 0.8)),
        ({"do_sample": True, "top_k": 20, "top_p": 0.8}, {"temperature": 2, "top_p": 1}, (2.0, 20, 1.0)),
        ({"do_sample": False, "top_k": 5, "top_p": 0.9}, {"temperature": 1}, (1.0, 5, 0.9)),
        ({"do_sample": False, "top_k": 5}, {"top_p": 0.7}, (1.0, 5, 0.7)),
    ],
    ids=["temperature", "top-p", "file", "file and request", "file that is greedy", "top-p and file"],
)
def test_both_engines_draw_from_what_is_documented(drawn_from, wide, letters, file, fields, drawn, batching):
    wanted, found = expected(wide, letters, *drawn), drawn_from(file, batching, **fields)
    assert (found > 0).sum() == (wanted > 0).sum()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("batching", [True, False])
def test_a_greedy_request_gets_the_likeliest_token_whatever_the_file_says(drawn_from, wide, letters, batching):
    file = {"do_sample": True, "top_k": 5, "top_p": 0.5}
    found = drawn_from(file, batching, temperature=0)
    if found is not None:  # shared batches draw of one
        assert (found.argmax(), found.max()) == (expected(wide, letters, 1.0, 1, 1.0).argmax(), 1.0)
    assert (found is None) == (not batching)
