"""An answer as it is written: tokens come in, text goes out, up to where a client wants it to stop."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from transformers.cli.serving.utils import _StreamError

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_UNFINISHED = "\ufffd"


class Decoder:
    """Tokens to text, piece by piece; the pieces together are what the tokenizer makes of all tokens at once.

    A piece is held back while a later token may change it. Of bytes in a row that is all of them: decoders with byte
    fallback (Llama-2, Mistral, Gemma) read them together, and where the last is ill-formed show none of their letters.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Begin.

        Args:
            tokenizer: Of the library tokenizers.
        """
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = ""
        self._begin = self._read = 0  # tokens of the last piece, before those that are held back

    def step(self, token: int) -> str:
        """The text that the next token settles."""
        self._ids.append(token)
        if self._leaves_open(token):
            return ""
        before, text = self._text(self._ids[self._begin : self._read]), self._text(self._ids[self._begin :])
        if text.endswith(_UNFINISHED) or len(text) <= len(before) or not text.startswith(before):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        self._given += text[len(before) :]
        return text[len(before) :]

    def rest(self) -> str:
        """What was held back, when no token follows; nothing the second time."""
        text = self._text(self._ids)
        piece = text[len(self._given) :] if text.startswith(self._given) else ""
        self._given += piece
        return piece

    def _leaves_open(self, token: int) -> bool:
        """Whether the text up to this token may still change: it is a byte, or shows nothing."""
        return bool(_BYTE.fullmatch(self._tokenizer.id_to_token(token) or "")) or not self._text([token])

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)


class Answer:
    """What transformers' handlers read an answer from, and stop it by (they call it a streamer).

    Everything here runs in the event loop.

    Attributes:
        queue: Pieces of text, None behind the last.
        ids: Tokens so far, end-of-sequence included.
        text: The text so far that stands before any stop.
        stopped: Whether a stop ended it.
    """

    def __init__(self, tokenizer: Any, stop: str | Sequence[str] | None, cancel: Callable[[], None]) -> None:
        """Begin.

        Args:
            tokenizer: The fast tokenizer behind that of transformers.
            stop: Texts that end the answer and are no part of it.
            cancel: Ends the writing.
        """
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.ids: list[int] = []
        self.text = ""
        self.done = self.stopped = False
        self._stops = [stop] if isinstance(stop, str) else list(stop or ())
        self._decoder, self._cancel = Decoder(tokenizer), cancel
        self._held = ""  # the end of the text, which may be the beginning of a stop

    @property
    def total_tokens(self) -> int:
        """Tokens that were written."""
        return len(self.ids)

    def feed(self, tokens: Sequence[int]) -> None:
        """Take the next tokens."""
        for token in tokens:
            if self.done:
                return
            self.ids.append(token)
            if piece := self._decoder.step(token):
                self._take(piece)

    def finish(self) -> None:
        """Nothing more comes."""
        if not self.done and not self.stopped and (piece := self._decoder.rest()):
            self._take(piece)
        if self.done:
            return
        self.done = True
        self._send(self._held)
        self.queue.put_nowait(None)

    def fail(self, message: str) -> None:
        """It could not be written, and is not written on."""
        if not self.done:
            self.done = True
            self.queue.put_nowait(_StreamError(json.dumps(message)[1:-1]))  # it is put between quotation marks
            self._cancel()

    def cancel(self) -> None:
        """Nobody reads it any more."""
        if not self.done:
            self.done = True
            self._cancel()

    def _take(self, piece: str) -> None:
        """Send what can no longer become a stop."""
        self._held += piece
        found = [place for one in self._stops if (place := self._held.find(one)) >= 0]
        if found:
            self._held = self._held[: min(found)]
            self.stopped = True
            self.finish()
            self._cancel()
            return
        sizes = range(1, max(map(len, self._stops), default=0) + 1)
        open_ = max((n for n in sizes if any(one.startswith(self._held[-n:]) for one in self._stops)), default=0)
        sent = len(self._held) - min(open_, len(self._held))
        self._send(self._held[:sent])
        self._held = self._held[sent:]

    def _send(self, piece: str) -> None:
        if piece:
            self.text += piece
            self.queue.put_nowait(piece)
