"""Turns what frameworks raise for a request into one line with its HTTP status."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from softprompts.serving.errors import FailedError, RequestError

UNSUPPORTED = "unsupported"  # pydantic's type of the error for a parameter that another server would take
_CODES = {UNSUPPORTED: "unsupported_parameter", "extra_forbidden": "unknown_parameter"}
_NOT_JSON = "the body is not JSON"
_ALTERNATIVE = re.compile(
    r"(str|int|Row)$|(list\[|constrained|function-)"
)  # names of a union's parts in pydantic's errors


async def check_content_type(request: Request) -> None:
    """Raises a `RequestError` for a body that does not say that it is JSON, which FastAPI would not read.

    A browser sends other types to other sites without asking them first.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    subtype = media_type.partition("/")[2]
    if not (media_type.startswith("application/") and (subtype == "json" or subtype.endswith("+json"))):
        found = f"not {media_type[:100]!a}" if media_type else "which is missing"
        raise RequestError(f"send JSON with the header 'Content-Type: application/json', {found}", 415)


async def answer_error(request: Request, error: Exception) -> Response:
    """The response to a request that raised an error."""
    if isinstance(error, RequestValidationError):
        error = _validation_error(error.errors())
    elif isinstance(error, HTTPException):
        not_json = error.status_code == 400  # no text, or too deeply nested
        error = RequestError(_NOT_JSON) if not_json else RequestError(error.detail, error.status_code, error.headers)
    elif not isinstance(error, RequestError):
        error = FailedError(f"the request failed ({type(error).__name__})")
    return error.response(request.scope["path"])


def _validation_error(errors: Sequence[Any]) -> RequestError:
    """About a body that does not follow its schema; of the alternatives for a part, about the one tried furthest."""
    deepest = max(errors, key=lambda error: len(error["loc"]))
    if deepest["type"] == "json_invalid":
        return RequestError(_NOT_JSON)
    place = ""
    for part in deepest["loc"][1:]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif not _ALTERNATIVE.match(part):
            place += f".{part}" if place else part
    place = place[:200]
    text = " ".join((f"{place}: {deepest['msg']}" if place else deepest["msg"]).split())
    code = _CODES.get(deepest["type"])
    return RequestError(text if text.isascii() else ascii(text)[1:-1], param=place or None, code=code)
