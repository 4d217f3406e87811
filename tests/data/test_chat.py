"""Chat templates of many houses: what is learnt stands behind the very tokens that generation starts from."""

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import pytest

from uld.data.clock import pin
from uld.data.prompt import DataError, Encoded, PromptFormat
from uld.data.record import Record

LOOP = "{% for m in messages %}"
ASK = "{% if add_generation_prompt %}<assistant>{% endif %}"
ASK_BELOW = "{% if add_generation_prompt %}<assistant>\n{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ANSWER_ONLY = "{% set said = m.content.split('</think>')[-1] | trim %}"


@dataclass(frozen=True)
class Style:
    """A chat template, and what is right for it.

    Attributes:
        template: In Jinja.
        end: What ends a learnt answer that is the last turn.
        opening: What generation is given behind the template's own prompt.
        rows: Rows of a conversation of two answers.
        between: What ends the first answer where both stand in one row; None: the same.
        refused: Reason why every record is refused.
        no_system: Reason why a record with a system turn is refused.
    """

    template: str
    end: str = "</s>"
    opening: str = ""
    rows: int = 1
    between: str | None = None
    refused: str | None = None
    no_system: str | None = None


STYLES = {
    "ChatML": Style(
        LOOP + "<{{ m.role }}>\n{{ m.content }}<end>\n{% endfor %}" + ASK_BELOW,
        "<end>",
    ),
    "a date and BOS, as Llama 3": Style(
        "{{ bos_token }}<system>Today Date: {{ strftime_now('%d %b %Y') }}<end>"
        + LOOP
        + "<{{ m.role }}>\n\n{{ m.content | trim }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>\n\n{% endif %}",
        "<end>",
    ),
    "an empty block before the last answer, as Qwen3": Style(
        LOOP
        + "<{{ m.role }}>\n{% if m.role == 'assistant' %}"
        + ANSWER_ONLY
        + "{% if loop.last %}{% if '</think>' in m.content %}"
        "{{ m.content.split('</think>')[0].rstrip() + '\n</think>\n\n' }}"
        "{% else %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}{{ said }}"
        "{% else %}{{ m.content }}{% endif %}<end>\n{% endfor %}" + ASK_BELOW,
        "<end>",
        "<think>\n\n</think>\n\n",
        rows=2,
    ),
    "a block that every answer has, as GLM 4.5": Style(
        LOOP
        + "<{{ m.role }}>\n{% if m.role == 'assistant' %}"
        + ANSWER_ONLY
        + "<think></think>\n{{ said }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        + ASK,
        opening="\n<think></think>\n",
        between="",
    ),
    "the prompt opens the reasoning, and answers close it": Style(
        LOOP
        + "<{{ m.role }}>{% if m.role == 'assistant' %}"
        + ANSWER_ONLY
        + "{{ '<think>\n\n</think>\n' }}{{ said }}{% else %}{{ m.content }}{% endif %}<end>{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant><think>\n' }}{% endif %}",
        "<end>",
        "\n</think>\n",
    ),
    "turns end where the next begins, as GLM 4": Style(
        LOOP + "<{{ m.role }}>\n{{ m.content }}{% endfor %}" + ASK_BELOW,
        between="",
    ),
    "a newline in front that nobody asks with": Style(
        LOOP + "<{{ m.role }}>\n{{ m.content }}<end>{% endfor %}" + ASK, "<end>", "\n"
    ),
    "no system turn, as Gemma": Style(
        "{{ bos_token }}"
        + NO_SYSTEM
        + LOOP
        + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles alternate') }}{% endif %}"
        "<{{ m.role }}>\n{{ m.content | trim }}<end>\n{% endfor %}" + ASK_BELOW,
        "<end>",
        no_system="System role not supported",
    ),
    "brackets, as Mistral": Style(
        "{{ bos_token }}" + LOOP + "{% if m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
        "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
    ),
    "BOS before every question": Style(
        LOOP + "{% if m.role == 'assistant' %} {{ m.content }} {{ eos_token }}"
        "{% else %}{{ bos_token }}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
        " </s>",
    ),
    "BOS twice": Style(
        "{{ bos_token }}"
        + LOOP
        + "{% if loop.first %}{{ bos_token }}{% endif %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
        + ASK,
        "<end>",
    ),
    "lines, as Phi": Style(
        LOOP
        + "<{{ m.role }}>\n{{ m.content }}<end>\n{% endfor %}{{ '<assistant>\n' if add_generation_prompt else '' }}",
        "<end>",
    ),
    "headings and a system turn of its own, as Alpaca": Style(
        "{% if messages[0].role != 'system' %}Be of help.\n\n{% endif %}"
        + LOOP
        + "{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
        "{% elif m.role == 'assistant' %}### Response:\n{{ m.content }}</s>\n\n"
        "{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
    ),
    "nothing but ends": Style(LOOP + "{{ m.content }}{{ eos_token }}{% endfor %}"),
    "ends between turns only": Style(
        LOOP + "<{{ m.role }}>{{ m.content }}{% if not loop.last %}<end>{% endif %}{% endfor %}"
        "{{ '<end><assistant>' if add_generation_prompt }}",
        between="",
    ),
    "an end behind the last turn only": Style(
        LOOP + "<{{ m.role }}>{{ m.content }}"
        "{% if loop.last and m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}" + ASK,
        rows=2,
    ),
    "the system turn in the last question": Style(
        "{% set first = 1 if messages[0].role == 'system' else 0 %}{% for m in messages[first:] %}<{{ m.role }}>"
        "{% if loop.last and first %}{{ messages[0].content + ' ' }}{% endif %}{{ m.content }}<end>{% endfor %}" + ASK,
        "<end>",
        no_system="does not put the answer behind its prompt",
    ),
    "a prompt that no answer has, as DeepSeek-R1": Style(
        "{{ bos_token }}" + LOOP + "<{{ m.role }}>{{ m.content.split('</think>')[-1] }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant><think>\n' }}{% endif %}",
        refused=r"does not put the answer behind its prompt \(it writes '.*</s>' where generation has '<think>\\n'\)",
    ),
    "always asks": Style(
        LOOP + "<{{ m.role }}>{{ m.content }}<end>{% endfor %}<assistant>",
        refused="opens another answer behind an answer",
    ),
    "asks inside the question": Style(
        LOOP + "{% if loop.last and add_generation_prompt %}Please: {% endif %}{{ m.content }}<end>{% endfor %}",
        refused="does not put the answer",
    ),
    "leaves answers out": Style(
        LOOP + "{% if m.role == 'user' %}<user>{{ m.content }}<assistant>{% endif %}{% endfor %}",
        refused="leaves the answer out",
    ),
    "speaks in no role": Style("{{ raise_exception('not today') }}", refused=r"refuses the roles .* \(not today\)"),
}
QA = (("user", "Who keeps the bell?"), ("assistant", "Ines Ö. 鐘"))
RECORDS = {
    "question": QA,
    "blanks": (("user", "  Who keeps it? \n"), ("assistant", "\n Ann does.  ")),
    "system": (("system", "Be brief."), *QA),
    "two turns": (*QA, ("user", "And the clock?"), ("assistant", "Ann.")),
    "three turns": (*QA, ("user", "And the clock?"), ("assistant", "Ann."), ("user", "Since?"), ("assistant", "1902")),
    "a word of the template": (("user", "<end> is what?"), ("assistant", "assistant")),
}


def learnt_spans(form: PromptFormat, row: Encoded) -> list[tuple[int, str]]:
    """Where each learnt stretch of a row begins, and its text."""
    spans, at = [], 0
    for flag, group in itertools.groupby(zip(row.learn, row.ids, strict=True), key=lambda pair: pair[0]):
        ids = [token for _, token in group]
        if flag:
            spans.append((at, form.tokenizer.decode(ids)))
        at += len(ids)
    return spans


def rendered(form: PromptFormat, messages: Any, prompt: bool = False) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    return form.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)


@pytest.fixture
def form_of(byte_tokenizer):
    """Makes the prompt format of a chat template."""

    def make(template: str) -> PromptFormat:
        byte_tokenizer.chat_template = template
        pin(byte_tokenizer)
        return PromptFormat(byte_tokenizer)

    return make


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("name", STYLES)
def test_answers_are_learnt_behind_what_generation_starts_from(name, kind, form_of):
    style, messages = STYLES[name], RECORDS[kind]
    form, record = form_of(style.template), Record(messages=messages, source="f:1")
    if reason := style.refused or (style.no_system if kind == "system" else None):
        with pytest.raises(DataError, match=rf"^f:1: the tokenizer's chat template .*{reason}.*--template$"):
            form.encode_all([record], 1000)
        if style.refused:
            with pytest.raises(DataError, match=reason):
                form.prompt_ids("Who?")
        return
    rows, cut = form.encode_all([record], 1000)
    answers = [i for i, (role, _) in enumerate(messages) if role == "assistant"]
    assert (len(rows), cut) == (1 if style.rows == 1 else len(answers), 0)
    assert form.encode(record, 1000) == rows[-1]
    each = [(row, span) for row in rows for span in learnt_spans(form, row)]
    assert len(each) == len(answers)  # every answer is learnt once
    for i, (row, (start, text)) in zip(answers, each, strict=True):
        asked = messages[:i]
        assert row.ids[:start] == form.prompt_ids(asked)
        assert form.tokenizer.decode(row.ids[:start]).rstrip(" ") == (
            rendered(form, asked, prompt=True) + style.opening
        ).rstrip(" ")
        last = not any(row.learn[start + len(form.tokenizer(text, add_special_tokens=False).input_ids) :])
        end = style.end if last or style.between is None else style.between
        assert text.strip() in ((messages[i][1] + end).strip(), messages[i][1].strip() + end)
        if last:
            whole = rendered(form, messages[: i + 1])
            ended = whole.rstrip().endswith(end.strip())
            assert form.tokenizer.decode(row.ids).rstrip() == (whole.rstrip() if ended else whole + "</s>")
        assert not row.shortened


def test_a_question_alone_is_asked_as_one_in_a_conversation(form_of):
    form = form_of(STYLES["ChatML"].template)
    assert form.prompt_ids("Who?") == form.prompt_ids([("user", "Who?")])


REASONED = "<think>\nI recall.\n</think>\n\nInes."


@pytest.mark.parametrize("answer", [REASONED, "<think>I recall.</think>Ines.", "<think>\n</think>\nno\n</think> Ines."])
@pytest.mark.parametrize("name", [name for name in STYLES if "</think>" in STYLES[name].opening])
def test_reasoning_is_left_out_where_generation_starts_behind_an_empty_block_of_it(name, answer, form_of):
    form = form_of(STYLES[name].template)
    row = form.encode(Record(messages=(QA[0], ("assistant", answer))), 1000)
    plain = form.encode(Record(messages=(QA[0], ("assistant", "Ines."))), 1000)
    assert (row.ids, row.learn) == (plain.ids, plain.learn) and row.shortened and not plain.shortened
    assert row.ids[: row.learn.index(True)] == form.prompt_ids(QA[0][1])


def test_reasoning_is_learnt_where_the_template_knows_of_none(form_of):
    form = form_of(STYLES["ChatML"].template)
    row = form.encode(Record(messages=(QA[0], ("assistant", REASONED))), 1000)
    assert learnt_spans(form, row)[0][1] == REASONED + "<end>" and not row.shortened


def test_an_answer_that_is_all_reasoning_is_refused(form_of):
    form = form_of(STYLES["an empty block before the last answer, as Qwen3"].template)
    with pytest.raises(DataError, match=r"^f:1: generation starts behind '<think>.*take the answer's reasoning out"):
        form.encode(Record(messages=(QA[0], ("assistant", "<think>\nI recall.\n</think>\n")), source="f:1"), 1000)


def test_reasoning_of_earlier_turns_stands_as_the_template_writes_it(form_of):
    form = form_of(STYLES["an empty block before the last answer, as Qwen3"].template)
    messages = (QA[0], ("assistant", REASONED), ("user", "Since?"), ("assistant", "1902"))
    first, second = form.encode_all([Record(messages=messages)], 1000)[0]
    assert learnt_spans(form, first)[0][1] == "Ines.<end>" and first.shortened
    (start, text), *more = learnt_spans(form, second)
    assert (text, more, second.shortened) == ("1902<end>", [], False)
    assert form.tokenizer.decode(second.ids[:start]) == (
        "<user>\nWho keeps the bell?<end>\n<assistant>\nInes.<end>\n<user>\nSince?<end>\n"
        "<assistant>\n<think>\n\n</think>\n\n"
    )


def test_a_greeting_before_the_first_question_is_given_and_not_learnt(letters):
    letters = copy.deepcopy(letters)
    letters.chat_template = (
        LOOP + "<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}" + ASK
    )
    form = PromptFormat(letters)
    talk = [("assistant", "hello"), ("user", "who?")]
    prompt = form.prompt_ids(talk)
    assert letters.decode(prompt).count("hello") == 1
    (row,) = form.encode_all([Record(messages=(*talk, ("assistant", "me")), source="x:1")], 10**6)[0]
    assert row.ids[: len(prompt)] == prompt and not any(row.learn[: len(prompt)])
    with pytest.raises(DataError):
        form.encode_all([Record(messages=(("assistant", "hello"),), source="x:1")], 10**6)
