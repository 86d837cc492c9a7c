"""Runs a recipe: plans it, gives its jobs to workers, repeats the jobs of lost workers, and counts what is done."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from softprompts.bench.overview import require_data
from softprompts.bench.plan import (
    FAILURES,
    PLAN,
    GridRun,
    Job,
    Plan,
    Planned,
    RunT,
    diverged,
    failures,
    load_plan,
    plan,
    unique_runs,
)
from softprompts.bench.recipe import Recipe
from softprompts.bench.worker_pools import LocalWorkers, RayWorkers, Workers, count_of
from softprompts.errors import SoftPromptError
from softprompts.storage import run_folder
from softprompts.storage.files import require_folder, write_text_atomic
from softprompts.storage.locks import LOCKS, is_held, lock, lock_file

TRIES = 3  # most workers that a job is given to, one after the other was lost
TICK = 0.5  # seconds between two looks at the run folders
ENGINES = ("local", "ray")


@dataclass
class State:
    """How far a bench is.

    Attributes:
        total: number of different runs.
        done: those with a result.
        running: those that workers train.
        failed: by run id, the last line of the error.
        waiting: those that wait for a source or a search.
        seconds_left: an estimate; None before the first result.
    """

    total: int
    done: int = 0
    running: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    waiting: int = 0
    seconds_left: float | None = None


def bench_folder(root: str | Path, recipe: str, scale: str, variant: str = "") -> Path:
    """Where a bench's plan, tables and report lie: ``<root>/bench/<recipe>-<scale>-<variant>``, without empty parts."""
    return Path(root) / "bench" / "-".join(part for part in (*recipe.split("/"), scale, variant) if part)


def check_engine(engine: str, processes: int) -> None:
    """Makes sure that workers can be had so.

    Raises:
        SoftPromptError: they cannot.
    """
    if engine not in ENGINES:
        raise SoftPromptError(f"unknown engine '{engine}'; known: {', '.join(ENGINES)}")
    if engine == "ray" and processes > 1:
        raise SoftPromptError("--engine ray trains a run in one process; leave --processes out")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise SoftPromptError("a bench starts its processes itself: leave the launcher out and give --processes")


def run_recipe(
    recipe: Recipe,
    *,
    root: str | Path = "runs",
    folder: str | Path | None = None,
    data_dir: str | None = None,
    engine: str = "local",
    workers: int | None = None,
    lanes: int | None = None,
    processes: int = 1,
    on_start: Callable[[State], None] | None = None,
    on_change: Callable[[State, list[Planned]], None] | None = None,
) -> State:
    """Trains every run of a recipe that has no result yet.

    Args:
        recipe: the recipe.
        root: where run folders live.
        folder: the bench's own folder; None: `bench_folder`.
        data_dir: folder with a local copy of the tasks' data; None: the hub.
        engine: one of `ENGINES`.
        workers: number of workers; None: as many as the machine has room for. Costs are measured by one.
        lanes: runs that share a pass; None: `softprompts.bench.plan.LANES`.
        processes: processes (GPUs) that train a run together.
        on_start: called once, after planning.
        on_change: called about twice a second with the state and the runs that have ended since.

    Returns:
        The last state; runs that failed are in ``failed``, and a later call tries them again.

    Raises:
        SoftPromptError: another process uses the folder, or a task's data is not there.
        KeyboardInterrupt: it was interrupted; the same call goes on from there.
    """
    check_engine(engine, processes)
    root = Path(root)
    data_dir = None if data_dir is None else str(Path(data_dir).expanduser().resolve())  # workers may be elsewhere
    require_folder(root, "runs")
    folder = bench_folder(root, recipe.name, recipe.scale, recipe.variant) if folder is None else Path(folder)
    require_folder(folder, "the bench")
    require_data(recipe, data_dir)
    with _interruptible(), _nothing_left(folder), lock_file(folder, "bench") as file:
        if not lock(file, wait=False):
            raise SoftPromptError(f"{folder}: another process is at work on this bench; wait for it or stop it")
        outlines: dict[Any, Any] = {}

        def make_plan() -> Plan:
            new = plan(recipe, root=root, data_dir=data_dir, lanes=lanes, outlines=outlines)
            new.take_up(root)
            new.save(folder)
            return new

        current = make_plan()
        state = _state(current.runs, root, folder)
        if on_start is not None:
            on_start(state)
        if not current.jobs(root):
            return state
        count = 1 if recipe.measure == "cost" else workers
        if engine == "ray":
            pool: Workers = RayWorkers(root, folder, count)
        else:
            pool = LocalWorkers(root, folder, count or count_of(processes), processes)
        try:
            with _interruptible():  # again: Ray has set a handler of its own
                return _carry_out(current, make_plan, pool, root, folder, on_change)
        except KeyboardInterrupt as stop:
            pool.stop()
            state = read_state(folder, root)
            raise KeyboardInterrupt(
                f"{folder}: {str(stop) or 'interrupted'}, {state.done} of {state.total} runs done"
            ) from None
        finally:
            pool.stop()


def _carry_out(
    current: Plan,
    make_plan: Callable[[], Plan],
    pool: Workers,
    root: Path,
    folder: Path,
    on_change: Callable[[State, list[Planned]], None] | None,
) -> State:
    """Gives jobs to workers, and plans again when sources or the results of a search are there, until none is left."""
    tries: Counter[str] = Counter()
    at_work: dict[str, Job] = {}
    given_up: set[str] = set()
    began = time.monotonic()
    known = _done(current.runs, root)
    at_start = _work_done(current, root, known)
    # A search of one row may be over, and its runs of the table can begin, while another one's is on.
    follows, ended = current.recipe.search is not None or current.recipe.more_seeds is not None, False
    while True:
        if idle := pool.idle():
            waiting = [job for job in current.jobs(root) if job.name not in given_up | set(at_work)]
            if ended and not waiting and follows:
                current, ended = make_plan(), False
                waiting = [job for job in current.jobs(root) if job.name not in given_up | set(at_work)]
            # First those of a backbone and task that no other worker has: each worker then keeps its own.
            taken = {job.workbench for job in at_work.values()}
            for job in sorted(waiting, key=lambda job: job.workbench in taken)[:idle]:
                at_work[job.name] = job
                pool.give(job)
        if not at_work:
            current = make_plan()  # sources may be there by now
            if all(job.name in given_up for job in current.jobs(root)):
                return _state(current.runs, root, folder)
            continue
        for job in pool.ended(TICK):
            ended = True
            at_work.pop(job.name, None)
            left = {str(one.run) for one in job.runs if not run_folder.is_done(root / str(one.run))}
            lost = left - failures(folder, left).keys()
            tries[job.name] += bool(lost)
            if tries[job.name] >= TRIES:
                for run in lost:
                    reason = f"its worker was lost {TRIES} times; see {folder / 'logs'}\n"
                    write_text_atomic(folder / FAILURES / f"{run}.txt", reason)
            if left and (not lost or tries[job.name] >= TRIES):
                given_up.add(job.name)
        before, known = known, _done(current.runs, root, known)
        fresh = [one for run, one in known.items() if run not in before]
        if on_change is not None:
            state = _state(current.runs, root, folder, known)
            state.running = sum(one.run not in known for job in at_work.values() for one in job.runs)
            done, spent = _work_done(current, root, known) - at_start, time.monotonic() - began
            if done > 0:
                state.seconds_left = (
                    spent / done * (sum(one.work for one in unique_runs(current.runs)) - at_start - done)
                )
            on_change(state, fresh)


def _done(planned: Sequence[RunT], root: Path, known: Container[str] = ()) -> dict[str, RunT]:
    """The runs that have a result, by id; folders of ``known`` ones are not looked at again."""
    runs = {one.run: one for one in planned if one.run is not None}
    return {run: one for run, one in runs.items() if run in known or run_folder.is_done(root / run)}


def _work_done(current: Plan, root: Path, known: Container[str]) -> float:
    """The work that is done, of unfinished runs by the steps in their metrics."""
    total = 0.0
    for one in unique_runs(current.runs):
        if one.run is None:
            continue
        if one.run in known:
            total += one.work
        elif (steps := one.training.get("max_steps")) and (lines := run_folder.load_metrics(root / one.run)):
            total += one.work * min(1.0, lines[-1]["step"] / steps)
    return total


def _state(planned: Sequence[GridRun], root: Path, folder: Path, known: Container[str] = ()) -> State:
    """How far a plan is, by the run folders; those of ``known`` runs are not looked at again."""
    unique = unique_runs(planned)
    ids = {one.run for one in unique if one.run is not None}
    done = _done(planned, root, known)
    failed = failures(folder, ids - done.keys())
    for one in unique:
        if one.cell.source is not None and one.run in done and diverged(root / one.run):
            failed[one.run] = f"{one.cell} diverged, and nothing can start from it; set its learning rate lower"
    return State(len(unique), len(done), 0, failed, len(unique) - len(ids))


def read_state(folder: str | Path, root: str | Path) -> State:
    """How far a bench is, by its folders alone; a run is running while a process has locked it.

    Raises:
        SoftPromptError: there is no bench.
    """
    _, runs = load_plan(folder)
    state = _state(runs, Path(root), Path(folder))
    # A worker locks all runs of its job, also those that are done.
    ids = {one.run for one in runs if one.run is not None}
    state.running = sum(is_held(root, run) for run in ids if not run_folder.is_done(Path(root) / run))
    return state


@contextlib.contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """Removes the folders of a bench that were made within this context, after an error before there is a plan."""
    made = [place for place in (folder / LOCKS, folder, *folder.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        if made and not (folder / PLAN).is_file():
            (folder / LOCKS / "bench").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # what is not empty stays
                for place in made:
                    place.rmdir()
        raise


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Makes SIGTERM the same as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt("terminated")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
