"""Generated text as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from softprompts.serving.errors import RequestError
from softprompts.serving.jobs import RequestRow
from softprompts.serving.requests import generate_jobs
from softprompts.serving.schemas import GenerateRequest
from softprompts.serving.service import Receive, Service

_INCOMPLETE = "\ufffd"  # a decoder's result for the first bytes of a character


class EventStream:
    """The events of a request for text; submits the request.

    ``token`` has the number of a row and the new part of its text; ``done`` each row's answer as without streaming;
    ``error`` comes last where the request fails after the first token.

    Args:
        service: answers the request.
        rows: its rows.
        options: how text is generated.

    Raises:
        RequestError: the service refuses the request.
    """

    def __init__(self, service: Service, rows: Sequence[RequestRow], options: GenerateRequest):
        self.service = service
        self._loop = asyncio.get_running_loop()
        self._tokens: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()  # None follows the last token
        self._decoders = [TokenDecoder(service.engine.decoder) for _ in rows]
        self.request = service.submit(rows, partial(generate_jobs, options=options, emit=self._emit))
        self.request.future.add_done_callback(lambda _: self._tokens.put_nowait(None))

    def _emit(self, row: int, token: int) -> None:
        self._loop.call_soon_threadsafe(self._tokens.put_nowait, (row, token))

    async def start(self, receive: Receive) -> AsyncIterator[bytes]:
        """Waits for the first token, and returns the events.

        Raises:
            RequestError: the request failed before it.
            HungUpError: the client hung up before it.
        """
        first = asyncio.ensure_future(self._tokens.get())
        try:
            token = await self.service.wait(self.request, first, receive)
        finally:
            first.cancel()
        if self.request.future.done():
            self.request.future.result()
        return self._events(token)

    async def _events(self, token: tuple[int, int] | None) -> AsyncIterator[bytes]:
        try:
            while token is not None:
                row, token_id = token
                if text := self._decoders[row].add(token_id):
                    yield _event("token", {"index": row, "text": text})
                left = max(0.001, self.request.deadline - self._loop.time())
                token = await asyncio.wait_for(self._tokens.get(), left)
            for row, answer in enumerate(await self.request.future):
                if text := self._decoders[row].rest():
                    yield _event("token", {"index": row, "text": text})
                yield _event("done", {"index": row, **answer})
        except TimeoutError:
            yield _event("error", {"error": f"not finished within {self.service.settings.timeout:g} seconds"})
        except RequestError as error:
            yield _event("error", {"error": str(error)})
        finally:
            self.request.dropped = True


class TokenDecoder:
    """Decodes a text token by token, holding back incomplete characters.

    New tokens are decoded together with those before them, as a blank between two tokens depends on both.

    Args:
        tokenizer: used by no other thread.
    """

    def __init__(self, tokenizer: Any):
        self._decode = partial(tokenizer.decode, skip_special_tokens=True)
        self._last: list[int] = []  # the tokens of the last piece of text
        self._new: list[int] = []

    def add(self, token: int) -> str:
        """The text that a token adds; empty while a character is incomplete."""
        self._new.append(token)
        return self._next(final=False)

    def rest(self) -> str:
        """The text that was held back."""
        return self._next(final=True)

    def _next(self, final: bool) -> str:
        before, text = self._decode(self._last), self._decode(self._last + self._new)
        if len(text) <= len(before) or (text.endswith(_INCOMPLETE) and not final):
            return ""
        self._last, self._new = self._new, []
        return str(text[len(before) :])


def _event(name: str, data: Any) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n".encode()
