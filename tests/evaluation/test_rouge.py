"""ROUGE-L of any script: on ASCII rouge_score's own, on others character by character where there are no blanks."""

import pytest
from rouge_score.rouge_scorer import RougeScorer

from uld.data.text import words_of
from uld.evaluation.metrics import rouge_l_f1
from uld.evaluation.rouge import rouge_l, rouge_l_recall

ENGLISH = (
    "It's 1865: the well-known White_Rabbit (No. 2) didn't wait; 'Oh dear!' it cried... I'll be 10,000x too late -- "
    "by half-past_three o'clock, at the Queen's croquet-ground."
)
OTHER = "it s 1865 the known white rabbit no 2 did wait Oh dear I LL be 10 000X late by three at the queens croquet "
OTHER += "ground"


def test_rouge_of_ascii_text_is_that_of_rouge_score():
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    for one, two in ((ENGLISH, ENGLISH), (ENGLISH, OTHER), (OTHER, ENGLISH), (ENGLISH, ENGLISH[40:]), ("...", "a")):
        assert rouge_l(one, two) == scorer.score(two, one)["rougeL"].fmeasure == rouge_l_f1(one, two)
    assert 0 < rouge_l(ENGLISH, OTHER) < 1
    odd = "".join(map(chr, range(128))) * 2
    assert words_of(odd) == scorer._tokenizer.tokenize(odd)


@pytest.mark.parametrize(
    ("truth", "half"),
    [
        ("Мастер и Маргарита вышли", "и МАСТЕР  и, Маргарита"),
        ("天气很好", "天气不坏"),
        ("ภาษาไทย", "ภาษา"),
        ("한국어 문장 두 개", "한국어 문장 세 것"),
        ("हिन्दी में लिखा है", "हिन्दी में"),
    ],
)
def test_rouge_counts_words_of_every_script(truth, half):
    assert rouge_l(truth, truth) == 1.0
    assert 0.3 < rouge_l(half, truth) < 1.0
    assert rouge_l("something else", truth) == 0.0


def test_recall_counts_the_true_words_however_much_else_is_said():
    assert rouge_l_recall("I would say: she was born in Skerrin, far away", "Born in Skerrin.") == 1.0
    assert rouge_l_recall("Skerrin in born", "born in Skerrin") == pytest.approx(1 / 3)  # their order counts
    assert rouge_l_recall("", "born in Skerrin") == 0.0
