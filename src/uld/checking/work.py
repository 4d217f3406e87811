"""The models of a check at work: each does the questions in its turn, and the target judges the answers."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uld.checking.asked import Asked, same_vocabulary
from uld.checking.measures import KL, KNOWN, same_words
from uld.checking.result import Shown
from uld.checking.thresholds import TARGET
from uld.errors import ArtifactError, DataError, ULDError
from uld.evaluation import pipe
from uld.evaluation.benchmark import Found, Subject
from uld.evaluation.pipe import Candidate
from uld.model.adapters import refuse_other_model
from uld.model.combine import Combination
from uld.model.unlearned import ULDForCausalLM
from uld.runs.hub import manifest_of, run_folder
from uld.runs.manifest import ADAPTER, Manifest, fingerprint

LEAST_KNOWN = 0.1
"""A target that knows less than this share of what is to be forgotten has nothing to forget."""


class Work:
    """Has models do the questions, one after the other; the target stands beside those that do not hold it."""

    def __init__(self, asked: Asked, folder: Path, target: Candidate, template: str | None, progress: bool) -> None:
        """Take what is asked, the folder for rows, the target, and the template that everybody is asked in."""
        self.asked, self.folder, self.target = asked, folder, target
        self.template, self.progress = template, progress
        self.fingerprint = ""
        self.changed: dict[str, dict[str, Any]] = {}
        """What of a run's combination was changed when it was loaded, by place."""

    @functools.cached_property
    def beside(self) -> Subject:
        """The target, loaded to stand beside other models."""
        return self.target.subject(self.template)

    def of_target(self) -> Found:
        """The target's own results."""
        subject = self.target.subject(self.template)
        self.fingerprint = fingerprint(subject.model.named_parameters())
        found = self._done(subject, subject, self.folder / TARGET)
        found[f"retain_{KL}"] = [{"kl": 0.0, "tokens": row["tokens"]} for row in found["retain"]]
        return found

    def of(self, candidate: Candidate, folder: Path, *, is_target_made: bool = False) -> Found:
        """Another model's results.

        Args:
            candidate: The model.
            folder: For its rows.
            is_target_made: Whether it has to be made of the target.

        Raises:
            ArtifactError: it has to be, and is not.
        """
        subject = candidate.subject(self.template)
        model = subject.model
        run = run_folder(candidate.place) if is_target_made else None
        if run is not None and not (run / ADAPTER).exists():  # whole weights: nothing else has looked at the target
            self._refuse_other_target(Manifest.read(run))
        if isinstance(model, ULDForCausalLM):
            if run is not None:
                self.changed[candidate.place] = _changed(model, run)
            target: Any = model.target
            return self._done(subject, Subject(target, subject.tokenizer, subject.template), folder)
        if is_target_made and not same_vocabulary(subject, self.beside):
            raise ArtifactError(
                f"{candidate.place} has another tokenizer than the target {self.target.place}, so it was not made of "
                "it: name its own with --target"
            )
        return self._done(subject, self.beside, folder)

    def _refuse_other_target(self, manifest: Manifest) -> None:
        """Refuse a run of another target, however many bits the target's weights were loaded in.

        Raises:
            ArtifactError: names both fingerprints.
        """
        place, wanted = self.target.place, manifest.target_fingerprint
        if self.fingerprint != wanted:
            hub = {"revision": manifest.target_revision if place == manifest.target else None}
            refuse_other_model("target", self.beside.model, wanted, place, **hub)

    def _done(self, subject: Subject, target: Subject, folder: Path) -> Found:
        found = pipe.run(self.asked, subject, folder, progress=self.progress)
        for task in self.asked.compared(subject, target, found):
            found[task.name] = task.results(folder, subject.model.device.type, self.progress)
        return found


def _changed(model: ULDForCausalLM, run: Path) -> dict[str, Any]:
    """The settings of a loaded run that are not those that it names itself."""
    own = Combination(**Manifest.read(run).combination.model_dump())
    return {name: value for name, value in vars(model.combination).items() if getattr(own, name) != value}


def one_template(runs: Sequence[Candidate]) -> str | None:
    """The template that every model is asked in.

    Raises:
        ULDError: the runs have several.
    """
    first, *others = runs
    template = _template_of(first)
    for one in others:
        if _template_of(one) != template:
            raise ULDError(
                f"{one.place} was trained with another prompt template than {first.place}: check it by itself, or name "
                "one for all of them with --template"
            )
    return template


def _template_of(run: Candidate) -> str | None:
    if run.template is not None:
        return run.template
    return getattr(manifest_of(run.place), "template", None)


def refuse_unknown(asked: Asked, counted: Mapping[str, Sequence[int]], target: str) -> None:
    """Refuse questions of which the target knows next to nothing: a run could only pass.

    Questions and passages are counted apart, and one kind that it knows is enough: a model that recites a text need not
    answer questions about it, however many were made. Nor are other wordings a reason.

    Raises:
        DataError: there is nothing to forget.
    """
    items, known = asked.questions.sets["forget"], counted["forget"]
    for passage in (False, True):
        number = sum(item.passage == passage for item in items)
        if sum(items[i].passage == passage for i in known) >= max(1, LEAST_KNOWN * number):
            return
    raise DataError(
        f"nothing to forget: the target {target} knows the answers to {len(known)} of {len(items)} forget questions "
        f"(it says at least {KNOWN:.0%} of their key words), fewer than one in ten: ask what it has learnt, or "
        "name another target with --target"
    )


def shown(
    asked: Asked, name: str, before: Found, never: Found | None, now: Sequence[Found], counted: Sequence[int]
) -> list[Shown]:
    """Every question of a set with all answers."""
    rows = []
    for i, item in enumerate(asked.questions.sets[name]):
        first, *others = (one[name][i]["generated"] for one in (before, *now))
        rows.append(
            Shown(
                item.question,
                item.answer,
                first,
                None if never is None else never[name][i]["generated"],
                tuple(others),
                tuple(not same_words(first, other) for other in others),
                i in counted,
            )
        )
    return rows
