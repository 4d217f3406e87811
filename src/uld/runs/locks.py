"""Locks between processes: a file that one process holds at a time. A lock goes with its process, however it ends.

What is looked at and then written (whose a folder is, whether a file exists) is looked at and written under one.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

LOCK = ".lock"
"""The lock of a folder that one command at a time works in."""
_LOOK_AGAIN = 0.05  # seconds


def hold(file: int | IO[Any], path: Path) -> bool:
    """Lock an open file or folder until it is closed.

    Args:
        file: As it was opened.
        path: Its name.

    Returns:
        False where another process has it, or where the name is no longer that of the file that was opened: who
        held it before may have removed it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.stat(file if isinstance(file, int) else file.fileno()), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def is_held(path: Path) -> bool:
    """Whether another process holds a lock file or folder; leaves no trace."""
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        return False
    try:
        return not hold(handle, path)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, *, wait: float = 0.0) -> Iterator[bool]:
    """Hold a lock file, which is made, and removed again.

    Args:
        path: In a folder that exists.
        wait: Seconds to wait for another process that has it.

    Returns:
        Whether it is held; without it the block has to leave things alone.
    """
    until = time.monotonic() + wait
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if hold(handle, path):
                try:
                    yield True
                finally:
                    with suppress(FileNotFoundError):
                        os.unlink(path)
                return
        finally:
            os.close(handle)
        if time.monotonic() >= until:
            yield False
            return
        time.sleep(_LOOK_AGAIN)
