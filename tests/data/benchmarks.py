"""Folders of benchmarks and of documents with one thing wrong, beside folders that are read."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.data.damage import BAD_JSON, pdf, wrong_bytes
from tests.data.generators import (
    ARCHIVES,
    LOST,
    NOTHING,
    PAGES,
    POINTERS,
    as_csv,
    as_lines,
    as_list,
    qa,
    sentence,
    whole,
)

BAD_VALUES: list[tuple[Any, str]] = [
    *[(nothing, "is empty") for nothing in NOTHING],
    *[("a\0b", "holds NUL"), ("a\ud83d", "half of a surrogate")],
    *[(value, "") for value in (None, 3, 2.5, True, ["x"], {"a": "b"}, [])],
]


@dataclass(frozen=True)
class Layout:
    """A benchmark's folder.

    Attributes:
        files: Each with the columns of its rows: texts, or lists of texts where the name ends in ``*``.
        strict: The files that must be there.
    """

    files: dict[str, tuple[str, ...]]
    strict: tuple[str, ...]


TOFU = Layout(
    {"forget01_perturbed.json": ("question", "answer", "paraphrased_answer", "perturbed_answer*")},
    ("forget01_perturbed.json",),
)
KNOWUNDO = Layout(
    dict.fromkeys(("unlearn_val.json", "retention_val.json"), ("text", "labels")),
    ("unlearn_val.json", "retention_val.json"),
)
MUSE = Layout(
    {
        **dict.fromkeys(("knowmem/forget_qa.json", "retain2_qa.json"), ("question", "answer")),
        "verbmem/forget.json": ("prompt", "gt"),
        "privleak/holdout.json": ("text",),
    },
    (),
)


def good_row(columns: tuple[str, ...], rng: Random) -> dict[str, Any]:
    return {
        name.removesuffix("*"): [sentence(rng), sentence(rng)] if name.endswith("*") else sentence(rng)
        for name in columns
    }


def wrong_folders(layout: Layout, seed: int, number: int) -> Iterator[tuple[dict[str, bytes], str | None, str]]:
    """Files of a folder, and the place and words of its refusal; None where it must be read."""
    rng = Random(seed)
    for i in range(number):
        files: dict[str, bytes] = {}
        rows = {
            name: [good_row(columns, rng) for _ in range(rng.randint(1, 4))] for name, columns in layout.files.items()
        }
        for name, some in rows.items():
            files[name] = (as_list if rng.random() < 0.5 else as_lines)(some, rng)
        name = rng.choice(list(files))
        at = rng.randint(1, len(rows[name]))
        as_rows = i % 2 == 0
        place = f"{name}:{at}: " if as_rows else f"{name} record {at}: "
        write = as_lines if as_rows else as_list
        column = rng.choice(layout.files[name])
        kind = ("value", "missing", "json", "impostor", "bytes", "no row", "row", "gone", "fine")[i % 9]
        said = ""
        if kind == "value":
            value, said = BAD_VALUES[i // 9 % len(BAD_VALUES)]
            if column.endswith("*"):
                value, said = (rng.choice(([], [3], ["a", None], "x", None, ["a", " "], {"a": "b"})), "")
            rows[name][at - 1][column.removesuffix("*")] = value
            files[name] = write(rows[name], rng)
        elif kind == "missing":
            rows[name][at - 1].pop(column.removesuffix("*"))
            files[name] = write(rows[name], rng)
        elif kind == "json":
            text, said = rng.choice([one for one in BAD_JSON if one[0][0] != "["])
            good = [json.dumps(row) for row in rows[name]]
            files[name] = "\n".join([*good[: at - 1], text, *good[at - 1 :]]).encode()
            place = f"{name}:{at}: "
        elif kind == "impostor":
            body, said = rng.choice([*POINTERS, *((page, "is an HTML page") for page in PAGES), *ARCHIVES])
            files[name], place = (body % i if b"%" in body[1:] else body), f"{name}: "
        elif kind == "bytes":
            line, _, said = wrong_bytes(rng, '{"plain": "line"}')
            files[name], place = line, f"{name}:1: byte "
        elif kind == "no row":
            files[name], place = rng.choice((b"", b"[]", b"\n", b"\xef\xbb\xbf")), f"{name}: "
        elif kind == "row":
            rows[name][at - 1] = rng.choice((3, None, 2.5, True))  # type: ignore[call-overload]
            files[name] = write(rows[name], rng)
        elif kind == "gone":
            if not layout.strict:
                files = {"readme.md": b"x"}
            else:
                del files[rng.choice(layout.strict)]
            place, said = "", "has no" if layout.strict else "holds no part of MUSE"
        yield files, None if kind == "fine" else place, said


Maker = Callable[[Path, Random], None]


def put(name: str, content: Callable[[Random], bytes]) -> Maker:
    def make(folder: Path, rng: Random) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(rng))

    return make


def _link(name: str, target: str) -> Maker:
    return lambda folder, rng: os.symlink(target, folder / name)


def _raw(name: bytes) -> Maker:
    return lambda folder, rng: (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_text("words") and None


def _saved(folder: Path, rng: Random) -> None:
    """A data set as `Dataset.save_to_disk` writes it."""
    for name in ("s/data-00000-of-00001.arrow", "s/dataset_info.json", "s/state.json"):
        put(name, lambda rng: b"{}")(folder, rng)


GOOD_FILES: dict[str, Callable[[Random], bytes]] = {
    "a.txt": lambda rng: sentence(rng).encode(),
    "b/c.md": lambda rng: sentence(rng).encode(),
    "d.jsonl": lambda rng: as_lines([qa(rng)], rng),
    "e/f/g.json": lambda rng: as_list([whole(rng)], rng),
    "h.csv": lambda rng: as_csv([qa(rng)], rng),
    "i.pdf": lambda rng: pdf("Some words"),
}
"""Each is one record."""


def _with_key(write: Callable[[list[Any], Random], bytes], key: str) -> Callable[[Random], bytes]:
    return lambda rng: write([qa(rng) | {key: "lost words"}], rng)


SPOILT: list[tuple[str, Maker, str, str]] = [  # a name, what is put beside good files, the place and the words
    *[
        (f"an unread key, {name}", put(name, _with_key(write, key)), name, key)
        for key in LOST[:8]
        for name, write in (("z.jsonl", as_lines), ("m/z.json", as_list), ("z.csv", as_csv))
    ],
    *[
        (f"{said}, {name}", put(name, lambda rng, body=body: body % 7 if b"%" in body[1:] else body), name, said)
        for body, said in (*POINTERS, *((page, "HTML") for page in PAGES), *ARCHIVES)
        for name in ("z.txt", "m/n/z.md", "z.json")
    ],
    ("an empty file", put("z.txt", lambda rng: b""), "z.txt", "the file is empty"),
    ("blanks", put("z.md", lambda rng: b" \n\xc2\xa0"), "z.md", "empty"),
    ("latin-1", put("k/z.txt", lambda rng: sentence(rng).encode() + b" caf\xe9 "), "k/z.txt", "is not UTF-8"),
    ("a dangling link", _link("z.txt", "nowhere.txt"), "z.txt", "is a link to nowhere.txt, which is missing"),
    ("annexed", _link("z.txt", ".git/annex/objects/a/b"), "z.txt", "git annex get"),
    ("a loop", _link("z.txt", "z.txt"), "z.txt", "cannot be read"),
    ("a name", _raw(b"caf\xe9.txt"), "caf\\xe9.txt", "the name is not UTF-8"),
    ("save_to_disk", _saved, "s", "save_to_disk"),
    ("save_to_disk of several", put("dataset_dict.json", lambda rng: b'{"splits": ["train"]}'), "", "save_to_disk"),
]
BESIDE: list[tuple[str, Maker]] = [  # and what changes nothing
    ("hidden", put(".hidden/x.jsonl", lambda rng: b"no json")),
    ("another type", put("x.docx", lambda rng: b"PK\x03\x04")),
    ("no type", put("Makefile", lambda rng: b"all:")),
    ("a pipe", lambda folder, rng: os.mkfifo(folder / "pipe.txt")),
    ("a link to the folder", _link("again", ".")),
]
