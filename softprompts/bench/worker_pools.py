"""Pools of workers: processes on this machine, or actors of a Ray cluster. Both take the same jobs."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import psutil
import torch

from softprompts.bench.plan import Job
from softprompts.errors import SoftPromptError
from softprompts.storage.files import write_json_atomic
from softprompts.training.memory import free_memory

MEMORY = 4 * 2**30  # bytes of the machine's memory for each worker on a CPU
PATIENCE = 120  # seconds that a worker has to finish its step when the pool stops
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


class Workers(ABC):
    """Workers, each with one job at most.

    Args:
        root: where run folders live.
        folder: the bench's folder.
        count: number of workers.
    """

    def __init__(self, root: str | Path, folder: str | Path, count: int):
        self.root, self.folder, self.count = Path(root).resolve(), Path(folder).resolve(), count
        self._workbenches = [""] * count  # what each has loaded

    def idle(self) -> int:
        """Number of workers without a job, started or not."""
        return len(self._free())

    @abstractmethod
    def _free(self) -> list[int]:
        """Places of the workers without a job."""

    def _place_for(self, job: Job) -> int:
        """The place of a worker without a job, if possible of one that has the job's backbone and task."""
        place = min(self._free(), key=lambda place: self._workbenches[place] != job.workbench)
        self._workbenches[place] = job.workbench
        return place

    @abstractmethod
    def give(self, job: Job) -> None:
        """Gives a job to a worker without one, if possible to one that has its backbone."""

    @abstractmethod
    def ended(self, seconds: float) -> list[Job]:
        """The jobs that end within so many seconds, those of lost workers included."""

    @abstractmethod
    def stop(self) -> None:
        """Ends all workers: those with a job after their step, with checkpoints."""


def count_of(processes: int = 1) -> int:
    """How many workers this machine has room for: one for each GPU (or ``processes`` of them), else for each core.

    Runs are faster with a core each than with shares of several, as long as memory holds a backbone for each.
    """
    if torch.cuda.is_available():
        return max(1, torch.cuda.device_count() // processes)
    return max(1, min(cores() // processes, free_memory(torch.device("cpu")) // MEMORY))


def cores() -> int:
    """Number of cores that this process may use, by its affinity and the limit of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # without a limit it says "max"
        limit, period = map(int, _CPU_LIMIT.read_text().split())
        count = min(count, -(-limit // period))
    return max(1, count)


class LocalWorkers(Workers):
    """Processes on this machine, each with a share of its cores and, where there are any, GPUs of its own.

    Args:
        root: where run folders live.
        folder: the bench's folder; what workers print goes to ``logs/`` in it.
        count: number of workers.
        processes: processes that train a run together, by ``accelerate launch``.

    Raises:
        SoftPromptError: there are not as many GPUs.
    """

    def __init__(self, root: str | Path, folder: str | Path, count: int, processes: int = 1):
        if torch.cuda.is_available() and count * processes > torch.cuda.device_count() and processes > 1:
            raise SoftPromptError(
                f"{count} workers of {processes} processes need {count * processes} GPUs, and there are "
                f"{torch.cuda.device_count()}; set --processes or --workers lower"
            )
        super().__init__(root, folder, count)
        self.processes = processes
        self._answers: queue.Queue[tuple[_Process, str]] = queue.Queue()  # the last one of each process is empty
        self._workers: list[_Process | None] = [None] * count

    def _free(self) -> list[int]:
        return [place for place, worker in enumerate(self._workers) if worker is None or worker.job is None]

    def give(self, job: Job) -> None:
        """Gives a job to a worker, and starts its process if necessary."""
        place = self._place_for(job)
        worker = self._workers[place]
        # Memory is measured in a fresh process; processes that train together are started for each job.
        if worker is not None and (job.runs[0].cost or self.processes > 1 or worker.process.poll() is not None):
            worker.end()
            worker = None
        if worker is None:
            worker = self._workers[place] = _Process(self, place, job if self.processes > 1 else None)
        worker.give(job)

    def ended(self, seconds: float) -> list[Job]:
        """Waits for answers and for processes that end."""
        jobs: list[Job] = []
        end = time.monotonic() + seconds
        while not jobs and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                worker, answer = self._answers.get(timeout=left)
                if worker not in self._workers:
                    continue
                if not answer:  # its output has ended, so the process has
                    worker.end()
                    self._workers[worker.place], self._workbenches[worker.place] = None, ""
                if worker.job is not None and (not answer or json.loads(answer)["ended"] == worker.job.name):
                    jobs.append(worker.job)
                    worker.job = None
        return jobs

    def stop(self) -> None:
        """Closes the workers' inputs, which makes them stop; kills those that go on."""
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            worker.close_input()
        end = time.monotonic() + PATIENCE
        try:
            for worker in workers:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(0.0, end - time.monotonic()))
        finally:  # also after a second Ctrl-C
            for worker in workers:
                worker.end()
        self._workers = [None] * self.count

    def environment(self, place: int) -> dict[str, str]:
        """Environment variables of a worker: its share of the cores, and its GPUs."""
        variables = dict(os.environ)
        if torch.cuda.is_available():
            named = os.environ.get("CUDA_VISIBLE_DEVICES")
            devices = named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
            start = place * self.processes % max(1, len(devices))
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(devices[start : start + self.processes])
        variables.setdefault("OMP_NUM_THREADS", str(max(1, cores() // (self.count * self.processes))))
        variables["TOKENIZERS_PARALLELISM"] = "false"
        return variables


class _Process:
    """A worker process at a place of a pool; ``job`` is the only job of processes that train together."""

    def __init__(self, workers: LocalWorkers, place: int, job: Job | None):
        self.place, self.job, self._one_job = place, job, job is not None
        logs = workers.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "softprompts.bench.worker_process"]
        options = ["--root", str(workers.root), "--folder", str(workers.folder)]
        environment = workers.environment(place)
        if job is not None:
            file = workers.folder / "jobs" / f"{job.name}.json"
            write_json_atomic(file, job.to_dict())
            options += ["--job", str(file)]
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            launch = ["-m", "accelerate.commands.launch", "--num_processes", str(workers.processes)]
            launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
            launch += ["--multi_gpu", "--main_process_port", str(port)]
            command = [sys.executable, *launch, *command[1:]]
            if not torch.cuda.is_available():
                environment["ACCELERATE_USE_CPU"] = "true"
        with open(logs / f"worker-{place}.log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                errors="replace",  # processes that train together may print anything
                start_new_session=True,  # Ctrl-C goes to the command alone, which stops its workers
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._input, self._output = self.process.stdin, self.process.stdout
        self._reader = threading.Thread(target=self._read, args=(workers._answers,), daemon=True)
        self._reader.start()

    def give(self, job: Job) -> None:
        self.job = job
        if self._one_job:
            return
        with contextlib.suppress(OSError):  # it has just died, and its output ends
            self._input.write(json.dumps(job.to_dict()) + "\n")
            self._input.flush()

    def close_input(self) -> None:
        """Makes it stop after its step."""
        with contextlib.suppress(OSError):  # it is gone, and lines are left
            self._input.close()

    def end(self) -> None:
        """Kills it, with all processes that it started."""
        children: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.process.pid).children(recursive=True)  # a launcher's are not in its group
        self.process.kill()
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        self.process.wait()
        self.close_input()  # stops children that have lost their launcher
        self._reader.join(PATIENCE)
        if not self._reader.is_alive():
            self._output.close()

    def _read(self, answers: queue.Queue[tuple[_Process, str]]) -> None:
        for line in self._output:
            if line.startswith('{"ended"'):
                answers.put((self, line))
        answers.put((self, ""))


class RayWorkers(Workers):
    """Actors of a Ray cluster: that of ``RAY_ADDRESS``, else one that starts on this machine.

    All machines must see the run folders (a shared file system) and have access to models and data.

    Args:
        root: where run folders live.
        folder: the bench's folder.
        count: number of workers; None: as many as the cluster has GPUs, or else cores.

    Raises:
        SoftPromptError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, root: str | Path, folder: str | Path, count: int | None = None):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            self._ray = ray = importlib.import_module("ray")  # an extra
        except ImportError as error:
            raise SoftPromptError("--engine ray needs Ray: pip install ray") from error
        address = os.environ.get("RAY_ADDRESS")
        try:
            self._own = not ray.is_initialized()
            if self._own:
                # A Ray of our own has a core for each worker; "local" keeps Ray from joining somebody else's cluster.
                size = {} if address else {"num_cpus": max(count or 0, count_of()), "include_dashboard": False}
                quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
                ray.init(address=address or "local", **quiet, **size)
        except Exception as error:
            raise SoftPromptError(f"Ray cannot be started or reached ({' '.join(str(error).split())[:200]})") from error
        resources = ray.cluster_resources()
        self._gpus = 1 if resources.get("GPU") else 0
        super().__init__(root, folder, count or int(resources["GPU"] if self._gpus else resources.get("CPU", 1)) or 1)
        self._actors: list[Any] = [None] * self.count
        self._at_work: dict[Any, tuple[int, Job]] = {}
        self._pids: dict[int, Any] = {}

    def _free(self) -> list[int]:
        return sorted({*range(self.count)} - {place for place, _ in self._at_work.values()})

    def give(self, job: Job) -> None:
        """Gives a job to an actor, and starts it if necessary."""
        from softprompts.bench.worker_process import Worker  # slow to import, and needed with Ray alone

        place = self._place_for(job)
        if job.runs[0].cost and self._actors[place] is not None:
            self._ray.kill(self._actors[place])
            self._actors[place] = None
        if self._actors[place] is None:
            actor = self._ray.remote(num_cpus=1, num_gpus=self._gpus)(Worker)
            self._actors[place] = actor.remote(self.root, self.folder)
            self._pids[place] = self._actors[place].pid.remote()
        self._at_work[self._actors[place].work.remote(job.to_dict())] = place, job

    def ended(self, seconds: float) -> list[Job]:
        """Waits for results and for actors that are lost."""
        if not self._at_work:
            return []
        done, _ = self._ray.wait(list(self._at_work), num_returns=1, timeout=seconds)
        if not done:
            self._make_room()
        jobs = []
        for reference in done:
            place, job = self._at_work.pop(reference)
            try:
                self._ray.get(reference)
            except Exception:  # the actor, its process or its machine is lost, with what it had loaded
                self._actors[place], self._workbenches[place] = None, ""
            jobs.append(job)
        return jobs

    def _make_room(self) -> None:
        """Ends actors without a job while actors with one wait for a place in the cluster; they would wait for ever."""
        idle = [place for place in self._free() if self._actors[place] is not None]
        if not idle:
            return
        pids = [self._pids[place] for place, _ in self._at_work.values()]
        _, waiting = self._ray.wait(pids, num_returns=len(pids), timeout=0)
        for place in idle[: len(waiting)]:
            self._ray.kill(self._actors[place])
            self._actors[place], self._workbenches[place] = None, ""

    def stop(self) -> None:
        """Ends the actors at once; a later call continues their runs from the last checkpoint."""
        for actor in self._actors:
            if actor is not None:
                self._ray.kill(actor)
        self._actors, self._at_work = [None] * self.count, {}
        if self._own:
            self._ray.shutdown()
