"""``uld generate`` and ``uld chat``: what the library answers is what is printed; commands; bad input."""

import builtins
import copy
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner

from uld.cli.main import app, main
from uld.data.prompt import PromptFormat
from uld.model.generate import generate_answers
from uld.model.load import load
from uld.model.unlearned import ULDForCausalLM
from uld.runs.manifest import Manifest

QUESTIONS = ["Who was the teacher of Ada?", "When was Bob born?"]
SHORT = ("--max-new-tokens", "8")


@pytest.fixture(scope="module")
def unlearned(micro):
    return load(micro.run)


def answer(loaded, question: str, *, target: bool = False, raw: bool = False, weight: float | None = None, **options):
    model, tokenizer = loaded
    ids = list(tokenizer(question).input_ids) if raw else PromptFormat(tokenizer).prompt_ids(question)
    own = model.combination
    try:
        model.combination = own.override(weight=weight)
        return generate_answers(model.target if target else model, tokenizer, [ids], max_new_tokens=8, **options)[0]
    finally:
        model.combination = own


def uld(*arguments: object, said: str | None = None):
    return CliRunner().invoke(app, list(map(str, arguments)), input=said)


def lines(*texts: str) -> list[str]:
    """Lines without blanks around them: a streamed answer keeps its last one."""
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]


def refused(done) -> str:
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("uld: ")
    return done.stderr


def test_a_streamed_answer_is_the_whole_one_whatever_the_models_own_settings(micro, unlearned, tmp_path):
    target = Path(shutil.copytree(micro.target, tmp_path / "target"))
    settings = json.loads((target / "generation_config.json").read_text())
    (target / "generation_config.json").write_text(json.dumps(settings | {"repetition_penalty": 50.0}))
    assert load(micro.run, target=target)[0].generation_config.repetition_penalty == 50.0
    for flags in ((), ("--num-beams", 2)):
        done = uld("generate", "-m", micro.run, "--target", target, *SHORT, *flags, QUESTIONS[0])
        assert done.stdout.strip() == answer(unlearned, QUESTIONS[0], num_beams=flags[1] if flags else 1)


def test_answers_to_arguments_and_to_lines_of_standard_input(micro, unlearned):
    expected = lines(*(answer(unlearned, question) for question in QUESTIONS))
    asked = uld("generate", "-m", micro.run, *SHORT, *QUESTIONS)
    assert (asked.exit_code, lines(asked.stdout), asked.stderr) == (0, expected, "")
    assert asked.stdout[0] != " "
    piped = uld("generate", "-m", micro.run, *SHORT, said=f"{QUESTIONS[0]}\n\n  {QUESTIONS[1]}")
    assert (piped.exit_code, piped.stdout) == (0, asked.stdout)


def test_compare_shows_the_target_first(micro, unlearned):
    before, after = (answer(unlearned, QUESTIONS[0], target=target) for target in (True, False))
    assert before != after
    done = uld("generate", "-m", micro.run, *SHORT, "--compare", QUESTIONS[0])
    assert done.stdout == f"> {QUESTIONS[0]}\ntarget:    {before}\nunlearned: {after}\n"


def test_raw_text_is_continued_without_a_template(micro, unlearned):
    done = uld("generate", "-m", micro.run, *SHORT, "--raw", "The teacher of")
    assert lines(done.stdout) == lines(answer(unlearned, "The teacher of", raw=True))
    assert lines(done.stdout) != lines(answer(unlearned, "The teacher of"))


def test_beams(micro, unlearned):
    done = uld("generate", "-m", micro.run, *SHORT, "--num-beams", 3, *QUESTIONS)
    assert done.stdout == "".join(answer(unlearned, question, num_beams=3) + "\n" for question in QUESTIONS)


def test_a_seed_gives_the_same_sample_and_another_seed_another(micro):
    options = ("generate", "-m", micro.run, *SHORT, "--temperature", 1.5, QUESTIONS[0])
    first, again, other = (uld(*options, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again != other
    greedy = uld("generate", "-m", micro.run, *SHORT, QUESTIONS[0]).stdout
    assert greedy != first


def test_overrides_reach_the_model(micro, unlearned):
    done = uld("generate", "-m", micro.run, *SHORT, "--weight", 0, QUESTIONS[0])
    assert lines(done.stdout) == lines(answer(unlearned, QUESTIONS[0], target=True))


def test_an_ordinary_model_answers_too(micro, unlearned):
    done = uld("generate", "-m", micro.target, *SHORT, QUESTIONS[0])
    assert lines(done.stdout) == lines(answer(unlearned, QUESTIONS[0], target=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "hi"), "name a run or a model with --model"),
        (("chat",), "name a run or a model with --model"),
        (("generate", "-m", "RUN"), "nothing to answer: give a question, or lines on standard input"),
        (("generate", "-m", "RUN", "  "), "nothing to answer"),
        (("generate", "-m", "TARGET", "--compare", "hi"), "--compare needs a run with an assistant, and "),
        (("generate", "-m", "RUN", "word " * 300), "the prompt has "),
        (("generate", "-m", "RUN", "hi", "word " * 300), "the prompt has "),
        (("generate", "-m", "RUN", "caf\udce9"), "the question is not UTF-8"),
        (("generate", "-m", "RUN", "--template", "{question}", "hi"), "template '{question}' is neither one of"),
        (("chat", "-m", "/no/such/run"), "there is no run or model in /no/such/run"),
    ],
)
def test_bad_input_is_one_sentence(micro, arguments, message):
    places = {"RUN": micro.run, "TARGET": micro.target}
    done = uld(*(places.get(word, word) for word in arguments), said="")
    assert message in refused(done) and done.stdout == ""


def typed(stdin: io.TextIOBase, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    """Exit code of a command that reads from this standard input."""
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys, "argv", ["uld", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the second is Python's way in the C locale
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_input_that_is_not_utf8(micro, monkeypatch, capsys, command, errors):
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors=errors)
    assert typed(stdin, monkeypatch, command, "-m", micro.run) == 2
    assert capsys.readouterr().err.endswith("uld: standard input is not UTF-8: save it as UTF-8\n")


def test_a_mark_of_byte_order_is_no_part_of_a_question(micro, unlearned):
    said = uld("generate", "-m", micro.run, *SHORT, said=f"\ufeff{QUESTIONS[0]}\n").stdout
    assert said == uld("generate", "-m", micro.run, *SHORT, said=f"{QUESTIONS[0]}\n").stdout


def test_a_seed_out_of_range(micro):
    assert uld("generate", "-m", micro.run, "--seed", 2**32, "hi").exit_code == 2


@pytest.fixture(scope="module")
def run_with_template(micro, tmp_path_factory):
    """A run whose settings name a template."""
    run = shutil.copytree(micro.run, tmp_path_factory.mktemp("llama2") / "run")
    Manifest.read(run).model_copy(update={"template": "llama2"}).write(run)
    return run


@pytest.mark.parametrize(("given", "used"), [((), "llama2"), (("--template", "plain"), "plain")])
def test_the_template_of_the_run_is_used_unless_one_is_given(run_with_template, unlearned, given, used):
    model, tokenizer = unlearned
    ids = PromptFormat(tokenizer, used).prompt_ids(QUESTIONS[0])
    expected = lines(generate_answers(model, tokenizer, [ids], max_new_tokens=8)[0])
    assert expected != lines(answer(unlearned, QUESTIONS[0]))  # the chat template's
    asked = uld("generate", "-m", run_with_template, *SHORT, *given, QUESTIONS[0])
    assert lines(asked.stdout) == expected
    talked = uld("chat", "-m", run_with_template, *SHORT, *given, said=QUESTIONS[0] + "\n")
    assert lines(talked.stdout.replace("> ", "")) == expected


def test_a_terminal_is_not_waited_for(micro, monkeypatch, capsys):
    stdin = io.StringIO()
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(stdin, "readline", lambda *_: pytest.fail("the terminal is read"))
    assert typed(stdin, monkeypatch, "generate", "-m", micro.run) == 2
    assert "uld chat to talk" in capsys.readouterr().err


def chat(micro, *typed: str, model=None):
    """A conversation that ends with Ctrl-D; what was printed without the prompts."""
    done = uld("chat", "-m", model or micro.run, *SHORT, said="\n".join(typed) + "\n")
    assert done.exit_code == 0, done.output
    return lines(done.stdout.replace("> ", "")), done.stderr.splitlines()[1:]


def test_a_conversation_remembers_until_it_is_told_to_start_over(micro, unlearned):
    first = answer(unlearned, QUESTIONS[0])
    said, _ = chat(micro, QUESTIONS[0], QUESTIONS[1], "/new", QUESTIONS[1], "", QUESTIONS[0])
    form = PromptFormat(unlearned[1])
    turns = [("user", QUESTIONS[0]), ("assistant", first or "-"), ("user", QUESTIONS[1])]
    second = generate_answers(*unlearned, [form.prompt_ids(turns)], max_new_tokens=8)[0]
    alone = answer(unlearned, QUESTIONS[1])
    turns = [("user", QUESTIONS[1]), ("assistant", alone or "-"), ("user", QUESTIONS[0])]
    last = generate_answers(*unlearned, [form.prompt_ids(turns)], max_new_tokens=8)[0]
    assert said == lines(first, second, alone, last)


def test_weight_can_be_changed_in_a_conversation(micro, unlearned):
    said, noted = chat(micro, "/weight 0", QUESTIONS[0], "/new", "/weight 1.25", QUESTIONS[0])
    before, after = answer(unlearned, QUESTIONS[0], target=True), answer(unlearned, QUESTIONS[0], weight=1.25)
    assert said == lines(before, after)
    assert noted == ["α = 0", "α = 1.25"]


def test_commands_that_cannot_be_carried_out_are_answered(micro):
    said, noted = chat(micro, "/weight", "/weight much", "/weight -1", "/help", "/quit", QUESTIONS[0])
    assert said == []
    assert noted == [
        "/weight takes a number ≥ 0, as in /weight 1.5, not ''",
        "/weight takes a number ≥ 0, as in /weight 1.5, not 'much'",
        "weight (α) must lie between 0 and 1,000,000 or be inf, not -1.0",
        "there is no /help here: /weight N (of a run), /new, /quit",
    ]
    assert chat(micro, "/weight 2", model=micro.target)[1] == [
        "there is no /weight here: /weight N (of a run), /new, /quit"
    ]


def test_a_conversation_that_grows_too_long_says_so(micro, unlearned):
    said, noted = chat(micro, "word " * 300, QUESTIONS[0])
    assert said == lines(answer(unlearned, QUESTIONS[0]))
    assert noted[0].startswith("the prompt has ") and noted[0].endswith("; /new starts over")


def test_ctrl_c_cuts_an_answer_short_and_ends_at_the_prompt(micro, monkeypatch):
    said = iter([QUESTIONS[0], QUESTIONS[1], KeyboardInterrupt])
    asked: list[list[int]] = []

    def read(prompt: str) -> str:
        line = next(said)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line  # type: ignore[return-value]

    def generate(self, input_ids, **_):
        asked.append(input_ids[0].tolist())
        if len(asked) == 1:
            raise KeyboardInterrupt
        return input_ids

    monkeypatch.setattr(builtins, "input", read)
    monkeypatch.setattr(ULDForCausalLM, "generate", generate)
    done = uld("chat", "-m", micro.run)
    assert done.exit_code == 0 and "interrupted" not in done.stderr
    assert asked[1] == PromptFormat(load(micro.run)[1]).prompt_ids(QUESTIONS[1])  # the first question is forgotten


def test_raw_text_does_not_end_before_it_is_continued(make_run, tmp_path, letters):
    run = make_run(tmp_path)
    ending = copy.deepcopy(letters)
    special = [("<s>", 1), ("</s>", 2)]
    ending._tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    ending.save_pretrained(tmp_path / "ending")
    assert ending("abc").input_ids[-1] == ending.eos_token_id
    found = [
        CliRunner().invoke(app, ["generate", "--model", str(run), "--raw", "--max-new-tokens", "4", *more, "abc"])
        for more in ([], ["--tokenizer", str(tmp_path / "ending")])
    ]
    (plain, closed) = found
    assert closed.exit_code == plain.exit_code == 0
    model, _ = load(run)
    ids = torch.tensor([[1, *letters("abc").input_ids]])
    wanted = letters.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :])
    assert closed.output.strip() == wanted.strip()
