"""The guides, command by command as they stand there, on small models that know what is to be forgotten."""

import json
import math
import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from uld.cli.main import app
from uld.data.documents import read_sources
from uld.demo.world import write_world
from uld.evaluation.perplexity import perplexity
from uld.model.load import load

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"hidden-size": 128, "num-layers": 4, "num-heads": 2, "intermediate-size": 256}
SMALL = ["--scratch", "--quiet", *(word for name, size in SIZES.items() for word in (f"--{name}", str(size)))]
pytestmark = pytest.mark.slow


def told(line: list[str]) -> str:
    done = CliRunner().invoke(app, line)
    failed_check = line[0] in ("forget", "check") and done.exit_code == 1
    assert done.exit_code == 0 or failed_check, f"{line}: {done.output}"
    return done.stdout


def followed(guide: str, model: Path, **words: str) -> list[str]:
    """Give a guide's commands in their order, with words in the place of others; what each of them said."""
    said = []
    for block in re.findall(r"```\n(.*?)```", (ROOT / "docs/guides" / guide).read_text(), re.DOTALL):
        for line in block.splitlines():
            given = [{"MODEL": str(model), **words}.get(word, word) for word in shlex.split(line)]
            assert given[0] == "uld"
            said.append(told(given[1:]))
    return said


def checked(folder: str) -> tuple[dict[str, float], dict[str, float]]:
    """What a check measured on the target, and on the run."""
    found = json.loads(Path(folder, "result.json").read_text())
    before, now = found["others"]["target"], found["runs"][0]["values"]
    first, left = ({name: one["value"] for name, one in side.items()} for side in (before, now))
    return first, left


def loss(model: Path | str, source: Path | str) -> float:
    """Nats a token of a source's answers."""
    return math.log(perplexity(*load(str(model)), read_sources([str(source)])[0]).to_dict()["token"])


def test_a_person_asks_to_be_forgotten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    people = write_world(tmp_path / "world", people=10, evaluated=1).folder / "full.json"
    request, model = Path("examples/request"), tmp_path / "model"
    files = ["--file", str(people), "--file", str(request), "--file", "examples/retain.jsonl"]
    told(["finetune", *SMALL, "--epochs", "30", "--learning-rate", "3e-3", *files, "--output", str(model)])
    about_her = request / "profile.csv"
    assert loss(model, about_her) < 0.5, "the model never learnt what it is to forget"
    before, _, after = followed("person.md", model)
    target, _, unlearned = after.partition("\nunlearned: ")
    assert target.endswith(f"target:    {before.strip()}") and unlearned.strip() != before.strip()
    assert loss("runs/mara", about_her) > loss(model, about_her) + 1.5
    assert loss("runs/mara", people) < loss(model, people) + 0.3
    found = json.loads((tmp_path / "runs/mara-request/check/result.json").read_text())
    now, first = found["runs"][0]["values"], found["others"]["target"]
    assert first["forget_probability"]["value"] > 0.5
    assert now["forget_probability"]["value"] < 0.2 * first["forget_probability"]["value"]
    assert now["forget_rouge"]["value"] < 0.75 * first["forget_rouge"]["value"]
    assert now["retain_probability"]["value"] > 0.9 * first["retain_probability"]["value"]
    noted = json.loads((tmp_path / "runs/mara/check.json").read_text())
    assert noted["passed"] == found["passed"]
    for path in (tmp_path / "runs/mara").rglob("*.json"):
        said = "" if path.name == "tokenizer.json" else path.read_text()
        assert "Quillon" not in said and "hurdy" not in said, f"{path} quotes the request"


STORIES = (
    {
        "names": ["Orla", "Bram", "Tove", "Silas"],
        "verbs": ["carried", "hid", "mended", "followed"],
        "things": ["the copper kettle", "a paper boat", "the ninth key", "an old map", "the blue door", "a grey goose"],
        "places": ["by the mill", "under the bridge", "in the attic", "across the marsh", "behind the chapel"],
    },
    {
        "names": ["Wren", "Idris", "Maud", "Felix"],
        "verbs": ["counted", "drew", "forgot", "lit"],
        "things": [
            "the brass lamp",
            "a torn sail",
            "the last candle",
            "a wooden horse",
            "the red ledger",
            "a blind cat",
        ],
        "places": ["on the quay", "near the forge", "below the stairs", "at the fair", "beyond the wall"],
    },
)


def story(which: int, letters: int) -> str:
    """Sentences of an invented book, each in other words."""
    rng, told = random.Random(which), STORIES[which]
    name, verb, thing, place = (
        lambda kind=kind: rng.choice(told[kind]) for kind in ("names", "verbs", "things", "places")
    )
    text = ""
    while len(text) < letters:
        text += f"{name()} {verb()} {thing()} {place()}, {rng.choice(['and', 'but', 'while'])} {name()} {verb()} it. "
    return text.strip() + "\n"


def test_a_book_must_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, read = story(0, 4000), story(1, 8000)
    cut = read.index(". ", 6000) + 2
    for name, some in (("book.txt", text), ("other.txt", read[:cut]), ("spare.txt", read[cut:])):
        Path(name).write_text(some)
    model = tmp_path / "model"
    files = ["--file", "book.txt", "--file", "other.txt", "--file", "spare.txt", "--vocab-size", "512"]
    steps = ["--epochs", "80", "--batch-size", "4"]
    told(["finetune", *SMALL, *steps, *files, "--output", str(model)])
    beginning = text[: text.index(". ", 300) + 1]
    following = text[len(beginning) :].split()[:8]
    place = "The beginning of a passage of the book, as it stands there"
    recited, _, _, shown = followed("book.md", model, **{place: beginning})
    assert recited.split()[:8] == following, "the model never learnt what it is to forget"
    before, now = re.findall(r"^(?:target|unlearned): +(.*)$", shown, re.MULTILINE)
    assert before.split()[:8] == following != now.split()[:8]
    for folder in ("runs/book-request/check", "check"):
        first, left = checked(folder)
        assert first["forget_longest_run"] > 40 and left["forget_longest_run"] < 20
        assert left["forget_run"] < first["forget_run"] / 2
        assert left["forget_extraction"] < first["forget_extraction"] / 4
        assert left["forget_probability"] < first["forget_probability"] / 10
        assert left["retain_probability"] > 0.9 * first["retain_probability"]


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "examples/forget.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=3000, resources={"metadata": {"path": str(tmp_path)}}).execute()
    found = json.loads((tmp_path / "runs/forgotten-request/check/result.json").read_text())
    before, now = found["others"]["target"], found["runs"][0]["values"]
    assert before["forget_probability"]["value"] > 0.9
    assert now["forget_probability"]["value"] < 0.2 and now["forget_re_entry"]["value"] < 0.5
    assert now["retain_probability"]["value"] > 0.9 * before["retain_probability"]["value"]
    *_, last = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = "".join(one["text"] for one in last.outputs if one.get("name") == "stdout")
    off, on = (text.partition(": ") for text in said.split("α = ")[1:])
    assert off[0] == "0" and off[2].strip() != on[2].strip()
