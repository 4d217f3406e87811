"""What an exception says to a user, and what the report of a bug holds."""

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from uld.errors import ULDError
from uld.text.faults import FAULT, UNREAD, WRONG, report, told, without_secrets
from uld.text.terminal import OutputError


def raised(make):
    """An exception as it is after it was raised."""
    try:
        make()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def torch_memory():
    import torch

    torch.empty(1 << 60, dtype=torch.uint8)


def numpy_memory():
    import numpy

    numpy.empty(1 << 60, dtype=numpy.uint8)


@pytest.mark.parametrize(
    "make",
    [
        torch_memory,
        numpy_memory,
        lambda: bytearray(1 << 62),
        lambda: (_ for _ in ()).throw(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
        lambda: (_ for _ in ()).throw(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")),
        lambda: (_ for _ in ()).throw(RuntimeError("unable to mmap file <x>: Cannot allocate memory (12)")),
        lambda: (_ for _ in ()).throw(RuntimeError("std::bad_alloc")),
        lambda: (_ for _ in ()).throw(OSError(errno.ENOMEM, "Cannot allocate memory")),
    ],
)
def test_memory_that_ran_out_is_a_sentence(make):
    outcome = told(raised(make))
    assert outcome and outcome.code == WRONG and outcome.sentence.startswith("there is not enough memory: lower")
    assert "\n" not in outcome.sentence


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Path("a" * 300).exists(), "the name is too long for this file system: shorten it"),
        (lambda: open("/no/such/file"), "/no/such/file: no such file or directory"),  # noqa: SIM115
        (lambda: open("/"), "/: is a directory"),  # noqa: SIM115
        (lambda: os.mkdir(b"/proc/caf\xe9"), "/proc/caf\udce9: no such file or directory"),
        (lambda: open("a\0b"), "holds a null byte"),  # noqa: SIM115
        (lambda: "caf\udce9".encode(), "is not UTF-8"),
    ],
)
def test_what_the_system_refuses_is_a_sentence(make, said: str):
    outcome = told(raised(make))
    assert outcome and outcome.code == WRONG and said in outcome.sentence and len(outcome.sentence) < 250


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EFBIG, errno.EMFILE, errno.EIO])
def test_so_is_what_it_refuses_without_a_name(number: int):
    outcome = told(OSError(number, os.strerror(number)))
    assert outcome and (outcome.code, outcome.sentence) == (WRONG, os.strerror(number).lower())


def test_an_error_of_pydantic_about_a_name_that_is_not_utf8():
    from pydantic import BaseModel

    class Named(BaseModel):
        name: str

    outcome = told(raised(lambda: Named.model_construct(name="caf\udce9").model_dump_json()))
    assert outcome and outcome.code == WRONG and "is not UTF-8" in outcome.sentence


def test_exit_codes():
    assert told(ULDError("the file is empty")).sentence == "the file is empty"  # type: ignore[union-attr]
    for error, code, sentence in (
        (KeyboardInterrupt(), WRONG, "interrupted"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), UNREAD, ""),
        (OutputError(BrokenPipeError(errno.EPIPE, "Broken pipe")), UNREAD, ""),
        (OutputError(OSError(28, "No space left")), WRONG, "cannot write to standard output: no space left"),
    ):
        outcome = told(error)
        assert outcome and (outcome.code, outcome.sentence) == (code, sentence)
    wrapped = ULDError("3 of 4 are done")
    wrapped.__cause__ = OutputError(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert told(wrapped).code == UNREAD  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "error", [KeyError("a"), RuntimeError("shapes"), OSError(errno.EBADF, "Bad file descriptor"), RecursionError()]
)
def test_the_rest_are_bugs(error):
    assert told(error) is None


def test_a_report_can_be_read_by_its_owner_alone_and_keeps_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("MY_API_KEY", "sk-0123456789")
    monkeypatch.setattr(sys, "argv", ["uld", "generate", "--model=runs/secret-run", "--raw", "a private question"])
    said = f"sk-0123456789 at http://ann:pass@host/ \x1b[2J {'x' * 1000}"
    before = os.umask(0)
    try:

        def fail():
            document = "Mara Quillon keeps the lighthouse."
            assert document
            raise ValueError(said)

        outcome = report(raised(fail))
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    assert outcome.code == FAULT and str(path) in outcome.sentence and "please report it" in outcome.sentence
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "command: uld generate --model --raw\n" in text and "raise ValueError" in text and "torch " in text
    for secret in ("Mara", "sk-0123", "pass", "private", "secret-run", "\x1b"):
        assert secret not in text
    assert len(text) < 3000


def test_where_no_report_can_be_written_the_sentence_says_so(monkeypatch):
    def refuse(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("uld.text.faults.tempfile.mkstemp", refuse)
    outcome = report(raised(lambda: {}["a"]))
    assert outcome.code == FAULT and "could not be written down: No space left" in outcome.sentence


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("http://ann:pass@host/v1 and https://bob@host", "http://…@host/v1 and https://…@host"),
        ("token hf_abcdefgh", "token …"),
        ("layout us-intl-long", "layout us-intl-long"),
        ("mail a@b.c", "mail a@b.c"),
    ],
)
def test_secrets_of_a_text(monkeypatch, text: str, kept: str):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("KEYBOARD", "us-intl-long")
    monkeypatch.setenv("AN_EMPTY_KEY", "")
    assert without_secrets(text) == kept
