"""Workers: those that die or lose their GPU, costs that are cut short, and the cores that a machine has."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import warm
from bench.grids import write_grid
from saved import Cli

from softprompts.bench import runner, worker_pools
from softprompts.bench.plan import Job, plan
from softprompts.bench.recipe_file import load_recipe
from softprompts.bench.worker_process import Worker
from softprompts.commands.bench import _changes
from softprompts.errors import SoftPromptError


def test_options_for_rows_go_together() -> None:
    both = _changes(["rows.Head.training.max_steps=3", "rows.*.group=x"], "a/model", None)
    assert both["rows"] == {"Head": {"training": {"max_steps": 3}}, "*": {"group": "x", "models": None}}
    assert both["models"] == {"model": "a/model"}
    assert _changes(None, ".", None)["models"] == {Path.cwd().name: "."}
    with pytest.raises(SoftPromptError, match="set as a whole already"):
        _changes(["training=3", "training.max_steps=5"], None, None)


def test_a_worker_that_was_started_with_ctrl_c_ignored_stops_with_its_master(tmp_path: Path) -> None:
    """As in the background of a script: the end of its input must stop it all the same, also before it trains."""
    done = warm.run([sys.executable, "-c", _BUSY, "--root", str(tmp_path), "--folder", str(tmp_path)])
    assert done.returncode == 130, done.stderr


_BUSY = """
import os, signal, subprocess, sys, time
from softprompts.bench import worker_process
signal.signal(signal.SIGINT, signal.SIG_IGN)
source, end = os.pipe()
os.write(end, b'{"name": "job"}\\n')
os.close(end)
os.dup2(source, 0)
sys.stdin = open(0)
worker_process.Worker.work = lambda self, job: time.sleep(100)
worker_process.main()
"""


def test_what_no_run_of_a_job_can_do_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def broken(self: Any, workbench: Any) -> None:
        tried.append(workbench)
        raise SoftPromptError("no such model")

    monkeypatch.setattr(Worker, "open", broken)
    recipe = load_recipe(write_grid(tmp_path))
    job = plan(recipe, root=tmp_path).jobs(tmp_path)[0]
    Worker(tmp_path, tmp_path).work(job.to_dict())
    assert len(tried) == 1 and len(list((tmp_path / "failures").iterdir())) == len(job.runs) == 4


def test_a_worker_whose_gpu_is_lost_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All later jobs would fail in it, each at once, and be noted as failed."""
    monkeypatch.setattr(Worker, "open", lambda self, workbench: None)

    def broken(self: Any, job: Any, wanted: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(Worker, "_train", broken)
    job = plan(load_recipe(write_grid(tmp_path)), root=tmp_path).jobs(tmp_path)[0]
    with pytest.raises(RuntimeError, match="device-side"):
        Worker(tmp_path, tmp_path).work(job.to_dict())
    assert not (tmp_path / "failures").exists()


def test_a_worker_that_dies_without_a_job_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    class Dead(worker_pools._Process):
        def __init__(self) -> None:
            self.place, self.job, self.workbench = 0, None, ""

        def end(self) -> None:
            ended.append(self)

    pool = worker_pools.LocalWorkers(tmp_path, tmp_path, 1)
    pool._workers[0] = dead = Dead()
    pool._answers.put((dead, ""))
    assert pool.ended(0.01) == [] and ended == [dead] and pool._workers == [None]


def test_actors_without_a_job_make_room_for_those_that_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More workers than places in the cluster: the last jobs would wait for ever for actors that do nothing."""
    killed: list[Any] = []
    started = {"pid-a"}

    def wait(references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return [one for one in references if one in started], [one for one in references if one not in started]

    pool = worker_pools.RayWorkers.__new__(worker_pools.RayWorkers)
    pool._ray = SimpleNamespace(wait=wait, kill=killed.append)
    pool.count, pool._actors, pool._workbenches = 2, ["a", "b"], ["", ""]
    pool._pids = {0: "pid-a", 1: "pid-b"}
    job = Job(())
    pool._at_work = {"work-a": (0, job), "work-b": (1, job)}
    assert pool.ended(0) == [] and not killed  # both have work
    del pool._at_work["work-a"]
    assert pool.ended(0) == [] and killed == ["a"] and pool._actors == [None, "b"]


def test_cores_are_those_of_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(worker_pools, "_CPU_LIMIT", limit)
    everything = worker_pools.cores()
    for text, cores in (("100000 100000", 1), ("1000 100000", 1), ("max 100000", everything)):
        limit.write_text(text)
        assert worker_pools.cores() == cores


def test_a_launcher_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SoftPromptError, match="leave the launcher out"):
        runner.run_recipe(load_recipe(write_grid(tmp_path)), root=tmp_path / "runs")


def test_costs_that_were_cut_short_are_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(write_grid(tmp_path, measure="cost", cost={"steps": 3, "warmup_steps": 2}, seeds=[0]))
    job = plan(recipe, root=tmp_path).jobs(tmp_path)[0].to_dict()
    from softprompts.training import step_cost

    real = step_cost._Timed.update

    def asked(self: Any, loss: float, norm: float) -> None:
        if not self.stamps:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, loss, norm)

    monkeypatch.setattr(step_cost._Timed, "update", asked)
    with pytest.raises(KeyboardInterrupt, match="interrupted after step 2"):
        Worker(tmp_path, tmp_path).work(job)
    assert not list(tmp_path.glob("*/result.json"))
    monkeypatch.setattr(step_cost._Timed, "update", lambda self, loss, norm: real(self, float("nan"), norm))
    Worker(tmp_path, tmp_path).work(job)
    assert not list(tmp_path.glob("*/result.json"))
    assert "its cost was not measured" in next((tmp_path / "failures").iterdir()).read_text()


def test_where_all_runs_fail_it_is_told_why(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from softprompts.bench.runner import State

    monkeypatch.setattr(runner, "run_recipe", lambda *given, **named: State(3, 0, 0, {"abc": "no luck"}, 2))
    done = cli("bench", "run", write_grid(tmp_path), "--out", tmp_path / "runs")
    assert done.code == 2 and done.err.count("\n") == 1
    assert "1 of 3 runs failed (2 more start from them), the first one (abc): no luck" in done.err
