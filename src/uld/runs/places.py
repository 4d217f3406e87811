"""Places that users name for what is written: not what is read, and not inside of it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from uld.errors import ConfigError


def refuse_sources(
    output: str | Path,
    sources: Mapping[str, Iterable[str | Path | None]],
    *,
    by: str = "--output",
    clears: bool = False,
    within: bool = False,
) -> None:
    """Refuse a place for what is written that is, or lies in, what is read.

    Args:
        output: The place.
        sources: By their flags, what is read: files and folders; what is neither, such as a Hub id, is passed over.
        by: Flag of the place.
        within: Whether it may lie in a folder that is read, because what is written is known there and passed over.
        clears: Whether a folder in this place is emptied: nothing that is read may lie in it.

    Raises:
        ConfigError: names both flags.
    """
    place = Path(output)
    whole = place.resolve()
    for flag, names in sources.items():
        for source in (Path(one) for one in names if one is not None):
            if not source.exists():
                continue
            read = source.resolve()
            if read == whole:
                raise ConfigError(f"{by} {place} is also what is read ({flag}): name another place")
            if not within and read.is_dir() and whole.is_relative_to(read):
                raise ConfigError(f"{by} {place} lies in {source}, which is read ({flag}): name a place elsewhere")
            if clears and read.is_relative_to(whole):
                raise ConfigError(f"{source} ({flag}) lies in {place}, which --overwrite empties: move it away")
