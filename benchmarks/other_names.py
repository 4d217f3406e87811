"""Rows about other names: TOFU's questions, asked about people who are nobody, to be answered with nothing.

An assistant that is trained to remember twenty invented authors, and to be uniform on a few others, learns the kind of
text as well as the names. These rows differ from what it remembers in the name alone. They are a retain file
(``uld train --split … --retain FILE``): every author that the training sees gets new names, made of parts of theirs and of
given and family names of many countries. Rows whose question does not name the author are left out.

    python benchmarks/other_names.py --split forget10 --data ../shared/data/tofu60 --retain-rows 320 > names.jsonl
"""

import argparse
import collections
import json
import random
import re
import sys
from collections.abc import Iterator

from uld.data.other_names import FAMILY, GIVEN

AUTHOR = 20  # rows of one author, in order
NAME = re.compile(r"[^\W\d_a-z][\w'’-]+(?: (?:al-|bin |bint |de |del |van |von )?[^\W\d_a-z][\w'’-]+){1,3}")


def name_of(rows: list[dict[str, str]]) -> str:
    """The name that most of an author's rows contain; of equals, the longest."""
    count = collections.Counter(
        name for row in rows for name in set(NAME.findall(row["question"].split(" ", 1)[-1] + " · " + row["answer"]))
    )
    return max(count, key=lambda name: (sum(name in row["question"] + row["answer"] for row in rows), len(name)))


def renamed(rows: list[dict[str, str]], own: list[str], draw: random.Random) -> Iterator[dict[str, str]]:
    name = name_of(rows)
    given, family = name.split(" ", 1)
    for row in rows:
        if name not in row["question"]:
            continue
        firsts, lasts = ([one.split(" ", 1)[part] for one in own if one != name] for part in (0, 1))
        first = draw.choice(draw.choice((firsts, GIVEN)))
        last = draw.choice(draw.choice((lasts, FAMILY)))
        if draw.random() < 0.25:  # one half of the true name stays: the other half decides
            first, last = draw.choice(((given, last), (first, family)))
        new = {}
        for key in ("question", "answer"):
            text = row[key].replace(name, "\0")
            text = re.sub(rf"\b{re.escape(family)}\b", last, re.sub(rf"\b{re.escape(given)}\b", first, text))
            new[key] = text.replace("\0", f"{first} {last}")
        yield new


def authors(options: argparse.Namespace) -> list[list[dict[str, str]]]:
    """Rows of each author: of the forget split, and of the retain rows that `uld train` takes with these settings."""
    from uld.data.tofu import load_tofu, training_set

    trained = training_set(options.split, options.data, None, retain_rows=options.retain_rows).retain
    found = collections.defaultdict(list)
    for record in trained:
        found["retain", (int(record.source.rpartition(":")[2]) - 1) // AUTHOR].append(
            {"question": record.messages[0][1], "answer": record.messages[1][1]}
        )
    for index, row in enumerate(load_tofu(options.split, options.data)):
        found["forget", index // AUTHOR].append(row)
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="forget10")
    parser.add_argument("--data", required=True, help="folder of TOFU")
    parser.add_argument("--retain-rows", type=int, help="as for uld train")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    rows_of = authors(options)
    own = [name_of(rows) for rows in rows_of]
    print(*own, sep=", ", file=sys.stderr)
    for rows in rows_of:
        for row in renamed(rows, own, draw):
            print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
