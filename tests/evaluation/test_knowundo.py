"""KnowUnDo's numbers equal naive ones; what the model says itself is kept; a stopped evaluation goes on."""

import math

import pytest
import torch

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ULDError
from uld.evaluation.benchmark import Subject
from uld.evaluation.knowundo import KnowUnDo
from uld.evaluation.metrics import rouge_l_f1
from uld.evaluation.pipe import run

SETS = {
    "unlearn": [
        Record.qa(f"where is {name}?", answer) for name, answer in (("abe", "in a b"), ("fay", "d"), ("z", "e"))
    ],
    "retention": [Record.qa(f"who is {name}?", answer) for name, answer in (("abe", "a cab"), ("fay", "d e"))],
}


def evaluate(model, tokenizer, sets, folder, **settings):
    return run(KnowUnDo(sets, **settings), Subject(model, tokenizer), folder, progress=False)


def summarise(found):
    return KnowUnDo(SETS).summarise(found)


@pytest.fixture(params=["llama", "unlearned"])
def model(request, make_target, make_unlearned):
    target = make_target("llama")
    return make_unlearned(target, 2) if request.param == "unlearned" else target


def test_every_number_is_what_its_definition_gives(model, letters, tmp_path):
    found = evaluate(model, letters, SETS, tmp_path, max_new_tokens=9)
    result = summarise(found)
    form, accuracy = PromptFormat(letters), {}
    for name, records in SETS.items():
        right, losses = [], []
        for record in records:
            row = form.encode(record, 99)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
            labels, learnt = torch.tensor(row.ids[1:]), torch.tensor(row.learn[1:])
            right.append((logits.argmax(-1) == labels)[learnt].float().mean().item())
            losses.append(torch.nn.functional.cross_entropy(logits[learnt], labels[learnt]).item())
        accuracy[name] = sum(right) / len(right)
        one = result.sets[name]
        assert one.rows == len(records) and one.accuracy == pytest.approx(accuracy[name])
        assert one.prob == pytest.approx(sum(math.exp(-loss) for loss in losses) / len(losses), rel=1e-4)
        assert one.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
        rouge = [rouge_l_f1(row["generated"], row["truth"]) for row in found[name]]
        assert one.rouge_l == pytest.approx(sum(rouge) / len(rouge))
        assert [row["truth"] for row in found[name]] == [record.messages[1][1] for record in records]
    assert result.unlearn_success == pytest.approx(100 * (1 - accuracy["unlearn"]))
    assert result.retention_success == pytest.approx(100 * accuracy["retention"])


def own_answer(model, letters, question):
    """What the model answers behind the template's blank, if that is six letters."""
    prompt = torch.tensor([[*PromptFormat(letters).prompt_ids(question), *letters(" ").input_ids]])
    answer = letters.decode(model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, -6:])
    return Record.qa(question, answer) if len(answer) == 6 and answer.isalpha() else None


def test_a_model_keeps_what_it_says_itself(make_target, letters, tmp_path):
    model = make_target("llama")
    said = next(filter(None, (own_answer(model, letters, f"who is {name}?") for name in "abcdefghijklmnop")))
    sets = {"unlearn": [said, *SETS["unlearn"][1:]], "retention": [said]}
    result = summarise(evaluate(model, letters, sets, tmp_path, generate=False))
    assert result.sets["retention"].accuracy >= 6 / 8  # the blank before it and the end are not the model's own
    assert result.sets["retention"].rouge_l is None
    other = summarise(evaluate(model, letters, SETS, tmp_path / "o", generate=False))
    assert other.unlearn_success > result.unlearn_success
    assert other.retention_success < result.retention_success


def test_a_stopped_evaluation_goes_on_and_gives_the_same_numbers(make_target, letters, tmp_path):
    model = make_target("llama")
    first = evaluate(model, letters, SETS, tmp_path, generate=False, max_new_tokens=5)
    assert "generated" not in first["unlearn"][0]
    whole = evaluate(model, letters, SETS, tmp_path, max_new_tokens=5)
    lines = (tmp_path / "unlearn.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "unlearn.jsonl").write_text(lines[0] + lines[1][:9])
    assert evaluate(model, letters, SETS, tmp_path, max_new_tokens=5) == whole
    with pytest.raises(ULDError, match=r"other settings \(max_new_tokens\)"):
        evaluate(model, letters, SETS, tmp_path, max_new_tokens=6)
