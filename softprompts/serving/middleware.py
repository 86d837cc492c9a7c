"""Checks every request before the app sees it, reads its body, and counts it.

Starlette's ``TrustedHostMiddleware`` has no pattern for 127.0.0.0/8 and does not answer in JSON, so the host is checked
here; so is the key, which is needed for unknown paths too and before a body is read, unlike a dependency of FastAPI.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Mapping

from fastapi import Request
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softprompts.serving.errors import RequestError
from softprompts.serving.service import Service

# The ways to send the API key, which the OpenAPI document describes.
BEARER = HTTPBearer(scheme_name="bearer", auto_error=False)
KEY_HEADER = APIKeyHeader(name="X-API-Key", scheme_name="header", auto_error=False)
_WITHOUT_KEY = frozenset(
    (
        "/",
        "/palette.css",
        "/playground.css",
        "/playground.js",
        "/healthz",
        "/readyz",
        "/docs",
        "/redoc",
        "/openapi.json",
    )
)
DOCS_FILES = "/docs-files"  # of the pages that show the API
_LOCAL = re.compile(r"(([a-z0-9-]+\.)*localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?")
_log = logging.getLogger("softprompts.serving")


class RequestMiddleware:
    """Passes requests that may be answered to the app, with their whole body."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service, self.settings = app, service, service.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request by the ASGI protocol."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499
        self.service.requests += 1

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.service.draining:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            request = Request(scope, receive)
            await self._check(request)
            body = iter([{"type": "http.request", "body": await self._body(request), "more_body": False}])

            async def replay() -> Message:
                return next(body, None) or await receive()

            await self.app(scope, replay, watched_send)
        except RequestError as error:
            await error.response(scope["path"])(scope, receive, watched_send)
        except ClientDisconnect:
            pass
        except Exception as error:  # the app has answered by its handler
            _log.error("a request failed", exc_info=error)
        finally:
            self.service.requests -= 1
            route = getattr(scope.get("route"), "path", None) or "other"
            self.service.metrics.count_request(route, status, time.perf_counter() - began)

    async def _check(self, request: Request) -> None:
        """Refuses requests without the key, and those of pages of other sites in a browser."""
        path, headers = request.scope["path"], request.headers  # `request.url` trusts the Host header
        if path not in ("/healthz", "/readyz"):
            self.service.refuse_while_draining()
        open_to_all = path in _WITHOUT_KEY or path.startswith(f"{DOCS_FILES}/")
        if self.settings.api_key and not open_to_all and not await self._has_key(request):
            text = "an API key is needed: send it as 'Authorization: Bearer KEY'"
            raise _refusal(401, text, {"WWW-Authenticate": "Bearer"}, "invalid_api_key")
        host = headers.get("host", "").lower()
        # DNS rebinding: a page under a name that its owner points to this machine would be of the server's own site.
        if self.settings.local and host and not _LOCAL.fullmatch(host):
            text = "this server is asked at localhost or 127.0.0.1 only; for other names set SOFTPROMPTS_API_KEY"
            raise _refusal(403, text)
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return
        site, origin = headers.get("sec-fetch-site"), headers.get("origin", "").lower()
        if site:  # old browsers do not send it
            foreign = site not in ("same-origin", "none")
        else:
            foreign = bool(origin) and origin.partition("://")[2] != host
        if foreign:
            raise _refusal(403, "pages of other sites may not use this server")

    async def _has_key(self, request: Request) -> bool:
        bearer = await BEARER(request)
        key = (bearer.credentials if bearer else await KEY_HEADER(request)) or ""
        return hmac.compare_digest(key.strip().encode("latin-1"), self.settings.api_key.encode())

    async def _body(self, request: Request) -> bytes:
        """The body, read no further than its limit, with and without a length."""
        limit = self.settings.max_body
        too_large = _refusal(413, f"the body has more than {limit:,} bytes")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.timeout):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise _refusal(408, "the body took too long to arrive") from None
        return bytes(body)


def _refusal(status: int, text: str, headers: Mapping[str, str] | None = None, code: str | None = None) -> RequestError:
    """An error that closes the connection: a body that is not read would be taken for the next request."""
    return RequestError(text, status, {**(headers or {}), "Connection": "close"}, code=code)
