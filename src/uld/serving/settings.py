"""What a server is started with: its place, its limits, and who may ask."""

import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from uld.errors import ULDError

KEY_VARIABLE = "ULD_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How `uld.serving.run.serve` serves; nothing of it can be changed by a request.

    Attributes:
        name: The model's name, which requests may give.
        keys: API keys, of which a client has to send one; none: everybody may ask.
        batching: Whether requests share batches (continuous batching), or are answered one after the other.
        logprobs: Whether log-probabilities may be given where the engine can.
        log_prompts: Whether prompts and answers are written to the log.
        max_requests: Requests that are answered at the same time.
        max_queue: Requests that may wait beside them; others get 429.
        max_tokens: Most tokens of a prompt and its answer together; None: what the model can read, up to 2,048.
        max_body: Most bytes of a request.
        timeout: Seconds that a request may take, its waiting included.
        drain: Seconds that requests get to finish when the server is asked to end.
    """

    name: str
    keys: tuple[str, ...] = ()
    batching: bool = True
    logprobs: bool = True
    log_prompts: bool = False
    max_requests: int = 16
    max_queue: int = 64
    max_tokens: int | None = None
    max_body: int = 1 << 20
    timeout: float = 300.0
    drain: float = 30.0


def read_keys(file: str | None) -> tuple[str, ...]:
    """API keys: of a file, a line each (blank lines and those behind # left out), or of the environment.

    Args:
        file: None takes what `KEY_VARIABLE` holds.

    Raises:
        ULDError: the file cannot be read, others can read it, or a key has blanks or other letters than ASCII.
    """
    if file is None:
        keys = [os.environ.get(KEY_VARIABLE, "").strip()]
        place = KEY_VARIABLE
    else:
        place = f"--api-keys {file}"
        try:
            with open(file, encoding="utf-8-sig") as stream:
                mode = os.fstat(stream.fileno()).st_mode
                lines = stream.read().splitlines()
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ULDError(f"{place} cannot be read: {reason}") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ULDError(f"{place} can be read by others: keep its keys to yourself with chmod 600 {file}")
        keys = [line.strip() for line in lines if not line.lstrip().startswith("#")]
    keys = [key for key in keys if key]
    if file is not None and not keys:
        raise ULDError(f"{place} holds no key: write one a line, or leave the option out to let everybody ask")
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise ULDError(f"{place} holds a key that no header can carry: use ASCII letters, digits and signs, no blanks")
    return tuple(keys)


def bind(host: str, port: int) -> socket.socket:
    """Take a port before a model is loaded for it; 0 takes any that is free.

    Raises:
        ULDError: it is taken, may not be taken, or there is no such host.
    """
    place = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ULDError(f"cannot listen on {place}: there is no host {host!r} here (--host)") from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(128)  # two servers may bind the same port, and only one listen
    except OSError as error:
        taken.close()
        raise ULDError(f"cannot listen on {place}: {error.strerror}; choose another with --port or --host") from error
    return taken


def served_name(runs: list[str], name: str | None) -> str:
    """The name that clients know the model by: as given, or those of the run folders."""
    return name or "+".join(Path(run).resolve().name for run in runs)
