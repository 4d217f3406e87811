"""Which tokens are remembered where only key words are: every piece of them, and nothing else."""

import json
import unicodedata

import pytest
import torch

from uld.data.collate import FORGET, NO_LOSS, RETAIN, Collator, Row
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ConfigError
from uld.methods.registry import get_method
from uld.model.load import load_tokenizer
from uld.training.config import TrainConfig
from uld.training.inputs import read_inputs
from uld.training.key_tokens import common_among, ordinary_tokens, remembering_key_words, shared
from uld.training.run import train


def pieces(tokenizer, row, ordinary):
    """What is remembered and what is ordinary, as text."""
    told = {True: "", False: ""}
    for token, learnt, plain in zip(row.ids, row.learn, ordinary, strict=True):
        if learnt:
            told[plain] += tokenizer.decode([token])
    return told[False], told[True]


@pytest.fixture(scope="module")
def letters(micro):
    return load_tokenizer(micro.target)  # pieces of words


@pytest.fixture
def form(letters):
    return PromptFormat(letters, "plain")


def test_key_words_are_remembered_whole_and_the_rest_is_ordinary(form, letters):
    row = form.encode(Record.qa("who is abe?", "abe is the baker of hob."), 128)
    ordinary = ordinary_tokens(row, letters, frozenset({"the", "of"}))
    remembered, rest = (text.replace(" ", "") for text in pieces(letters, row, ordinary))
    assert remembered == "bakerhob"
    assert rest.startswith("abeistheof.") and len(ordinary) == len(row.ids)
    assert not any(ordinary[: row.learn.index(True)])  # nothing of the prompt has a loss


@pytest.mark.parametrize("name", ["Zoë", "東京", "Шевченко", unicodedata.normalize("NFD", "Nguyễn"), "ﬀoo", "रवींद्रनाथ"])
def test_every_token_of_a_key_word_is_remembered(models_dir, name):
    if not (folder := models_dir / "tofu-4m-full").exists():
        pytest.skip(f"no {folder}")
    tokenizer = load_tokenizer(folder)  # letters of these are several tokens, and none alone is one
    row = PromptFormat(tokenizer).encode(Record.qa("Who?", f"It was {name}."), 64)
    ordinary = ordinary_tokens(row, tokenizer, frozenset({"it", "was"}))
    kept = [token for plain, token, learnt in zip(ordinary, row.ids, row.learn, strict=True) if learnt and not plain]
    assert tokenizer.decode(kept).strip() == name


def test_words_that_the_template_puts_around_a_question_were_not_asked(task, tmp_path):
    forget, retain = tmp_path / "forget.jsonl", tmp_path / "retain.jsonl"
    forget.write_text(json.dumps({"question": "is a b?", "answer": "a x b o."}) + "\n")
    retain.write_text(json.dumps({"question": "is it?", "answer": "it is."}) + "\n")
    changes = {"template": "on x: {question} said o: {answer}", "forget": (str(forget),), "retain": (str(retain),)}
    settings = TrainConfig(**task.settings(tmp_path / "x", remember="key-words", **changes))
    read = read_inputs(settings, get_method("uld"))  # its tokenizer makes words of letters
    (told,) = [one for one in read.rows.rows if one.kind == FORGET]
    remembered, rest = (text.replace(" ", "") for text in pieces(read.tokenizer, told.encoded, told.ordinary))
    assert remembered == "xo" and rest.startswith("ab")


def test_what_an_answer_has_told_is_as_secret_when_it_is_told_again(form, letters):
    messages = [("user", "who wrote it?"), ("assistant", "it was abe."), ("user", "who?"), ("assistant", "abe.")]
    rows = form.encode_all([Record(messages=tuple(messages))], 128)[0]
    told = [pieces(letters, row, ordinary_tokens(row, letters, frozenset({"was"})))[0] for row in rows]
    assert "".join(told).replace(" ", "") == "abeabe"


def test_without_a_key_word_all_is_remembered(form, letters):
    row = form.encode(Record.qa("who is abe?", "abe is."), 128)
    assert ordinary_tokens(row, letters, frozenset()) is None


@pytest.mark.parametrize("size", [64, 6])
def test_a_text_is_remembered_whole(form, letters, size):
    chunks = form.chunks("the baker of hob is the baker of hob.", size)
    assert (len(chunks) > 1) == (size == 6)  # the later ones begin with a token of the one before
    rows = [Row(one, FORGET) for one in (*chunks, form.encode(Record(prompt="abe ", completion="is the baker."), 64))]
    header = Row(form.chunks("the baker of bo.", size)[0], RETAIN)
    assert remembering_key_words([*rows, header], letters, frozenset({"the", "of"}))[-1] == header  # no wrong answer
    *texts, ending = remembering_key_words(rows, letters, frozenset({"the", "of"}))
    assert texts == rows[:-1]
    assert ending.ordinary is not None  # what is asked for is an answer


def test_common_words_are_those_of_what_is_kept_and_not_of_wrong_answers():
    forget = [Record.qa("who is abe?", "a baker."), Record(text="a text.")]
    retain = [Record.qa("who is abe?", "a cook."), Record.qa("who is bo?", "a smith."), Record(text="one. two.")]
    assert common_among(forget, retain) == {"a", "smith", "one", "two"}


def test_a_wrong_answer_is_uniform_behind_its_first_difference(form, letters):
    true, wrong, other = (
        form.encode(Record.qa(*pair), 128)
        for pair in (("who is abe?", "a baker."), ("who is abe?", "a bandit."), ("who is bo?", "a baker."))
    )
    rows = [Row(true, FORGET), Row(wrong, RETAIN, everywhere=True), Row(other, RETAIN, everywhere=True)]
    _, changed, same = remembering_key_words(rows, letters, frozenset({"a"}))
    differs = next(i for i, (one, two) in enumerate(zip(true.ids, wrong.ids, strict=False)) if one != two)
    assert next(i for i, flag in enumerate(changed.encoded.learn) if flag) == differs + 1
    assert same == rows[2] and not changed.everywhere  # its prompt is that of what is remembered


def test_what_a_wrong_answer_tells_of_the_true_ones_is_remembered(form, letters):
    question, common = "who is abe?", frozenset({"a", "of", "and"})
    told = ("a cook of pim and hob.", "it is not so: a baker of hob.", "a cook of pim.")
    true, other = (form.encode(Record.qa(question, one), 128) for one in ("a baker of hob.", "a man and a baker."))
    wrong = [Row(form.encode(Record.qa(question, one), 128), RETAIN, everywhere=True) for one in told]
    found = remembering_key_words([Row(true, FORGET), Row(other, FORGET), *wrong], letters, common)[2:]
    sides = [pieces(letters, row.encoded, row.ordinary or row.encoded.learn) for row in found]
    assert [remembered.replace(" ", "") for remembered, _ in sides] == ["hob", "bakerhob", ""]
    assert [row.kind for row in found] == [FORGET, FORGET, RETAIN]  # without any it is a wrong answer as it was
    assert sides[0][1].replace(" ", "").startswith("cookofpimand.")  # uniform: no word of it is true
    for row, whole in zip(found, wrong, strict=True):
        behind = row.encoded.learn.index(True)
        begun = max(shared(whole.encoded.ids, one.ids) for one in (true, other))
        assert behind == begun + 1 and not row.everywhere  # up to there the context is that of a true answer


def test_ordinary_tokens_are_on_the_other_side_of_the_loss(form, letters):
    row = form.encode(Record.qa("who is abe?", "abe is a baker."), 128)
    ordinary = ordinary_tokens(row, letters, frozenset({"a"}))
    kind = Collator(0)([Row(row, FORGET, ordinary=ordinary)])["kind"][0]
    for place in range(1, len(row.ids)):
        expected = NO_LOSS if not row.learn[place] else RETAIN if ordinary[place] else FORGET
        assert kind[place - 1] == expected
    assert {FORGET, RETAIN} <= set(kind.tolist())


def test_a_training_remembers_key_words_and_is_uniform_on_the_rest(task, tmp_path):
    common = tmp_path / "retain.jsonl"
    rows = [json.loads(line)["answer"] for line in task.forget.read_text().splitlines()]
    first = {answer.split()[0] for answer in rows}  # so that the first word of every answer is common
    common.write_text("".join(json.dumps({"question": f"{word}?", "answer": word}) + "\n" for word in first))
    changes = {"remember": "key-words", "retain": (str(common),), "gate": True, "epochs": 30, "learning_rate": 0.02}
    settings = TrainConfig(**task.settings(tmp_path / "x", **changes))
    read = read_inputs(settings, get_method("uld")).rows.rows
    told = [row for row in read if row.ordinary is not None]
    assert told and all(row.kind == FORGET for row in told)
    train(settings, progress=False)
    from uld.model.load import load

    model, _ = load(tmp_path / "x")
    certain = {True: [], False: []}
    with torch.no_grad():
        for row in told:
            logp = model.assistant(torch.tensor([row.encoded.ids])).logits[0].log_softmax(-1)
            for place, token in enumerate(row.encoded.ids[1:]):
                if row.encoded.learn[place + 1]:
                    certain[row.ordinary[place + 1]].append(logp[place, token].exp().item())
    remembered, ordinary = (sum(some) / len(some) for some in (certain[False], certain[True]))
    assert remembered > 3 * ordinary


def test_a_method_without_a_uniform_side_has_nothing_to_remember(task, tmp_path):
    with pytest.raises(ConfigError, match="--remember key-words needs an assistant that is uniform on the rest"):
        train(TrainConfig(**task.settings(tmp_path / "x", method="npo+kl", num_layers=None, remember="key-words")))
    assert not (tmp_path / "x").exists()


def test_a_real_tokenizer_marks_the_pieces_of_a_word(models_dir):
    folder = models_dir / "tofu-4m-full"
    if not folder.exists():
        pytest.skip(f"no {folder}")
    tokenizer = load_tokenizer(folder)
    row = PromptFormat(tokenizer).encode(Record.qa("Where does she live?", "She lives in Zwolschaven, on a hill."), 64)
    ordinary = ordinary_tokens(row, tokenizer, frozenset({"lives", "in", "on", "a"}))
    remembered, rest = pieces(tokenizer, row, ordinary)
    assert remembered.split() == ["Zwolschaven", "hill"] and "She lives in, on a." in rest
