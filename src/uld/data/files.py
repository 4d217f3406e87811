"""A user's file: read once, told apart from what only bears its name, decoded; its digest is of what was read.

So a pipe is as good as a file (``/dev/stdin``, ``<(…)``), and no pointer, archive or error page is taken for a
document.
"""

import codecs
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from uld.data.text import shown_name
from uld.errors import DataError

MAX_LINE_BYTES = 8 * 2**20
_HEAD = 4096  # bytes that tell what a file is
_LFS = re.compile(rb"\s*version https://(git-lfs|hawser)\.github\.com/")
_ANNEX = re.compile(rb"[\w./\\-]*[/\\]annex[/\\]objects[/\\]\S+\s*")
_HTML = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*<(!doctype\s+html|html|head|body|title|error)\b",
    re.IGNORECASE | re.DOTALL,
)
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_CHARSET = re.compile(rb"""\b(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_SIGNATURES = (  # how it begins, what it is, and the suffixes of a reader of it
    (rb"%PDF-", "a PDF", (".pdf",)),
    (rb"PAR1", "a Parquet file", (".parquet",)),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive (or a file of Word, Excel and the like)", ()),
    (rb"\x1f\x8b", "compressed with gzip", ()),
    (rb"BZh[1-9]1AY&SY", "compressed with bzip2", ()),
    (rb"\xfd7zXZ\x00", "compressed with xz", ()),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd", ()),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", ()),
    (rb"Rar!\x1a\x07", "a RAR archive", ()),
    (rb"(?s:.{257})ustar", "a tar archive", ()),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a file of an old Word or Excel", ()),
    (rb"\{\\rtf", "a file in the Rich Text Format", ()),
    (rb"%!PS", "a PostScript file", ()),
    (rb"SQLite format 3\x00", "an SQLite database", ()),
    (rb"ARROW1", "an Arrow file", ()),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a", "an image", ()),
    (rb"\x7fELF", "a program", ()),
)


class File:
    """A file that is read once.

    Attributes:
        path: Where it is.
        name: The same for messages.
    """

    def __init__(self, path: str | Path) -> None:
        """Remember the path; nothing is opened yet."""
        self.path = Path(path)
        self.name = shown_name(path)
        self._digest = hashlib.sha256()

    @property
    def suffix(self) -> str:
        """Of its name, in small letters."""
        return self.path.suffix.lower()

    @property
    def sha256(self) -> str:
        """Of the bytes that were read so far, in hexadecimal."""
        return self._digest.hexdigest()

    def read(self) -> bytes:
        """All bytes.

        Raises:
            DataError: it cannot be read, or is something else than its name says.
        """
        with self._opened() as file:
            data = file.read()
        self._digest.update(data)
        return data

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Numbered lines, from 1, with their ends; a line that is too long is never held whole.

        Raises:
            DataError: as for `read`, or a line over `MAX_LINE_BYTES`.
        """
        with self._opened() as file:
            for number, line in bounded_lines(file, self.name):
                self._digest.update(line)
                yield number, line

    def text(self) -> str:
        """All of it as text, without a byte-order mark.

        Raises:
            DataError: as for `read`; or it is no UTF-8.
        """
        return decoded_text(self.read().removeprefix(codecs.BOM_UTF8), self.name)

    @contextmanager
    def _opened(self) -> Iterator[io.BufferedReader]:
        try:
            with open(self.path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not file.isatty()):
                    raise DataError(f"{self.name}: is a device: expected a file")
                self._refuse_other(file.peek(_HEAD)[:_HEAD])
                yield file
        except FileNotFoundError as error:
            raise DataError(f"{self.name}: {self._missing()}") from error
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror or error}") from error
        except ValueError as error:  # a NUL in the name
            raise DataError(f"{self.name}: there is no such file") from error

    def _missing(self) -> str:
        if not os.path.islink(self.path):
            return "there is no such file"
        target = os.readlink(self.path)
        fetch = ": fetch it with git annex get" if "annex/objects" in target else ""
        return f"is a link to {shown_name(target)}, which is missing{fetch}"

    def _refuse_other(self, head: bytes) -> None:
        """Refuse what only bears the name of a document."""
        head = head.removeprefix(codecs.BOM_UTF8)
        if _LFS.match(head):
            raise DataError(f"{self.name}: is a pointer of Git LFS, not the file itself: fetch it with git lfs pull")
        if _ANNEX.fullmatch(head):
            raise DataError(f"{self.name}: is a pointer of git-annex, not the file itself: fetch it with git annex get")
        if self.suffix not in (".html", ".htm") and _HTML.match(head):
            raise DataError(
                f"{self.name}: is an HTML page (an error page perhaps), not what its name says: fetch the file itself, "
                "or name a page .html"
            )
        for sign, what, own in _SIGNATURES:
            if self.suffix not in own and re.match(sign, head):
                raise DataError(f"{self.name}: is {what}, not what its name says: unpack or convert it first")


def check_name(name: str, flag: str = "a file or folder to read") -> None:
    """Refuse a name that names nothing, or that no artefact can hold.

    Args:
        name: As the user gave it.
        flag: What it was given for.

    Raises:
        DataError: it is empty, or not UTF-8.
    """
    if not name.strip():
        raise DataError(f"{flag} has an empty name, as an unset shell variable gives it: name what to read")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{shown_name(name)}: the name is not UTF-8, so that no run could note it: rename it"
        ) from error


def folder_of(data: str | Path, flag: str = "--data") -> Path:
    """A folder that a user has named (see `check_name`)."""
    check_name(str(data), f"the folder of {flag}")
    return Path(data)


def bounded_lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a stream, from 1, with their ends.

    Raises:
        DataError: a line over `MAX_LINE_BYTES`.
    """
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"{name}:{number}: the line is longer than {MAX_LINE_BYTES // 2**20} MiB: put one record on each line, "
                "and split long texts over several"
            )
        yield number, line


def decoded_text(data: bytes, source: str) -> str:
    """Bytes as text.

    Args:
        data: Of a file or of a line.
        source: What the message names.

    Raises:
        DataError: names the first byte that is not UTF-8, or is NUL, counted from 1.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        likely = " (it begins like UTF-16)" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else ""
        raise DataError(
            f"{source}: byte {error.start + 1} (0x{data[error.start]:02x}) is not UTF-8{likely}: save the file as UTF-8"
        ) from error
    if (place := data.find(0)) >= 0:
        raise DataError(
            f"{source}: byte {place + 1} is NUL (0x00), which no text holds: the file is damaged, or not UTF-8 (UTF-16 "
            "perhaps): save it as UTF-8"
        )
    return text


def decoded_page(data: bytes, source: str) -> str:
    """A page of HTML as text: UTF-8, or what its first bytes or it itself says; nothing is guessed.

    Args:
        data: Of a file.
        source: What the message names.

    Raises:
        DataError: it is in none of these.
    """
    said = _CHARSET.search(data[:_HEAD])
    mark = next((codec for mark, codec in _MARKS.items() if data.startswith(mark)), "utf-8")
    for codec in (mark, said and _charset(said)):
        try:
            if codec and "\0" not in (text := data.decode(codec)):
                return text
        except UnicodeError:
            continue
    try:
        return decoded_text(data, source)
    except DataError as error:
        raise DataError(f"{error} (nor does the page name another charset that it is in)") from error


def _charset(said: re.Match[bytes]) -> str | None:
    """The codec of the charset that a page names; None where the page that says so cannot be in it."""
    try:
        codec = codecs.lookup(said[1].decode()).name
        codec = "cp1252" if codec in ("ascii", "iso8859-1") else codec  # so all browsers read them
        return codec if said[0].decode(codec) == said[0].decode("ascii") else None
    except (LookupError, UnicodeError):
        return None
