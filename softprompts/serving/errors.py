"""Errors of requests, with their HTTP status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

from softprompts.errors import SoftPromptError

OPENAI_PATHS = ("/v1/models", "/v1/completions", "/v1/chat/")
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RequestError(SoftPromptError):
    """A request that cannot be answered, why in one line, and the status and further headers of the HTTP response.

    ``param`` and ``code`` are for OpenAI's interface: the part of the request that is wrong, and the kind of error.
    """

    def __init__(
        self,
        message: str,
        status: int = 422,
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
        code: str | None = None,
    ):
        super().__init__(" ".join(message.split()))
        self.status, self.headers, self.param, self.code = status, headers, param, code

    def response(self, path: str = "") -> JSONResponse:
        """The HTTP response to a request for a path: the message as JSON, in OpenAI's form where the path is theirs."""
        if path.startswith(OPENAI_PATHS):
            return JSONResponse(self.openai(), 400 if self.status == 422 else self.status, self.headers)
        return JSONResponse({"error": str(self)}, self.status, self.headers)

    def event(self, path: str = "") -> bytes:
        """The last event of a stream that fails."""
        if path.startswith(OPENAI_PATHS):
            return f"data: {json.dumps(self.openai())}\n\n".encode()
        return f"event: error\ndata: {json.dumps({'error': str(self)})}\n\n".encode()

    def openai(self) -> dict[str, Any]:
        """The error in the form of OpenAI's interface."""
        kind = "server_error" if self.status >= 500 else _OPENAI_TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class FailedError(RequestError):
    """The model failed on a row."""

    def __init__(self, message: str):
        super().__init__(message, 500)
