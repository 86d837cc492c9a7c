"""The thread that owns the model: rows that wait when it gets free run together.

While a batch runs the next one collects. An idle model takes what comes at once; a busy one waits for a moment where
more is on its way. Text is written in batches of its own, and rows to be scored run between its steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from softprompts.serving.engine import Engine, Line, Written
from softprompts.serving.errors import FailedError
from softprompts.serving.settings import Settings

Scores = list["Tensor | FailedError"]
_log = logging.getLogger("softprompts.serving")


@dataclass(eq=False)
class ScoreJob:
    """Rows of a request that are scored.

    Attributes:
        lines: the rows.
        dropped: whether nobody waits for them any more.
        done: called in the model's thread with their scores; None where the job was dropped.
    """

    lines: list[Line]
    dropped: Callable[[], bool]
    done: Callable[[Scores | None], None]


@dataclass(eq=False)
class WriteJob:
    """A row that is written.

    Attributes:
        row: the row.
        done: called in the model's thread when it is.
    """

    row: Written
    done: Callable[[Exception | None], None]


class Batcher:
    """Runs the model.

    Args:
        engine: the model; used by this thread only from now on.
        settings: sizes of batches and how long to wait.
        expected: how many requests are on their way to here.
        ran: told the rows, the tokens and the seconds of each batch.
        flush: called after each batch and each step, when all of its rows have been told.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        expected: Callable[[], int] = lambda: 0,
        ran: Callable[[int, float], None] = lambda rows, seconds: None,
        flush: Callable[[], None] = lambda: None,
    ):
        self.engine, self.settings = engine, settings
        self.expected, self.ran, self.flush = expected, ran, flush
        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._scores: deque[ScoreJob] = deque()
        self._writes: deque[WriteJob] = deque()
        self._closed = False
        self._company = False  # whether the last batch was one of several requests
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    def put(self, *jobs: ScoreJob | WriteJob) -> None:
        """Adds work; for any thread."""
        with self._changed:
            for job in jobs:
                if isinstance(job, ScoreJob):
                    self._scores.append(job)
                else:
                    self._writes.append(job)
            self._changed.notify()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Calls a function between two batches; for any thread."""
        future: Future[Any] = Future()
        with self._changed:
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def close(self, timeout: float | None = None) -> None:
        """Finishes what is there, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._calls or self._scores or self._writes or self._closed):
                    self._changed.wait()
                if not (self._calls or self._scores or self._writes):
                    return
                if not (self._calls or self._writes):
                    self._linger()
            self._call()
            self._score()
            rows = self._next_rows()
            if rows:
                self._write(rows)

    def _linger(self) -> None:
        """Waits for more rows where some are to be expected."""
        if not (self._company or self.expected()):
            return
        until = time.monotonic() + self.settings.max_wait
        while sum(line.count for job in self._scores for line in job.lines) < self.settings.max_batch:
            left = until - time.monotonic()
            if left <= 0 or self._closed or self._calls or self._writes:
                return
            self._changed.wait(left)

    def _call(self) -> None:
        while True:
            with self._changed:
                if not self._calls:
                    return
                function, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _score(self) -> None:
        """One batch of what waits to be scored."""
        jobs: list[ScoreJob] = []
        rows = 0
        with self._changed:
            while self._scores:
                count = sum(line.count for line in self._scores[0].lines)
                if jobs and rows + count > self.settings.max_batch:
                    break
                jobs.append(self._scores.popleft())
                rows += count
        if not jobs:
            return
        self._company = len(jobs) > 1
        wanted = []
        for job in jobs:
            if job.dropped():
                job.done(None)
            else:
                wanted.append(job)
        jobs = wanted
        lines = [line for job in jobs for line in job.lines]
        if lines:
            began = time.perf_counter()
            try:
                found = self.engine.score(lines, self.settings.max_batch, self.settings.max_tokens)
            except Exception:
                _log.exception("a batch failed")
                found = [FailedError("the model failed")] * len(lines)
            self.ran(len(lines), time.perf_counter() - began)
            start = 0
            for job in jobs:
                job.done(found[start : start + len(job.lines)])
                start += len(job.lines)
        self.flush()

    def _next_rows(self) -> list[WriteJob]:
        """Rows that are written together: from the first on, all that fit beside it."""
        chosen: list[WriteJob] = []
        with self._changed:
            waiting, self._writes = self._writes, deque()
            for job in waiting:
                if job.row.dropped or (
                    len(chosen) < self.settings.max_batch and self.engine.fits([one.row for one in chosen], job.row)
                ):
                    chosen.append(job)
                else:
                    self._writes.append(job)
        return chosen

    def _write(self, jobs: Sequence[WriteJob]) -> None:
        rows = [job.row for job in jobs if job.row.open]
        problem: Exception | None = None
        if rows:
            began = time.perf_counter()

            def between() -> None:
                self.flush()
                self._score()

            problem = self.engine.write(rows, between)
            self.ran(len(rows), time.perf_counter() - began)
        for job in jobs:
            job.done(problem if job.row.open else None)
        self.flush()
