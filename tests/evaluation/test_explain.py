"""What unlearning took from an answer: equal to plain forwards, under any setting, with no model asked twice."""

import json
import math
from pathlib import Path

import pytest
import torch

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ULDError
from uld.evaluation.explain import ask, explain
from uld.model.combine import Combination, combine_all
from uld.model.generate import generate_answers
from uld.model.unlearned import ULDForCausalLM

QUESTION = "who is ada?"
STRONG = Combination(weight=3.0, margin=0.5, floor=1e-3)


@pytest.fixture(scope="module")
def model(make_target, make_unlearned):
    return make_unlearned(make_target("llama", num_layers=3), 2, STRONG)


@pytest.fixture(scope="module")
def form(letters):
    return PromptFormat(letters)


@pytest.fixture(scope="module")
def kept(model, form):
    return ask(model, form, QUESTION, max_new_tokens=6)


def plainly(model, form, answer: str, settings) -> list[tuple[float, float]]:
    """Log-probabilities of an answer's tokens before and after, from forwards without anything shared."""
    row = form.encode(Record.qa(QUESTION, answer), 10**6)
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        target, *assistants = (one[0] for one in model.all_logits(input_ids=ids))
    after = combine_all(target, assistants, settings).log_softmax(-1)
    before = target.log_softmax(-1)
    places = [place for place, learnt in enumerate(row.learn) if learnt]
    return [(float(before[place - 1, row.ids[place]]), float(after[place - 1, row.ids[place]])) for place in places]


def test_a_given_answer_has_the_numbers_of_plain_forwards(model, letters, form):
    (answer,) = explain(model, letters, QUESTION, "bob").answers
    assert (answer.who, answer.text) == ("given", "bob")
    assert "".join(token.text for token in answer.tokens) == " bob</s>"
    expected = plainly(model, form, "bob", model.combinations)
    found = [(token.before, token.after) for token in answer.tokens]
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-4)
    assert [token.taken for token in answer.tokens] == [before - after for before, after in found]
    assert answer.taken == pytest.approx(sum(before - after for before, after in expected), abs=1e-3)


def test_both_models_answers_are_those_that_they_generate(model, letters, form, kept):
    explanation = kept.under(model.combinations)
    prompt = [form.prompt_ids(QUESTION)]
    assert {one.who: one.text for one in explanation.answers} == {
        "target": generate_answers(model.target, letters, prompt, max_new_tokens=6)[0],
        "unlearned": generate_answers(model, letters, prompt, max_new_tokens=6)[0],
    }


def test_a_models_own_greedy_token_is_its_likeliest(kept, model):
    target, unlearned = kept.under(model.combinations).answers
    assert all(token.before == token.likeliest_before[0].log_prob for token in target.tokens)
    assert all(token.after == pytest.approx(token.likeliest_after[0].log_prob, abs=1e-5) for token in unlearned.tokens)
    for token in (*target.tokens, *unlearned.tokens):
        for likeliest in (token.likeliest_before, token.likeliest_after):
            values = [one.log_prob for one in likeliest]
            assert len(values) == 5 and values == sorted(values, reverse=True)


def test_without_a_weight_nothing_is_taken(kept, model):
    for answer in kept.under(model.settings_under(STRONG.override(weight=0.0))).answers:
        assert answer.taken == 0 and all(one.likeliest_before == one.likeliest_after for one in answer.tokens)


@pytest.mark.parametrize("change", [{"weight": 1.0}, {"margin": 2.0}, {"floor": 0.1}, {"weight": math.inf}])
def test_another_setting_costs_no_model_call_and_is_what_the_model_gives(model, letters, kept, monkeypatch, change):
    settings = model.settings_under(STRONG.override(**change))
    with monkeypatch.context() as patch:
        for name in ("all_logits", "all_hidden", "heads", "forward"):
            patch.setattr(ULDForCausalLM, name, None)
        moved = kept.under(settings)
    assert moved != kept.under(model.combinations)
    own = model.combinations
    try:
        model.combinations = settings
        again = ask(model, PromptFormat(letters), QUESTION, max_new_tokens=6).under(settings)
    finally:
        model.combinations = own
    for one, other in zip(moved.answers[0].tokens, again.answers[0].tokens, strict=True):  # the target's never changes
        assert one.text == other.text and one.after == pytest.approx(other.after, abs=1e-4)


def test_everything_can_be_written_as_json(kept, model):
    settings = model.settings_under(Combination(weight=math.inf))
    found = kept.under(settings).to_dict()
    assert found["question"] == QUESTION and len(found["answers"]) == 2
    token = found["answers"][0]["tokens"][0]
    assert set(token) == {"taken", "text", "before", "after", "likeliest_before", "likeliest_after"}
    assert json.dumps(found)


def test_an_ordinary_model_takes_nothing(make_target, letters):
    with pytest.raises(ULDError, match="has no assistant, so there is nothing that it takes away"):
        explain(make_target("llama", num_layers=1), letters, QUESTION)


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ("  ", None, "'question' is empty"),
        ("who\udce9", None, "half of a surrogate pair"),
        ("a" * 200, None, "the model takes fewer than 128"),
        (QUESTION, " ", "'answer' is empty"),
    ],
)
def test_bad_input_is_one_sentence(model, letters, question, answer, message):
    with pytest.raises(ULDError, match=message):
        explain(model, letters, question, answer)


@pytest.mark.parametrize("number", [0, -3, 2.5, "8"])
def test_a_number_of_tokens_that_is_none_is_refused_by_its_name(model, letters, number):
    with pytest.raises(ULDError, match="max_new_tokens must be"):
        explain(model, letters, QUESTION, max_new_tokens=number)


@pytest.mark.parametrize("kind", [str, Path])
def test_the_place_of_a_run_is_to_be_loaded_first(letters, kind):
    with pytest.raises(ULDError, match=r"runs/x is the place of a model: load it first .*uld\.load\('runs/x'\)"):
        explain(kind("runs/x"), letters, QUESTION)  # type: ignore[arg-type]
