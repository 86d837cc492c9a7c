"""Generated tokens as they come, and texts as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from softprompts.serving.decoding import TokenDecoder
from softprompts.serving.engine import Engine
from softprompts.serving.errors import RequestError
from softprompts.serving.jobs import Job, PendingRequest, RequestRow
from softprompts.serving.requests import generate_jobs
from softprompts.serving.schemas import GenerateRequest
from softprompts.serving.service import Receive, Service

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
Emit = Callable[[int, int], None]  # takes the number of a row and its next token
Tokens = AsyncIterator[tuple[int, int]]


async def open_stream(
    service: Service,
    rows: Sequence[RequestRow],
    make_jobs: Callable[[Engine, Sequence[RequestRow], Emit], list[Job]],
    receive: Receive,
) -> tuple[PendingRequest, Tokens]:
    """Submits a request for text, and waits for the first token.

    Returns:
        The request, and the numbers of rows with their tokens as they come. Whoever reads them sets
        `PendingRequest.dropped` at the end. They end in a `RequestError` where the answer takes too long.

    Raises:
        RequestError: the request failed, or the client hung up, before the first token.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()  # None follows the last

    def emit(row: int, token: int) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, (row, token))

    request = service.submit(rows, lambda engine, rows: make_jobs(engine, rows, emit))
    request.future.add_done_callback(lambda _: queue.put_nowait(None))
    first = asyncio.ensure_future(queue.get())
    try:
        token = await service.wait(request, first, receive)
    finally:
        first.cancel()
    if request.future.done():
        request.future.result()

    async def tokens(token: tuple[int, int] | None) -> Tokens:
        try:
            while token is not None:
                yield token
                token = await asyncio.wait_for(queue.get(), max(0.001, request.deadline - loop.time()))
        except TimeoutError:
            raise RequestError(f"not finished within {service.settings.timeout:g} seconds", 504) from None

    return request, tokens(token)


async def event_stream(
    service: Service, rows: Sequence[RequestRow], options: GenerateRequest, receive: Receive
) -> AsyncIterator[bytes]:
    """Submits a request for text, waits for the first token, and returns the events.

    ``token`` has the number of a row and the new part of its text; ``done`` each row's answer as without streaming;
    ``error`` comes last where the request fails after the first token.

    Raises:
        RequestError: the request failed, or the client hung up, before the first token.
    """
    request, tokens = await open_stream(service, rows, partial(_jobs, options), receive)
    return _events(service, request, tokens)


def _jobs(options: GenerateRequest, engine: Engine, rows: Sequence[RequestRow], emit: Emit) -> list[Job]:
    return generate_jobs(engine, rows, options, emit)


async def _events(service: Service, request: PendingRequest, tokens: Tokens) -> AsyncIterator[bytes]:
    decoders = [TokenDecoder(service.engine.decoder) for _ in request.rows]
    try:
        async for row, token in tokens:
            if text := decoders[row].add(token):
                yield _event("token", {"index": row, "text": text})
        for row, answer in enumerate(await request.future):
            if text := decoders[row].add(final=True):
                yield _event("token", {"index": row, "text": text})
            yield _event("done", {"index": row, **answer})
    except RequestError as error:
        yield error.event()
    finally:
        request.dropped = True


def _event(name: str, data: Any) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n".encode()
