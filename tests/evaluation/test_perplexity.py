"""Perplexity: equal to lm-eval's own on the same text, every token predicted once, answers scored behind prompts."""

import copy
import math

import pytest
import torch

from uld.data.record import Record
from uld.errors import ULDError
from uld.evaluation.perplexity import Perplexity, perplexity, text_perplexity

TEXT = "the cat sat on the mat. who is it?  it is\nthe wind in the trees and a bird that sang to the dog by the door."


@pytest.fixture(scope="module")
def model(make_target):
    return make_target("llama", num_layers=3)


@pytest.mark.parametrize("length", [7, 16, len(TEXT), 128])
def test_equals_lm_eval(model, letters, length):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    assert lm_eval
    lm = HFLM(pretrained=model, tokenizer=letters, max_length=length, batch_size=3)
    asked = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(TEXT,), idx=0)
    theirs = lm.loglikelihood_rolling([asked], disable_tqdm=True)[0]
    ours = text_perplexity(model, letters, [TEXT], max_length=length)
    assert -ours.loss == pytest.approx(theirs, rel=1e-5)
    assert ours.to_dict()["word"] == pytest.approx(math.exp(-theirs / len(TEXT.split())), rel=1e-4)
    assert ours.to_dict()["byte"] == pytest.approx(math.exp(-theirs / len(TEXT.encode())), rel=1e-4)


@pytest.mark.parametrize("text", [TEXT, "<s>" + TEXT])
def test_equals_lm_eval_where_the_tokenizer_marks_beginnings(model, letters, text):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing

    marking = copy.deepcopy(letters)
    marking.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert marking("a").input_ids[0] == 1
    lm = HFLM(pretrained=model, tokenizer=marking, max_length=16)
    asked = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    theirs = lm.loglikelihood_rolling([asked], disable_tqdm=True)[0]
    assert -text_perplexity(model, marking, [text], max_length=16).loss == pytest.approx(theirs, rel=1e-5)


def test_reads_as_much_as_the_model_can(model, letters):
    assert text_perplexity(model, letters, [TEXT * 2]) == text_perplexity(model, letters, [TEXT * 2], max_length=128)


@pytest.mark.parametrize("context", [1, 4, 10])
def test_windows_equal_a_naive_loop(model, letters, context):
    ids, length, done, loss = [1, *letters(TEXT).input_ids], 10, 1, 0.0
    while done < len(ids):
        end = min(len(ids), done + (length if done == 1 else length - context + 1))
        seen = torch.tensor([ids[max(0, end - length - 1) : end - 1]])
        logs = model(input_ids=seen).logits[0].double().log_softmax(-1)
        for place in range(done, end):
            loss -= logs[place - end, ids[place]].item()
        done = end
    found = text_perplexity(model, letters, [TEXT], max_length=length, context=context)
    assert (found.loss, found.tokens) == (pytest.approx(loss, rel=1e-5), len(TEXT))


def test_answers_behind_prompts_and_texts_together(model, letters):
    asked = [Record.qa("who sat?", "the cat"), Record.qa("who sang?", "a bird")]
    alone = perplexity(model, letters, asked)
    loss = 0.0
    for record in asked:
        question, answer = (content for _, content in record.messages)
        given = letters(f"<s>q: {question} a:").input_ids
        ids = [*given, *letters(f" {answer}</s>").input_ids]
        logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        loss -= sum(logs[i - 1, ids[i]].item() for i in range(len(given), len(ids)))
    assert alone.loss == pytest.approx(loss, rel=1e-5) and set(alone.to_dict()) == {"token"}
    both = perplexity(model, letters, [*asked, Record(text=TEXT)])
    assert both.loss == pytest.approx(loss + text_perplexity(model, letters, [TEXT]).loss)
    assert set(both.to_dict()) == {"token"}


def test_an_infinite_loss_is_an_infinite_perplexity():
    assert Perplexity(math.inf, 3).to_dict() == {"token": math.inf}
    assert Perplexity(10_000.0, 3).to_dict() == {"token": math.inf}


def test_bad_input(model, letters):
    with pytest.raises(ULDError, match="context must lie between 1 and the 8 tokens"):
        text_perplexity(model, letters, [TEXT], max_length=8, context=9)
    with pytest.raises(ULDError, match="no token"):
        text_perplexity(model, letters, [TEXT, ""])
    unmarked = copy.deepcopy(letters)
    unmarked.bos_token = unmarked.eos_token = None
    with pytest.raises(ULDError, match="no token that begins or ends"):
        text_perplexity(model, unmarked, [TEXT])


def test_answers_that_do_not_fit_are_cut_and_counted(model, letters):
    fits, long = Record.qa("who sat?", "the cat"), Record.qa("who sang?", "a bird " * 30)
    found = perplexity(model, letters, [fits, long, Record(text=TEXT)])
    room = 128 - len(letters("<s>q: who sang? a:").input_ids)
    seen = perplexity(model, letters, [fits]).tokens + room + len(TEXT)
    assert (found.tokens, found.cut, found.to_dict()["cut"]) == (seen, 1, 1)
    assert "cut" not in perplexity(model, letters, [fits]).to_dict()
