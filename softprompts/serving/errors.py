"""Errors of requests, each with its HTTP status."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse

from softprompts.errors import SoftPromptError


class RequestError(SoftPromptError):
    """A request that cannot be answered.

    Args:
        message: is put on one line.
        headers: further headers of the response.
        status: HTTP status in place of the class's own.
    """

    status = 422

    def __init__(self, message: str, headers: Mapping[str, str] | None = None, status: int | None = None):
        super().__init__(" ".join(message.split()))
        self.headers = dict(headers or {})
        self.status = status or type(self).status

    def response(self) -> JSONResponse:
        """The HTTP response: the message as JSON."""
        return JSONResponse({"error": str(self)}, self.status, self.headers)


class UnknownError(RequestError):
    """There is no such prompt."""

    status = 404


class ConflictError(RequestError):
    """The prompt exists but cannot be served: it is damaged or belongs to another backbone."""

    status = 409


class BusyError(RequestError):
    """Too many rows are waiting."""

    status = 429


class FailedError(RequestError):
    """The model failed on a row."""

    status = 500


class ClosingError(RequestError):
    """The server is shutting down."""

    status = 503


class TooSlowError(RequestError):
    """The answer took too long."""

    status = 504


class HungUpError(Exception):
    """The client closed the connection."""
