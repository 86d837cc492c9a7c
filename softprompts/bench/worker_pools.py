"""Where jobs are carried out: processes on this machine, or actors of a Ray cluster. Both take the same jobs."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import psutil
import torch

from softprompts.bench.plan import Job
from softprompts.errors import SoftPromptError
from softprompts.storage.files import write_json_atomic
from softprompts.training.memory import free_memory

MEMORY = 4 * 2**30  # of the machine, that a worker on a CPU should find
PATIENCE = 120  # seconds that a worker has to finish its step when all is to stop
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


class Workers(ABC):
    """Some workers, each with one job at most.

    Attributes:
        count: how many there are.
    """

    count: int

    @abstractmethod
    def idle(self) -> int:
        """How many have nothing to do."""

    @abstractmethod
    def give(self, job: Job) -> None:
        """Hands a job to an idle worker, to one that has its backbone where there is one."""

    @abstractmethod
    def ended(self, seconds: float) -> list[Job]:
        """The jobs that have ended, well or not, within so many seconds; a lost worker has ended its job too."""

    @abstractmethod
    def stop(self) -> None:
        """Ends all of them: those at work after their step, with checkpoints."""


def count_of(processes: int = 1) -> int:
    """How many workers this machine has room for: one for each GPU (or ``processes`` of them), else for each core.

    A core of its own serves a run better than a share of several, as long as there is memory for a backbone each.
    """
    if torch.cuda.is_available():
        return max(1, torch.cuda.device_count() // processes)
    return max(1, min(cores() // processes, free_memory(torch.device("cpu")) // MEMORY))


def cores() -> int:
    """Cores that this process may use: those that it is bound to, within the limit of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
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
        self.root, self.folder = Path(root).resolve(), Path(folder).resolve()
        self.count, self.processes = count, processes
        self._answers: queue.Queue[tuple[_Process, str]] = queue.Queue()
        self._workers: list[_Process | None] = [None] * count

    def idle(self) -> int:
        """Those without a job, started or not."""
        return sum(worker is None or worker.job is None for worker in self._workers)

    def give(self, job: Job) -> None:
        """Hands a job over, starting a process where none is."""
        free = [at for at, worker in enumerate(self._workers) if worker is None or worker.job is None]
        warm = [at for at in free if (there := self._workers[at]) is not None and there.bench == job.bench]
        at = (warm or free)[0]
        worker = self._workers[at]
        # Memory is measured in a process that has done nothing else; several processes are started for each job.
        if worker is not None and (job.runs[0].cost or self.processes > 1 or not worker.alive):
            worker.end()
            worker = None
        if worker is None:
            worker = self._workers[at] = _Process(self, at, self._answers, job if self.processes > 1 else None)
        worker.give(job)

    def ended(self, seconds: float) -> list[Job]:
        """Waits for answers, and for processes that are gone."""
        found: list[Job] = []
        end = time.monotonic() + seconds
        while not found and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                worker, answer = self._answers.get(timeout=left)
                if worker not in self._workers:
                    continue
                if not answer:  # its output has ended: it is gone, and must not get another job
                    worker.end()
                    self._workers[worker.place] = None
                if worker.job is not None and (not answer or json.loads(answer)["ended"] == worker.job.name):
                    found.append(worker.job)
                    worker.job = None
        return found

    def stop(self) -> None:
        """Closes their inputs, which makes them stop; those that do not are killed."""
        there = [worker for worker in self._workers if worker is not None]
        for worker in there:
            worker.ask_to_stop()
        end = time.monotonic() + PATIENCE
        try:
            for worker in there:
                worker.wait(max(0.0, end - time.monotonic()))
        finally:  # also when the user is in a hurry
            for worker in there:
                worker.end()
        self._workers = [None] * self.count

    def environment(self, place: int) -> dict[str, str]:
        """Cores and GPUs of a worker."""
        own = dict(os.environ)
        if torch.cuda.is_available():
            named = os.environ.get("CUDA_VISIBLE_DEVICES")
            devices = named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
            start = place * self.processes % max(1, len(devices))
            own["CUDA_VISIBLE_DEVICES"] = ",".join(devices[start : start + self.processes])
        own.setdefault("OMP_NUM_THREADS", str(max(1, cores() // (self.count * self.processes))))
        own["TOKENIZERS_PARALLELISM"] = "false"
        return own


class _Process:
    """A worker process.

    Args:
        workers: whose it is.
        place: its number.
        answers: where its answers go, with an empty one when it is gone.
        job: of several processes, the one job that they are started for.
    """

    def __init__(self, workers: LocalWorkers, place: int, answers: queue.Queue[tuple[_Process, str]], job: Job | None):
        self.place, self.job, self.bench = place, job, ""
        logs = workers.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "softprompts.bench.worker_process"]
        own = ["--root", str(workers.root), "--folder", str(workers.folder)]
        environment = workers.environment(place)
        if job is not None:
            file = workers.folder / "jobs" / f"{job.name}.json"
            write_json_atomic(file, job.to_dict())
            own += ["--job", str(file)]
            launch = ["-m", "accelerate.commands.launch", "--num_processes", str(workers.processes)]
            launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
            launch += ["--multi_gpu", "--main_process_port", str(_free_port())]
            command = [sys.executable, *launch, *command[1:]]
            if not torch.cuda.is_available():
                environment["ACCELERATE_USE_CPU"] = "true"
        with open(logs / f"worker-{place}.log", "ab") as log:
            self._process = subprocess.Popen(
                [*command, *own],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                errors="replace",  # of several processes, anything that they print comes along
                start_new_session=True,  # Ctrl-C is for us, who tell the workers
            )
        self._reader = threading.Thread(target=self._read, args=(answers,), daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its number with the system."""
        return self._process.pid

    def give(self, job: Job) -> None:
        self.job, self.bench = job, job.bench
        if self._one_job:
            return
        with contextlib.suppress(OSError):  # it has just died, which its output's end tells
            self._input.write(json.dumps(job.to_dict()) + "\n")
            self._input.flush()

    def ask_to_stop(self) -> None:
        with contextlib.suppress(OSError):  # what was not sent any more
            self._input.close()

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def end(self) -> None:
        """Makes sure that it is gone, with all processes that it started."""
        there: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            there = psutil.Process(self.pid).children(recursive=True)  # a launcher's are not in its group
        self._process.kill()
        for one in there:
            with contextlib.suppress(psutil.Error):
                one.kill()
        self._process.wait()
        self.ask_to_stop()  # those whose launcher was gone already
        self._reader.join(PATIENCE)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()

    @property
    def _input(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _one_job(self) -> bool:
        return "--job" in self._process.args  # type: ignore[operator]

    def _read(self, answers: queue.Queue[tuple[_Process, str]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
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
        processes: GPUs of a worker; a run is trained by one process.

    Raises:
        SoftPromptError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, root: str | Path, folder: str | Path, count: int | None = None, processes: int = 1):
        self._ray = ray = load_ray()
        self.root, self.folder = str(Path(root).resolve()), str(Path(folder).resolve())
        address = os.environ.get("RAY_ADDRESS")
        try:
            self._own = not ray.is_initialized()
            if self._own:
                # Of a cluster one takes what is there; one's own has as many cores as there will be workers.
                size = {} if address else {"num_cpus": max(count or 0, count_of()), "include_dashboard": False}
                # "local": without an address Ray would look for a cluster that somebody else has started here.
                ray.init(
                    address=address or "local",
                    log_to_driver=False,
                    logging_level="ERROR",
                    configure_logging=False,
                    **size,
                )
        except Exception as error:
            raise SoftPromptError(f"Ray cannot be started or reached ({' '.join(str(error).split())[:200]})") from error
        resources = ray.cluster_resources()
        self._gpus = processes if resources.get("GPU") else 0
        self.count = count or int(resources["GPU"] // processes if self._gpus else resources.get("CPU", 1)) or 1
        self._actors: list[Any] = [None] * self.count
        self._at_work: dict[Any, tuple[int, Job]] = {}
        self._bench: list[str] = [""] * self.count
        self._pids: dict[int, Any] = {}

    def idle(self) -> int:
        """Those without a job."""
        return self.count - len(self._at_work)

    def give(self, job: Job) -> None:
        """Hands a job over, starting an actor where none is."""
        busy = {place for place, _ in self._at_work.values()}
        free = [place for place in range(self.count) if place not in busy]
        place = next((one for one in free if self._bench[one] == job.bench), free[0])
        if job.runs[0].cost and self._actors[place] is not None:
            self._ray.kill(self._actors[place])
            self._actors[place] = None
        if self._actors[place] is None:
            actor = self._ray.remote(num_cpus=1, num_gpus=self._gpus)(_Actor)
            self._actors[place] = actor.remote(self.root, self.folder)
            self._pids[place] = self._actors[place].pid.remote()
        self._bench[place] = job.bench
        self._at_work[self._actors[place].work.remote(job.to_dict())] = place, job

    def ended(self, seconds: float) -> list[Job]:
        """Waits for results, and for actors that are gone."""
        if not self._at_work:
            return []
        done, _ = self._ray.wait(list(self._at_work), num_returns=1, timeout=seconds)
        if not done:
            self._make_room()
        found = []
        for reference in done:
            place, job = self._at_work.pop(reference)
            try:
                self._ray.get(reference)
            except Exception:  # the actor, its machine or its process is gone, and so is what it had loaded
                self._actors[place], self._bench[place] = None, ""
            found.append(job)
        return found

    def _make_room(self) -> None:
        """Ends an actor without a job where another with one waits for a place in the cluster: it would for ever."""
        busy = {place for place, _ in self._at_work.values()}
        idle = [place for place, actor in enumerate(self._actors) if actor is not None and place not in busy]
        if not idle:
            return
        _, waiting = self._ray.wait([self._pids[place] for place in busy], num_returns=len(busy), timeout=0)
        for place in idle[: len(waiting)]:
            self._ray.kill(self._actors[place])
            self._actors[place], self._bench[place] = None, ""

    def at_work_pids(self) -> list[int]:
        """Processes of the actors that are at work, each on its own machine."""
        busy = [place for place, _ in self._at_work.values()]
        found: list[int] = self._ray.get([self._pids[place] for place in busy])
        return found

    def stop(self) -> None:
        """Ends the actors at once; their runs go on from the last checkpoint."""
        for actor in self._actors:
            if actor is not None:
                self._ray.kill(actor)
        self._actors, self._at_work = [None] * self.count, {}
        if self._own:
            self._ray.shutdown()


class _Actor:
    """What runs in a Ray actor."""

    def __init__(self, root: str, folder: str):
        from softprompts.bench.worker_process import Worker

        self._worker = Worker(root, folder)

    def work(self, job: Mapping[str, Any]) -> None:
        """Carries out a job."""
        self._worker.work(job)

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()


def load_ray() -> Any:
    """Ray, which is an extra.

    Raises:
        SoftPromptError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise SoftPromptError("--engine ray needs Ray: pip install 'softprompts[cluster]'") from error
    return ray


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
