"""Attacks on models: scores equal naive ones, a model that knows is exposed, and a stopped evaluation goes on."""

import json
import zlib

import pytest
import torch

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ULDError
from uld.evaluation import attacks, membership
from uld.evaluation.benchmark import Subject
from uld.evaluation.pipe import run
from uld.evaluation.scoring import Scorer
from uld.model.combine import Combination

WORDS = ("fedcba", "abba", "cabbage", "deaf bee", "bad cafe", "faced", "decade", "beef", "cab", "dada")
MEMBERS = [Record.qa(f"who is {word}?", f"{word[::-1]} {word}", f"m:{i}") for i, word in enumerate(WORDS)]
OTHERS = [Record(text=f"a {word} {word[1:]} b {word[::-1]}", source=f"o:{i}") for i, word in enumerate(WORDS)]
OTHER_ANSWERS = [Record.qa(f"what is {word}?", f"{word} {word[::-1]}", f"o:{i}") for i, word in enumerate(WORDS)]


def score_sets(model, tokenizer, members, non_members, folder, **settings):
    return run(attacks.Attacks(members, non_members, **settings), Subject(model, tokenizer), folder, progress=False)


def naive(model, row):
    """Log-probabilities from the whole row's logits, as a tensor with its graph."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1].float()
    own = logits.log_softmax(-1)[torch.arange(len(row.ids) - 1), torch.tensor(row.ids[1:])]
    return own[torch.tensor(row.learn[1:])]


@pytest.fixture(params=["llama", "gemma2", "unlearned", "filtered", "two passes"])
def model(request, make_target, make_unlearned):
    how = {"filtered": Combination("subtract", filter=0.1)}.get(request.param)
    if request.param in ("unlearned", "filtered", "two passes"):
        return make_unlearned(make_target("llama"), 2, how, fused=request.param != "two passes")
    return make_target(request.param)


def test_scores_are_those_of_every_text_alone(model, letters, tmp_path):
    found = score_sets(model, letters, MEMBERS, OTHERS, tmp_path, gradnorm=True)
    form = PromptFormat(letters)
    for name, records in zip(attacks.SETS, (MEMBERS, OTHERS), strict=True):
        for record, result in zip(records[:4], found[name][:4], strict=True):
            row = form.encode(record, 99) if record.text is None else form.chunks(record.text, 99)[0]
            with torch.no_grad():
                log_probs = naive(model, row).double().numpy()
            text = record.text or record.messages[1][1]
            assert result["tokens"] == len(log_probs)
            assert result["loss"] == pytest.approx(-log_probs.mean(), rel=1e-4)
            assert result["zlib"] == pytest.approx(-log_probs.mean() / len(zlib.compress(text.encode())), rel=1e-4)
            assert result["min_k"] == pytest.approx(membership.min_k(log_probs), rel=1e-4)


def test_gradnorm_is_the_mean_norm_over_weights(model, letters):
    weights = list(model.parameters())
    before = [one.requires_grad for one in weights]
    row = PromptFormat(letters).encode(MEMBERS[0], 99)
    found = attacks.gradient_norm(Scorer(model, 0), row)
    assert [one.requires_grad for one in weights] == before and all(one.grad is None for one in weights)
    for one in weights:
        one.requires_grad_(True)
    (-naive(model, row).mean()).backward()
    norms = [one.grad.norm() for one in weights if one.grad is not None]
    assert found == pytest.approx(float(torch.stack(norms).mean()), rel=1e-3)


def test_a_model_that_was_trained_on_the_members_is_exposed(make_target, letters, tmp_path):
    fresh, trained = (make_target("llama", num_layers=2, initializer_range=0.02) for _ in range(2))
    steps = torch.optim.AdamW(trained.parameters(), lr=0.01)
    rows = [PromptFormat(letters).encode(record, 99) for record in MEMBERS]
    ids, learn = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for one in column], batch_first=True)
        for column in ([row.ids for row in rows], [row.learn for row in rows])
    )
    trained.train()
    for _ in range(120):
        logits = trained(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        losses[learn[:, 1:]].mean().backward()
        steps.step()
        steps.zero_grad()
    trained.eval()

    def scores(model, name):
        return score_sets(model, letters, MEMBERS, OTHER_ANSWERS, tmp_path / name, gradnorm=name == "trained")

    reference = scores(fresh, "fresh")
    result = attacks.attack_result(scores(trained, "trained"), reference, reference)
    assert list(result.attacks) == list(attacks.ATTACKS) and not result.left_out
    for name, attack in result.attacks.items():
        assert attack.auc > 0.85, name
        assert attack.member_score < attack.other_score, name
    assert result.attacks["loss"].auc > result.attacks["loss"].retain_auc
    assert result.attacks["min_k"].privleak < -50
    assert result.attacks["reference"].retain_auc == 0.5


def test_long_texts_are_cut_and_counted(make_target, letters, tmp_path):
    model = make_target("llama")
    found = score_sets(model, letters, MEMBERS, OTHERS, tmp_path, max_length=30)
    form = PromptFormat(letters)
    rows = [form.encode(record, 99) for record in MEMBERS]
    assert ["cut" in result for result in found["members"]] == [len(row.ids) > 30 for row in rows]
    assert max(result["tokens"] for result in found["non_members"]) <= 30
    result = attacks.attack_result(found)
    assert result.cut == sum("cut" in row for name in attacks.SETS for row in found[name]) > 0
    assert f"{result.cut} texts were too long" in result.table()


def test_no_text_is_longer_than_the_model_has_places_for(letters, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"vocab_size": 34, "n_positions": 40, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=1, eos_token_id=2)).eval()
    long = [Record(text=f"{record.text} {'abc ' * 20}") for record in OTHERS]
    found = score_sets(model, letters, MEMBERS, long, tmp_path / "a", max_length=200)
    assert all(result["cut"] and result["tokens"] <= 40 for result in found["non_members"])
    assert found == score_sets(model, letters, MEMBERS, long, tmp_path / "b")
    asked = [Record.qa("who " * 20, "ann", "m:9")]
    with pytest.raises(ULDError, match=r"m:9: the prompt is \d+ tokens long, which leaves no room .* max_length 40"):
        score_sets(model, letters, asked, long, tmp_path / "c", max_length=200)


def test_a_stopped_evaluation_goes_on_and_gives_the_same_numbers(make_target, letters, tmp_path):
    model = make_target("llama")
    whole = score_sets(model, letters, MEMBERS, OTHERS, tmp_path)
    lines = (tmp_path / "members.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "members.jsonl").write_text("".join(lines[:3]) + lines[3][:9])
    (tmp_path / "non_members.jsonl").unlink()
    assert score_sets(model, letters, MEMBERS, OTHERS, tmp_path) == whole
    order = [json.loads(line)["row"] for line in lines]
    more = score_sets(model, letters, MEMBERS, OTHERS, tmp_path, gradnorm=True)
    rows = [json.loads(line) for line in (tmp_path / "members.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == order and all("gradnorm" in row for row in rows)  # each once, the new one
    assert all("gradnorm" in row for rows in more.values() for row in rows)
    with pytest.raises(ULDError, match=r"another model or with other settings \(data\)"):
        score_sets(model, letters, MEMBERS[:-1], OTHERS, tmp_path)


def test_sets_that_cannot_be_compared_are_refused(make_target, letters, tmp_path):
    model = make_target("llama")
    with pytest.raises(ULDError, match="there are no non-members"):
        score_sets(model, letters, MEMBERS, [], tmp_path)
    with pytest.raises(ULDError, match=r"2 texts are members and non-members at once \(m:0 and m:0\)"):
        score_sets(model, letters, MEMBERS, [*OTHERS, *MEMBERS[:2]], tmp_path)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ULDError, match="gives NaN"):
        score_sets(model, letters, MEMBERS, OTHERS, tmp_path)


def test_models_that_read_different_stretches_are_not_compared(make_target, letters, tmp_path):
    places = {"big": 128, "same": 128, "small": 30}
    models = {name: make_target("llama", num_layers=1, max_position_embeddings=size) for name, size in places.items()}
    given = attacks.Attacks(MEMBERS, OTHER_ANSWERS)
    found = {name: run(given, Subject(one, letters), tmp_path / name, progress=False) for name, one in models.items()}
    result = attacks.attack_result(found["big"], reference=found["small"], retain=found["small"])
    assert "reference" not in result.attacks and all(one.retain_auc is None for one in result.attacks.values())
    for name in ("reference", "PrivLeak"):
        assert "cut at another place" in result.left_out[name] and f"{name} left out: " in result.table()
    whole = attacks.attack_result(found["big"], reference=found["same"], retain=found["same"])
    assert "reference" in whole.attacks and whole.attacks["loss"].retain_auc == whole.attacks["loss"].auc
    alike = attacks.attack_result(found["small"], retain=found["small"])
    assert alike.attacks["loss"].retain_auc is not None and alike.cut > 0


def test_blanks_that_decide_tokens_make_other_rows(make_target, letters, tmp_path):
    def sets(blank: str) -> list[Record]:
        return [Record(prompt="she was born in", completion=f"{blank}rome", source="m")]

    model, others = make_target("llama", num_layers=1), [Record(prompt="he eats", completion=" figs", source="n")]
    score_sets(model, letters, sets(""), others, tmp_path)
    with pytest.raises(ULDError, match=r"with other settings \(data\)"):
        score_sets(model, letters, sets(" "), others, tmp_path)


def test_what_was_not_run_is_named():
    rows = {name: [dict.fromkeys(attacks.ATTACKS[:4], float(i))] * 2 for i, name in enumerate(attacks.SETS)}
    result = attacks.attack_result(rows)
    assert list(result.attacks) == ["loss", "zlib", "min_k", "min_k++"] and result.attacks["loss"].auc == 1.0
    assert result.left_out["reference"] == "it needs --reference-model"
    assert "reference left out: it needs --reference-model" in result.table()
    assert json.loads(json.dumps(result.to_dict()))["attacks"]["loss"]["privleak"] is None
