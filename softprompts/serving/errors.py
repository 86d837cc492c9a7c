"""What may go wrong with a request, with the HTTP status that tells it."""

from __future__ import annotations

from collections.abc import Mapping

from softprompts.errors import SoftPromptError


class RequestError(SoftPromptError):
    """A request that is not answered: one line, and a status.

    Attributes:
        status: of the HTTP answer.
        headers: more of its headers.
    """

    status = 422

    def __init__(self, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(" ".join(message.split()))
        self.headers = dict(headers or {})


class UnknownError(RequestError):
    """There is no such prompt."""

    status = 404


class ConflictError(RequestError):
    """The prompt is there and cannot be served: damaged, or for another backbone."""

    status = 409


class BusyError(RequestError):
    """Too many rows wait already."""

    status = 429


class FailedError(RequestError):
    """The model did not manage a row."""

    status = 500


class ClosingError(RequestError):
    """The server is going down."""

    status = 503


class TooSlowError(RequestError):
    """The answer took too long."""

    status = 504
