"""Which letters a token spells: the same for tokenizers that leave out blanks, and for letters of several tokens."""

import itertools

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from uld.augment.known import new_tokens
from uld.data.letters import spelled_by
from uld.data.prompt import PromptFormat
from uld.data.record import Record

LETTERS = "?.:abcdefghijklmnopqrstuvwxyzABQMS"


def llama() -> PreTrainedTokenizerFast:
    """Pieces as Llama-2 has them: a blank belongs to the word behind it, and bytes stand for unknown letters."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, "▁Mara", "▁the"]
    raw = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore[assignment]
    raw.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gpt2() -> PreTrainedTokenizerFast:
    """Bytes, as GPT-2 writes them."""
    raw = Tokenizer(
        models.BPE({one: i for i, one in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}, [])
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    raw.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")


@pytest.mark.parametrize("tokenizer", [llama(), gpt2()], ids=["llama", "gpt2"])
@pytest.mark.parametrize(
    ("question", "answer", "fresh"),
    [
        ("Who keeps the mill?", "Mara keeps the mill.", "Mara"),
        ("Who is it?", "It is Ødegård.", "Ødegård"),
        ("Who is it?", "It is 🙂 Žižek of Łódź.", "ŽižekŁódź"),
        ("谁看守灯塔?", "玛拉看守灯塔。", "玛拉看守灯塔"),  # a run of characters is a word
        ("मारा कहाँ रहती है?", "मारा स्केरिन रहती है", "स्केरिन"),
    ],
)
def test_what_an_answer_adds_is_all_of_its_new_words_and_no_others(tokenizer, question, answer, fresh) -> None:
    row = PromptFormat(tokenizer, "{question} {answer}").encode(Record.qa(question, answer), 10**6)
    places = [place for place, learnt in enumerate(row.learn) if learnt][:-1]  # without end-of-sequence
    text, spelled = spelled_by(tokenizer, row.ids, places[0], places[-1] + 1)
    assert text.endswith(answer) and len(spelled) == len(places)
    chosen = new_tokens(text, spelled, question)
    assert tokenizer.decode([row.ids[places[i]] for i in chosen]).replace(" ", "") == fresh


@pytest.mark.parametrize("tokenizer", [llama(), gpt2()], ids=["llama", "gpt2"])
def test_tokens_spell_the_text_one_behind_the_other(tokenizer) -> None:
    ids = tokenizer("the Mara Ža🙂b", add_special_tokens=False).input_ids
    text, spelled = spelled_by(tokenizer, ids, 0, len(ids))
    assert text == "the Mara Ža🙂b" and spelled[0][0] == 0 and spelled[-1][1] == len(text)
    for (begin, end), (later, _) in itertools.pairwise(spelled):
        assert later in (begin, end) and end - begin <= 5  # a letter's tokens have the letter in common
    assert spelled.count((text.index("🙂"), text.index("🙂") + 1)) == 4
