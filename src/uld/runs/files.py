"""Files and folders that are there as a whole or not at all, with the permissions that a user's umask leaves."""

import errno
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from uld.errors import ArtifactError, DiskFullError, ULDError
from uld.runs.locks import hold, is_held, locked
from uld.runs.machine import files_are_limited

UNENCODABLE = "backslashreplace"  # half of a surrogate pair, as in a name that is not UTF-8, as JSON writes it
_FULL_DISK = ("No space left",)  # torch and safetensors report it as errors of their own, in words of their own
_TOO_LARGE = ("File too large", "file write failed", "unexpected pos", "iostream error")  # so does torch a full disk
_TEMPORARY = ".uld"  # ending of what is not yet, or no longer, in its place


def write_text(path: Path, text: str) -> None:
    """Write a whole file atomically, see `new_file`.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=UNENCODABLE)


def is_special(path: Path) -> bool:
    """Whether there is a device or a pipe, which is written into and never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def put(path: Path, text: str) -> None:
    """Write a text to where a user wants it: atomically into a file, behind a link into the one that it leads to.

    Raises:
        ArtifactError: it cannot be written.
    """
    if is_special(path):
        with writing(path):
            path.write_text(text, encoding="utf-8", errors=UNENCODABLE)
    else:
        write_text(Path(os.path.realpath(path)), text)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Make a file atomically: yields a temporary sibling, which is flushed to disk and then renamed over the path.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        handle, name = tempfile.mkstemp(**_beside(path))
        try:
            hold(handle, Path(name))
            yield Path(name)
            os.fsync(handle)
            os.chmod(name, permissions(0o666, path))
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)


def _beside(path: Path) -> dict[str, Any]:
    """How `tempfile` names what is to take a path's place, or has left it; the path's own name may be a long one."""
    return {"prefix": f".{path.name[:40]}.", "suffix": _TEMPORARY, "dir": path.parent}


def present(folder: Path) -> set[str]:
    """Names of what somebody has put into a folder, which need not exist; hidden names are locks and the like."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what a kill left in a folder before it was in its place; what a living process writes is locked.

    Args:
        folder: Which need not exist.
        name: Of what was to be there; any.
    """
    for path in folder.glob(f".{name if name == '*' else glob.escape(name[:40])}.*{_TEMPORARY}"):
        if not is_held(path):
            with suppress(OSError):  # another process may sweep as well
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_folder(path: Path) -> None:
    """Remove a folder, if there is one, so that it is there as a whole or not at all."""
    if path.is_symlink():  # what it leads to is somebody's own
        path.unlink()
    elif path.exists():
        aside = tempfile.mkdtemp(**_beside(path))
        os.replace(path, aside)
        shutil.rmtree(aside)


def permissions(most: int, path: Path | None = None) -> int:
    """The mode of what is made now: what the user's umask leaves, and no more than a file in its place had.

    Args:
        most: Without a umask: 0o666 for a file, 0o777 for a folder.
        path: What is replaced, if it is there.
    """
    umask = os.umask(0o077)  # there is no way to look at it; what another thread makes meanwhile is not too open
    os.umask(umask)
    found = path.stat().st_mode if path is not None and path.exists() else most
    return most & found & ~umask


def copy_folder(source: Path, to: Path) -> None:
    """Copy a folder of files, each for no more people than may read it now."""
    to.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_folder(path, to / path.name)
        else:
            shutil.copyfile(path, to / path.name)
            (to / path.name).chmod(permissions(0o666, path))


def as_usual(files: Iterable[Path]) -> None:
    """Give files that safetensors wrote, which keeps everybody else off them, what the user's umask leaves."""
    for path in files:
        path.chmod(permissions(0o666))


@contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """Turn failures to write below a folder into one clear sentence.

    Raises:
        ArtifactError: the disk is full (`DiskFullError`), the folder is read-only, or something else is in the way.
    """
    try:
        yield
    except ULDError:
        raise
    except Exception as error:
        if _tells(error, (errno.ENOSPC, errno.EDQUOT), _FULL_DISK):
            raise DiskFullError(f"the disk that holds {folder} is full: free some space and run again") from error
        if _tells(error, (errno.EFBIG,), _TOO_LARGE):
            if files_are_limited():
                raise ArtifactError(
                    f"a file in {folder} would be larger than files may be here: raise the limit (ulimit -f)"
                ) from error
            raise DiskFullError(f"the disk that holds {folder} is full: free some space and run again") from error
        if isinstance(error, OSError):
            raise ArtifactError(f"cannot write to {folder}: {error.strerror or error}") from error
        raise


def _tells(error: BaseException | None, numbers: tuple[int, ...], words: tuple[str, ...]) -> bool:
    """Whether an error, or one that it wraps, is an OSError with one of these numbers or holds one of these words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        if any(hint in str(error) for hint in words):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def new_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Make a folder atomically: yields a temporary sibling, which takes the path's place only when all went well.

    Args:
        path: The folder to make.
        replace: Whether an existing folder may be replaced.

    Raises:
        ArtifactError: the path exists and may not be replaced, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise ArtifactError(f"{path} exists already: choose another folder")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        temporary = Path(tempfile.mkdtemp(**_beside(path)))
        handle = os.open(temporary, os.O_RDONLY)
        try:
            hold(handle, temporary)
            os.chmod(temporary, permissions(0o777, path))
            yield temporary
            _exchange(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(handle)


def _exchange(new: Path, path: Path) -> None:
    """Put a folder into a place; the one that was there is removed when the new one is there."""
    if not path.exists():
        os.replace(new, path)
        return
    old = tempfile.mkdtemp(**_beside(path))
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old)


def absent(path: Path) -> list[Path]:
    """What is not there yet of a path and the folders above it, innermost first."""
    return [one for one in (path.absolute(), *path.absolute().parents) if not one.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, in which nothing came to be."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


@contextmanager
def claimed_file(path: Path, *, overwrite: bool) -> Iterator[Callable[[str], None]]:
    """Take the place of a file that takes long to make, so that no second command makes another in the meantime.

    Args:
        path: The file; folders above it are made, and go again where nothing is written.
        overwrite: Whether one that exists may be replaced.

    Returns:
        Writes the text of the file.

    Raises:
        ArtifactError: it exists, or is being made, or cannot be written.
    """
    if is_special(path):
        yield lambda text: put(path, text)
        return

    def refuse() -> None:
        if path.is_dir() or (path.exists() and not overwrite):
            raise ArtifactError(
                f"{path} exists already: choose another file (--output), or replace it with --overwrite"
            )

    def write(text: str) -> None:
        refuse()
        put(path, text)

    with ExitStack() as stack:
        with writing(path.parent):
            if taken := [one for one in path.parents if one.is_file()]:
                raise ArtifactError(f"{taken[0]} is a file: choose another place with --output")
            # The lock's place must not depend on what is there already: two commands have to meet at it.
            stack.callback(remove_empty, absent(path.parent))
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
            name = hashlib.sha256(path.name.encode()).hexdigest()[:16]
            mine = stack.enter_context(locked(path.absolute().parent / f".{name}.lock"))
        if not mine:
            raise ArtifactError(f"{path} is being written by another command: choose another file (--output)")
        with writing(path.parent):
            refuse()
        yield write
