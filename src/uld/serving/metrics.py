"""What a server counts, in Prometheus' text format."""

import threading
from collections import Counter

_HELP = {
    "uld_requests_total": ("counter", "Requests to the API, by route and HTTP status."),
    "uld_request_seconds_sum": ("counter", "Seconds that requests took, by route."),
    "uld_prompt_tokens_total": ("counter", "Tokens of prompts that were read."),
    "uld_answer_tokens_total": ("counter", "Tokens of answers that were written."),
    "uld_first_token_seconds_sum": ("counter", "Seconds until the first token of an answer."),
    "uld_first_token_seconds_count": ("counter", "Answers that have a first token."),
    "uld_cancelled_total": ("counter", "Requests that their client gave up, or that took too long."),
    "uld_requests_in_flight": ("gauge", "Requests that are answered or wait now."),
}


class Metrics:
    """Numbers by name and labels."""

    def __init__(self) -> None:
        """Count from zero."""
        self._values: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, amount: float = 1, **labels: str | int) -> None:
        """Add to a number; the labels are the server's own words, never a client's."""
        found = ",".join(f'{key}="{value}"' for key, value in labels.items())
        with self._lock:
            self._values[name, f"{{{found}}}" if found else ""] += amount  # type: ignore[assignment]

    def text(self) -> str:
        """All of them."""
        with self._lock:
            values = dict(self._values)
        lines = []
        for name, (kind, text) in _HELP.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            own = sorted((labels, value) for (one, labels), value in values.items() if one == name)
            lines += [f"{name}{labels} {value:.10g}" for labels, value in own or [("", 0)]]
        return "\n".join(lines) + "\n"
