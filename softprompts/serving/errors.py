"""Errors of requests, with their HTTP status."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse

from softprompts.errors import SoftPromptError


class RequestError(SoftPromptError):
    """A request that cannot be answered, why in one line, and the status and further headers of the HTTP response."""

    def __init__(self, message: str, status: int = 422, headers: Mapping[str, str] | None = None):
        super().__init__(" ".join(message.split()))
        self.status, self.headers = status, headers

    def response(self) -> JSONResponse:
        """The HTTP response: the message as JSON."""
        return JSONResponse({"error": str(self)}, self.status, self.headers)


class FailedError(RequestError):
    """The model failed on a row."""

    def __init__(self, message: str):
        super().__init__(message, 500)
