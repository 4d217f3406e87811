"""Micro models that vLLM's kernels take (heads of 32), the runs of them, and engines in this process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # an engine that ends with its test
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
SIZE = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compiled engines first: vLLM looks through all loaded modules for them, and llvmlite, once loaded, ends that."""
    items.sort(key=lambda item: not item.name.startswith("test_compiled_it_writes"))


def sizes(family: str) -> dict[str, Any]:
    """What of a micro config vLLM wants to be larger."""
    if family in ("gemma2", "gemma3"):
        return SIZE | {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32}
    return (
        SIZE | ({"head_dim": 32} if family == "qwen3" else {}) | ({"sliding_window": 32} if family == "mistral" else {})
    )


@pytest.fixture(scope="session")
def run_of(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run of a micro model of a family: ``run_of("llama", how=…)``; no answer of it ends by itself."""

    def make(family: str, **changes: Any) -> Path:
        run = make_run(tmp_path_factory.mktemp(family), family, **sizes(family) | changes)
        return run

    return make


@pytest.fixture
def engine(tmp_path: Path) -> Callable[..., Any]:
    """Export runs and start an engine of vLLM on them, fp32 and without compilation."""
    pytest.importorskip("vllm", reason="vLLM is not installed (make test-vllm)")

    def start(runs: list[Path], **changes: Any) -> Any:
        from vllm import LLM  # type: ignore[import-not-found]

        from uld.serving.vllm.export import export

        folder = export(runs, tmp_path / "exported")
        how = {"enforce_eager": True, "dtype": "float32", "max_model_len": 128, "max_num_seqs": 16, "seed": 0}
        return LLM(str(folder), **how | changes)

    return start
