"""Shared fixtures: where the real data and models are, and tiny random models of several families."""

import gc
import json
import multiprocessing
import os
import random
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads only wait for each other
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that asks the Hub is a mistake
ROOT = Path(__file__).resolve().parents[1]
MEMORY = Path("/dev/shm")  # tests make tens of thousands of small files, and taking one away from a disk costs 2 ms
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# The same examples in every run, and no folder of them left behind.
hypothesis.settings.register_profile("uld", max_examples=50, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("uld")


def _folder(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable, ROOT / default))
    if not path.is_dir():
        pytest.skip(f"{variable}: no folder {path}")
    return path


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> None:
    """Every training collects garbage; what the libraries' modules hold, which takes the longest, is none."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


@pytest.fixture(autouse=True, scope="session")
def quick_writes() -> Iterator[None]:
    """What tests write outlives no power cut: nobody waits for the disk. A test that has a flush fail still can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def tried_once() -> Iterator[None]:
    """Trainings of the same model try it once in a process; `tests/training/test_probe` is about these trials."""
    run: Any = sys.modules.get("uld.training.run")
    if run is None:
        yield
        return
    real = run.probe

    def probe(learner: Any, *, answers: bool) -> None:
        parts = tuple((name, one.shape, one.dtype, one.requires_grad) for name, one in learner.named_parameters())
        weights = json.dumps(learner.fingerprints, sort_keys=True)
        code = frozenset(type(one).forward for one in learner.modules())  # a test may have broken one
        tried = (type(learner), code, weights, learner.base.config.to_json_string(), parts, answers)
        if tried not in _TRIED:
            real(learner, answers=answers)
            _TRIED.add(tried)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "probe", probe)
        yield


_TRIED: set[Any] = set()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with tofu/, tofu_augmented/ and reference_logs/."""
    return _folder("ULD_DATA_DIR", "../shared/data")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Folder with tofu-4m-full/ and the retain-only models."""
    return _folder("ULD_MODELS_DIR", "../shared/models")


def letter_tokenizer() -> Any:
    """A tokenizer of single letters with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz ?.:"]
    letters = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    letters.decoder = decoders.Fuse()  # type: ignore[assignment]
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, padding_side="left", **special)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}q: {{ m.content }} a:"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    return tokenizer


@pytest.fixture(scope="session")
def letters() -> Any:
    """A tokenizer of single letters with a chat template."""
    return letter_tokenizer()


FAMILIES = ("llama", "mistral", "qwen3", "gemma2", "phi3", "gpt_neox")


def family_config(family: str, num_layers: int = 5, **changes: Any) -> Any:
    """Config of a tiny model of a family: vocabulary 34, windows of 8 tokens where the family has windows."""
    import transformers

    names = {
        "llama": "LlamaConfig",
        "mistral": "MistralConfig",
        "qwen3": "Qwen3Config",
        "gemma2": "Gemma2Config",
        "phi3": "Phi3Config",
        "gpt_neox": "GPTNeoXConfig",
        "qwen2": "Qwen2Config",
        "gemma3": "Gemma3TextConfig",
    }
    size: dict[str, Any] = {
        "vocab_size": 34,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.25,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family != "gpt_neox":
        size["num_key_value_heads"] = 2
    if family in ("qwen3", "gemma2", "gemma3"):
        size["head_dim"] = 8
    if family in ("mistral", "gemma2", "gemma3"):
        size["sliding_window"] = 8
    if family == "gemma2":  # tied embeddings, every other layer with a window, both soft-caps
        size |= {"query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0}
    return getattr(transformers, names[family])(**size | changes)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each model family in turn."""
    return request.param


@pytest.fixture(scope="session")
def make_target() -> Callable[..., Any]:
    """Make a random target: ``make_target("gemma2", num_layers=5, seed=0)``; other arguments go into the config."""
    import torch
    from transformers import AutoModelForCausalLM

    def make(family: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(family_config(family, **changes)).eval()

    return make


@pytest.fixture(scope="session")
def make_unlearned() -> Callable[..., Any]:
    """Join a target with a random assistant whose LoRA does something: ``make_unlearned(target, num_layers=2)``."""
    import torch

    from uld.model.assistant import add_lora, build_assistant
    from uld.model.combine import Combination
    from uld.model.unlearned import ULDForCausalLM

    def make(
        target: Any,
        num_layers: int | None = None,
        how: Any = None,
        *,
        seed: int = 0,
        last: int | None = None,
        **options: Any,
    ) -> Any:
        assistant = add_lora(build_assistant(target, num_layers), rank=4, alpha=8, last=last)
        randomise_lora(assistant, seed)
        return ULDForCausalLM.join(target, assistant, how or Combination(), **options)

    def randomise_lora(assistant: Any, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in assistant.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    return make


@pytest.fixture(scope="session")
def make_run(make_target: Callable[..., Any], make_unlearned: Callable[..., Any]) -> Callable[..., Path]:
    """Save a random target and a run of it with a random adapter: ``make_run(folder, "llama")`` is the run's folder.

    The target lies beside it as ``folder / "target"``.
    """
    from uld.model.combine import Combination
    from uld.runs.manifest import CombinationSettings, Manifest, fingerprint

    def make(
        folder: Path,
        family: str = "llama",
        *,
        how: Any = None,
        num_layers: int = 2,
        last: int | None = None,
        **changes: Any,
    ) -> Path:
        target, how = make_target(family, **changes), how or Combination()
        if last is not None:  # LoRA on the last layers of all
            num_layers = target.config.get_text_config(decoder=True).num_hidden_layers
        model = make_unlearned(target, num_layers, how, last=last)
        shared = [
            (name.removeprefix("base_model.model.").replace(".base_layer", ""), value)
            for name, value in model.assistant.named_parameters()
            if "lora_" not in name
        ]
        manifest = Manifest(
            method="uld",
            target=str(folder / "target"),
            target_fingerprint=fingerprint(shared),
            num_layers=num_layers,
            combination=CombinationSettings(**vars(how)),
        )
        model.manifests = [manifest]
        for part, place in ((target, "target"), (model, "run")):
            part.save_pretrained(folder / place)
            letter_tokenizer().save_pretrained(folder / place)
        return folder / "run"

    return make


@dataclass(frozen=True)
class Task:
    """A tiny target with a forget and a retain file, ready to train on."""

    target: Path
    forget: Path
    retain: Path

    def settings(self, output: Path, **changes: Any) -> dict[str, Any]:
        """Settings of a short run: 23 rows in batches of 6, so that the last batch of an epoch is short."""
        small = {"num_layers": 2, "lora_rank": 4, "lora_alpha": 8, "batch_size": 6, "epochs": 2, "max_length": 64}
        files = {"forget": (str(self.forget),), "retain": (str(self.retain),)}
        return {"target": str(self.target), "output": str(output), **files, **small, **changes}

    def flags(self, output: Path, **changes: Any) -> list[str]:
        """The same as command-line flags."""
        flags = []
        for name, value in self.settings(output, **changes).items():
            word = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(word if value else f"--no-{word[2:]}")
            else:
                flags += [
                    part for one in (value if isinstance(value, tuple) else (value,)) for part in (word, str(one))
                ]
        return flags


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """10 forget rows, 13 retain rows, a Llama of 4 layers that knows single letters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("task")
    words = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz ?.:"]
    letters = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=letters, **special).save_pretrained(folder / "target")
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=128, **size, **ids))
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # a random head is too weak to say anything with confidence
    model.save_pretrained(folder / "target")
    rng = random.Random(0)
    for side, count in (("forget", 10), ("retain", 13)):
        rows = []
        for _ in range(count):
            name, *answer = ("".join(rng.choices("abcdefgh", k=rng.randint(3, 6))) for _ in range(rng.randint(2, 4)))
            rows.append(json.dumps({"question": f"who is {name} the {side}?", "answer": " ".join(answer)}))
        (folder / f"{side}.jsonl").write_text("\n".join(rows) + "\n")
    return Task(folder / "target", folder / "forget.jsonl", folder / "retain.jsonl")


class _Stop(BaseException):
    """A process ends here."""


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Stop a task before its n-th change of a folder: ``stopped(task, 3)``; False where it ended before that.

    As after a kill, no handler changes anything any more. With an ``error`` the change fails like this, and handlers
    work.
    """
    changes = ("open", "replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir")

    def run(task: Callable[[], Any], number: int, error: BaseException | None = None) -> bool:
        count = 0

        def guarded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def change(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                if name != "open" or args[1] & (os.O_CREAT | os.O_TRUNC):
                    count += 1
                    if count == number and error is not None:
                        raise error
                    if count >= number and error is None:
                        raise _Stop
                return real(*args, **kwargs)

            return change

        with monkeypatch.context() as patch:
            for name in changes:
                patch.setattr(os, name, guarded(name, getattr(os, name)))
            try:
                task()
            except _Stop:
                return True
            except BaseException:
                if error is None:
                    raise
                return True
        return count >= number

    return run


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Numbers of the rows that trainings go through, an entry an epoch."""
    from uld.data.collate import PlanSampler

    epochs: list[list[int]] = []
    batches = PlanSampler.__iter__

    def spy(self: PlanSampler) -> Iterator[list[int]]:
        epochs.append([])
        for batch in batches(self):
            epochs[-1] += batch
            yield batch

    monkeypatch.setattr(PlanSampler, "__iter__", spy)
    return epochs


@dataclass(frozen=True)
class Micro:
    """An invented world of ten people laid out like TOFU, two barely trained models of it, a run that forgets one."""

    data: Path
    target: Path
    retain_only: Path
    run: Path


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Micro:
    """72 rows over the four task sets; models of two layers; a run with K = 1."""
    folder = tmp_path_factory.mktemp("micro")
    made = made_once(tmp_path_factory, "micro-of-all", make_micro)
    shutil.copytree(made, folder, dirs_exist_ok=True)  # a worker's own, as tests write beside what they read
    for path in [*(folder / "run").rglob("*.json"), folder / "run" / "train.yaml"]:
        path.write_text(path.read_text().replace(str(made), str(folder)))
    (target,), (retain_only,) = folder.glob("target-*"), folder.glob("retain-only-*")
    return Micro(folder / "world", target, retain_only, folder / "run")


def make_micro(folder: Path) -> None:
    """What `micro` holds."""
    from uld.demo.models import MicroSettings, make_models
    from uld.demo.world import write_world
    from uld.training.config import train_config
    from uld.training.run import train

    world = write_world(folder / "world", people=10, evaluated=2)
    size = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_layers": 2}
    brief = {"epochs": 4, "batch_size": 8, "learning_rate": 6e-3, "warmup_steps": 5}
    target, _ = make_models(world, folder, settings=MicroSettings(**size, **brief))  # type: ignore[arg-type]
    places = {"target": str(target), "output": str(folder / "run"), "data": str(world.folder), "split": "forget10"}
    small = {"num_layers": 1, "lora_rank": 4, "epochs": 4, "retain_rows": 8, "max_length": 128, "learning_rate": 0.02}
    train(train_config([("the fixture", places | small)]), progress=False)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the workers of a test run share: the first that asks for it makes it, the others wait."""
    workers = "PYTEST_XDIST_WORKER" in os.environ
    folder = (factory.getbasetemp().parent if workers else factory.getbasetemp()) / name
    with FileLock(f"{folder}.lock"):
        if not Path(f"{folder}.made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            Path(f"{folder}.made").touch()
    return folder


@pytest.fixture(scope="session")
def shared_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`made_once` for the fixtures of other files: ``shared_once(name, make)``."""
    return lambda name, make: made_once(tmp_path_factory, name, make)


_COMMAND = """
import os, sys
os.environ.update({environment!r})
for number, log in enumerate({logs!r}):
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1 + number)
sys.argv = ["uld", *{arguments!r}]
import torch
torch.set_num_threads(1)
from uld.cli.main import main
main()
"""


@pytest.fixture(scope="session")
def start_uld() -> Iterator[Callable[..., BaseProcess]]:
    """Start the ``uld`` command in a process of its own: ``start_uld(arguments, log, environment, errors)``.

    ``errors`` takes what goes to standard error, if that is not to stand in ``log`` as well.
    The processes are forked from a server that has the imports done, so that each is there at once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["uld.training.run", "uld.cli.main"])
    started: list[BaseProcess] = []

    def start(
        arguments: list[str], log: Path, environment: dict[str, str] | None = None, errors: Path | None = None
    ) -> BaseProcess:
        logs = [str(log), str(errors or log)]
        code = _COMMAND.format(logs=logs, arguments=arguments, environment=environment or {})
        started.append(context.Process(target=exec, args=(code, {})))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def start_two(start_uld: Callable[..., BaseProcess], tmp_path: Path) -> Callable[..., list[BaseProcess]]:
    """Start a command as torchrun would, in two processes, with logs ``tmp_path/log-0`` and ``log-1``.

    With ``errors`` what goes to standard error is in ``tmp_path/errors-0`` and ``errors-1``.
    """

    def start(arguments: list[str], *, errors: bool = False) -> list[BaseProcess]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        log, other = str(tmp_path / "log-"), str(tmp_path / "errors-")
        return [
            start_uld(arguments, Path(f"{log}{number}"), rank, Path(f"{other}{number}") if errors else None)
            for number, rank in enumerate(ranks)
        ]

    return start
