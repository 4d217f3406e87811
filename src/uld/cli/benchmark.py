"""The one body of every ``uld eval`` command that runs a benchmark: a command is its flags and their help."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from uld.cli.common import AsJson, ModelOptions, Output, Quiet, evaluation_folder, resumable, show_result, with_model
from uld.errors import flag


def evaluates(benchmark: str, *skipped: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function's parameters: they are the benchmark's settings, and its docstring is the help.

    Args:
        benchmark: Name in `uld.evaluation.pipe.BENCHMARKS`.
        skipped: Fields of `ModelOptions` that the command has no use for.
    """

    def decorate(settings: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(settings)
        def command(**given: Any) -> None:
            run(benchmark, **given)

        shared = [one for one in inspect.signature(run).parameters.values() if one.kind is one.KEYWORD_ONLY]
        parameters = [*inspect.signature(settings).parameters.values(), *shared]
        signature = inspect.Signature([one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters])
        command.__signature__ = signature  # type: ignore[attr-defined]
        return with_model(*skipped)(command)

    return decorate


def run(
    benchmark: str,
    *,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    options: ModelOptions,
    **settings: Any,
) -> None:
    """Run a benchmark on the model that the options choose, and on those beside it; print the numbers.

    Args:
        benchmark: Name in `uld.evaluation.pipe.BENCHMARKS`.
        output: Folder for rows and numbers; None for the usual one.
        as_json: Print JSON instead of tables.
        quiet: Show no progress bar.
        options: The model, and how it is changed.
        settings: Of the benchmark, and the places of the models beside it.

    Raises:
        ULDError: whatever is wrong with an option, a file or a model.
    """
    options.check()
    from uld.evaluation.pipe import compare, find

    kind = find(benchmark)
    places = {role: settings.pop(role) for role in kind.others}
    others = {
        role: options.beside(place, flag(role), *kind.others[role].shared).candidate()
        for role, place in places.items()
        if place is not None
    }
    made = kind(**{name: value for name, value in settings.items() if value is not None})
    folder = evaluation_folder(options, made.name, output, made.changed)
    with resumable(folder):
        result = compare(made, options.candidate(), folder, others, progress=not quiet)
    show_result(result, folder, as_json)
