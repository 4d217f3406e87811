"""A request about one person of the micro world."""

from pathlib import Path
from typing import Any

import pytest

from uld.request.settings import Request

SMALL = {"num_layers": 1, "lora_rank": 4, "epochs": 2, "batch_size": 16, "max_length": 128}


@pytest.fixture(scope="module")
def documents(micro: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Her rows and a letter about her."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "facts.jsonl").write_text((micro.data / "forget10.json").read_text())
    name = (micro.data / "forget10.json").read_text().split("Where was ", 1)[-1].split(" born")[0]
    (folder / "letter.txt").write_text(f"{name[:40]} wrote this letter in Tarvel in 1987.\n")
    return folder


@pytest.fixture
def request_of(micro: Any, documents: Path, tmp_path: Path) -> Any:
    """Makes the request, with changes."""

    def make(**changes: Any) -> Request:
        given = {"target": str(micro.target), "documents": (str(documents),), "output": str(tmp_path / "run")}
        return Request(**(given | {"draw": 10, "settings": SMALL} | changes))

    return make
