"""A worker: holds a backbone and trains one job after the other, each in shared passes.

As a process of its own (``python -m softprompts.bench.worker_process``) it reads jobs as JSON lines from its standard input and
answers each with a line when it has ended. What came of a job is in the run folders and, of runs that failed, in
``failures/`` of the bench's folder. When its input ends (its master is gone) it stops after the step, with checkpoints.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompts.bench.plan import FAILURES
from softprompts.errors import SoftPromptError
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods import make_config
from softprompts.processes import is_main, on_main, synchronized
from softprompts.storage import run_folder
from softprompts.storage.files import write_json_atomic, write_text_atomic
from softprompts.storage.locks import lock, lock_file
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig, open_run, run_id
from softprompts.training.memory import out_of_memory


class Worker:
    """Carries out jobs of a bench.

    Args:
        root: where run folders live.
        folder: the bench's folder.
    """

    def __init__(self, root: str | Path, folder: str | Path):
        self.root, self.folder = Path(root), Path(folder)
        self._bench: Workbench | None = None
        self._made: dict[str, Any] = {}

    def work(self, job: Mapping[str, Any]) -> None:
        """Does what is left of a job (`softprompts.bench.plan.Job.to_dict`).

        A run that fails leaves a note in ``failures/``; the others of the job go on without it.

        Raises:
            KeyboardInterrupt: it was asked to stop; checkpoints are written.
            Exception: the device is of no use any more; another process has to go on.
        """
        with locked(self.root, [str(run["run"]) for run in job["runs"]]):
            # The main process alone has waited for the locks, so that only it knows.
            done = on_main(lambda: [run_folder.is_done(self.root / run["run"]) for run in job["runs"]])
            left = [run for run, there in zip(job["runs"], done, strict=True) if not there]
            for run in left:
                if is_main():
                    self._note(run).unlink(missing_ok=True)
            if not left:
                return
            try:
                self._workbench(job["bench"])
            except Exception as error:  # without backbone and task, none of them can do anything
                for run in left:
                    self._fail(run, error)
                return
            try:
                self._do(job, left)
            except Exception as error:
                if len(left) == 1 or _is_lost(error):
                    self._failed(left, error)
                    return
                # One of them: each on its own, and the others get through.
                for run in left:
                    if not run_folder.is_done(self.root / run["run"]):
                        try:
                            self._do(job, [run])
                        except Exception as alone:
                            self._failed([run], alone)

    def _do(self, job: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]]) -> None:
        bench = self._workbench(job["bench"])
        made = [
            Run(make_config(run["method"], **run["settings"]), TrainConfig.from_dict(run["training"])) for run in wanted
        ]
        cost = job.get("cost")
        for run, one in zip(wanted, made, strict=True):
            config = bench.resolved(one.method, one.training)
            if run_id({**config, "cost": cost} if cost else config) != run["run"]:
                raise SoftPromptError(f"{run['run']}: its data or sources are no longer what they were; start again")
        if not cost:
            bench.run_all(made, root=self.root, lanes=len(made), progress=False)
            return
        for one in made:
            found = bench.cost(one, **cost)
            if is_main():
                path = open_run(self.root, {**bench.resolved(one.method, one.training), "cost": cost}, resume=True)
                write_json_atomic(path / run_folder.RESULT, found)

    def _workbench(self, wanted: Mapping[str, Any]) -> Workbench:
        """Backbone and task, of which what is there already is kept."""
        if self._bench is not None and wanted == self._made:
            return self._bench
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in wanted["data"].items()}
        data = Data(**fields)
        same = all(wanted.get(key) == self._made.get(key) for key in ("model", "quantize"))
        with synchronized():
            if self._bench is not None and same:
                with contextlib.suppress(SoftPromptError):  # a head of another kind: a model of its own
                    self._bench = self._bench.on(data, wanted["max_length"], wanted["evaluate"])
                    self._made = dict(wanted)
                    return self._bench
            self._bench, self._made = None, {}
            more = {key: wanted[key] for key in ("evaluate", "quantize") if key in wanted}
            self._bench = Workbench(wanted["model"], data, wanted["max_length"], **more)
        self._made = dict(wanted)
        return self._bench

    def _note(self, run: Mapping[str, Any]) -> Path:
        return self.folder / FAILURES / f"{run['run']}.txt"

    def _failed(self, failed: Sequence[Mapping[str, Any]], error: Exception) -> None:
        """Notes runs that have failed, unless it may not be their fault."""
        if _is_lost(error):
            raise error
        for run in failed:
            self._fail(run, error)

    def _fail(self, run: Mapping[str, Any], error: Exception) -> None:
        if is_main():
            told = str(error) if isinstance(error, SoftPromptError) else f"{type(error).__name__}: {error}"
            text = "".join(traceback.format_exception(error))
            write_text_atomic(self._note(run), f"{text}\n{' '.join(told.split())}\n")


def _is_lost(error: Exception) -> bool:
    """Whether a GPU is of no use to this process any more: all that comes after such an error fails, too."""
    return isinstance(error, RuntimeError) and not out_of_memory(error) and "CUDA error" in str(error)


@contextlib.contextmanager
def locked(root: str | Path, names: Sequence[str]) -> Iterator[None]:
    """Holds the runs of these names; waits for another process that holds any of them.

    The system lets go of them when the process ends, however it does.
    """
    with contextlib.ExitStack() as stack:
        if is_main():
            for name in sorted(names):  # in one order everywhere, so that nobody waits for each other
                lock(stack.enter_context(lock_file(root, name)))
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    """The process."""
    parser = argparse.ArgumentParser(prog="python -m softprompts.bench.worker_process")
    parser.add_argument("--root", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--job", help="a file with one job, in place of those on the standard input")
    options = parser.parse_args(arguments)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # A shell without job control starts what runs in the background with Ctrl-C ignored, and so would we ask in vain.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = Worker(options.root, options.folder)
    jobs: queue.Queue[str] = queue.Queue()
    try:
        threading.Thread(target=_listen, args=(jobs, options.job is None), daemon=True).start()
        if options.job is not None:
            worker.work(json.loads(Path(options.job).read_text(encoding="utf-8")))
            return
        # Answers go to the pipe alone; what anything prints goes where errors go.
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        while line := jobs.get():
            job = json.loads(line)
            worker.work(job)
            print(json.dumps({"ended": job["name"]}), file=answers, flush=True)
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(130) from None


def _listen(jobs: queue.Queue[str], lines: bool) -> None:
    """Passes lines on, if there are to be any; asks the process to stop when there will be no more."""
    if lines:
        for line in sys.stdin:
            jobs.put(line)
        jobs.put("")
    else:  # not by sys.stdin, which could not be closed at the process's end while a thread reads from it
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main()
