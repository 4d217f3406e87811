"""Evaluations that can be stopped: which one a folder holds, and rows that are computed where they are missing."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.model.unlearned import ULDForCausalLM
from uld.runs.manifest import fingerprint
from uld.runs.rows import RowFile, claim

Work = Callable[[list[int]], list[dict[str, Any]]]


def describe(model: PreTrainedModel, form: PromptFormat, **settings: Any) -> dict[str, Any]:
    """Everything that decides an evaluation's numbers, as written beside its log."""
    sample: Any = form.tokenizer.decode(form.encode(Record.qa("QUESTION", "ANSWER"), max_length=2**31).ids)
    about: dict[str, Any] = {
        "model": str(model.name_or_path),
        "weights": fingerprint(model.named_parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompt": sample,
    }
    if isinstance(model, ULDForCausalLM):
        about["combination"] = model.combination.to_dict()
    return about | settings


def begin(folder: str | Path, model: PreTrainedModel, form: PromptFormat, **settings: Any) -> Path:
    """Take a folder for an evaluation, or find it taken by the same one; the first of several processes goes first.

    Args:
        folder: Made if it is missing.
        model: What is evaluated.
        form: How it is asked.
        settings: Everything else that decides the numbers, as plain JSON types.

    Returns:
        The folder.

    Raises:
        ArtifactError: it holds another evaluation, or something else.
    """
    about = describe(model, form, **settings)
    with PartialState(cpu=model.device.type == "cpu").main_process_first():
        claim(Path(folder), about)
    return Path(folder)


def complete(
    folder: Path,
    task: str,
    batches: Sequence[list[int]],
    work: Work,
    *,
    device: str,
    finished: Callable[[int, dict[str, Any]], bool] = lambda number, result: True,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Have every row of a task done, and go on where an evaluation was stopped.

    A row's last digits depend on the rows that it is padded with, so a batch with a missing row is computed whole: the
    numbers are the same however often it was stopped. Under ``torchrun`` every process calls this and takes its share.

    Args:
        folder: Where the rows are kept, one file a task.
        task: Name of the file.
        batches: Numbers of the rows, each once and from 0; the same in every process and run.
        work: From the row numbers of a batch to their results.
        device: Kind of the model's device.
        finished: Whether the stored result of a row holds all that is wanted.
        progress: Show a progress bar.

    Returns:
        Results by row number.

    Raises:
        ArtifactError: the folder cannot be written, or another evaluation is writing to it.
    """
    processes = PartialState(cpu=device == "cpu")
    shown = task if progress and processes.is_main_process else None
    with RowFile.of(folder, task, processes.process_index) as file:
        _fill(file, batches[processes.process_index :: processes.num_processes], work, finished, shown)
        processes.wait_for_everyone()
        if processes.is_main_process:
            file.merge([i for batch in batches for i in batch])
    processes.wait_for_everyone()
    done = RowFile.read(folder, task)
    return [done[i] for i in range(sum(map(len, batches)))]


def _fill(
    file: RowFile,
    batches: Sequence[list[int]],
    work: Work,
    finished: Callable[[int, dict[str, Any]], bool],
    shown: str | None,
) -> None:
    """Compute the rows of some batches that the file lacks; ``shown`` names the progress bar."""
    from tqdm import tqdm

    todo = {i for batch in batches for i in batch if i not in file.rows or not finished(i, file.rows[i])}
    if not todo:
        return
    total = sum(map(len, batches))
    bar = tqdm(
        total=total,
        initial=total - len(todo),
        desc=shown,
        unit="row",
        disable=shown is None,
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )
    with bar:
        for batch in batches:
            if missing := todo.intersection(batch):
                for i, result in zip(batch, work(batch), strict=True):
                    if i in missing:
                        file.add(i, result)
                bar.update(len(missing))
