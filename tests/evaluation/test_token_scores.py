"""Statistics of single tokens equal those from plain full logits, and sum to what `Scorer.score` says."""

import numpy as np
import pytest
import torch

from uld.data.prompt import Encoded
from uld.evaluation.scoring import Scorer
from uld.evaluation.token_scores import scores_and_tokens, token_scores
from uld.model.combine import Combination

PROMPT = [1, 7, 9, 12]
ROWS = [
    Encoded([*PROMPT, 5, 6, 7, 2], [False] * 4 + [True] * 4),
    Encoded([*PROMPT, 5, 6, 20, 21, 22, 2], [False] * 4 + [True] * 6),
    Encoded([1, 30], [False, True]),
    Encoded([1, 2, 3], [True, False, False]),  # nothing predicts the first token
    Encoded([1, 8, 9, 10, 11, 12, 13], [False, True, True, False, False, True, True]),
]


@pytest.fixture(params=["llama", "gemma2", "unlearned"])
def model(request, make_target, make_unlearned):
    if request.param == "unlearned":
        return make_unlearned(make_target("llama"), 2)
    return make_target(request.param)


@torch.no_grad()
def naive(model, row):
    logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1].double()
    labels, learnt = torch.tensor(row.ids[1:]), torch.tensor(row.learn[1:])
    p, log_p = logits.softmax(-1), logits.log_softmax(-1)
    mean = (p * log_p).sum(-1)
    deviation = (p * (log_p - mean[:, None]) ** 2).sum(-1).sqrt()
    own = log_p[torch.arange(len(labels)), labels]
    return [one[learnt].numpy() for one in (own, mean, deviation, logits.argmax(-1) == labels)]


def test_every_token_scores_as_from_the_whole_row(model):
    scorer = Scorer(model, 0)
    found = token_scores(scorer, ROWS)
    for score, row in zip(found, ROWS, strict=True):
        expected = naive(model, row)
        for one, other in zip((score.log_probs, score.means, score.deviations), expected, strict=False):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(score.right, expected[3])
    sums = [score.loss for score in scorer.score(ROWS)[0]]
    assert [-score.log_probs.sum() for score in found] == pytest.approx(sums, rel=1e-5, abs=1e-5)


def test_one_pass_gives_every_score_and_the_tokens_of_marked_rows(model, monkeypatch):
    rows = [row for row in ROWS if True in row.learn[1:]]
    scorer = Scorer(model, 0)
    expected, tokens = scorer.score(rows)[0], token_scores(scorer, rows)
    passes = []
    states = scorer._states
    monkeypatch.setattr(scorer, "_states", lambda inputs: passes.append(inputs["input_ids"].shape) or states(inputs))
    scores, found = scores_and_tokens(scorer, rows, {1, 3})
    together, passes[:] = list(passes), []
    assert scores == expected and found.keys() == {1, 3}
    for row, one in found.items():
        for name in ("log_probs", "means", "deviations"):
            np.testing.assert_allclose(getattr(one, name), getattr(tokens[row], name), rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(one.right, tokens[row].right)
    scorer.score(rows)
    assert together == passes
    assert scores_and_tokens(scorer, rows, ())[1] == {}


def test_what_the_model_itself_says_is_right_everywhere(make_target):
    model = make_target("llama")
    said = model.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0].tolist()
    other = [*said[:8], (said[8] + 1) % 34, *said[9:]]
    learn = [False] * 4 + [True] * (len(said) - 4)
    own, changed = token_scores(Scorer(model, 0), [Encoded(said, learn), Encoded(other, learn)])
    assert own.right.all()
    assert changed.right[:4].all() and not changed.right[4]


def test_a_masked_token_has_probability_zero_and_the_rest_stays_finite(make_target, make_unlearned):
    how = Combination("subtract", weight=1.0, filter=0.9, min_tokens=0.0, outside="mask")
    found = token_scores(Scorer(make_unlearned(make_target("llama"), 2, how), 0), ROWS)
    assert any(np.isneginf(score.log_probs).any() for score in found)
    assert all(np.isfinite(score.means).all() and np.isfinite(score.deviations).all() for score in found)
