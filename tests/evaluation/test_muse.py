"""MUSE's numbers equal naive ones from one row at a time; missing parts are named; a stopped evaluation goes on."""

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from uld.errors import ULDError
from uld.evaluation import membership, muse
from uld.evaluation.benchmark import Subject
from uld.evaluation.pipe import run
from uld.model.load import load

QA = [
    {"question": f"who is {name}?", "answer": answer} for name, answer in (("abe", "a b c"), ("fay", "d"), ("z", "e f"))
]
ICL = [{"question": "who is b?", "answer": "bee bee"}]
LONG = "the quick brown fox jumps over the lazy dog again. " * 8
PARTS = {
    "forget_qa": QA,
    "forget_qa_icl": ICL,
    "retain_qa": QA[:2],
    "retain_qa_icl": ICL,
    "verbmem": [{"prompt": "once upon a time", "gt": " there was a hen."}, {"text": LONG}],
    "forget": [{"text": f"{word} over the hill." * 2} for word in ("ab", "cd", "ef", "gh")],
    "holdout": [{"text": f"{word} under the sea."} for word in ("ij", "kl", "mn")],
}


def evaluate(model, tokenizer, parts, folder, **settings):
    return run(muse.Muse(data=parts, **settings), Subject(model, tokenizer), folder, progress=False)


def summarise(found, parts, retain=None):
    return muse.Muse(data=parts).summarise(found, {} if retain is None else {"retain_model": retain})


@pytest.fixture(params=["llama", "unlearned"])
def model(request, make_target, make_unlearned):
    target = make_target("llama", max_position_embeddings=512)
    return make_unlearned(target, 2) if request.param == "unlearned" else target


def continuation(model, letters, prompt, new_tokens):
    """Greedy text behind a prompt of one row."""
    ids = torch.tensor([letters(prompt).input_ids])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
    return letters.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def f1(said, truth):
    return RougeScorer(["rougeL"], use_stemmer=False).score(truth, said)["rougeL"].fmeasure


def test_every_number_is_what_its_definition_gives(model, letters, tmp_path):
    found = evaluate(model, letters, PARTS, tmp_path)
    result = summarise(found, PARTS, found)
    shots = "Question: who is b?\nAnswer: bee bee\n\n"
    for metric, part in (("knowmem", "forget_qa"), ("utility", "retain_qa")):
        scores = []
        for row in PARTS[part]:
            said = continuation(model, letters, f"{shots}Question: {row['question']}\nAnswer: ", 32)
            scores.append(f1(said.split("\n\n")[0].split("\nQuestion")[0].split("Question:")[0], row["answer"]))
        assert getattr(result, metric) == pytest.approx(100 * sum(scores) / len(scores))
    passages = [("once upon a time", " there was a hen."), (LONG[:200], LONG[200:328])]  # a letter is a token
    scores = [f1(continuation(model, letters, prompt, 128), truth) for prompt, truth in passages]
    assert result.verbmem == pytest.approx(50 * sum(scores))
    assert found["verbmem"][1]["truth"] == LONG[200:328]
    aucs = {}
    for part in ("forget", "holdout"):
        for row, text in zip(found[part], PARTS[part], strict=True):
            ids = torch.tensor([letters(text["text"]).input_ids])
            with torch.no_grad():
                log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            lowest = log_probs.sort().values[: int(0.4 * len(log_probs))]
            assert row["min_k"] == pytest.approx(-lowest.mean().item(), rel=1e-4)
        aucs[part] = [row["min_k"] for row in found[part]]
    assert result.auc == membership.auc(aucs["forget"], aucs["holdout"]) == result.retain_auc
    assert result.privleak == 0.0 and not result.left_out


def test_what_the_model_says_itself_is_verbatim(make_target, letters, tmp_path):
    model = make_target("llama", max_position_embeddings=512)
    truth = continuation(model, letters, "once upon a time", 128)
    parts = {"verbmem": [{"prompt": "once upon a time", "gt": truth}]}
    result = summarise(evaluate(model, letters, parts, tmp_path), parts)
    assert result.verbmem == 100.0
    assert result.verbatim_run >= 0.9 * len(letters(truth).input_ids)  # special tokens are no text


def test_an_answer_stops_where_the_next_question_begins(micro, tmp_path, monkeypatch):
    model, tokenizer = load(micro.target)
    said = {"who is a?": "bee cd\n\nQuestion: who", "who is b?": "\nQuestion: x"}

    def generate(input_ids, **_):
        """What a model writes that goes on with questions of its own."""
        asked = [text.split("Question: ")[-1].split("\n")[0] for text in tokenizer.batch_decode(input_ids)]
        written = [tokenizer(said[one], add_special_tokens=False).input_ids for one in asked]
        ends = [row + [tokenizer.eos_token_id] * (40 - len(row)) for row in written]
        return torch.cat([input_ids, torch.tensor(ends)], 1)

    monkeypatch.setattr(model, "generate", generate)
    parts = {"forget_qa": [{"question": q, "answer": "bee cd"} for q in said], "forget_qa_icl": ICL}
    rows = evaluate(model, tokenizer, parts, tmp_path)["knowmem"]
    assert [row["generated"] for row in rows] == ["bee cd", ""]
    assert [row["rougeL_f1"] for row in rows] == [1.0, 0.0]


def test_missing_parts_are_left_out_and_named(make_target, letters, tmp_path):
    parts = {name: PARTS[name] for name in ("forget_qa", "retain_qa", "retain_qa_icl", "forget", "holdout")}
    model = make_target("llama")
    result = summarise(evaluate(model, letters, parts, tmp_path), parts)
    assert result.verbmem is result.knowmem is result.privleak is None and result.auc is not None
    assert result.left_out == {
        "verbmem": "the data has no verbmem",
        "knowmem": "the data has no forget_qa_icl",
        "privleak": "it is relative to a retain-only model: name one with --retain-model",
    }
    assert all(f"{name} left out: {why}" in result.table() for name, why in result.left_out.items())
    assert result.rows == {"forget": 4, "holdout": 3, "utility": 2}


def test_what_does_not_fit_the_model_is_counted(make_target, letters, tmp_path):
    model = make_target("llama", max_position_embeddings=90)
    found = evaluate(model, letters, PARTS | {"forget": [{"text": LONG}]}, tmp_path)
    result = summarise(found, PARTS)
    assert found["forget"][0]["tokens"] == 89
    assert result.too_long == {"verbmem": 2, "knowmem": 3, "forget": 1, "utility": 2}
    assert "3 of 3 rows of knowmem do not fit the model's positions" in result.table()
    fewer = evaluate(model, letters, PARTS, tmp_path / "0", shots=0, metrics=["knowmem"])
    assert "too_long" not in fewer["knowmem"][2]


def test_a_retain_only_model_that_reads_other_stretches_gives_no_privacy_leakage(make_target, letters, tmp_path):
    parts = {part: [{"text": f"{part} " * 5}, {"text": f"of {part} " * 4}] for part in ("forget", "holdout")}
    benchmark, found = muse.Muse(data=parts), {}
    for size in (128, 16):
        model = make_target("llama", num_layers=1, max_position_embeddings=size)
        found[size] = run(benchmark, Subject(model, letters), tmp_path / str(size), progress=False)
    result = benchmark.summarise(found[128], {"retain_model": found[16]})
    assert result.privleak is None and result.retain_auc is None
    assert "4 texts were cut at another place" in result.left_out["privleak"]
    assert benchmark.summarise(found[16], {"retain_model": found[16]}).retain_auc is not None


def test_a_stopped_evaluation_goes_on_and_gives_the_same_numbers(make_target, letters, tmp_path):
    model = make_target("llama")
    whole = evaluate(model, letters, PARTS, tmp_path)
    lines = (tmp_path / "knowmem.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "knowmem.jsonl").write_text(lines[0] + lines[1][:9])
    (tmp_path / "holdout.jsonl").unlink()
    assert evaluate(model, letters, PARTS, tmp_path) == whole
    with pytest.raises(ULDError, match=r"another model or with other settings \(shots\)"):
        evaluate(model, letters, PARTS, tmp_path, shots=0)


def test_texts_without_enough_tokens_are_refused(make_target, letters, tmp_path):
    model = make_target("llama")
    with pytest.raises(ULDError, match="has 3 tokens, so nothing follows its first 200: 'abc'"):
        evaluate(model, letters, {"verbmem": [{"text": "abc"}]}, tmp_path / "a")
    with pytest.raises(ULDError, match="too short to score"):
        evaluate(model, letters, PARTS | {"forget": [{"text": "a"}]}, tmp_path / "b", metrics=["privleak"])
