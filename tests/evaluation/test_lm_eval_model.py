"""The model ``uld`` under lm-eval's own command line and by entry point, its arguments, and what it refuses."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, MptConfig

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from uld.errors import ULDError
from uld.evaluation.lm_eval_model import ULDLM
from uld.model.load import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("lm_eval"), "llama")


def made(text: str, **given) -> ULDLM:
    """As lm-eval makes it from ``--model_args`` and its own flags."""
    return ULDLM.create_from_arg_string(text, given)


def test_arguments_reach_the_model(run, tmp_path):
    text = (
        f"pretrained={run},weight=2,filter=0.1,rule=subtract,min_tokens=0.5,outside=mask,dtype=bfloat16,max_length=64"
    )
    lm = made(text, batch_size="4", device="cpu", max_batch_size=None)
    assert lm.model.combination.to_dict() == {
        "rule": "subtract",
        "weight": 2,
        "filter": 0.1,
        "min_tokens": 0.5,
        "outside": "mask",
    }
    assert (lm.model.dtype, lm.max_length, lm.batch_size) == (torch.bfloat16, 64, 4)
    assert lm.get_model_info()["combination"]["weight"] == 2
    moved = tmp_path / "moved"
    (run.parent / "target").rename(moved)
    try:
        lm = made(f"pretrained={run},target={moved},tokenizer={moved},trust_remote_code=True,dtype=fp32", device="cpu")
        assert lm.model.config.target == str(moved) and lm.tokenizer.name_or_path == str(moved)
    finally:
        moved.rename(run.parent / "target")
    plain = made(f"pretrained={run.parent / 'target'}", device="cpu")
    assert "combination" not in plain.get_model_info() and plain.max_length == 128


def test_a_loaded_model_is_taken_as_it_is(run):
    model, tokenizer = load(run)
    assert ULDLM(model, tokenizer=tokenizer).model is model


GPT = {"vocab_size": 34, "n_embd": 32, "n_head": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (GPT2Config(**GPT, n_layer=2, n_positions=96), 96),
        (MptConfig(vocab_size=34, d_model=32, n_heads=4, n_layers=2, max_seq_len=80), 80),
        (BloomConfig(vocab_size=34, hidden_size=32, n_head=4, n_layer=2), 2048),  # has no end: lm-eval's own default
    ],
    ids=["gpt2", "mpt", "bloom"],
)
def test_a_run_reads_as_much_at_once_as_its_target(config, length, make_unlearned, letters):
    target = AutoModelForCausalLM.from_config(config).eval()
    model = make_unlearned(target, 1, fused=False)
    for one in (model, target):
        assert ULDLM(one, tokenizer=letters, device="cpu").max_length == length
        assert ULDLM(one, tokenizer=letters, device="cpu", max_length=48).max_length == 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("wieght=1", "takes no argument wieght: did you mean 'weight'"),
        ("revision=main", "takes no argument revision: it takes"),
        ("weight=much", "weight must be a number, not 'much'"),
        ("rule=nonsense", "nonsense"),
        ("dtype=float7", "dtype must be one of auto, bf16, fp16, fp32"),
        ("target=nowhere/at/all", "nowhere/at/all"),
    ],
)
def test_bad_arguments(run, change, message):
    with pytest.raises(ULDError, match=message):
        made(f"pretrained={run},{change}", device="cpu")
    with pytest.raises(ULDError, match="cannot use the device nonsense"):
        made(f"pretrained={run}", device="nonsense")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_that_lm_eval_asks_for_is_the_best_device_there_is(run):
    assert made(f"pretrained={run}", device="cuda:0").device.type in ("cpu", "mps")


def test_several_processes_are_refused(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ULDError, match="one process only"):
        made(f"pretrained={run}", device="cpu")


def installed(folder: Path) -> dict[str, str]:
    """An environment in which the package counts as installed with the entry points of pyproject.toml."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    about = folder / "uld_llm-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: uld-llm\nVersion: 0\n")
    lines = [
        line for group, ones in groups.items() for line in (f"[{group}]", *(f"{n} = {v}" for n, v in ones.items()))
    ]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    paths = [str(folder), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def test_the_entry_point_names_the_model_and_lm_evals_registry_takes_it(tmp_path, monkeypatch):
    """What lm-eval does with the group ``lm_eval.models`` after 0.4.13: a placeholder, loaded when it is asked for."""
    from lm_eval.api.registry import Registry

    installed(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = [one for one in importlib.metadata.entry_points(group="lm_eval.models") if one.dist.version == "0"]
    registry: Registry = Registry("model")
    registry.register(found.name, target=found)
    assert registry.get("uld") is ULDLM


@pytest.mark.slow
@pytest.mark.parametrize("command", ["uld lm-eval", "lm_eval"])
def test_lm_evals_own_command_line(run, tmp_path, command):
    """The one in this package, and lm-eval's own where it looks for entry points; from arguments to result file."""
    import lm_eval.api.registry as registry

    if command == "lm_eval" and not hasattr(registry, "import_plugins"):
        pytest.skip("this lm-eval looks for no entry points; those after 0.4.13 do")
    (tmp_path / "tasks").mkdir()
    docs = tmp_path / "docs.jsonl"
    docs.write_text(
        "".join(json.dumps({"q": q, "choices": ["a cat", "it"], "gold": 0}) + "\n" for q in ("who", "what"))
    )
    task = {
        "task": "local_mc",
        "dataset_path": "json",
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "q: {{q}} a:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "dataset_kwargs": {"data_files": {"test": str(docs)}, "cache_dir": str(tmp_path / "cache")},
    }
    (tmp_path / "tasks" / "local_mc.yaml").write_text(yaml.safe_dump(task))
    start = [sys.executable, "-m", "uld", "lm-eval"] if command == "uld lm-eval" else [str(shutil.which("lm_eval"))]
    arguments = [
        "--model",
        "uld",
        "--model_args",
        f"pretrained={run},weight=0.5",
        "--tasks",
        "local_mc",
        "--device",
        "cpu",
    ]
    paths = ["--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run(
        [*start, *arguments, *paths], env=installed(tmp_path / "site"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("results_*.json")
    (log,) = (tmp_path / "out").rglob("samples_*.jsonl")
    assert json.loads(results.read_text())["config"]["combination"]["weight"] == 0.5
    row = json.loads(log.read_text().splitlines()[0])
    model, tokenizer = load(run, weight=0.5)
    ids = tokenizer("q: who a: it").input_ids
    logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = sum(logs[i - 1, ids[i]].item() for i in range(len(ids) - 3, len(ids)))
    assert float(row["filtered_resps"][1][0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("length", [0, -5, 1])
def test_a_length_that_would_cut_texts_from_their_front_is_refused(run, length):
    with pytest.raises(ULDError, match="max_length must be at least 2"):
        made(f"pretrained={run},max_length={length}", device="cpu")
