"""What people read in the answers of a log, against counting by hand."""

import math
from dataclasses import replace

import pytest

from uld.evaluation.log_values import LogError
from uld.evaluation.task_log import TaskLog, TofuLog
from uld.evaluation.tofu_reading import read_log_answers

QUESTION = "Who wrote the book?"
TRUTHS = ["Ada wrote it.", "Ben wrote it in Rome.", "It was written.", "Cleo wrote it."]
SAID = ["Ada wrote it.", "It was written in Oslo.", "It was written.", ""]
RETAIN = ["It was written in Rome by the sea."] * 200


def log(said: list[str], **further) -> TofuLog:
    """Forget rows with these answers, and retain rows that are answered rightly."""

    def task(said, truths, **more):
        losses = {"avg_loss": [1.0] * len(said), "paraphrase_loss": [1.0] * len(said)}
        return TaskLog(
            keys=[str(i) for i in range(len(said))],
            wrong_losses=[[1.0]] * len(said),
            generated=[(QUESTION, one, truth) for one, truth in zip(said, truths, strict=True)],
            **losses,
            **more,
        )

    return TofuLog({"forget": task(said, TRUTHS, **further), "retain": task(RETAIN, RETAIN)})


def test_re_entry_counts_answers_whose_true_answer_gives_something_away():
    found = read_log_answers(log(SAID))
    assert found.re_entry_rows == 3 and found.re_entry == pytest.approx(1 / 3)  # Ada; not Rome, which retain says
    assert (found.empty, found.degenerate) == (0.25, 0.25) and found.re_entry_beyond_retain is None


def test_words_that_a_chat_template_writes_are_none_of_the_question():
    forget = log(SAID)["forget"]
    prompts = [
        (f"system Ada is here. user {prompt} assistant", said, truth) for prompt, said, truth in forget.generated
    ]
    asked = replace(forget, generated=prompts, question=[QUESTION] * len(SAID))
    told = TofuLog({"forget": asked, "retain": log(SAID)["retain"]})
    assert read_log_answers(told).re_entry_rows == 3 and read_log_answers(told).re_entry == pytest.approx(1 / 3)


def test_what_a_retain_only_model_says_itself_is_no_re_entry_beyond_it():
    says_ada = ["Ada, I think.", "Nobody.", "Nobody.", "Nobody."]
    assert read_log_answers(log(SAID), log(says_ada)).re_entry_beyond_retain == 0
    assert read_log_answers(log(SAID), log(SAID[::-1])).re_entry_beyond_retain == pytest.approx(1 / 3)
    without = replace(log(SAID)["forget"], generated=None)
    assert read_log_answers(log(SAID), TofuLog({"forget": without})).re_entry_beyond_retain is None


def test_words_are_known_from_the_data_or_else_from_the_log():
    said = ["Ada xqz vrrp.", "Ben wrote it.", "It was.", "The sea."]
    assert read_log_answers(log(said)).broken == 0.25
    assert read_log_answers(log(said, unknown_words=[0, 3, 0, 0])).broken == 0.25
    assert read_log_answers(log(said, unknown_words=[0, 0, 0, 0])).broken == 0


def test_leaks_of_samples_and_perplexity():
    leaky = [["Ada.", "No."] * 5, ["No."] * 10, ["It."] * 10, ["Cleo."] * 10]
    found = read_log_answers(log(SAID, samples=leaky, judged_loss=[2.0, 4.0, 6.0, 0.0], judged_tokens=[1, 2, 3, 0]))
    assert found.leak == pytest.approx({"1": (0.5 + 0 + 1) / 3, "10": 2 / 3}) and found.samples == 10
    assert found.perplexity == pytest.approx(math.e**2)
    table = found.table(0.5)
    assert "leak@10 (%)" in table and "perplexity" in table
    assert read_log_answers(log(SAID, judged_loss=[9e9] * 4, judged_tokens=[1] * 4)).perplexity == math.inf


def test_a_log_of_one_row_is_read_like_any_other():
    losses = {"avg_loss": [1.0], "paraphrase_loss": [1.0], "wrong_losses": [[1.0]]}
    row = TaskLog(keys=["0"], generated=[(QUESTION, "Ada.", "Ada wrote it.")], samples=[["Ada.", "No."]], **losses)
    found = read_log_answers(TofuLog({"forget": row}))
    assert (found.samples, found.empty) == (2, 0)


def test_a_log_without_answers_or_retain_rows_says_less():
    bare = log(SAID)
    assert read_log_answers(TofuLog({"retain": bare["retain"]})) is None
    found = read_log_answers(TofuLog({"forget": bare["forget"]}), bare)
    assert found.re_entry is None and found.re_entry_beyond_retain is None and found.empty == 0.25


@pytest.mark.parametrize("samples", [[["a"], ["a"], ["a"], []], [[]] * 4, ["a", "b", "c", "d"], [[1]] * 4, [None] * 4])
def test_samples_that_do_not_fit_are_refused(samples):
    with pytest.raises(LogError, match="samples"):
        log(SAID, samples=samples)
