"""The thread that owns the model: rows that wait when the model becomes free run together.

While a batch runs, the next one collects. An idle model takes a request at once; a busy one waits a moment where more
rows are expected. Text is generated in batches of its own, and rows to be scored run between two of its steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from softprompts.serving.engine import Engine
from softprompts.serving.errors import FailedError
from softprompts.serving.jobs import GenerationRow, Job
from softprompts.serving.settings import ServerSettings

_log = logging.getLogger("softprompts.serving")


class Batcher:
    """Runs jobs on the model, which no other thread may use.

    ``expected`` returns how many requests are being encoded; ``finish`` is called with the jobs that a batch has
    finished, and ``count_batch`` with its rows and seconds.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        expected: Callable[[], int],
        finish: Callable[[list[Job]], object],
        count_batch: Callable[[int, float], None],
    ):
        self.engine, self.settings = engine, settings
        self.expected, self.finish, self.count_batch = expected, finish, count_batch
        self._changed = threading.Condition()
        self._calls: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._scoring: deque[Job] = deque()
        self._generation: deque[GenerationRow] = deque()
        self._closed = False
        self._shared = False  # whether the last batch had rows of several requests
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def put(self, jobs: Sequence[Job]) -> None:
        """Adds jobs; for any thread."""
        with self._changed:
            for job in jobs:
                if job.scoring:
                    self._scoring.append(job)
                self._generation.extend(job.generation)
            self._changed.notify()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Calls a function between two batches; for any thread."""
        future: Future[Any] = Future()
        with self._changed:
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def close(self, timeout: float | None = None) -> None:
        """Finishes the waiting jobs and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # --- in the model's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._calls or self._scoring or self._generation or self._closed):
                    self._changed.wait()
                if not (self._calls or self._scoring or self._generation):
                    return
                if not (self._calls or self._generation):
                    self._wait_for_more()
            self._run_calls()
            self._score()
            self._generate()

    def _wait_for_more(self) -> None:
        """Waits for further rows to score where some are expected."""
        if not (self._shared or self.expected()):
            return
        until = time.monotonic() + self.settings.max_wait
        while sum(job.count for job in self._scoring) < self.settings.max_batch:
            left = until - time.monotonic()
            if left <= 0 or self._closed or self._calls or self._generation:
                return
            self._changed.wait(left)

    def _run_calls(self) -> None:
        with self._changed:
            calls, self._calls = self._calls, []
        for function, future in calls:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)

    def _score(self) -> None:
        """Runs one batch of the rows that wait to be scored."""
        jobs: list[Job] = []
        count = 0
        with self._changed:
            while self._scoring and (not jobs or count + self._scoring[0].count <= self.settings.max_batch):
                jobs.append(self._scoring.popleft())
                count += jobs[-1].count
        if not jobs:
            return
        self._shared = len(jobs) > 1
        running = [job for job in jobs if not job.request.dropped]
        rows = [row for job in running for row in job.scoring]
        if rows:
            began = time.perf_counter()
            try:
                scores = iter(self.engine.score(rows, self.settings.max_batch, self.settings.max_tokens))
            except Exception:
                _log.exception("a batch failed")
                scores = iter([FailedError("the model failed")] * len(rows))
            self.count_batch(len(rows), time.perf_counter() - began)
            for job in running:
                job.results = [next(scores) for _ in job.scoring]
        self.finish(jobs)

    def _generate(self) -> None:
        """Generates the text of the first waiting row and of all that fit beside it."""
        rows: list[GenerationRow] = []
        with self._changed:
            waiting, self._generation = self._generation, deque()
            for row in waiting:
                full = len(rows) >= self.settings.max_batch
                fits = not row.unfinished or (not full and self.engine.fits(rows, row))
                (rows if fits else self._generation).append(row)
        running = [row for row in rows if row.unfinished]
        error: Exception | None = None
        if running:
            began = time.perf_counter()
            error = self.engine.generate(running, between_steps=self._score)
            self.count_batch(len(running), time.perf_counter() - began)
        done = []
        for row in rows:
            job = row.job
            job.error = job.error or (error if row.unfinished else None)
            job.remaining -= 1
            if not job.remaining:
                job.results = [row.tokens for row in job.generation]
                done.append(job)
        if done:
            self.finish(done)
