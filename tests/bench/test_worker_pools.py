"""What goes wrong around a bench: recipes of odd shapes, file systems without locks, workers that die between jobs."""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from bench.grids import write_grid
from saved import Cli

from softprompts.bench import runner, worker_pools
from softprompts.bench.plan import Job, plan
from softprompts.bench.recipe_file import load_recipe
from softprompts.bench.results import load_findings
from softprompts.bench.worker_process import Worker, locked
from softprompts.commands.bench import _changes
from softprompts.errors import SoftPromptError
from softprompts.storage import locks
from softprompts.storage.locks import is_held, lock, lock_file


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("data",), "x", "data must be a mapping"),
        (("tasks",), None, "tasks is missing"),
        (("tasks", "First"), 3, "tasks.First must be text or a mapping, not 3"),
        (("tasks", 2024), "first.yaml", "tasks.2024 must be text, not 2024 (put it in quotes)"),
        (("models", "Tiny"), 3, "models.Tiny must be text, not 3"),
        (("columns",), ["First"], "columns must be a mapping"),
        (("rows",), None, "rows is missing"),
        (("rows", 0), "x", "rows[0] must be a mapping"),
        (("rows", 0, "baseline"), "no", "rows[Head].baseline must be true or false"),
        (("rows", 0, "models"), 3, "rows[Head].models must be a list or a mapping, not 3"),
        (("rows", 0, "models"), {"Tiny": {"tasks": ["First"]}}, "rows[Head].models.Tiny.tasks must be a mapping"),
        (("rows", 0, "choose"), {"training.max_steps": 3}, "must be a list, not 3"),
        (("rows", 0, "grid"), {"training.max_steps": []}, "no values for 'training.max_steps'"),
        (("rows", 0, "only_tasks"), [["First"]], "rows[Head].only_tasks[0] must be text"),
        (("rows", 0, "sources"), 3, "rows[Head].sources must be a list or a mapping, not 3"),
        (("rows", 0, "label"), "{", "Single '{'"),
        (("rows", 0, "label"), "{}", "which its grid does not"),
        (("sources",), {"S": {"task": "first.yaml", "method": None}}, "sources.S.method is missing"),
        (("figures",), [{"kind": [1]}], "figures[0].kind must be one of sweep"),
        (("scales",), {"tiny": {"rows": {"Head": 3}}}, "scales.tiny.rows.Head must be a mapping"),
        (("scales",), {"tiny": {"only_rows": 3}}, "scales.tiny.only_rows must be a list"),
    ],
)
def test_recipes_of_odd_shapes_are_told_in_a_line(
    tmp_path: Path, place: tuple[Any, ...], value: Any, told: str
) -> None:
    path = write_grid(tmp_path)
    plain = yaml.safe_load(path.read_text())
    node = made = copy.deepcopy(plain)
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    path.write_text(yaml.safe_dump(made))
    with pytest.raises(SoftPromptError) as error:
        load_recipe(path, "tiny" if "scales" in made else None)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_tasks_of_a_scale_lie_beside_the_recipe_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    path = write_grid(tmp_path / "there", scales={"tiny": {"tasks": {"First": {"task": "second.yaml"}}}})
    assert load_recipe(path, "tiny").tasks["First"].task == str(tmp_path / "there" / "second.yaml")


def test_options_for_rows_go_together() -> None:
    both = _changes(["rows.Head.training.max_steps=3", "rows.*.group=x"], "a/model", None)
    assert both["rows"] == {"Head": {"training": {"max_steps": 3}}, "*": {"group": "x", "models": None}}
    assert both["models"] == {"model": "a/model"}
    assert _changes(None, ".", None)["models"] == {Path.cwd().name: "."}
    with pytest.raises(SoftPromptError, match="set as a whole already"):
        _changes(["training=3", "training.max_steps=5"], None, None)


def test_file_systems_without_locks_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with locked(tmp_path, ["a"]):
        assert is_held(tmp_path, "a")
        with lock_file(tmp_path, "a") as file:
            assert not lock(file, wait=False)
        monkeypatch.setattr(locks.fcntl, "flock", none)
        assert not is_held(tmp_path, "a")
        with locked(tmp_path, ["a"]), lock_file(tmp_path, "b") as file:
            assert lock(file, wait=False)


def test_those_who_look_at_a_lock_do_not_see_each_other(tmp_path: Path) -> None:
    lock_file(tmp_path, "a").close()
    with open(tmp_path / ".locks" / "a", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not is_held(tmp_path, "a")


def test_a_worker_that_was_started_with_ctrl_c_ignored_stops_with_its_master(tmp_path: Path) -> None:
    """As in the background of a script: the end of its input must stop it all the same, also before it trains."""
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _BUSY, "--root", str(tmp_path), "--folder", str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, ignored)
    process.communicate(json.dumps({"name": "job"}) + "\n", timeout=120)
    assert process.returncode == 130


_BUSY = """
import time
from softprompts.bench import worker_process
worker_process.Worker.work = lambda self, job: time.sleep(100)
worker_process.main()
"""


def test_what_no_run_of_a_job_can_do_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def broken(self: Any, workbench: Any) -> None:
        tried.append(workbench)
        raise SoftPromptError("no such model")

    monkeypatch.setattr(Worker, "_open", broken)
    recipe = load_recipe(write_grid(tmp_path))
    job = plan(recipe, root=tmp_path).jobs(tmp_path)[0]
    Worker(tmp_path, tmp_path).work(job.to_dict())
    assert len(tried) == 1 and len(list((tmp_path / "failures").iterdir())) == len(job.runs) == 4


def test_a_worker_whose_gpu_is_lost_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All later jobs would fail in it, each at once, and be noted as failed."""
    monkeypatch.setattr(Worker, "_open", lambda self, workbench: None)

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


def written(root: Path, run: str, score: float | None, stop: str = "max_steps", trained: int = 1) -> None:
    (root / run).mkdir(parents=True, exist_ok=True)
    made = {
        "score": score, "stop_reason": stop, "metrics": {"accuracy": score}, "test_metrics": {}, "test_rows": 0,
        "trained_parameters": trained, "backbone_parameters": 10,
    }  # fmt: skip
    (root / run / "result.json").write_text(json.dumps(made))


def test_a_variant_of_one_lucky_seed_is_not_chosen(tmp_path: Path) -> None:
    choose = {"num_virtual_tokens": [2, 3, 4]}
    rows = [{"name": "Prefix", "method": "prefix-tuning", "choose": choose}]
    recipe = load_recipe(write_grid(tmp_path, rows=rows))
    made = plan(recipe, root=tmp_path)
    made.save(tmp_path)
    for one in (one for one in made.runs if one.cell.task == "First"):
        tokens = one.cell.choice["num_virtual_tokens"]
        if tokens == 2 and one.cell.seed == 0:  # of the other seed there is nothing
            written(tmp_path, str(one.run), 0.9, trained=2)
        elif tokens == 3:  # one seed diverged
            written(tmp_path, str(one.run), 0.8, "non-finite loss" if one.cell.seed else "max_steps", trained=3)
        elif tokens == 4:
            written(tmp_path, str(one.run), 0.5, trained=4)
    found = load_findings(tmp_path, tmp_path)
    assert found.runs(recipe.rows[0], "First", "Tiny")[0].choice == {"num_virtual_tokens": 4}
    assert found.trained(recipe.rows[0], "Tiny") == (4, 10)


def test_notes_of_runs_that_are_done_or_of_another_plan_are_not_told(tmp_path: Path) -> None:
    made = plan(load_recipe(write_grid(tmp_path)), root=tmp_path)
    made.save(tmp_path)
    (tmp_path / "failures").mkdir()
    done, open_ = str(made.runs[0].run), str(made.runs[1].run)
    for run in (done, open_, "of-another-plan"):
        (tmp_path / "failures" / f"{run}.txt").write_text("no luck\n")
    written(tmp_path, done, 0.5)
    assert load_findings(tmp_path, tmp_path).failed == {open_: "no luck"}


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
