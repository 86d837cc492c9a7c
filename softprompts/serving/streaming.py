"""Text as it is written, as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from softprompts.serving.errors import RequestError, TooSlowError
from softprompts.serving.service import (
    GoneError,
    Receive,
    Service,
    Ticket,
    disconnected,
)

_UNFINISHED = "\ufffd"  # what a decoder makes of the first bytes of a character


class Stream:
    """The events of a request.

    ``token`` has the number of the row and what is new of its text; ``done`` each row's answer as without streaming;
    ``error`` comes last where the request could not be finished.

    Args:
        service: answers the request.
        rows: how many rows it has.
        until: time of the event loop at which it is given up.
    """

    def __init__(self, service: Service, rows: int, until: float):
        self.service, self.until = service, until
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()
        self._texts = [Text(service.engine.decoder) for _ in range(rows)]
        self._ticket: Ticket | None = None

    def emit(self, row: int, token: int) -> None:
        """Takes a token, in any thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (row, token))

    def start(self, ticket: Ticket) -> None:
        """Begins to watch a request."""
        self._ticket = ticket
        ticket.future.add_done_callback(lambda _: self._queue.put_nowait(None))

    async def first(self, receive: Receive) -> None:
        """Waits until something is written.

        Raises:
            RequestError: the request failed before.
            GoneError: the client hung up before.
        """
        assert self._ticket is not None
        ticket = self._ticket
        hung_up = asyncio.ensure_future(disconnected(receive))
        something = asyncio.ensure_future(self._queue.get())
        try:
            left = max(0.0, self.until - self._loop.time())
            await asyncio.wait({something, hung_up}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            ticket.drop()
            raise
        finally:
            hung_up.cancel()
        if not something.done():
            something.cancel()
            ticket.drop()
            if hung_up.done() and not hung_up.cancelled():
                raise GoneError
            raise TooSlowError(f"no answer within {self.service.settings.timeout:g} seconds", {"Retry-After": "1"})
        if ticket.future.done() and ticket.future.exception() is not None:
            ticket.future.result()
        self._pending = something.result()

    async def events(self) -> AsyncIterator[bytes]:
        """All events; a client that hangs up ends them, and the rows with them."""
        assert self._ticket is not None
        ticket, item = self._ticket, self._pending
        try:
            while item is not None:
                row, token = item
                new = self._texts[row].add(token)
                if new:
                    yield event("token", {"index": row, "text": new})
                item = await asyncio.wait_for(self._queue.get(), max(0.001, self.until - self._loop.time()))
            for row, answer in enumerate(await ticket.future):
                rest = self._texts[row].rest()
                if rest:
                    yield event("token", {"index": row, "text": rest})
                yield event("done", {"index": row, **answer})
        except TimeoutError:
            yield event("error", {"error": f"not finished within {self.service.settings.timeout:g} seconds"})
        except RequestError as problem:
            yield event("error", {"error": str(problem)})
        finally:
            ticket.drop()


class Text:
    """A text that grows token by token.

    Tokens are decoded together with those just before them: what a token says may depend on these.

    Args:
        tokenizer: used by nobody else at the same time.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self._from = self._told = 0

    def add(self, token: int) -> str:
        """What is new; empty while a character is not finished."""
        self.tokens.append(token)
        return self._new(False)

    def rest(self) -> str:
        """What was held back."""
        return self._new(True)

    def _new(self, last: bool) -> str:
        before = self._decode(self.tokens[self._from : self._told])
        now = self._decode(self.tokens[self._from :])
        if len(now) <= len(before) or (now.endswith(_UNFINISHED) and not last):
            return ""
        self._from, self._told = self._told, len(self.tokens)
        return now[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""


def event(name: str, data: Any) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n".encode()
