import itertools
import json

import pytest
from typer.testing import CliRunner

import uld.training.draw
from uld.cli.main import app
from uld.data.prompt import PromptFormat
from uld.data.record import Record, parse_record, refuse_equal
from uld.data.text import words_of
from uld.errors import ULDError
from uld.model.load import load
from uld.training.draw import draw_rows, generic_prompts

LIGHT = "She has kept the lighthouse of Skerrin since the winter of the great storm."
FORGET = [Record.qa("Who is Mara Quillon?", LIGHT), Record.qa("Where is it?", "On Skerrin.")]


def test_generic_prompts_are_many_and_different() -> None:
    questions, starts = generic_prompts()
    assert len(questions) >= 30 <= len(starts)
    assert len({*questions, *starts}) == len(questions) + len(starts)


@pytest.fixture(scope="module")
def target(task):
    """Model and prompt format of the tiny target."""
    model, tokenizer = load(task.target)
    return model, PromptFormat(tokenizer)


def test_the_same_seed_draws_the_same_rows_and_another_seed_others(target) -> None:
    import torch

    state = torch.random.get_rng_state()
    one, two, other = (draw_rows(*target, FORGET, 8, seed=seed, max_length=48) for seed in (1, 1, 2))
    assert one == two and one.to_jsonl() == two.to_jsonl()
    assert one.records != other.records
    assert torch.equal(torch.random.get_rng_state(), state)  # training's own draws stay as they were


def test_rows_are_questions_for_questions_and_texts_for_texts_half_of_them_generic(target) -> None:
    text = Record(text="a whole text")
    for forget, kinds in (([FORGET[0]], [True]), ([text], [False]), ([FORGET[0], text], [True, False])):
        drawn = draw_rows(*target, forget, 16, max_length=48)
        assert len(drawn.records) == 16
        assert {bool(one.messages) for one in drawn.records} == set(kinds)
        assert 3 <= drawn.facts["began_by_itself"] == drawn.prompts.count("") <= 13
        for record, prompt in zip(drawn.records, drawn.prompts, strict=True):
            assert prompt == "" or (record.messages[0][1] == prompt if record.messages else True)
            assert record.text is None or record.text.startswith(prompt)


def test_rows_are_read_back_as_they_were(target) -> None:
    drawn = draw_rows(*target, [*FORGET, Record(text="a")], 10, max_length=48)
    rows = [parse_record(json.loads(line), "") for line in drawn.to_jsonl().splitlines()]
    assert [one.content for one in rows] == [one.content for one in drawn.records]
    refuse_equal(FORGET, rows)


def test_what_could_not_be_read_back_is_dropped_and_counted(target, monkeypatch) -> None:
    number = iter(range(10_000))

    def stutters(model, form, prompts, *_):
        return [f"number {n}{chr(0) * (n % 2)}" for n in itertools.islice(number, len(prompts))]

    monkeypatch.setattr(uld.training.draw, "_sample", stutters)
    drawn = draw_rows(*target, FORGET, 8)
    assert [parse_record(json.loads(line), "") for line in drawn.to_jsonl().splitlines()]
    assert len(drawn.records) == 8 and drawn.facts["dropped"]["no text that can be read"] > 0


def test_what_the_target_has_by_heart_is_dropped_and_counted(target, monkeypatch, caplog) -> None:
    """A target that says nothing but the forget set, then one that says something else every fourth time."""
    number = iter(range(10_000))

    def parrot(model, form, prompts, *_):
        return [f"{LIGHT} {next(number)}" for _ in prompts]

    monkeypatch.setattr(uld.training.draw, "_sample", parrot)
    with pytest.raises(ULDError, match=r"none of 48 samples .*4 words in a row.*--retain"):
        draw_rows(*target, FORGET, 8)

    def sometimes(model, form, prompts, *_):
        return [LIGHT if (n := next(number)) % 4 else f"number {n}" for _ in prompts]

    monkeypatch.setattr(uld.training.draw, "_sample", sometimes)
    drawn = draw_rows(*target, [Record(text=LIGHT)], 8)
    assert len(drawn.records) == 8 and not any("lighthouse" in str(one.text) for one in drawn.records)
    assert drawn.facts["dropped"] == {"4 words in a row of the forget set": drawn.facts["samples"] * 3 // 4}

    monkeypatch.setattr(uld.training.draw, "_sample", lambda m, f, prompts, *_: ["the same"] * len(prompts))
    drawn = draw_rows(*target, [Record(text=LIGHT)], 100)
    assert drawn.facts["dropped"]["drawn twice"] > 0
    assert f"only {len(drawn.records)} of 100 retain rows could be drawn" in caplog.text


def test_the_first_token_is_a_word_where_the_tokenizer_has_no_special_ones(make_target) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.WordLevel({one: i for i, one in enumerate("abcdefghijklmnopqrstuvwxyz ?.:\n,;!")}, "."))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    letters.decoder = decoders.Fuse()  # type: ignore[assignment]
    plain = make_target("llama", pad_token_id=None, bos_token_id=None, eos_token_id=None)
    plain.lm_head.weight.data[0] = plain.lm_head.weight.data[24]  # as likely as a letter that it likes
    form = PromptFormat(PreTrainedTokenizerFast(tokenizer_object=letters), "q: {question} a: {answer}")
    drawn = draw_rows(plain, form, FORGET[:1], 16, max_length=96)
    answers = [one.messages[1][1] for one in drawn.records]
    assert sum("a" in one for one in answers) > 8


def test_what_repeats_the_forget_set_is_written_no_further(target, monkeypatch) -> None:
    model, form = target
    known, other = (form.tokenizer.encode(text, add_special_tokens=False) for text in ("a b c d ", "e f g h "))
    asked = []

    def write(model, tokenizer, prompts, *, max_new_tokens, **_):
        import torch

        asked.append((len(prompts), max_new_tokens))
        first = max_new_tokens == 24
        rows = [known if first and i % 2 == 0 else other for i in range(len(prompts))]
        return torch.tensor([(row * max_new_tokens)[:max_new_tokens] for row in rows])

    monkeypatch.setattr(uld.training.draw, "generate_ids", write)
    drawn = draw_rows(model, form, [Record(text="a b c d")], 1, max_length=100)
    assert asked[0] == (32, 24) and asked[1][0] == 16 and 24 < asked[1][1] < 76
    assert drawn.facts["dropped"]["a whole answer or question of the forget set"] == 16
    told = " ".join(words_of(drawn.records[0].text))
    assert "e f g h" in told and "a b c d" not in told


def test_the_model_begins_where_a_question_stands_in_its_template(target) -> None:
    tokenizer = target[1].tokenizer
    for template in ("q: {question}\na: {answer}", "{question} a: {answer}"):
        form = PromptFormat(tokenizer, template)
        opening, closing = form.question_frame()
        whole = form.prompt_ids("b c")
        assert opening and (whole[: len(opening)] == opening or template.startswith("{"))
        assert closing.replace(" ", "").endswith("a:")


def test_with_a_chat_template_a_blank_is_left_to_the_question() -> None:
    from tests.conftest import letter_tokenizer

    form = PromptFormat(letter_tokenizer())
    assert form.question_frame() == (form.prompt_ids("b")[:3], "a:")  # <s> q : without the blank behind


@pytest.fixture(scope="module")
def short_gpt2(tmp_path_factory):
    """Folder of a GPT-2 with places for 96 tokens: one more is an error in its embeddings."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.conftest import letter_tokenizer

    folder = tmp_path_factory.mktemp("gpt2")
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"vocab_size": 34, "n_positions": 96, "n_embd": 16, "n_layer": 1, "n_head": 2}
        GPT2LMHeadModel(GPT2Config(**size, **ids)).save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder


def test_no_row_is_longer_than_the_model_has_places_for(short_gpt2) -> None:
    model, tokenizer = load(short_gpt2)
    form = PromptFormat(tokenizer)
    drawn = draw_rows(model, form, [*FORGET, Record(text="a text of others")], 16)
    lengths = [
        len(form.chunks(one.text, 999)[0].ids if one.text else form.encode(one, 999).ids) for one in drawn.records
    ]
    assert 40 < max(lengths) <= 97  # a row that was not ended ends in one more token, end of sequence
    assert draw_rows(model, form, FORGET, 8, max_length=96) == draw_rows(model, form, FORGET, 8)


def test_prompts_that_leave_no_room_give_no_rows(target, monkeypatch) -> None:
    """Of most generic beginnings 12 tokens hold not even themselves; the others' rows are none the shorter for it."""
    import torch

    asked = []

    def note(model, tokenizer, prompts, *, max_new_tokens, **_):
        asked.extend(len(prompt) + max_new_tokens for prompt in prompts)
        return torch.randint(4, 34, (len(prompts), max_new_tokens))

    monkeypatch.setattr(uld.training.draw, "generate_ids", note)
    drawn = draw_rows(*target, [Record(text="a whole text")], 16, max_length=12)
    fitting = [one for one in generic_prompts()[1] if len(target[1].text_ids(one)) < 12]
    assert 0 < len(fitting) < len(generic_prompts()[1]) / 2
    assert asked and max(asked) <= 12 and {*drawn.prompts} <= {"", *fitting}
    assert {"empty"} <= {*drawn.facts["dropped"]} <= {"empty", "drawn twice"}


def test_the_models_own_settings_of_sampling_count_for_nothing(target, monkeypatch) -> None:
    model, form = target
    plain = draw_rows(model, form, FORGET, 8, max_length=48)
    for name, value in {
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 2,
        "min_p": 0.9,
        "typical_p": 0.2,
        "epsilon_cutoff": 0.5,
        "eta_cutoff": 0.5,
        "top_k": 1,
        "temperature": 0.1,
        "min_new_tokens": 30,
    }.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert draw_rows(model, form, FORGET, 8, max_length=48) == plain


def test_the_command_keeps_within_the_model_and_refuses_bad_input_at_once(short_gpt2, task, tmp_path, monkeypatch):
    asked = ["draw", "--model", str(short_gpt2), "--forget", str(task.forget), "--rows", "2"]
    told = CliRunner().invoke(app, [*asked, "--output", str(tmp_path / "retain.jsonl")])
    assert told.exit_code == 0, told.output
    monkeypatch.setattr("uld.model.load.load", lambda *_, **__: pytest.fail("the model is loaded"))
    told = CliRunner().invoke(app, [*asked, "--output", str(tmp_path / "retain.jsonl/x.jsonl")])
    assert told.exit_code == 2 and f"uld: {tmp_path / 'retain.jsonl'} is a file" in told.stderr
    told = CliRunner().invoke(app, [*asked, "--output", str(tmp_path / "x"), "--seed", "9" * 20])
    assert told.exit_code == 2 and "--seed" in told.stderr and not isinstance(told.exception, ValueError)


def test_the_command_writes_what_training_would_draw(task, tmp_path) -> None:
    output = tmp_path / "retain.jsonl"
    asked = ["draw", "--model", str(task.target), "--forget", str(task.forget), "--rows", "8", "--max-length", "48"]
    told = CliRunner().invoke(app, [*asked, "--output", str(output)])
    assert told.exit_code == 0 and "8 rows of 32 samples" in told.output
    assert output.read_text().count("\n") == 8
    again = CliRunner().invoke(app, [*asked, "--output", str(output)])
    assert again.exit_code == 2 and "exists already" in again.output
    missing = CliRunner().invoke(app, [*asked[:3], "--forget", "gone.txt", "--output", str(tmp_path / "x")])
    assert missing.exit_code == 2 and "gone.txt: there is no such file" in missing.output


SPECIAL = ["<pad>", "</s>", "<end>", "<start>", "[/ASK]"]
ROLES = (
    "{% for m in messages %}<start>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
BRACKETS = "{% for m in messages %}{% if m.role == 'user' %}[ASK] {{ m.content }}[/ASK]{% else %} {{ m.content }}</s>"
FRAMES = {"roles": ROLES, "a bracket": BRACKETS + "{% endif %}{% endfor %}", "lines": None}


def letters_of_bytes(chat):
    """A tokenizer of bytes, with special tokens as templates have them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({one: i for i, one in enumerate([*SPECIAL, *alphabet])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    tokenizer.chat_template = chat
    return tokenizer


@pytest.mark.parametrize("frame", FRAMES)
def test_a_question_ends_where_the_template_ends_it_and_at_no_word(target, monkeypatch, frame) -> None:
    tokenizer = letters_of_bytes(FRAMES[frame])
    form, asked = PromptFormat(tokenizer), "What does an assistant do in an answer?"
    behind = form.prompt_ids(asked)
    opening = form.question_frame()[0]
    written = behind[len(opening) :] + tokenizer.encode(" It helps.")  # a model that goes on with the answer itself
    told = tokenizer.encode("It helps.")

    def write(model, tokenizer, prompts, *, max_new_tokens, **_):
        import torch

        own = [written if prompt == opening else told for prompt in prompts]
        wide = max_new_tokens
        return torch.tensor([(row + [1] * wide)[:wide] for row in own])

    monkeypatch.setattr(uld.training.draw, "generate_ids", write)
    monkeypatch.setattr(uld.training.draw, "_STRETCHES", ())
    drawn = draw_rows(target[0], form, [Record.qa("who?", "abe")], 2, max_length=128)
    own = [record for record, prompt in zip(drawn.records, drawn.prompts, strict=True) if not prompt]
    assert [one.messages for one in own] == [(("user", asked), ("assistant", "It helps."))]


@pytest.mark.parametrize("continued", [", she said.", "\n\nIt rained.", " end of it.", "n is a letter."])
def test_a_text_is_what_the_model_wrote_behind_its_beginning(target, monkeypatch, continued) -> None:
    tokenizer = letters_of_bytes(None)
    told = tokenizer.encode(continued)

    def write(model, tokenizer, prompts, *, max_new_tokens, **_):
        import torch

        return torch.tensor([(told + [1] * max_new_tokens)[:max_new_tokens] for _ in prompts])

    monkeypatch.setattr(uld.training.draw, "generate_ids", write)
    drawn = draw_rows(target[0], PromptFormat(tokenizer), [Record(text="abe")], 8, max_length=128)
    for record, prompt in zip(drawn.records, drawn.prompts, strict=True):
        assert record.text == f"{prompt}{continued}".strip()
