"""Generated text as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from softprompts.serving.errors import RequestError
from softprompts.serving.jobs import PendingRequest, RequestRow
from softprompts.serving.requests import generate_jobs
from softprompts.serving.schemas import GenerateRequest
from softprompts.serving.service import Receive, Service

Tokens = asyncio.Queue[tuple[int, int] | None]  # numbers of rows with their tokens; None follows the last
_INCOMPLETE = "\ufffd"  # a decoder's result for the first bytes of a character


async def event_stream(
    service: Service, rows: Sequence[RequestRow], options: GenerateRequest, receive: Receive
) -> AsyncIterator[bytes]:
    """Submits a request for text, waits for the first token, and returns the events.

    ``token`` has the number of a row and the new part of its text; ``done`` each row's answer as without streaming;
    ``error`` comes last where the request fails after the first token.

    Raises:
        RequestError: the request failed, or the client hung up, before the first token.
    """
    loop = asyncio.get_running_loop()
    tokens: Tokens = asyncio.Queue()

    def emit(row: int, token: int) -> None:
        loop.call_soon_threadsafe(tokens.put_nowait, (row, token))

    request = service.submit(rows, partial(generate_jobs, options=options, emit=emit))
    request.future.add_done_callback(lambda _: tokens.put_nowait(None))
    first = asyncio.ensure_future(tokens.get())
    try:
        token = await service.wait(request, first, receive)
    finally:
        first.cancel()
    if request.future.done():
        request.future.result()
    return _events(service, request, token, tokens)


async def _events(
    service: Service, request: PendingRequest, token: tuple[int, int] | None, tokens: Tokens
) -> AsyncIterator[bytes]:
    decoders = [TokenDecoder(service.engine.decoder) for _ in request.rows]
    try:
        while token is not None:
            row, token_id = token
            if text := decoders[row].add(token_id):
                yield _event("token", {"index": row, "text": text})
            left = request.deadline - asyncio.get_running_loop().time()
            token = await asyncio.wait_for(tokens.get(), max(0.001, left))
        for row, answer in enumerate(await request.future):
            if text := decoders[row].add(final=True):
                yield _event("token", {"index": row, "text": text})
            yield _event("done", {"index": row, **answer})
    except TimeoutError:
        yield _event("error", {"error": f"not finished within {service.settings.timeout:g} seconds"})
    except RequestError as error:
        yield _event("error", {"error": str(error)})
    finally:
        request.dropped = True


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

    def add(self, *tokens: int, final: bool = False) -> str:
        """The text that tokens add; an incomplete character at its end is held back, unless it is ``final``."""
        self._new += tokens
        before, text = self._decode(self._last), self._decode(self._last + self._new)
        if len(text) <= len(before) or (text.endswith(_INCOMPLETE) and not final):
            return ""
        self._last, self._new = self._new, []
        return str(text[len(before) :])


def _event(name: str, data: Any) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n".encode()
