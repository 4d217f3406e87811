"""Copyright: the log equals a naive evaluation chunk by chunk, chunks are those of training, stops change nothing."""

import difflib
import json
import re
from pathlib import Path

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

import uld.evaluation.copyright as copyright
from uld.data.prompt import PromptFormat
from uld.data.record import DataError, Record
from uld.errors import ArtifactError
from uld.evaluation.perplexity import perplexity
from uld.evaluation.pipe import evaluate

TEXT = "the cat sat on the mat and the dog lay by the door. a bird sang in the tree: who is it? it is the wind. "
TEXT = TEXT + TEXT[::-1] + TEXT[20:] + TEXT[:33]
SIZES = {"chunk_tokens": 40, "prompt_tokens": 12, "request": "go on:"}


@pytest.fixture(scope="module")
def tokenizer(letters):
    return letters


@pytest.fixture(scope="module")
def learner(make_target, tokenizer):
    """A model that has read the text often enough to say parts of it."""
    model = make_target("llama", num_layers=2, hidden_size=64, seed=1).train()
    rows = PromptFormat(tokenizer, "plain").chunks(TEXT, 40)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = torch.tensor([row.ids for row in rows if len(row.ids) == 40])
    for _ in range(80):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def evaluate_book(model, tokenizer, book, folder, *, template=None, **settings):
    return evaluate(copyright.Copyright(book, **settings), model, tokenizer, folder, template=template, progress=False)


@pytest.fixture
def book(tmp_path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "chunks.jsonl").read_text().splitlines()]


def test_equals_a_naive_evaluation(learner, tokenizer, book, tmp_path):
    result = evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES)
    body = [*tokenizer(TEXT).input_ids[1:], tokenizer.eos_token_id]  # nothing predicts the first
    chunks = [body[i : i + 39] for i in range(0, len(body), 39)]
    request = tokenizer("go on:\n", add_special_tokens=False).input_ids
    texts, truths, losses, rouge = [], [], [], []
    for chunk, row in zip([c for c in chunks if len(c) > 12], log(tmp_path / "out"), strict=True):
        given, true = [*request, *chunk[:12]], chunk[12:]
        out = learner.generate(torch.tensor([given]), max_new_tokens=len(true), do_sample=False)[
            0, len(given) :
        ].tolist()
        logits = learner(input_ids=torch.tensor([given + true])).logits[0, len(given) - 1 : -1].double()
        right = (logits.argmax(-1) == torch.tensor(true)).tolist()
        losses += (-logits.log_softmax(-1)[range(len(true)), true]).tolist()
        strength = next((1 - k / len(true) for k in range(len(true)) if all(right[k:])), 0.0)
        run = difflib.SequenceMatcher(None, out, true, autojunk=False).find_longest_match().size
        texts.append(tokenizer.decode(out, skip_special_tokens=True).strip())
        truths.append(tokenizer.decode(true, skip_special_tokens=True).strip())
        rouge.append(RougeScorer(["rougeL"], use_stemmer=False).score(truths[-1], texts[-1])["rougeL"].fmeasure)
        assert (row["generated"], row["truth"]) == (texts[-1], truths[-1])
        assert row["exact_memorization"] == pytest.approx(sum(right) / len(true))
        assert row["extraction_strength"] == pytest.approx(strength)
        assert row["longest_run"] == run
    assert result.bleu == pytest.approx(corpus_bleu(texts, [truths]).score)
    assert result.rouge_l == pytest.approx(sum(rouge) / len(rouge))
    assert result.perplexity == pytest.approx(torch.tensor(losses).mean().exp().item(), rel=1e-5)
    assert result.chunks == len(texts) == 9
    assert result.exact_memorization > 0.3 and result.longest_run == max(
        r["longest_run"] for r in log(tmp_path / "out")
    )


def test_kept_questions_are_asked_in_the_template(learner, tokenizer, book, tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"question": "who sat?", "answer": "the cat"}\n{"prompt": "who is", "completion": " it?"}\n')
    records = [Record.qa("who sat?", "the cat"), Record(prompt="who is", completion=" it?")]

    def evaluate(folder, **options):
        result = evaluate_book(learner, tokenizer, book, tmp_path / folder, **SIZES, **options)
        return result, json.loads((tmp_path / folder / "settings.json").read_text())

    by_chat, settings = evaluate("chat", kept=[facts])
    assert "template" not in settings
    by_qa, settings = evaluate("qa", kept=[facts], template="qa")
    assert settings["template"] == "qa"
    assert by_qa.kept[str(facts)] == perplexity(learner, tokenizer, records, "qa").to_dict()
    assert by_chat.kept[str(facts)] == perplexity(learner, tokenizer, records).to_dict() != by_qa.kept[str(facts)]
    assert by_qa.perplexity == by_chat.perplexity
    with pytest.raises(ArtifactError, match=r"with other settings \(template\)"):
        evaluate("chat", kept=[facts], template="qa")
    with pytest.raises(DataError, match=r"template 'q' is neither"):
        evaluate("bad", kept=[facts], template="q")
    assert not (tmp_path / "bad").exists()


def test_without_kept_questions_a_template_decides_nothing(learner, tokenizer, book, tmp_path):
    before = evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES, kept=[book])
    lines, settings = ((tmp_path / "out" / name).read_bytes() for name in ("chunks.jsonl", "settings.json"))
    assert evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES, kept=[book], template="qa") == before
    assert (tmp_path / "out" / "chunks.jsonl").read_bytes() == lines
    assert (tmp_path / "out" / "settings.json").read_bytes() == settings


def test_who_never_read_it_says_less(learner, make_target, tokenizer, book, tmp_path):
    knows = evaluate_book(learner, tokenizer, book, tmp_path / "a", **SIZES)
    other = evaluate_book(make_target("llama", num_layers=2), tokenizer, book, tmp_path / "b", **SIZES)
    assert knows.exact_memorization > other.exact_memorization + 0.2
    assert knows.mean_run > other.mean_run and knows.perplexity < other.perplexity / 2


def test_chunks_are_those_of_training(tokenizer):
    form = PromptFormat(tokenizer, "plain")
    rows, _ = form.encode_all([Record(text=TEXT)], 40)
    assert copyright.chunks_of([TEXT], form, chunk_tokens=40) == rows
    few, _ = form.encode_all([Record(text=TEXT), Record(text=TEXT)], 40, chunks=3)
    assert few == copyright.chunks_of([TEXT, TEXT], form, chunk_tokens=40, chunks=3) == [rows[i] for i in (0, 3, 6)] * 2


def test_request_may_be_empty(learner, tokenizer, book, tmp_path):
    none = evaluate_book(learner, tokenizer, book, tmp_path / "a", **SIZES | {"request": ""})
    some = evaluate_book(learner, tokenizer, book, tmp_path / "b", **SIZES)
    assert none.perplexity < some.perplexity  # the request was never learnt


def test_an_unlearned_model(make_target, make_unlearned, tokenizer, book, tmp_path):
    target = make_target("llama", num_layers=4)
    plain = evaluate_book(target, tokenizer, book, tmp_path / "a", **SIZES)
    unlearned = make_unlearned(target, num_layers=2)
    assert evaluate_book(unlearned, tokenizer, book, tmp_path / "b", **SIZES).perplexity != plain.perplexity


def test_a_stop_changes_nothing(learner, tokenizer, book, tmp_path, monkeypatch):
    monkeypatch.setattr(copyright, "_BATCH", 3)
    whole = evaluate_book(learner, tokenizer, book, tmp_path / "whole", **SIZES)
    true, calls = copyright.generate_ids, []

    def stops(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return true(*arguments, **options)

    monkeypatch.setattr(copyright, "generate_ids", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES)
    assert len(log(tmp_path / "out")) == 3
    with (tmp_path / "out" / "chunks.jsonl").open("a") as file:
        file.write('{"row": 3, "bl')  # a kill in the middle of a line
    assert evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES) == whole
    assert log(tmp_path / "out") == log(tmp_path / "whole")


def test_refuses_what_leaves_nothing_to_complete(learner, tokenizer, book, tmp_path):
    with pytest.raises(DataError, match=r"no chunk of it is longer than the 39 tokens .* lower --prompt-tokens"):
        evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES | {"prompt_tokens": 39})
    assert not (tmp_path / "out").exists()


def test_refuses_chunks_that_the_model_cannot_read(learner, tokenizer, book, tmp_path):
    with pytest.raises(DataError, match=r"is 133 tokens long, and the model reads 128: lower --chunk-tokens to 122"):
        evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES | {"chunk_tokens": 127})
    evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES | {"chunk_tokens": 122})


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"chunk_tokens": 5000}, r"lower --chunk-tokens to (?P<chunk_tokens>122), or shorten --request"),
        ({"chunk_tokens": 5000, "request": ""}, r"lower --chunk-tokens to (?P<chunk_tokens>128), or"),
        (
            {"chunk_tokens": 5000, "prompt_tokens": 150},
            r"lower --prompt-tokens below (?P<prompt_tokens>121) and --chunk-tokens to (?P<chunk_tokens>122), or",
        ),
        ({"chunk_tokens": 40, "request": "a" * 127}, r"the model reads 128: shorten --request$"),
    ],
)
def test_a_book_shorter_than_a_chunk_gets_advice_that_helps(learner, tokenizer, book, tmp_path, change, advice):
    with pytest.raises(DataError, match=advice) as caught:
        evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES | change)
    told = {name: int(value) for name, value in re.search(advice, str(caught.value)).groupdict().items()}
    told = {name: value - (name == "prompt_tokens") for name, value in told.items()}
    if told:
        evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES | change | told)


def test_refuses_another_book_in_the_same_folder(learner, tokenizer, book, tmp_path):
    evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES)
    book.write_text(TEXT + " more")
    with pytest.raises(ArtifactError, match=r"another model or with other settings \(data\)"):
        evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES)


def test_names_the_byte_that_is_not_utf8(learner, tokenizer, book, tmp_path):
    book.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"book.txt: byte 4 \(0xe9\) is not UTF-8"):
        evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES)


def test_the_table_says_how_many_kept_answers_were_cut(learner, tokenizer, book, tmp_path):
    facts = tmp_path / "facts.jsonl"
    rows = [{"question": "who?", "answer": answer} for answer in ("a bird " * 60, "the dog " * 60, "the cat")]
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate_book(learner, tokenizer, book, tmp_path / "out", **SIZES, kept=[facts, book])
    assert (result.kept[str(facts)]["cut"], result.to_dict()["kept"][str(facts)]["cut"]) == (2, 2)
    assert f"2 answers of {facts} were too long: only their first tokens counted" in result.table()
    assert "cut" not in result.kept[str(book)] and result.table().count("too long") == 1
