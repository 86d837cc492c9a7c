"""What every request passes: the key, the size of its body, the count; and answers of one line where it may not."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from softprompts.serving.errors import RequestError
from softprompts.serving.service import Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset(("/", "/playground.css", "/playground.js", "/healthz", "/readyz", "/docs", "/redoc", "/openapi.json"))
_LOCAL = re.compile(rb"(([a-z0-9-]+\.)*localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?")
_log = logging.getLogger("softprompts.serving")


class _RefusedError(Exception):
    def __init__(self, status: int, error: str, headers: Mapping[str, str] | None = None):
        self.status, self.error, self.headers = status, error, headers or {}


class _HungUpError(Exception):
    """The client went away while it sent its body."""


class Gate:
    """Stands before the app.

    A body is read as a whole before the app sees it, and no further than its limit: chunks without a length count too.

    Args:
        app: the app.
        service: whose settings hold, and which counts.
    """

    def __init__(self, app: App, service: Service):
        self.app, self.service = app, service
        self._key = service.settings.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, started = time.perf_counter(), 499, False
        self.service.requests += 1

        async def sending(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                if self.service.draining:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            body = await self._enter(scope, receive)
            replay = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def replayed() -> Message:
                for message in replay:
                    return message
                return await receive()

            await self.app(scope, replayed, sending)
        except _HungUpError:
            pass
        except _RefusedError as refused:
            await _answer(sending, refused.status, refused.error, refused.headers)
        except Exception as error:
            _log.error("a request failed", exc_info=error)
            if not started:
                await _answer(sending, 500, f"the request failed ({type(error).__name__})", {})
        finally:
            self.service.requests -= 1
            route = getattr(scope.get("route"), "path", None) or "other"
            self.service.metrics.answered(route, status, time.perf_counter() - began)

    async def _enter(self, scope: Scope, receive: Receive) -> bytes:
        """The body of a request that may pass."""
        headers = dict(scope["headers"])
        path = scope["path"]
        if self.service.draining and path not in ("/healthz", "/readyz"):
            raise _RefusedError(503, "the server is going down", {"Retry-After": "5"})
        if self._key and path not in OPEN and not self._known(headers):
            raise _RefusedError(
                401,
                "an API key is needed: send it as 'Authorization: Bearer KEY'",
                {"WWW-Authenticate": "Bearer", "Connection": "close"},
            )
        self._refuse_other_sites(scope["method"], headers)
        limit = self.service.settings.max_body
        # What is left of a body that is not read would be taken for the next request.
        large = _RefusedError(413, f"the body has more than {limit:,} bytes", {"Connection": "close"})
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise large
        body = bytearray()
        try:
            async with asyncio.timeout(self.service.settings.timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _HungUpError
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise _RefusedError(408, "the body took too long to arrive", {"Connection": "close"}) from None

    def _refuse_other_sites(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """A page of another site, in the browser of somebody who reaches the server, is not to use it."""
        host = headers.get(b"host", b"").lower()
        # A name of the page's own that leads to this machine would make the server part of its site.
        if self.service.settings.local and host and not _LOCAL.fullmatch(host):
            raise _RefusedError(
                403,
                "this server is asked at localhost or 127.0.0.1 only; for other names set SOFTPROMPTS_API_KEY",
                {"Connection": "close"},
            )
        if method in ("GET", "HEAD", "OPTIONS"):
            return
        site = headers.get(b"sec-fetch-site")
        origin = headers.get(b"origin", b"").lower()
        if site:  # browsers of today say it
            foreign = site not in (b"same-origin", b"none")
        else:
            foreign = bool(origin) and origin.partition(b"://")[2] != host
        if foreign:
            raise _RefusedError(403, "pages of other sites may not use this server", {"Connection": "close"})

    def _known(self, headers: Mapping[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = headers.get(b"x-api-key", b"")
        return hmac.compare_digest(given.strip(), self._key)


async def _answer(send: Send, status: int, error: str, headers: Mapping[str, str]) -> None:
    content = json.dumps({"error": error}).encode()
    more = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": content})


def one_line(problem: RequestError) -> tuple[int, dict[str, str], dict[str, str]]:
    """Status, body and headers of what is wrong with a request."""
    return problem.status, {"error": str(problem)}, problem.headers
