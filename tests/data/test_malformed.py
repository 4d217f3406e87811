"""Hundreds of malformed inputs for every reader: each is refused where it is wrong, or read exactly as it stands."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.data import benchmarks, damage, generators
from tests.data.generators import FLAT, NESTED, UNTYPED, Case, impostors, table_cases
from uld.data.documents import read_sources
from uld.data.knowundo import load_knowundo
from uld.data.muse import load_muse
from uld.data.tofu import load_tofu
from uld.errors import DataError

LEAST = 300


def _works(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        return False
    return True


def tried(
    cases: Iterable[Case],
    folder: Path,
    suffix: str,
    read: Callable[[Path], list[Any]],
    record_property: Any,
    reader: str,
) -> None:
    """Try every case; whatever is neither refused as it must be nor read as it must be fails, with all others."""
    count, wrong = Counter(), []
    for number, case in enumerate(cases):
        path = folder / f"{number}{suffix}"
        path.write_bytes(case.content)
        try:
            found = tuple(read(path))
            told = None
        except DataError as error:
            found, told = (), str(error)
        if case.place is None:
            right = told is None and found == case.records
        else:
            right = told is not None and told.startswith(f"{path}{case.place}") and case.said in told
            right = right and "\n" not in told and len(told) < len(str(path)) + 600
        count["refused" if case.place else "read"] += 1
        if not right:
            wrong.append((case.what, case.content[:120], case.place, case.said, told or found))
        path.unlink()
    record_property(reader, dict(count))
    print(f"{reader}: {count['refused']} refused, {count['read']} read, {len(wrong)} wrong")
    assert not wrong, f"{len(wrong)} of {count.total()} inputs of {reader}, the first: {wrong[:3]}"
    assert count["refused"] >= LEAST, f"only {count} inputs of {reader}"


def sources(path: Path) -> list[Any]:
    return [generators.says(record) for record in read_sources([str(path)])[0]]


def lines() -> Iterator[Case]:
    yield from table_cases(generators.as_lines, lambda k: f":{k}: ", FLAT + NESTED + UNTYPED, 1, 300)
    yield from damage.damaged_lines(2, 120)
    yield from impostors(Random(3), 40)


def lists() -> Iterator[Case]:
    yield from table_cases(generators.as_list, lambda k: f" record {k}: ", FLAT + NESTED + UNTYPED, 4, 300)
    yield from damage.damaged_lists(5, 120)
    yield from impostors(Random(6), 40)


def csvs() -> Iterator[Case]:
    rows = [
        fault for fault in FLAT if not fault[0].startswith("no ")
    ]  # a column that only some rows have is empty there
    yield from table_cases(generators.as_csv, lambda k: f" row {k + 1}: ", rows, 7, 250)
    yield from damage.damaged_csv(8, 120)
    yield from impostors(Random(9), 40)


def parquets() -> Iterator[Case]:
    yield from table_cases(generators.as_parquet, lambda k: f" row {k}: ", FLAT + NESTED, 10, 200)
    yield from damage.damaged_parquet(11, 120)
    yield from impostors(Random(12), 40, b"PAR1")


def texts() -> Iterator[Case]:
    yield from damage.damaged_texts(13, 260)
    yield from impostors(Random(14), 80)


def pages() -> Iterator[Case]:
    yield from damage.damaged_pages(15, 240)
    yield from impostors(Random(16), 80, b"<")


def pdfs() -> Iterator[Case]:
    yield from damage.damaged_pdfs(17, 260)
    yield from impostors(Random(18), 80, b"%PDF-1.7")


READERS = {
    "JSON lines": (lines, ".jsonl", None),
    "JSON lists": (lists, ".json", None),
    "CSV": (csvs, ".csv", None),
    "Parquet": (parquets, ".parquet", None),
    "texts": (texts, ".txt", None),
    "Markdown": (texts, ".md", None),
    "HTML": (pages, ".html", "trafilatura"),
    "PDF": (pdfs, ".pdf", "pypdf"),
}


@pytest.mark.parametrize("reader", READERS)
def test_malformed_files(reader: str, tmp_path: Path, record_property: Any) -> None:
    cases, suffix, package = READERS[reader]
    if package and not _works(package):
        pytest.skip(f"{package} cannot be imported here")
    tried(cases(), tmp_path, suffix, sources, record_property, reader)


def _tofu(folder: Path) -> int:
    return len(load_tofu("forget01_perturbed", folder))


def _knowundo(folder: Path) -> int:
    return sum(map(len, load_knowundo(folder).values()))


def _muse(folder: Path) -> int:
    return sum(map(len, load_muse(data=folder).values()))


BENCHMARKS = {
    "TOFU": (benchmarks.TOFU, _tofu),
    "KnowUnDo": (benchmarks.KNOWUNDO, _knowundo),
    "MUSE": (benchmarks.MUSE, _muse),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_malformed_folders_of_benchmarks(name: str, tmp_path: Path, record_property: Any) -> None:
    layout, read = BENCHMARKS[name]
    count, wrong = Counter(), []
    for number, (files, place, said) in enumerate(benchmarks.wrong_folders(layout, 20, 360)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        try:
            told = str(read(folder))
        except DataError as error:
            told = str(error)
        count["refused" if place is not None else "read"] += 1
        start = f"{folder}{'/' if place else ''}{place or ''}"
        if not (told.isdigit() if place is None else told.startswith(start) and said in told and "\n" not in told):
            wrong.append((files, place, said, told))
        shutil.rmtree(folder)
    record_property(name, dict(count))
    print(f"{name}: {count['refused']} refused, {count['read']} read, {len(wrong)} wrong")
    assert not wrong, f"{len(wrong)} folders of {name}, the first: {wrong[:2]}"
    assert count["refused"] >= LEAST


def test_malformed_folders_of_documents(tmp_path: Path, record_property: Any) -> None:
    rng, count, wrong = Random(21), Counter(), []
    for number in range(380):
        folder = tmp_path / str(number)
        chosen = rng.sample(list(benchmarks.GOOD_FILES), rng.randint(1, 4))
        beside = rng.sample(benchmarks.BESIDE, rng.randint(0, 2))
        for name in chosen:
            benchmarks.put(name, benchmarks.GOOD_FILES[name])(folder, rng)
        for _, make in beside:
            make(folder, rng)
        if number % 8 == 7:
            what, at, said = f"good beside {[name for name, _ in beside]}", None, ""
        else:
            what, make, at, said = benchmarks.SPOILT[number % len(benchmarks.SPOILT)]
            make(folder, rng)
        try:
            told = str(len(sources(folder)))
        except DataError as error:
            told = str(error)
        count["refused" if at is not None else "read"] += 1
        place = f"{folder}/{at}" if at else f"{folder}"
        right = told == str(len(chosen)) if at is None else told.startswith(place) and said in told and "\n" not in told
        if not right:
            wrong.append((what, chosen, at, said, told))
        shutil.rmtree(folder)
    record_property("folders", dict(count))
    print(f"folders: {count['refused']} refused, {count['read']} read, {len(wrong)} wrong")
    assert not wrong, f"{len(wrong)} of {count.total()} folders, the first: {wrong[:3]}"
    assert count["refused"] >= LEAST
