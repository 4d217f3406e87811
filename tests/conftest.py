"""Shared fixtures: where the real data and models are, and tiny random models of several families."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable, ROOT / default))
    if not path.is_dir():
        pytest.skip(f"{variable}: no folder {path}")
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with tofu/, tofu_augmented/ and reference_logs/."""
    return _folder("ULD_DATA_DIR", "../shared/data")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Folder with tofu-4m-full/ and the retain-only models."""
    return _folder("ULD_MODELS_DIR", "../shared/models")
