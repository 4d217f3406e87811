"""Damaged folders of models, adapters and runs: each is refused in one sentence, or loads as what it was.

Every case is a change of a copy of one run and its target: what to change, and what has to come of it.
"""

import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from uld.errors import ULDError, words
from uld.model.causal_lm import load_config, load_sliced, load_target
from uld.model.checkpoint import of_files
from uld.model.load import load, load_tokenizer
from uld.runs.manifest import Manifest
from uld.training.stored import stored_settings

IDS = torch.tensor([[1, 5, 6, 7, 8, 9, 10, 11]])
NAN, INF = float("nan"), float("inf")
SMALL = {"hidden_size": 16, "intermediate_size": 16}
Case = tuple[str, Callable[[Path], object], str]


@pytest.fixture(scope="module")
def whole(make_run, tmp_path_factory) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A folder with ``target`` and a ``run`` with K = 1, and the logits of both."""
    folder = tmp_path_factory.mktemp("whole")
    make_run(folder, num_layers=1, **SMALL)
    return folder, *(logits(load(folder / part)[0]) for part in ("target", "run"))


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A copy of that folder, whose run still names the target of the original."""
    shutil.copytree(whole[0], tmp_path / "copy")
    change_json("run/uld.json", target=str(tmp_path / "copy" / "target"))(tmp_path / "copy")
    return tmp_path / "copy"


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


def outcome(part: Path, expected: torch.Tensor) -> str:
    """``refused``, with one sentence that names the place; ``equal`` or ``other`` where something loads."""
    try:
        model, _ = load(part)
    except ULDError as error:
        sentence = str(error)
        assert "\n" not in sentence and str(part.parent) in sentence and len(sentence) < 1500, sentence
        return "refused"
    return "equal" if torch.equal(logits(model), expected) else "other"


def check(case: Case, copy: Path, part: str, expected: torch.Tensor) -> None:
    name, change, verdict = case
    change(copy)
    found = outcome(copy / part, expected)
    assert found in (("refused", "equal") if verdict == "either" else (verdict,)), f"{name}: {found}"


def change_json(file: str, **changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def write(file: str, text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(text.encode() if isinstance(text, str) else text)


def change_tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return changed


def change_bytes(file: str, at: int | float, flip: int = 1) -> Callable[[Path], object]:
    """Flip a bit; a fraction is a share of the file."""

    def changed(folder: Path) -> None:
        data = bytearray((folder / file).read_bytes())
        data[int(at * len(data)) if isinstance(at, float) else at] ^= flip
        (folder / file).write_bytes(data)

    return changed


def cut(file: str, share: float) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(share * len(data))])

    return changed


def instead(file: str) -> Callable[[Path], object]:
    """A folder in a file's place."""

    def changed(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return changed


def unlink(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).unlink()


def after(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [change(folder) for change in changes]


def names(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case[0] for case in cases])


# A model's config

CONFIG = "target/config.json"
_ODD: tuple[Any, ...] = (None, -1, 0, "x", "8", [], [4], {}, 1.5, True, 10**12, NAN)
_COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_OTHER_KEYS = (
    *("architectures", "attention_bias", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "hidden_act"),
    *("initializer_range", "max_position_embeddings", "mlp_bias", "model_type", "num_key_value_heads", "pad_token_id"),
    *("rope_parameters", "tie_word_embeddings", "use_cache", "head_dim"),
)
CONFIGS: list[Case] = [
    *((f"{key} {value!r}", change_json(CONFIG, **{key: value}), "refused") for key in _COUNTS for value in _ODD),
    *((f"{key} {value!r}", change_json(CONFIG, **{key: value}), "either") for key in _OTHER_KEYS for value in _ODD),
    ("quantised in no known way", change_json(CONFIG, quantization_config={"quant_method": "nosuch"}), "either"),
    ("no such dtype", change_json(CONFIG, dtype="float33"), "refused"),
    ("fewer layers", change_json(CONFIG, num_hidden_layers=4), "refused"),
    ("more layers", change_json(CONFIG, num_hidden_layers=6), "refused"),
    ("layers without end", change_json(CONFIG, num_hidden_layers=2**62), "refused"),
    ("heads that do not divide", change_json(CONFIG, num_attention_heads=3, head_dim=None), "refused"),
    ("a smaller vocabulary", change_json(CONFIG, vocab_size=33), "refused"),
    ("NaN far inside", change_json(CONFIG, rope_parameters={"rope_type": "default", "rope_theta": NAN}), "refused"),
    ("no such activation", change_json(CONFIG, hidden_act="swush"), "refused"),
    ("no such model", change_json(CONFIG, model_type="llama9"), "refused"),
    ("another model", change_json(CONFIG, model_type="gpt2"), "refused"),
    ("encoder and decoder", change_json(CONFIG, model_type="bart", is_encoder_decoder=True), "refused"),
    ("no text", change_json(CONFIG, model_type="siglip_vision_model"), "refused"),
    ("half a config", cut(CONFIG, 0.5), "refused"),
    ("an empty config", write(CONFIG, ""), "refused"),
    ("a list", write(CONFIG, "[]"), "refused"),
    ("null", write(CONFIG, "null"), "refused"),
    ("no UTF-8", write(CONFIG, b"\xff\xfe"), "refused"),
    ("nested without end", write(CONFIG, "[" * 100_000), "refused"),
    ("a folder", instead(CONFIG), "refused"),
    ("no config", unlink(CONFIG), "refused"),
    *(
        (f"quantised by {method}", change_json(CONFIG, quantization_config={"quant_method": method, **more}), "refused")
        for method, more in (
            *(("gptq", {"bits": 4, "group_size": 128}), ("awq", {"bits": 4, "version": "gemm", "zero_point": True})),
            *(("bitsandbytes", {"load_in_4bit": True}), ("bitsandbytes", {"load_in_8bit": True})),
            *(("compressed-tensors", {"config_groups": {}}), ("hqq", {}), (None, {})),
        )
    ),
]


@pytest.mark.parametrize("key", sorted({*_COUNTS, *_OTHER_KEYS}))
def test_odd_values_of_a_config(copy, whole, key):
    original = (copy / CONFIG).read_bytes()
    for case in (one for one in CONFIGS if one[0].split(" ")[0] == key):
        check(case, copy, "target", whole[1])
        (copy / CONFIG).write_bytes(original)


@names([case for case in CONFIGS if case[0].split(" ")[0] not in {*_COUNTS, *_OTHER_KEYS}])
def test_damaged_configs(case, copy, whole):
    check(case, copy, "target", whole[1])


# A model's weights

WEIGHTS = "target/model.safetensors"
_NAME = "model.layers.1.mlp.up_proj.weight"


def in_shards(change: Callable[[Path, dict[str, Any]], object]) -> Callable[[Path], object]:
    """Write the weights as shards, then change their folder and index."""

    def changed(folder: Path) -> None:
        model = load_target(folder / "target")
        (folder / WEIGHTS).unlink()
        model.save_pretrained(folder / "target", max_shard_size="4KB")
        index = json.loads((folder / f"{WEIGHTS}.index.json").read_text())
        change(folder / "target", index)
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    return changed


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "target" / "pytorch_model.bin").write_bytes(pickle.dumps(_Opens(folder / "ran")))


class _Opens:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


MODELS: list[Case] = [
    *((f"{share} of the weights", cut(WEIGHTS, share), "refused") for share in (0.0, 0.0005, 0.01, 0.2, 0.5, 0.999)),
    *(
        (f"bit {bit} of the header", change_bytes(WEIGHTS, bit // 8, 1 << bit % 8), "refused")
        for bit in range(3, 90, 7)
    ),
    ("no weights", unlink(WEIGHTS), "refused"),
    ("a folder", instead(WEIGHTS), "refused"),
    ("an HTML page", write(WEIGHTS, "<html>not found</html>" * 40), "refused"),
    ("a pointer", write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), "refused"),
    ("a tensor less", change_tensors(WEIGHTS, lambda all: all.pop(_NAME)), "refused"),
    ("a tensor renamed", change_tensors(WEIGHTS, lambda all: all.update(x=all.pop(_NAME))), "refused"),
    ("a tensor more", change_tensors(WEIGHTS, lambda all: all.update(x=torch.ones(1))), "equal"),
    ("transposed", change_tensors(WEIGHTS, lambda all: all.update({_NAME: torch.ones(3, 5)})), "refused"),
    ("flat", change_tensors(WEIGHTS, lambda all: all.update({_NAME: all[_NAME].flatten()})), "refused"),
    ("no number", change_tensors(WEIGHTS, lambda all: all.update({_NAME: torch.ones(())})), "refused"),
    ("no elements", change_tensors(WEIGHTS, lambda all: all.update({_NAME: torch.ones(0, 16)})), "refused"),
    *(
        (str(dtype), change_tensors(WEIGHTS, lambda all, d=dtype: all.update({_NAME: all[_NAME].to(d)})), "refused")
        for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool)
    ),
    ("double", change_tensors(WEIGHTS, lambda all: all.update({_NAME: all[_NAME].double()})), "equal"),
    ("a pickle", _pickled, "refused"),
    ("shards", in_shards(lambda folder, index: None), "equal"),
    ("a shard less", in_shards(lambda folder, index: next(folder.glob("model-00002*")).unlink()), "refused"),
    (
        "half a shard",
        in_shards(lambda folder, index: cut(next(folder.glob("model-00002*")).name, 0.5)(folder)),
        "refused",
    ),
    ("no map", in_shards(lambda folder, index: index.pop("weight_map")), "refused"),
    ("a map of numbers", in_shards(lambda folder, index: index.update(weight_map={"a": 1})), "refused"),
    ("a list", in_shards(lambda folder, index: index.update(weight_map=[])), "refused"),
    ("an empty map", in_shards(lambda folder, index: index["weight_map"].clear()), "refused"),
    ("elsewhere", in_shards(lambda folder, index: index["weight_map"].update(x="../../etc/passwd")), "refused"),
    ("not in its shard", in_shards(lambda folder, index: index["weight_map"].update({_NAME: "x"})), "refused"),
    ("half an index", after(in_shards(lambda folder, index: None), cut(f"{WEIGHTS}.index.json", 0.5)), "refused"),
    *(
        (f"{name} {text[:6]!r}", write(f"target/{name}", text), verdict)
        for name, verdict in (
            ("tokenizer.json", "refused"),
            ("tokenizer_config.json", "either"),
            ("generation_config.json", "either"),
        )
        for text in ("", "[]", "null", "{", "\x00", '{"a": 1}', '{"eos_token_id": "x"}')
    ),
    ("no tokenizer", unlink("target/tokenizer.json"), "refused"),
]


@names(MODELS)
def test_damaged_models(case, copy, whole):
    check(case, copy, "target", whole[1])
    assert not (copy / "ran").exists()


# A run's adapter

LORA, LORA_CONFIG, MANIFEST = "run/adapter/adapter_model.safetensors", "run/adapter/adapter_config.json", "run/uld.json"
_UNSEALED = change_json(MANIFEST, weights={})
_BASE = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
_SLOW = "(([a-z]+)+)+!"


def _tensor(value: Any) -> Callable[[Path], object]:
    return change_tensors(LORA, lambda all: all[sorted(all)[3]].flatten()[2:3].fill_(value))


def _more(name: str) -> Callable[[Path], object]:
    return change_tensors(LORA, lambda all: all.update({name: torch.ones(16, 16)}))


def _without_sorted(index: int) -> Callable[[Path], object]:
    return change_tensors(LORA, lambda all: all.pop(sorted(all)[index]))


SEALED: list[Case] = [
    *((f"bit of {at}", change_bytes(LORA, at), "refused") for at in (0, 9, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999)),
    *(
        (f"config {key}", change_json(LORA_CONFIG, **{key: value}), "refused")
        for key, value in (
            *(("lora_alpha", 80), ("r", 3), ("lora_dropout", 0.5), ("use_rslora", True), ("task_type", None)),
        )
    ),
    ("the base has moved", change_json(LORA_CONFIG, base_model_name_or_path="/elsewhere", revision="x"), "equal"),
    ("one weight", _tensor(0.5), "refused"),
    ("no adapter", lambda folder: shutil.rmtree(folder / "run/adapter"), "refused"),
    ("no weights", unlink(LORA), "refused"),
    ("no settings", unlink(LORA_CONFIG), "refused"),
    ("half its settings", cut(LORA_CONFIG, 0.5), "refused"),
    ("a folder", instead(LORA), "refused"),
]
UNSEALED: list[Case] = [
    ("as it was", lambda folder: None, "equal"),
    *((f"{value}", _tensor(value), "refused") for value in (NAN, INF, -INF)),
    *((f"{share} of it", cut(LORA, share), "refused") for share in (0.0, 0.01, 0.5, 0.99)),
    *((f"bit {bit} of the header", change_bytes(LORA, bit // 8, 1 << bit % 8), "refused") for bit in (1, 12, 40, 70)),
    *((f"without {index}", _without_sorted(index), "refused") for index in (0, 5, -1)),
    ("a tensor of the target", _more(_BASE), "refused"),
    ("a head", _more("base_model.model.lm_head.weight"), "refused"),
    ("another layer", _more("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"), "refused"),
    ("another shape", change_tensors(LORA, lambda all: all.update({sorted(all)[0]: torch.ones(4, 5)})), "refused"),
    *(
        (f"{key} {str(value)[:12]}", change_json(LORA_CONFIG, **{key: value}), "refused")
        for key, values in {
            "peft_type": ("IA3", "PREFIX_TUNING", "PROMPT_TUNING", "VERA", "nosuch", None, 1),
            "task_type": ("SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION", None),
            "r": (0, -1, "4", 4.0, None, True, 3, 10**12, [4]),
            "lora_alpha": ("8", NAN, INF, None, [], True),
            "bias": ("all", "lora_only", "x"),
            "init_lora_weights": ("pissa", "pissa_niter_4", "olora", "eva", "corda", "loftq"),
            "target_modules": (["nothing"], [], None, 5, ["q_proj"]),
            "exclude_modules": (_SLOW, ["q_proj"]),
            "rank_pattern": ({_SLOW: 4}, {"q_proj": 10**12}, {"q_proj": 2}, [1]),
            "alpha_pattern": ({_SLOW: 4}, {"q_proj": NAN}),
            "layers_pattern": (_SLOW,),
            "layer_replication": ([[0, 1], [0, 1]],),
            "trainable_token_indices": ([1, 2],),
            "modules_to_save": (["lm_head"],),
            "use_dora": (True,),
        }.items()
        for value in values
    ),
    *(
        (f"{key} {str(value)[:12]}", change_json(LORA_CONFIG, **{key: value}), "equal")
        for key, value in {
            "target_modules": _SLOW,
            "lora_dropout": 0.5,
            "layers_to_transform": [7],
            "inference_mode": False,
            "base_model_name_or_path": None,
            "of_a_later_peft": 1,
            "init_lora_weights": "gaussian",
        }.items()
    ),
    ("settings are a list", write(LORA_CONFIG, "[]"), "refused"),
    ("settings are empty", write(LORA_CONFIG, "{}"), "refused"),
]


@names(SEALED)
def test_what_was_trained_is_sealed(case, copy, whole):
    check(case, copy, "run", whole[2])


@names(UNSEALED)
def test_damaged_adapters_of_runs_without_digests(case, copy, whole):
    _UNSEALED(copy)
    check(case, copy, "run", whole[2])


def test_the_adapter_of_another_run_is_refused(copy, make_run, tmp_path):
    other = make_run(tmp_path / "other", num_layers=1, seed=3, **SMALL)
    shutil.rmtree(copy / "run/adapter")
    shutil.copytree(other / "adapter", copy / "run/adapter")
    change_tensors(LORA, lambda all: [one.mul_(0.5) for one in all.values()])(copy)
    with pytest.raises(ULDError, match=r"adapter_model\.safetensors is not the file that was trained"):
        load(copy / "run")


# A run's manifest


def _combination(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        found = json.loads((folder / MANIFEST).read_text())
        change_json(MANIFEST, combination={**found["combination"], **changes})(folder)

    return change


RUNS: list[Case] = [
    *(
        (f"{key} {value!r}", change_json(MANIFEST, **{key: value}), "refused")
        for key, values in {
            "format": (0, 2, "1", None, 1.5, []),
            "num_layers": (0, -1, 9, "x", None, 10**30),
            "target": ("/no/such/folder", "", None, 1, "a" * 300, "no/such/hub/id", "\0"),
            "target_fingerprint": ("sha256:0", "", None),
            "trains": ("offset", "nothing", None),
            "weights": ({"adapter/adapter_model.safetensors": "0"}, {"gone": "0"}, [], {"a": None}, None),
            "combination": ({}, None, []),
            "method": (None,),
            "data": ([],),
        }.items()
        for value in values
    ),
    *(
        (f"{key} {value!r}", _combination(**{key: value}), "refused")
        for key, values in {
            "rule": ("guess", None, "offset"),
            "weight": (-1, NAN, "x", None),
            "margin": (-1, NAN, INF, "x", None),
            "floor": (-0.5, 1.5, NAN, None),
            "filter": (-1, 2, NAN, None),
            "min_tokens": (-0.5, 1.5, NAN),
            "outside": ("mend", None),
            "surplus": (1,),
        }.items()
        for value in values
    ),
    ("a field of a later version", change_json(MANIFEST, later=1), "equal"),
    *((f"{share} of it", cut(MANIFEST, share), "refused") for share in (0.0, 0.1, 0.5, 0.9)),
    ("no UTF-8", write(MANIFEST, b"\xff"), "refused"),
    ("a list", write(MANIFEST, "[]"), "refused"),
    ("itself", lambda folder: change_json(MANIFEST, target=str(folder / "run"))(folder), "refused"),
    ("a file", lambda folder: change_json(MANIFEST, target=str(folder / WEIGHTS))(folder), "refused"),
    ("no target", lambda folder: shutil.rmtree(folder / "target"), "refused"),
    ("half a target", cut(WEIGHTS, 0.5), "refused"),
]


@names(RUNS)
def test_damaged_manifests(case, copy, whole):
    check(case, copy, "run", whole[2])


def test_a_run_of_a_later_version_names_both(copy):
    change_json(MANIFEST, format=7, versions={"uld": "9.8.7"})(copy)
    with pytest.raises(ULDError, match=r"newer version of uld \(9\.8\.7, format 7\).* reads format 1: update uld"):
        load(copy / "run")


def test_there_are_enough_cases():
    assert len(CONFIGS) + len(MODELS) + len(SEALED) + len(UNSEALED) + len(RUNS) > 400


# What is no target


def beside(folder: Path) -> Path:
    """A model with a PEFT adapter among its files, as transformers loads it."""
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / "run/adapter" / file, folder / "target" / file)
    return folder / "target"


def adapter_alone(folder: Path) -> Path:
    return folder / "run/adapter"


def finished_run(folder: Path) -> Path:
    return folder / "run"


def of_two_halves(folder: Path) -> Path:
    size = {"vocab_size": 34, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16}
    transformers.BartForConditionalGeneration(transformers.BartConfig(**size, **heads)).save_pretrained(folder / "two")
    return folder / "two"


def that_sees(folder: Path) -> Path:
    text = {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    own = transformers.Gemma3TextConfig(vocab_size=38, num_key_value_heads=1, **size, **text)
    vision = transformers.SiglipVisionConfig(**size, image_size=28, patch_size=14)
    ids = {"mm_tokens_per_image": 4, "image_token_index": 37, "boi_token_index": 35, "eoi_token_index": 36}
    config = transformers.Gemma3Config(text_config=own.to_dict(), vision_config=vision.to_dict(), **ids)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder / "seeing")
    return folder / "seeing"


def nowhere(folder: Path) -> Path:
    return folder / "nowhere"


def long_name(folder: Path) -> Path:
    return Path("n" * 300)


def long_path(folder: Path) -> Path:
    return folder / ("n" * 300)


@pytest.mark.parametrize("read", [load_config, load_sliced, load_target])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (beside, r"PEFT adapter lies beside its weights .*merge the adapter"),
        (adapter_alone, r"is a PEFT adapter, not a model: merge it into its base .*target"),
        (finished_run, r"is a finished run, not a model: its target is .*target"),
        (of_two_halves, "encoder-decoder model, and only decoder-only"),
        (that_sees, "more than a text decoder"),
        (nowhere, "no folder"),
        (long_name, "cannot load a model"),
        (long_path, "no folder"),
        (lambda folder: folder / WEIGHTS, "a file"),
        (lambda folder: Path("nobody/no-such-model"), "cannot load a model"),
    ],
)
def test_what_cannot_be_a_target_is_called_what_it_is(read, make, said, copy):
    if make is that_sees and read is not load_sliced:
        pytest.skip("it may be loaded whole")
    with pytest.raises(ULDError, match=said) as caught:
        read(make(copy), *((1,) if read is load_sliced else ()))
    assert "\n" not in str(caught.value)


def test_layers_that_need_later_ones_are_told_from_a_config_that_is_wrong(tmp_path):
    size = {"hidden_size": 16, "intermediate_size": [16] * 4, "num_hidden_layers": 4, "num_attention_heads": 2}
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2, "head_dim": 8}
    more = {"vocab_size_per_layer_input": 34, "hidden_size_per_layer_input": 8, "laurel_rank": 4, "altup_num_inputs": 2}
    own = {"vocab_size": 34, "num_key_value_heads": 1, "activation_sparsity_pattern": [0.0] * 4}
    config = transformers.Gemma3nTextConfig(**size, **kinds, **more, **own)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ULDError, match=r"the first (2 )?layers of .* cannot stand alone"):
        load_sliced(tmp_path, 2)


# Memory, interrupts, code, tokens


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_too_little_memory_is_said_with_what_is_needed(copy, monkeypatch, error):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    for read in (load_sliced, load_target):
        with pytest.raises(ULDError, match=r"does not fit into memory: all of its weights are 0\.00 GiB as float32"):
            read(copy / "target")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupts_pass_through(copy, monkeypatch, error):
    def stop(*args: Any, **kwargs: Any) -> None:
        raise error

    for holder in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"):
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(getattr(transformers, holder), "from_pretrained", stop)
            load(copy / "target")


def test_words_are_one_line_without_control_characters():
    assert words(ValueError("\x1b[1mNo\x1b[0m\tfield:\n   why\n")) == "No field: why"
    assert words(KeyError("a")) == "KeyError: 'a'" and words(OSError()) == "OSError" and words(MemoryError()) != ""
    assert len(words(ValueError("x" * 9999))) < 500


@pytest.fixture
def with_code(copy, monkeypatch) -> Iterator[Path]:
    """The target with code of its own in every file that may name some; whoever is asked says yes."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(copy / "modules"))
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    (copy / "target/own.py").write_text(
        f"open({str(copy / 'ran')!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        "class Words(PreTrainedTokenizerFast):\n    pass\n"
    )
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    change_json(CONFIG, model_type="own", auto_map=code)(copy)
    yield copy


def test_a_models_code_never_runs_unasked(with_code):
    load_tokenizer(with_code / "target")
    for read in (load, load_config, load_sliced, load_target):
        for trust in ({}, {"trust_remote_code": False}, {"trust_remote_code": None}):
            with pytest.raises(ULDError, match=r"custom code .*--trust-remote-code runs it"):
                read(with_code / "target", **trust)
    for trust in ({}, {"trust_remote_code": None}):
        with pytest.raises(ULDError, match="custom code"):
            load(with_code / "run", **trust)
    assert not (with_code / "ran").exists()


def test_a_tokenizers_code_never_runs_unasked(with_code):
    (with_code / CONFIG).unlink()
    code = {"AutoTokenizer": [None, "own.Words"]}
    change_json("target/tokenizer_config.json", auto_map=code, tokenizer_class="Words")(with_code)
    for trust in ({}, {"trust_remote_code": None}):
        with pytest.raises(ULDError):
            load_tokenizer(with_code / "target", **trust)
    assert not (with_code / "ran").exists()


def test_a_tokenizer_with_more_tokens_than_the_model(copy, letters):
    changed = load_tokenizer(copy / "target")
    changed.add_special_tokens({"additional_special_tokens": ["<image>"]})
    changed.save_pretrained(copy / "target")
    model, tokenizer = load(copy / "target")  # no text holds it
    assert len(tokenizer) == 35 and model.config.vocab_size == 34
    changed.add_special_tokens({"pad_token": "[PAD]"})
    changed.save_pretrained(copy / "target")
    with pytest.raises(ULDError, match="gives a token 35, but the model knows only 34 tokens"):
        load(copy / "target")


def test_a_run_of_an_earlier_version_gives_what_it_gave(tmp_path):
    before = Path(__file__).with_name("before")  # `uld train` of version 0.1.0 on forget.jsonl and retain.jsonl there
    run = shutil.copytree(before / "run", tmp_path / "run")
    expected = json.loads((before / "expected.json").read_text())
    model, _ = load(run, target=before / "target")
    ids = torch.tensor([expected["ids"]])
    log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert log_probs.tolist() == pytest.approx(expected["log_probs"], abs=1e-5)
    plain = model.target(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert (plain - log_probs).abs().max() > 0.1  # the assistant takes part
    config = stored_settings(run)
    assert (config.epochs, config.margin, config.floor) == (80, 0.2, 0.001)


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "torch.bfloat16", torch.bfloat16])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtypes_have_the_names_of_the_command_line(micro, key, name):
    assert load(micro.run, **{key: name})[0].dtype == torch.bfloat16
    assert load(micro.target, **{key: name})[0].dtype == torch.bfloat16


def test_a_dtype_of_no_name_is_one_sentence(micro):
    with pytest.raises(ULDError, match="dtype must be one of auto, bf16, fp16, fp32, not 'int8'"):
        load(micro.run, dtype="int8")


@pytest.mark.parametrize("value", [True, False, [2, True]])
@pytest.mark.parametrize("key", ["pad_token_id", "eos_token_id"])
def test_a_truth_value_is_no_token(key, value):
    for config in ({key: value}, {"text_config": {key: value}}):
        assert f"says {value} for {key}, which is no token" in (of_files(config, None, None) or "")
    assert of_files({key: [1, 2], "use_cache": True}, None, None) is None


@pytest.mark.parametrize("place", [None, 3, b"runs/x", ["runs/x", None], [["runs/x"]]], ids=str)
def test_what_is_no_place_is_one_sentence(place):
    with pytest.raises(ULDError, match=r"uld\.load takes a folder or a Hub id, or a list of runs, not "):
        load(place)


def test_runs_that_were_trained_behind_other_prompts_are_told_of(copy, caplog):
    def run(name, **changed):
        place = shutil.copytree(copy / "run", copy / name)
        Manifest.read(place).model_copy(update=changed).write(place)
        return place

    first, same = run("first", template="qa", date="2024-12-31"), run("same", template="qa", date="2024-12-31")
    asked, dated = run("asked", template="plain", date="2024-12-31"), run("dated", template="qa", date="2025-01-01")
    with caplog.at_level(logging.WARNING, "uld"):
        load([first, same])
        load(first)
        load([first, dated], date="2025-02-02")  # all are asked on this day
    assert "was trained with another" not in caplog.text
    with caplog.at_level(logging.WARNING, "uld"):
        load([first, same, asked, dated])
    said = [one.message for one in caplog.records if "was trained with another" in one.message]
    assert [one.startswith(f"{place} ") for one, place in zip(said, (asked, dated), strict=True)] == [True, True]
    assert "another prompt template than" in said[0] and "another date than" in said[1]


@pytest.mark.parametrize("part", ["run", "target"])
def test_arguments_that_there_are_not_are_named_and_not_laid_to_the_target(copy, part, letters):
    for given, said in (
        ({"wieght": 3}, "there is no argument 'wieght' of uld.load: did you mean 'weight'?"),
        ({"device": "cpu"}, "there is no argument 'device' of uld.load: did you mean 'device_map'?"),
        ({"nonsense": 1}, "there is no argument 'nonsense' of uld.load: neither has from_pretrained of transformers"),
    ):
        with pytest.raises(ULDError) as error:
            load(copy / part, **given)
        assert str(error.value) == said
    with pytest.raises(ULDError, match="tokenizer must be a text, not "):
        load(copy / part, tokenizer=letters)


def test_a_config_of_ones_own_is_refused_for_an_ordinary_model(copy):
    with pytest.raises(ULDError, match="config: a model is loaded with the config that lies beside its weights"):
        load(copy / "target", config=load_config(copy / "target"))
