"""Requests on their way through the threads, and prompts that come and go meanwhile."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.serving.batching import Batcher, ScoreJob, WriteJob
from softprompts.serving.engine import Engine, Loaded
from softprompts.serving.errors import (
    BusyError,
    ClosingError,
    ConflictError,
    FailedError,
    RequestError,
    TooSlowError,
    UnknownError,
)
from softprompts.serving.metrics import Metrics
from softprompts.serving.prompt_store import Store
from softprompts.serving.requests import Asked, Part, first_failure
from softprompts.serving.settings import Settings

Answers = list[dict[str, Any]]
Receive = Callable[[], Awaitable[Any]]
# Those that a prompt names too, such as of the machine that it was trained on.
_FOLDERS = re.compile(r"(?<![\w./])/(?:[^\s/'\"():;,]+/)+")
_log = logging.getLogger("softprompts.serving")


class GoneError(Exception):
    """The client has hung up."""


@dataclass(eq=False)
class Ticket:
    """A request on its way.

    Attributes:
        asked: its rows.
        future: its answers.
        dropped: whether nobody waits for them any more.
        answers: those that are there.
        open: how many parts are not answered yet.
        problem: what went wrong.
    """

    asked: Sequence[Asked]
    future: asyncio.Future[Answers]
    dropped: bool = False
    answers: Answers = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    open: int = 0
    problem: Exception | None = None

    def drop(self) -> None:
        """Gives it up; what has not run yet does not run."""
        self.dropped = True
        for part in self.parts:
            for row in part.written:
                row.dropped = True


class Service:
    """A model, its prompts, and the requests to them.

    Its methods are for the event loop, unless they say otherwise.

    Args:
        engine: the model.
        store: where prompts are.
        settings: limits.
    """

    def __init__(self, engine: Engine, store: Store, settings: Settings):
        self.engine, self.store, self.settings = engine, store, settings
        self.prompts: dict[str, Loaded] = {}
        self.left_out: dict[str, str] = {}
        self.waiting = 0
        self.requests = 0  # under way, kept by the gate
        self.draining = False
        self.metrics = Metrics(lambda: self.waiting, lambda: len(self.prompts))
        # Each counted by one thread only.
        self._sent = self._read_so_far = 0
        self._texts = ThreadPoolExecutor(1, "texts")
        self._done: list[tuple[Ticket, Part, list[Any] | None, Exception | None]] = []
        self._batcher = Batcher(engine, settings, lambda: self.to_read, self.metrics.ran, self._flush)
        self._changing = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- start and end ------------------------------------------------------------------------------------------------

    def load_all(self, strict: bool = False) -> None:
        """Loads every prompt of the folder; before `start`.

        Raises:
            SoftPromptError: with ``strict``, one that cannot be served.
        """
        for name in self.store.names():
            try:
                loaded = self._made(name)
            except SoftPromptError as error:
                if strict:
                    raise SoftPromptError(f"prompt '{name}': {error}") from error
                self.left_out[name] = str(error)
                continue
            self.engine.place(loaded)
            self.prompts[name] = loaded
        if not self.engine.models:
            self.engine.model_for()

    def start(self) -> None:
        """Starts the threads."""
        self._loop = asyncio.get_running_loop()
        self._batcher.start()

    def close(self) -> None:
        """Finishes what is under way, and ends the threads."""
        self.draining = True
        self._batcher.close(timeout=self.settings.timeout)
        self._texts.shutdown(cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._batcher.alive and not self.draining

    @property
    def to_read(self) -> int:
        """How many requests are not read yet; for any thread."""
        return self._sent - self._read_so_far

    # --- prompts ------------------------------------------------------------------------------------------------------

    def find(self, name: str | None) -> Loaded:
        """A loaded prompt.

        Raises:
            RequestError: no such prompt; without a name, where there is not just one.
        """
        if name is None:
            if len(self.prompts) == 1:
                return next(iter(self.prompts.values()))
            raise RequestError(f'say which of the {len(self.prompts)} prompts: "prompt": NAME')
        if name not in self.prompts:
            raise UnknownError(f"there is no prompt {name[:100]!a} loaded; GET /v1/prompts lists those that are")
        return self.prompts[name]

    async def load(self, name: str) -> tuple[Loaded, bool]:
        """Loads a prompt of the folder, or again where its files have changed; and whether it did.

        Raises:
            RequestError: it cannot be served.
        """
        async with self._changing:
            folder = await asyncio.to_thread(self.store.folder, name)
            there = self.prompts.get(name)
            try:
                stamp = await asyncio.to_thread(self.store.stamp, folder)
                if there is not None and there.stamp == stamp:
                    return there, False
                read = await asyncio.to_thread(self.engine.read, folder)
                loop = asyncio.get_running_loop()
                loaded = await loop.run_in_executor(self._texts, lambda: self.engine.reader(*read, name))
            except RequestError:
                raise
            except (SoftPromptError, OSError) as error:
                raise ConflictError(self.without_paths(error)) from error
            loaded.stamp = stamp
            await asyncio.wrap_future(self._batcher.call(lambda: self.engine.place(loaded)))
            self.prompts[name] = loaded
            self.left_out.pop(name, None)
            if there is not None:
                self._retire(there)
            return loaded, True

    async def unload(self, name: str) -> None:
        """Forgets a prompt, once its rows are answered.

        Raises:
            RequestError: no such prompt.
        """
        async with self._changing:
            self.find(name)
            self._retire(self.prompts.pop(name))

    def _made(self, name: str) -> Loaded:
        folder = self.store.folder(name)
        try:
            stamp = self.store.stamp(folder)
            loaded = self.engine.reader(*self.engine.read(folder), name)
        except OSError as error:
            raise SoftPromptError(f"{folder}: {error.strerror or error}") from error
        loaded.stamp = stamp
        return loaded

    def without_paths(self, error: Exception | str) -> str:
        """An error for a client, who need not know where the folder is."""
        told = str(error).replace(f"{self.store.root}/", "").replace(str(self.store.root), "")
        return _FOLDERS.sub("", told)

    def _retire(self, loaded: Loaded) -> None:
        loaded.retired = True
        if not loaded.in_flight:
            self._batcher.call(lambda: self.engine.drop(loaded))

    # --- requests -----------------------------------------------------------------------------------------------------

    def submit(self, asked: Sequence[Asked], read: Callable[[Sequence[Asked]], list[Part]]) -> Ticket:
        """Sends a request on its way.

        Args:
            asked: its rows.
            read: reads them, see `softprompts.serving.requests`.

        Raises:
            RequestError: the server is going down, or too many rows wait already.
        """
        if self.draining:
            raise ClosingError("the server is going down", {"Retry-After": "5"})
        if self.waiting and self.waiting + len(asked) > self.settings.queue:
            raise BusyError(f"{self.waiting} rows wait already; try again later", {"Retry-After": "1"})
        ticket = Ticket(asked, asyncio.get_running_loop().create_future())
        self.waiting += len(asked)
        for row in asked:
            row.owner.in_flight += 1
        self._sent += 1
        self._texts.submit(self._read, ticket, read)
        return ticket

    async def outcome(self, ticket: Ticket, receive: Receive, until: float) -> Answers:
        """The answers of a request.

        Args:
            ticket: the request.
            receive: of ASGI, which tells when the client hangs up.
            until: time of the event loop at which it is given up.

        Raises:
            RequestError: there are none.
            GoneError: nobody waits for them any more.
        """
        hung_up = asyncio.ensure_future(disconnected(receive))
        left = max(0.0, until - asyncio.get_running_loop().time())
        try:
            waited: set[asyncio.Future[Any]] = {ticket.future, hung_up}
            done, _ = await asyncio.wait(waited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            ticket.drop()
            raise
        finally:
            hung_up.cancel()
        if ticket.future in done:
            return ticket.future.result()
        ticket.drop()
        if hung_up in done:
            raise GoneError
        raise TooSlowError(f"no answer within {self.settings.timeout:g} seconds", {"Retry-After": "1"})

    # --- in the thread of the texts -----------------------------------------------------------------------------------

    def _read(self, ticket: Ticket, read: Callable[[Sequence[Asked]], list[Part]]) -> None:
        try:
            if ticket.dropped:
                raise GoneError
            ticket.parts = read(ticket.asked)
            ticket.answers = [{}] * len(ticket.asked)
            ticket.open = len(ticket.parts)
            if ticket.dropped:
                raise GoneError
            jobs: list[ScoreJob | WriteJob] = []
            for part in ticket.parts:
                jobs += self._jobs(ticket, part)
        except Exception as error:
            self._read_so_far += 1
            self._settle([(ticket, self._told(error))])
            return
        self._batcher.put(*jobs)
        self._read_so_far += 1

    def _jobs(self, ticket: Ticket, part: Part) -> list[ScoreJob | WriteJob]:
        if part.written:
            left = itertools.count(len(part.written) - 1, -1)
            problems: list[Exception] = []

            def written(problem: Exception | None) -> None:
                if problem is not None:
                    problems.append(problem)
                if next(left) == 0:
                    found = [row.tokens for row in part.written]
                    self._done.append((ticket, part, found, problems[0] if problems else None))

            return [WriteJob(row, written) for row in part.written]

        def scored(found: list[Any] | None) -> None:
            self._done.append((ticket, part, found, GoneError() if found is None else first_failure(found)))

        return [ScoreJob(part.lines, lambda: ticket.dropped, scored)]

    def _flush(self) -> None:
        """In the model's thread: hands on what is done."""
        if self._done:
            done, self._done = self._done, []
            self._texts.submit(self._finish, done)

    def _finish(self, done: list[tuple[Ticket, Part, list[Any] | None, Exception | None]]) -> None:
        settled: list[tuple[Ticket, Exception | None]] = []
        for ticket, part, found, problem in done:
            if problem is None and not ticket.dropped:
                try:
                    for index, answer in zip(part.index, part.finish(found or []), strict=True):
                        ticket.answers[index] = answer
                except Exception as error:
                    problem = self._told(error)
            ticket.problem = ticket.problem or problem
            ticket.open -= 1
            if not ticket.open:
                settled.append((ticket, ticket.problem))
        if settled:
            self._settle(settled)

    def _told(self, error: Exception) -> Exception:
        """An error as a client may see it."""
        if isinstance(error, RequestError | GoneError):
            return error
        if isinstance(error, SoftPromptError):
            return RequestError(self.without_paths(error))
        _log.error("a request failed", exc_info=error)
        return FailedError(f"the request failed ({type(error).__name__})")

    def _settle(self, settled: list[tuple[Ticket, Exception | None]]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._settled, settled)

    # --- back in the event loop ---------------------------------------------------------------------------------------

    def _settled(self, settled: list[tuple[Ticket, Exception | None]]) -> None:
        for ticket, problem in settled:
            self.waiting -= len(ticket.asked)
            for row in ticket.asked:
                row.owner.in_flight -= 1
                if row.owner.retired and not row.owner.in_flight:
                    self._batcher.call(functools.partial(self.engine.drop, row.owner))
            if ticket.future.done():
                continue
            if problem is None:
                ticket.future.set_result(ticket.answers)
            elif ticket.dropped:
                ticket.future.cancel()
            else:
                ticket.future.set_exception(problem)


async def disconnected(receive: Receive) -> None:
    """Waits until the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
