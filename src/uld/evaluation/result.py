"""The numbers of a benchmark. What reads them again, as `uld report` does, needs no torch."""

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any


class Result(ABC):
    """The numbers of a benchmark: a dataclass."""

    @abstractmethod
    def table(self) -> str:
        """What people read, as Markdown."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return asdict(self)  # type: ignore[call-overload]
