"""Requests: one about a person of a village that knows her, one about a person of the micro world."""

from pathlib import Path
from typing import Any

import pytest

from tests.checking.conftest import village  # noqa: F401 (a fixture)
from uld.request.settings import Request


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Settings of a training that takes a second."""
    return {"num_layers": 1, "lora_rank": 4, "epochs": 2, "batch_size": 16, "max_length": 128}


@pytest.fixture(scope="module")
def documents(micro: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows about somebody of the micro world, and a letter."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "facts.jsonl").write_text((micro.data / "forget10.json").read_text())
    (folder / "letter.txt").write_text("Mara Quillon wrote this letter in Tarvel in 1987.\n")
    return folder


@pytest.fixture
def request_of(micro: Any, documents: Path, small: dict[str, Any], tmp_path: Path) -> Any:
    """Makes a request about them, with changes."""

    def make(**changes: Any) -> Request:
        given = {"target": str(micro.target), "documents": (str(documents),), "output": str(tmp_path / "run")}
        return Request(**(given | {"draw": 10, "settings": small} | changes))

    return make
