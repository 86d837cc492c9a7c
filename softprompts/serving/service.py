"""Takes requests through the threads of a server, and loads and unloads prompts meanwhile."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from softprompts.errors import SoftPromptError
from softprompts.serving.batching import Batcher
from softprompts.serving.engine import Engine, EngineOptions
from softprompts.serving.errors import FailedError, RequestError
from softprompts.serving.jobs import Job, LoadedPrompt, PendingRequest, RequestRow
from softprompts.serving.metrics import Metrics
from softprompts.serving.prompt_store import PromptStore
from softprompts.serving.settings import ServerSettings

T = TypeVar("T")
MakeJobs = Callable[[Engine, Sequence[RequestRow]], list[Job]]
Receive = Callable[[], Awaitable[Any]]
# Absolute paths in errors, such as those of the machine that a prompt was trained on.
_FOLDERS = re.compile(r"(?<![\w./])/(?:[^\s/'\"():;,]+/)+")
_log = logging.getLogger("softprompts.serving")


class Service:
    """A model, its prompts, and the requests to them. Methods run in the event loop, unless they say otherwise."""

    def __init__(self, engine: Engine, store: PromptStore, settings: ServerSettings):
        self.engine, self.store, self.settings = engine, store, settings
        self.prompts: dict[str, LoadedPrompt] = {}
        self.bare: LoadedPrompt | None = None  # the model without a prompt, where it generates text
        self.left_out: dict[str, str] = {}
        self.waiting = 0  # rows that are not answered
        self.requests = 0  # HTTP requests under way, counted by the middleware
        self.draining = False
        self.metrics = Metrics(lambda: self.waiting, lambda: len(self.prompts))
        self._submitted = self._encoded = 0  # requests; each changed by one thread only
        self._text_thread = ThreadPoolExecutor(1, "texts")
        self._batcher = Batcher(
            engine,
            settings,
            expected=lambda: self.to_encode,
            finish=lambda jobs: self._text_thread.submit(self._finish, jobs),
            count_batch=self.metrics.count_batch,
        )
        self._changing = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop

    # --- start and end ------------------------------------------------------------------------------------------------

    def load_all(self, strict: bool = False) -> None:
        """Loads every prompt of the folder, before `start`; ``strict`` raises where one cannot be loaded."""
        for name in self.store.names():
            try:
                prompt = self.engine.with_reader(name, *self._read(self.store.folder(name)))
            except SoftPromptError as error:
                if strict:
                    raise SoftPromptError(f"prompt '{name}': {error}") from error
                self.left_out[name] = str(error)
                continue
            prompt.model.place_prompt(prompt.key, prompt.module)
            self.prompts[name] = prompt
        if not self.engine.models:
            self.engine.model_for()
        self.bare = self.engine.bare()

    def start(self) -> None:
        """Starts the threads."""
        self._loop = asyncio.get_running_loop()
        self._batcher.start()

    def close(self) -> None:
        """Finishes the requests under way and ends the threads."""
        self.draining = True
        self._batcher.close(timeout=self.settings.timeout)
        self._text_thread.shutdown(cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._batcher.alive and not self.draining

    @property
    def to_encode(self) -> int:
        """Number of requests that are not encoded yet; for any thread."""
        return self._submitted - self._encoded

    def refuse_while_draining(self) -> None:
        """Raises a `RequestError` once the server is shutting down."""
        if self.draining:
            raise RequestError("the server is going down", 503, {"Retry-After": "5"})

    # --- prompts ------------------------------------------------------------------------------------------------------

    def find(self, name: str | None) -> LoadedPrompt:
        """The loaded prompt of a name; without a name, the only one.

        Raises:
            RequestError: no such prompt, or several without a name.
        """
        if name is None:
            if len(self.prompts) == 1:
                return next(iter(self.prompts.values()))
            raise RequestError(f'say which of the {len(self.prompts)} prompts: "prompt": NAME')
        if name not in self.prompts:
            raise RequestError(f"there is no prompt {name[:100]!a} loaded; GET /v1/prompts lists those that are", 404)
        return self.prompts[name]

    async def load(self, name: str) -> str:
        """Loads a prompt of the folder, or reloads it where its files have changed.

        Returns:
            "loaded", "reloaded" or "unchanged".
        """
        async with self._changing:
            old = self.prompts.get(name)
            try:
                folder = await asyncio.to_thread(self.store.folder, name)
                if old is not None and old.stamp == await asyncio.to_thread(self.store.stamp, folder):
                    return "unchanged"
                parts = await asyncio.to_thread(self._read, folder)
                prompt = await self._loop.run_in_executor(self._text_thread, self.engine.with_reader, name, *parts)
            except RequestError:
                raise
            except (SoftPromptError, OSError) as error:
                raise RequestError(self.without_paths(error), 409) from error
            await asyncio.wrap_future(self._batcher.call(partial(prompt.model.place_prompt, prompt.key, prompt.module)))
            self.prompts[name] = prompt
            self.bare = self.bare or await self._loop.run_in_executor(self._text_thread, self.engine.bare)
            self.left_out.pop(name, None)
            if old is None:
                return "loaded"
            self._retire(old)
            return "reloaded"

    async def unload(self, name: str) -> None:
        """Removes a loaded prompt, once its rows under way are answered."""
        async with self._changing:
            self.find(name)
            self._retire(self.prompts.pop(name))

    def _read(self, folder: Path) -> tuple[Any, ...]:
        """The stamp of a prompt's files, and the parts that `Engine.read` makes of them; for any thread."""
        try:
            return self.store.stamp(folder), *self.engine.read(folder)
        except OSError as error:
            raise SoftPromptError(f"{folder}: {error.strerror or error}") from error

    def without_paths(self, error: Exception | str) -> str:
        """The text of an error without folders of this machine, which clients need not know."""
        text = str(error).replace(f"{self.store.root}/", "").replace(str(self.store.root), "")
        return _FOLDERS.sub("", text)

    def _retire(self, prompt: LoadedPrompt) -> None:
        prompt.retired = True
        self._remove_if_unused(prompt)

    def _remove_if_unused(self, prompt: LoadedPrompt) -> None:
        if prompt.retired and not prompt.in_flight:
            self._batcher.call(partial(prompt.model.forget_prompt, prompt.key))

    # --- requests -----------------------------------------------------------------------------------------------------

    def submit(self, rows: Sequence[RequestRow], make_jobs: MakeJobs) -> PendingRequest:
        """Queues a request; ``make_jobs`` is called in the text thread.

        Raises:
            RequestError: the server is shutting down, or too many rows are waiting.
        """
        self.refuse_while_draining()
        if self.waiting and self.waiting + len(rows) > self.settings.queue:
            raise RequestError(f"{self.waiting} rows wait already; try again later", 429, {"Retry-After": "1"})
        request = PendingRequest(rows, self._loop.create_future(), self._loop.time() + self.settings.timeout)
        self.waiting += len(rows)
        for row in rows:
            row.prompt.in_flight += 1
        self._submitted += 1
        self._text_thread.submit(self._encode, request, make_jobs)
        return request

    async def wait(self, request: PendingRequest, future: asyncio.Future[T], receive: Receive) -> T:
        """Waits for the answers of a request, or for a first part of them.

        Raises:
            RequestError: the request failed or took too long, or the client hung up; the request is dropped.
        """
        hung_up = asyncio.ensure_future(_hang_up(receive))
        try:
            left = max(0.0, request.deadline - self._loop.time())
            waited: set[asyncio.Future[Any]] = {future, hung_up}
            await asyncio.wait(waited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            if hung_up.done():
                raise RequestError("the client hung up", 499)
            raise RequestError(f"no answer within {self.settings.timeout:g} seconds", 504, {"Retry-After": "1"})
        except BaseException:
            request.dropped = True
            raise
        finally:
            hung_up.cancel()

    # --- in the text thread -------------------------------------------------------------------------------------------

    def _encode(self, request: PendingRequest, make_jobs: MakeJobs) -> None:
        if not request.dropped:
            try:
                request.jobs = make_jobs(self.engine, request.rows)
            except Exception as error:
                request.error = self._shown(error)
        for job in request.jobs:
            job.request = request
        request.answers = [{}] * len(request.rows)
        request.remaining = len(request.jobs)
        if request.jobs and not request.dropped:
            self._batcher.put(request.jobs)
        else:
            self._loop.call_soon_threadsafe(self._settle, [request])
        self._encoded += 1

    def _finish(self, jobs: Sequence[Job]) -> None:
        done = []
        for job in jobs:
            request = job.request
            error = job.error or next((result for result in job.results if isinstance(result, FailedError)), None)
            if error is None and not request.dropped:
                try:
                    for index, answer in zip(job.indices, job.read(list(job.results)), strict=True):
                        request.answers[index] = answer
                except Exception as problem:
                    error = self._shown(problem)
            request.error = request.error or error
            request.remaining -= 1
            if not request.remaining:
                done.append(request)
        if done:
            self._loop.call_soon_threadsafe(self._settle, done)

    def _shown(self, error: Exception) -> RequestError:
        """An error as a client may see it."""
        if isinstance(error, RequestError):
            return error
        if isinstance(error, SoftPromptError):
            return RequestError(self.without_paths(error))
        _log.error("a request failed", exc_info=error)
        return FailedError(f"the request failed ({type(error).__name__})")

    # --- back in the event loop ---------------------------------------------------------------------------------------

    def _settle(self, requests: Sequence[PendingRequest]) -> None:
        for request in requests:
            self.waiting -= len(request.rows)
            for row in request.rows:
                row.prompt.in_flight -= 1
                self._remove_if_unused(row.prompt)
            if request.future.done():
                continue
            if request.dropped:
                request.future.cancel()
            elif request.error is not None:
                request.future.set_exception(request.error)
            else:
                request.future.set_result(request.answers)


def open_service(options: EngineOptions, store: PromptStore, settings: ServerSettings, strict: bool) -> Service:
    """A service with its model and all prompts of a folder; ``strict`` raises where one cannot be loaded."""
    service = Service(options.engine(), store, settings)
    service.load_all(strict)
    return service


async def _hang_up(receive: Receive) -> None:
    """Returns when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
