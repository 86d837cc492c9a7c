"""A worker: holds a backbone and trains one job after the other, each in shared passes.

As a process of its own (``python -m softprompts.bench.worker_process``) it reads jobs as JSON lines from its standard
input and answers each with a line when it has ended. Results are in the run folders, errors of runs that failed in
``failures/`` of the bench's folder. When its input ends (the command is gone) it stops after the step and writes
checkpoints.
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
from softprompts.methods.imports import import_methods
from softprompts.processes import is_main, on_main, synchronized
from softprompts.storage import run_folder
from softprompts.storage.files import write_json_atomic, write_text_atomic
from softprompts.storage.locks import lock, lock_file
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig, open_run, run_id
from softprompts.training.memory import out_of_memory


class Worker:
    """Trains the runs of jobs.

    Args:
        root: where run folders live.
        folder: the bench's folder.
    """

    def __init__(self, root: str | Path, folder: str | Path):
        self.root, self.folder = Path(root), Path(folder)
        self._workbench: Workbench | None = None
        self._made_of: dict[str, Any] = {}

    def work(self, job: Mapping[str, Any]) -> None:
        """Trains the runs of a job (`softprompts.bench.plan.Job.to_dict`) that are not done.

        A run that fails leaves a note in ``failures/``; the others of the job go on without it.

        Raises:
            KeyboardInterrupt: the process was told to stop; checkpoints are written.
            Exception: the device cannot be used any more; another process has to go on.
        """
        with locked(self.root, [str(run["run"]) for run in job["runs"]]):
            # The main process alone has waited for the locks, so that only it knows what is done.
            done = on_main(lambda: [run_folder.is_done(self.root / run["run"]) for run in job["runs"]])
            left = [run for run, is_done in zip(job["runs"], done, strict=True) if not is_done]
            for run in left:
                if is_main():
                    self._note(run).unlink(missing_ok=True)
            if not left:
                return
            try:
                for given in job.get("imports", ()):
                    import_methods(given)
                self.open(job["workbench"])
            except Exception as error:  # no run can go on without backbone, task and methods
                for run in left:
                    self._fail(run, error)
                return
            self._train_each(job, left)

    def pid(self) -> int:
        """Its process id."""
        return os.getpid()

    def _train_each(self, job: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
        """Trains runs together; if one fails, each on its own, so that the others get through."""
        try:
            self._train(job, runs)
        except Exception as error:
            if isinstance(error, RuntimeError) and not out_of_memory(error) and "CUDA error" in str(error):
                raise  # the GPU can be used no more: all later runs of the process would fail, too
            if len(runs) == 1:
                self._fail(runs[0], error)
                return
            for run in runs:
                if not run_folder.is_done(self.root / run["run"]):
                    self._train_each(job, [run])

    def _train(self, job: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
        workbench, cost = self.open(job["workbench"]), job.get("cost")
        configs = [
            Run(make_config(run["method"], **run["settings"]), TrainConfig.from_dict(run["training"])) for run in runs
        ]
        records = [workbench.resolved(config.method, config.training) for config in configs]
        if cost:
            records = [{**record, "cost": cost} for record in records]
        for run, record in zip(runs, records, strict=True):
            if run_id(record) != run["run"]:
                raise SoftPromptError(f"{run['run']}: its data or sources are no longer what they were; start again")
        if not cost:
            workbench.run_all(configs, root=self.root, lanes=len(configs), progress=False)
            return
        for config, record in zip(configs, records, strict=True):
            result = workbench.cost(config, **cost)
            if is_main():
                write_json_atomic(open_run(self.root, record, resume=True) / run_folder.RESULT, result)

    def open(self, wanted: Mapping[str, Any]) -> Workbench:
        """The workbench that is made of these values; backbone and task are kept from job to job where they agree."""
        if self._workbench is not None and wanted == self._made_of:
            return self._workbench
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in wanted["data"].items()}
        data = Data(**fields)
        same = all(wanted.get(key) == self._made_of.get(key) for key in ("model", "quantize"))
        with synchronized():
            if self._workbench is not None and same:
                with contextlib.suppress(SoftPromptError):  # the task needs a head of another kind, and so a new model
                    self._workbench = self._workbench.on(data, wanted["max_length"], wanted["evaluate"])
                    self._made_of = dict(wanted)
                    return self._workbench
            self._workbench, self._made_of = None, {}
            options = {key: wanted[key] for key in ("evaluate", "quantize") if key in wanted}
            self._workbench = Workbench(wanted["model"], data, wanted["max_length"], **options)
        self._made_of = dict(wanted)
        return self._workbench

    def _note(self, run: Mapping[str, Any]) -> Path:
        return self.folder / FAILURES / f"{run['run']}.txt"

    def _fail(self, run: Mapping[str, Any], error: Exception) -> None:
        if is_main():
            reason = str(error) if isinstance(error, SoftPromptError) else f"{type(error).__name__}: {error}"
            text = "".join(traceback.format_exception(error))
            write_text_atomic(self._note(run), f"{text}\n{' '.join(reason.split())}\n")


@contextlib.contextmanager
def locked(root: str | Path, names: Sequence[str]) -> Iterator[None]:
    """Locks the runs of these ids; waits while another process has locked any of them.

    The system unlocks them when the process ends, however it does.
    """
    with contextlib.ExitStack() as stack:
        if is_main():
            for name in sorted(names):  # in one order everywhere, so that two processes do not wait for each other
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
    # A shell without job control starts background processes with Ctrl-C ignored; a worker is stopped by just that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = Worker(options.root, options.folder)
    jobs: queue.Queue[str] = queue.Queue()
    try:
        threading.Thread(target=_listen, args=(jobs, options.job is None), daemon=True).start()
        if options.job is not None:
            worker.work(json.loads(Path(options.job).read_text(encoding="utf-8")))
            return
        # Only answers go to the pipe; all that is printed goes where errors go.
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
    """Puts the lines of the standard input into a queue, and stops the process when the input ends."""
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
