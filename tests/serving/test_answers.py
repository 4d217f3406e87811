"""An answer's pieces together are what the tokenizer makes of its tokens, whatever they are."""

import random

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("transformers", minversion="5.23", reason="the extra serve wants transformers 5.23")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from uld.serving.answers import Answer


def with_byte_fallback():
    """A tokenizer like that of Llama-2: letters, and bytes for what has no token."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
        "▁the",
        "é",
        "\n",
    ]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<s>", "</s>"])
    return made


def of_bytes():
    """A tokenizer like that of GPT-2, whose letters are bytes."""
    words = [*pre_tokenizers.ByteLevel.alphabet(), "Ġa", "Ġthe", "<s>"]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(sorted(words))}, []))
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>"])
    return made


def of_pieces():
    """A tokenizer like that of BERT, with blanks between words."""
    words = ["[UNK]", "the", "a", "##b", "##c", ".", "n't"]
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    return made


def said(answer):
    """The pieces that lie in its queue."""
    items = [answer.queue.get_nowait() for _ in range(answer.queue.qsize())]
    assert items.pop() is None
    return items


def answered(tokenizer, ids, stop=None):
    answer = Answer(tokenizer, stop, lambda: None)
    for token in ids:
        answer.feed([token])
    answer.finish()
    return answer


@pytest.mark.parametrize("make", [with_byte_fallback, of_bytes, of_pieces])
def test_pieces_together_are_the_text_of_all_tokens(make):
    tokenizer, draw = make(), random.Random(0)
    letters = "你好é🙂a"
    named = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in letters.encode()]
    alphabet = [i for i in range(tokenizer.get_vocab_size()) if not (tokenizer.id_to_token(i) or "").startswith("<0x")]
    for number in range(300):
        ids = draw.choices(alphabet, k=draw.randrange(12))
        if make is with_byte_fallback:
            place, begin, end = draw.randrange(len(ids) + 1), draw.randrange(len(named)), draw.randrange(len(named) + 1)
            ids[place:place] = named[begin:end]
            ids += draw.choices(named, k=number % 4)
        answer = answered(tokenizer, ids)
        assert answer.text == "".join(said(answer)) == tokenizer.decode(ids), ids


def test_a_letter_of_bytes_that_are_then_ill_formed():
    tokenizer = with_byte_fallback()
    ids = [tokenizer.token_to_id(one) for one in ("a", "<0x65>", "<0xF1>", "<0xDF>", "b", "a")]
    assert tokenizer.decode(ids) == "a\ufffd\ufffd\ufffdba"
    answer = answered(tokenizer, ids)
    assert said(answer) == ["a", "\ufffd\ufffd\ufffdb", "a"]
    assert answer.ids == ids


def test_a_letter_that_is_half_written_at_the_end_is_shown_as_such():
    tokenizer = of_bytes()
    whole = tokenizer.decode(
        ids := [tokenizer.token_to_id(one) for one in ("a", "ä", "½")]
    )  # of "你", without its last
    assert whole == "a\ufffd"
    assert answered(tokenizer, ids).text == whole


def test_a_stop_among_what_was_held_back_ends_the_answer():
    tokenizer = with_byte_fallback()
    ids = [tokenizer.token_to_id(one) for one in ("a", "<0x62>", "<0x63>", "<0x64>")]
    answer = answered(tokenizer, ids, stop="c")
    assert (answer.text, "".join(said(answer)), answer.stopped) == ("ab", "ab", True)
