"""lm-eval's tasks, found by name and loaded, with everything refused that could not run or would mislead."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uld.errors import ULDError, guess
from uld.evaluation.lm_eval_model import NAME

_DATA = ("dataset_path", "dataset_kwargs", "custom_dataset", "class")
_FILES = {"data_files", "data_dir"}


@dataclass(frozen=True)
class Tasks:
    """Tasks that are loaded and ready to run.

    Attributes:
        manager: lm-eval's `TaskManager`.
        loaded: By the name that was asked for, which may be a group's or a tag's: what the manager's ``load`` returns.
    """

    manager: Any
    loaded: Mapping[str, Any]

    def check(self, num_fewshot: int | None) -> None:
        """Refuse examples that a task does not have, or that would show it its own answers.

        Raises:
            ULDError: see above.
        """
        for name, task in self._each():
            if not num_fewshot or task.get_config("num_fewshot") == 0 or task.OUTPUT_TYPE == "loglikelihood_rolling":
                continue  # lm-eval leaves a 0 in a task's file as it is, and whole texts have no prompt
            own = getattr(task, "fewshot_cfg", None)
            chosen = own is not None and (own.split is not None or own.samples is not None)
            if not chosen and not task.has_training_docs() and task.has_test_docs() and not task.has_validation_docs():
                raise ULDError(
                    f"the task {name} has no examples but the documents that it asks, and would be shown its own "
                    "answers: leave --num-fewshot out, or name a fewshot_split in its file"
                )
            if (there := len(list(task.fewshot_docs()))) < num_fewshot:
                raise ULDError(f"the task {name} has {there} examples to show: lower --num-fewshot {num_fewshot}")

    def digest(self, name: str, num_fewshot: int | None, limit: int | None) -> str:
        """SHA-256 of what decides a task's questions: its configuration, its documents and its examples."""
        found = hashlib.sha256(name.encode())
        for one, task in self._each(name):
            shots = task.fewshot_docs() if num_fewshot or task.get_config("num_fewshot") else ()
            for part in (one, task.dump_config(), *list(task.eval_docs)[:limit], *shots):
                found.update(json.dumps(part, default=str).encode())
        return found.hexdigest()

    def aggregations(self) -> dict[str, Mapping[str, Any]]:
        """By task and metric: from the values of documents to a score."""
        return {name: task.aggregation() for name, task in self._each()}

    def _each(self, *names: str) -> Iterator[tuple[str, Any]]:
        """Single tasks of what was asked for, or of some of it, by their own names."""
        for name in names or self.loaded:
            yield from self.loaded[name]["tasks"].items()


def load_tasks(names: Sequence[str], include_path: Sequence[str | Path] = ()) -> Tasks:
    """Find tasks by name and load their data.

    Args:
        names: Of tasks, groups or tags; ``*`` and ``?`` match as in file names.
        include_path: Folders with task files (YAML) of one's own, which go before lm-eval's.

    Raises:
        ULDError: no such task or folder, or data that cannot be had.
    """
    from lm_eval.tasks import TaskManager

    if not names:
        raise ULDError("name at least one task")
    folders: Any = [str(folder) for folder in include_path]
    for folder in folders:
        if not Path(folder).is_dir():
            raise ULDError(f"there is no folder {folder} of task files")
        if not any(Path(folder).rglob("*.yaml")):
            raise ULDError(f"{folder} holds no task file: lm-eval looks for *.yaml in it and below")
    if folders:  # lm-eval's own tasks are thousands of files, which take long to read
        own = TaskManager(include_path=folders, include_defaults=False)
        if set(names) <= set(own.all_tasks):
            try:
                return _loaded(own, names)
            except ULDError:
                if all(task in own.task_index for name in names for task, _ in _data_of(own.task_index, name, {})):
                    raise  # while a group of one's own may name lm-eval's tasks
    manager = TaskManager(include_path=folders or None)
    return _loaded(manager, [match for name in names for match in _matches(manager, name)])


def _matches(manager: Any, name: str) -> list[str]:
    if matches := manager.match_tasks([name]):
        return matches
    hint = guess(name, manager.all_tasks, most=3) or ": the command `lm_eval ls tasks` lists all"
    raise ULDError(f"lm-eval has no task {name or repr(name)}{hint}")


def _loaded(manager: Any, names: Sequence[str]) -> Tasks:
    loaded = {}
    for name in dict.fromkeys(names):
        try:
            _refuse_no_files(manager.task_index, name)
            loaded[name] = manager.load([name])
        except ULDError:
            raise
        except ConnectionError as error:
            raise ULDError(
                f"the data of the task {name} is not on this machine and the Hub cannot be reached "
                f"({first_words(error)}): go online once, or take tasks over local files (--include-path)"
            ) from error
        except Exception as error:  # task files and the scripts beside them raise whatever they like
            raise ULDError(
                f"the task {name} cannot be loaded: {type(error).__name__}: {first_words(error)}: see its task file"
            ) from error
        for one, task in loaded[name]["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise ULDError(
                    f"the task {one} runs code that the model wrote: run it on a machine of its own with lm-eval's "
                    f"command line (uld lm-eval --model {NAME} --confirm_run_unsafe_code)"
                )
            if getattr(task, "MULTIMODAL", False):
                raise ULDError(f"the task {one} shows images, which an unlearned language model cannot see")
    return Tasks(manager, loaded)


def _refuse_no_files(index: Mapping[str, Any], name: str) -> None:
    """Refuse a task over files that names none: `datasets` would search the whole working folder.

    Raises:
        ULDError: there is such a task.
    """
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as kinds

    for task, data in _data_of(index, name, {}):
        path, given = data.get("dataset_path"), data.get("dataset_kwargs") or {}
        if path in kinds and not data.keys() & {"custom_dataset", "class"} and not given.keys() & _FILES:
            raise ULDError(
                f"the task {task} reads {path} files and names none: name them in its task file, "
                "under dataset_kwargs, as data_files or data_dir"
            )


def _data_of(
    index: Mapping[str, Any], member: str | Mapping[str, Any], above: Mapping[str, Any], inside: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Names of single tasks and what says where their data is, of a name or of a group's member.

    What a member says goes before what its group says, and that before the task's own file, as in lm-eval.

    Raises:
        ULDError: a group that holds itself.
    """
    one = {"task": member} if isinstance(member, str) else dict(member)
    name: Any = one.get("group", one.get("task"))
    if name in inside:
        raise ULDError(f"the group {name} holds itself: take it out of its task file")
    entry = index.get(name)
    data = {**((entry and entry.cfg) or {}), **above, **{key: one[key] for key in _DATA if key in one}}
    members = entry.tags if entry and entry.cfg is None else data.get("task", one.get("task"))
    if isinstance(members, list | set):
        for child in members:
            yield from _data_of(index, child, {key: data[key] for key in _DATA if key in data}, (*inside, name))
    else:
        yield name, data


def first_words(error: BaseException) -> str:
    """What an error says, as one line that is not endless."""
    return " ".join(str(error).split())[:300]
