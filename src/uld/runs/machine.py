"""What this machine and its libraries are, and what they allow."""

import sys
from functools import cache


def peak_memory() -> int:
    """Largest resident memory that this process has had, in bytes."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a run's numbers."""
    import platform

    packages = {"uld": "uld-llm", "torch": "torch", "transformers": "transformers", "peft": "peft"}
    return {"python": platform.python_version()} | {name: _version(package) for name, package in packages.items()}


@cache
def _version(package: str) -> str:
    """What is installed; looking it up reads a folder of files, and a process keeps what it has imported."""
    from importlib.metadata import version

    return version(package)


def files_are_limited() -> bool:
    """Whether this process may not write files of any size."""
    if sys.platform == "win32":
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
