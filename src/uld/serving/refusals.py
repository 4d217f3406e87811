"""What a client is told of a request that is not answered: JSON in the form of OpenAI's API."""

from typing import Any

from starlette.responses import JSONResponse

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request that is not answered."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, wait: int | None = None
    ) -> None:
        """Say why.

        Args:
            status: HTTP status.
            message: One sentence for whoever wrote the client.
            code: Short name of the reason.
            param: Field of the request that is to blame.
            wait: Seconds after which to try again.
        """
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.wait = status, message, code, param, wait

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI's API writes it."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """What is sent."""
        headers = {"retry-after": str(self.wait)} if self.wait is not None else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)
