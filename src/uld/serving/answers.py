"""An answer as it is written: tokens come in, text goes out, up to where a client wants it to stop."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers.cli.serving.utils import _StreamError, response_events_to_chunks


class Answer:
    """What transformers' handlers read an answer from, and stop it by (they call it a streamer).

    Everything here runs in the event loop.

    Attributes:
        queue: Pieces of text, None behind the last.
        ids: Tokens so far, end-of-sequence included.
        text: The text so far that stands before any stop.
        stopped: Whether a stop ended it.
    """

    def __init__(
        self, tokenizer: Any, stop: str | Sequence[str] | None, parser: Any, cancel: Callable[[], None]
    ) -> None:
        """Begin.

        Args:
            tokenizer: The fast tokenizer behind that of transformers.
            stop: Texts that end the answer and are no part of it.
            parser: transformers' parser of reasoning and tool calls, or None.
            cancel: Ends the writing.
        """
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.ids: list[int] = []
        self.text = ""
        self.done = self.stopped = False
        self._stops = [stop] if isinstance(stop, str) else list(stop or ())
        self._tokenizer, self._parser, self._cancel = tokenizer, parser, cancel
        self._decoder = DecodeStream([], skip_special_tokens=parser is None)
        self._held = ""  # the end of the text, which may be the beginning of a stop
        for item in response_events_to_chunks(parser.initial_events) if parser is not None else ():
            self.queue.put_nowait(item)

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
            if (piece := self._decoder.step(self._tokenizer, token)) is not None:
                self._take(piece)

    def finish(self) -> None:
        """Nothing more comes."""
        if self.done:
            return
        self.done = True
        self._send(self._held)
        if self._parser is not None:
            try:
                events = self._parser.finalize()[1]
            except (ValueError, RuntimeError):  # it ended in the middle of something that has an end
                events = []
            for item in response_events_to_chunks(events):
                self.queue.put_nowait(item)
        self.queue.put_nowait(None)

    def fail(self, message: str) -> None:
        """It could not be written."""
        if not self.done:
            self.done = True
            self.queue.put_nowait(_StreamError(json.dumps(message)[1:-1]))  # it is put between quotation marks

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
        if not piece:
            return
        self.text += piece
        if self._parser is None:
            self.queue.put_nowait(piece)
        else:
            for item in response_events_to_chunks(self._parser.feed(piece)):
                self.queue.put_nowait(item)
