"""Plans and the engine: what shares a job, what is never done twice, and what survives kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import warm
from bench.grids import write_grid
from own_methods import forget as forget  # a fixture
from saved import Cli

from softprompts.bench.plan import Plan, load_plan, plan
from softprompts.bench.recipe_file import load_recipe
from softprompts.bench.report import write_outputs
from softprompts.bench.results import load_findings
from softprompts.bench.runner import bench_folder, read_state
from softprompts.bench.worker_process import Worker, locked
from softprompts.errors import SoftPromptError
from softprompts.methods.imports import import_methods
from softprompts.methods.new_method import write_method
from softprompts.storage import run_folder
from softprompts.storage.locks import is_held

SOURCES = {"Second": {"task": "second.yaml", "method": "prompt-tuning", "training": {"max_steps": 2}}}


@pytest.fixture(autouse=True)
def _own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPTS_CACHE", "off")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def alone(made: Plan, root: Path, folder: Path) -> None:
    """Carries out a plan in this process."""
    worker = Worker(root, folder)
    for job in made.jobs(root):
        worker.work(job.to_dict())


def test_workers_import_methods_of_files(tmp_path: Path, forget: Callable[[], None]) -> None:
    file, _, _ = write_method("low-rank-grid", tmp_path / "own")
    import_methods(str(file))
    rows = [{"name": "Own", "method": "low-rank-grid", "settings": {"rank": 1}}]
    made = plan(load_recipe(write_grid(tmp_path, rows=rows, seeds=[0])), root=tmp_path / "runs", lanes=4)
    job, *_ = (json.loads(json.dumps(job.to_dict())) for job in made.jobs(tmp_path / "runs"))
    forget()  # as a worker begins
    Worker(tmp_path / "runs", tmp_path / "bench").work(job)
    assert all(run_folder.is_done(tmp_path / "runs" / run["run"]) for run in job["runs"])
    forget()
    file.unlink()
    Worker(tmp_path / "other", tmp_path / "bench").work(job)
    note = (tmp_path / "bench" / "failures" / f"{job['runs'][0]['run']}.txt").read_text()
    assert note.endswith("low_rank_grid.py: there is no such file\n")


def test_runs_of_a_task_that_agree_share_a_job_and_the_rest_does_not(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"name": "Head", "method": "head-only"},
        {"name": "Prefix", "method": "prefix-tuning", "settings": {"num_virtual_tokens": 2}},
        {"name": "Prompt", "method": "prompt-tuning", "settings": {"num_virtual_tokens": 2}},
        {"name": "Other", "method": "head-only", "training": {"batch_size": 4}},
    ]
    recipe = load_recipe(write_grid(tmp_path, rows=rows, seeds=[0, 1, 2]))
    made = plan(recipe, root=tmp_path / "runs", lanes=4)
    told = [{(run.cell.row.name, run.cell.task) for run in job.runs} for job in made.jobs(tmp_path / "runs")]
    both = {("Head", "First"), ("Prefix", "First")}
    assert told[:4] == [both, both, {("Prompt", "First")}, {("Other", "First")}]
    assert len(told) == 8 and all(len({task for _, task in job}) == 1 for job in told)
    assert [len(job.runs) for job in made.jobs(tmp_path / "runs")][:4] == [3, 3, 3, 3]
    assert len({run.run for run in made.runs}) == 24
    again = plan(recipe, root=tmp_path / "elsewhere", lanes=4)
    assert [run.run for run in again.runs] == [run.run for run in made.runs]


def test_results_are_those_of_runs_that_train_alone(tmp_path: Path) -> None:
    recipe = load_recipe(write_grid(tmp_path))
    for name, lanes in (("shared", 4), ("lone", 1)):
        made = plan(recipe, root=tmp_path / name, lanes=lanes)
        made.save(tmp_path / name / "bench")
        alone(made, tmp_path / name, tmp_path / name / "bench")
    shared, lone = (load_findings(tmp_path / name / "bench", tmp_path / name) for name in ("shared", "lone"))
    assert shared.missing == 0 and len(shared.outcomes) == 8
    assert {one.result["lanes"] for one in shared.outcomes} == {4}
    for row in recipe.rows:
        for column in recipe.columns:
            assert shared.scores(row, column, "Tiny") == lone.scores(row, column, "Tiny")
            assert len(shared.scores(row, column, "Tiny")) == 2


def test_the_best_by_validation_is_chosen_for_each_task(tmp_path: Path) -> None:
    rows = [{"name": "Head", "method": "head-only", "choose": {"training.learning_rates.head": [1e-8, 0.1]}}]
    recipe = load_recipe(write_grid(tmp_path, rows=rows))
    made = plan(recipe, root=tmp_path / "runs")
    made.save(tmp_path / "bench")
    alone(made, tmp_path / "runs", tmp_path / "bench")
    findings = load_findings(tmp_path / "bench", tmp_path / "runs")
    for task in recipe.tasks:
        means = {}
        for rate in (1e-8, 0.1):
            found = [one for one in findings.outcomes if one.task == task and rate in one.choice.values()]
            assert len(found) == 2
            means[rate] = sum(one.result["score"] for one in found) / 2
        best = max(means, key=lambda rate: means[rate])
        assert findings.runs(recipe.rows[0], task, "Tiny")[0].choice == {"training.learning_rates.head": best}
        assert {one.result["score"] for one in findings.runs(recipe.rows[0], task, "Tiny")} == {
            one.result["score"] for one in findings.outcomes if one.task == task and best in one.choice.values()
        }


def test_sources_come_first_and_their_prompts_are_started_from(tmp_path: Path) -> None:
    rows = [{"name": "SPoT", "method": "spot", "settings": {"num_virtual_tokens": 3}, "sources": ["Second"]}]
    recipe = load_recipe(write_grid(tmp_path, rows=rows, sources=SOURCES, seeds=[0]))
    root, folder = tmp_path / "runs", tmp_path / "bench"
    first = plan(recipe, root=root)
    assert [one.run is None for one in first.runs] == [False, True, True]
    assert len(first.jobs(root)) == 1
    alone(first, root, folder)
    second = plan(recipe, root=root)
    assert second.runs[0].run == first.runs[0].run
    assert second.runs[1].settings["sources"] == [str(root.resolve() / str(first.runs[0].run))]
    alone(second, root, folder)
    second.save(folder)
    assert len(load_findings(folder, root).outcomes) == 2


def test_nothing_starts_from_a_source_that_diverged(tmp_path: Path, cli: Cli) -> None:
    rows = [
        {"name": "Head", "method": "head-only"},
        {"name": "SPoT", "method": "spot", "settings": {"num_virtual_tokens": 3}, "sources": ["Second"]},
    ]
    wild = {"Second": {**SOURCES["Second"], "training": {"max_steps": 9, "learning_rate": 1e38, "max_grad_norm": None}}}
    path = write_grid(tmp_path / "recipe", rows=rows, sources=wild, seeds=[0])
    done = warm.run(command(path, tmp_path / "runs", "--workers", "1"))
    assert done.returncode == 2 and "source Second on Second, Tiny, seed 0 diverged" in done.stderr
    assert "(2 more start from them)" in done.stderr and "Head" in done.stdout
    assert "2 waiting for a source" in cli.fine("bench", "status", path, "--out", tmp_path / "runs").out


def test_a_run_that_fails_is_noted_and_the_others_of_its_job_get_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_grid(tmp_path, seeds=[0]))
    root, folder = tmp_path / "runs", tmp_path / "bench"
    made = plan(recipe, root=root)
    made.save(folder)
    from softprompts.experiments.attached_backbone import AttachedBackbone

    real = AttachedBackbone.add

    def broken(self: Any, name: str, method: Any, task: Any, seed: int) -> None:
        if method.method == "prefix-tuning":
            raise RuntimeError("no luck")
        real(self, name, method, task, seed)

    monkeypatch.setattr(AttachedBackbone, "add", broken)
    alone(made, root, folder)
    findings = load_findings(folder, root)
    assert {one.row.name for one in findings.outcomes} == {"Head"} and findings.missing == 2
    assert set(findings.failed.values()) == {"RuntimeError: no luck"} and len(findings.failed) == 2
    monkeypatch.undo()
    alone(made, root, folder)
    assert load_findings(folder, root).missing == 0 and not load_findings(folder, root).failed


def test_costs_are_measured_once_and_written(tmp_path: Path) -> None:
    path = write_grid(tmp_path, measure="cost", cost={"steps": 3, "warmup_steps": 2}, seeds=[0])
    recipe = load_recipe(path)
    root, folder = tmp_path / "runs", tmp_path / "bench"
    made = plan(recipe, root=root)
    made.save(folder)
    assert [len(job.runs) for job in made.jobs(root)] == [1, 1, 1, 1]
    alone(made, root, folder)
    findings = load_findings(folder, root)
    for one in findings.outcomes:
        cost = one.result["cost"]
        assert cost["steps"] == 3 and cost["warmup_steps"] == 2 and cost["seconds_per_100_steps"] > 0
        assert cost["peak_memory"] >= cost["memory_before"] * 0.9 and cost["tokens"] > 3
        assert not (one.folder / "prompt").exists()
    assert not made.jobs(root)
    scored = plan(load_recipe(write_grid(tmp_path, seeds=[0])), root=root)
    assert not {one.run for one in scored.runs} & {one.run for one in made.runs}
    tables, _ = write_outputs(folder, root)
    assert len(tables) == 2 and "GB" in tables[1].markdown()


def test_locks_end_with_their_process(tmp_path: Path) -> None:
    assert not is_held(tmp_path, "a")
    with locked(tmp_path, ["b", "a"]):
        held = subprocess.run(
            [sys.executable, "-c", _ASK, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout
        assert held == "True True\n"
    assert not is_held(tmp_path, "a")


_ASK = """
import fcntl, sys
def held(name):
    with open(f"{sys.argv[1]}/.locks/{name}", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
print(held("a"), held("b"))
"""


def test_damaged_and_missing_plans_are_named(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="holds no bench"):
        load_plan(tmp_path)
    for text in ("{", "{}", "[]"):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(SoftPromptError, match=r"plan\.json is damaged"):
            load_plan(tmp_path)


def command(recipe: Path, root: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "softprompts", "bench", "run", str(recipe), "--out", str(root), *more]


def tables(recipe: Path, root: Path) -> dict[str, str]:
    folder = bench_folder(root, recipe.stem, "")
    return {path.name: path.read_text() for path in sorted(folder.glob("tables.*"))}


def scores(root: Path) -> dict[str, Any]:
    return {
        path.parent.name: [json.loads(path.read_text())[key] for key in ("metrics", "test_metrics", "best_step")]
        for path in root.glob("*/result.json")
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and the run folders of its undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_grid(folder / "recipe", training={"max_steps": 20, "batch_size": 8, "eval_every": 4})
    own = {**os.environ, "SOFTPROMPTS_CACHE": "off", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    done = warm.run(command(recipe, folder / "runs", "--workers", "2", "--lanes", "2"), own)
    assert done.returncode == 0, done.stderr
    (folder / "runs" / "seconds").write_text(str(time.monotonic() - began))
    assert "[8/8]" in done.stderr and "report:" in done.stdout
    return recipe, folder / "runs"


def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path, undisturbed: tuple[Path, Path]) -> None:
    recipe, there = undisturbed
    root = tmp_path / "runs"
    chance = random.Random(20)
    whole = min(20.0, float((there / "seconds").read_text()))  # on a busy machine it would take minutes
    kills = 0
    while kills < 10:
        process = warm.Warm(command(recipe, root, "--workers", "1", "--lanes", "2"))
        try:
            process.wait(chance.uniform(0.2, 0.8) * whole)
        except subprocess.TimeoutExpired:
            kills += 1
            victims = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            # The command, one of its workers, or all of them.
            chosen = [victims[:1], victims[-1:], victims][kills % 3]
            for victim in chosen:
                victim.send_signal(signal.SIGKILL)
            if chosen == victims[-1:]:
                process.kill()
            process.wait()
        else:  # done before it could be killed: from the beginning
            shutil.rmtree(root)
    done = warm.run(command(recipe, root, "--workers", "2", "--lanes", "2"))
    assert done.returncode == 0, done.stderr
    assert tables(recipe, root) == tables(recipe, there)
    assert scores(root) == scores(there)


def test_a_lost_worker_is_replaced_while_the_command_goes_on(tmp_path: Path, undisturbed: tuple[Path, Path]) -> None:
    recipe, there = undisturbed
    root = tmp_path / "runs"
    done = warm.run([sys.executable, "-c", _LOST.format(recipe=str(recipe), root=str(root))])
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] and told["done"] == told["total"] == 8 and not told["failed"]
    write_outputs(bench_folder(root, "grid", ""), root)
    assert tables(recipe, root) == tables(recipe, there)


_LOST = """
import json, psutil
from pathlib import Path
from softprompts.bench.recipe_file import load_recipe
from softprompts.bench.runner import run_recipe
killed = []
def kill(state, fresh):
    if list(Path({root!r}).glob("*/metrics.jsonl")) and not killed:
        worker, *_ = psutil.Process().children()
        killed.append(worker.pid)
        worker.kill()
state = run_recipe(load_recipe({recipe!r}), root={root!r}, workers=2, lanes=2, on_change=kill)
print(json.dumps({{"killed": killed, "done": state.done, "total": state.total, "failed": state.failed}}))
"""


def test_through_ray_with_a_worker_killed_on_the_way(tmp_path: Path, undisturbed: tuple[Path, Path]) -> None:
    pytest.importorskip("ray")
    recipe, there = undisturbed
    root = tmp_path / "runs"
    code = _RAY.format(recipe=str(recipe), root=str(root))
    own = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = warm.run([sys.executable, "-c", code], own)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] and told["done"] == 8 and not told["failed"]
    write_outputs(bench_folder(root, "grid", ""), root)
    assert tables(recipe, root) == tables(recipe, there)
    assert scores(root) == scores(there)


# In a process of its own: Ray changes signal handlers and leaves threads behind.
_RAY = """
import json, os, signal
from pathlib import Path
from softprompts.bench import runner, worker_pools
from softprompts.bench.recipe_file import load_recipe
pools, killed = [], []
class Seen(worker_pools.RayWorkers):
    def __init__(self, *given):
        super().__init__(*given)
        pools.append(self)
runner.RayWorkers = Seen
def change(state, fresh):
    if list(Path({root!r}).glob("*/metrics.jsonl")) and not killed:
        at_work = [place for place, _ in pools[0]._at_work.values()]
        killed.append(pools[0]._ray.get(pools[0]._pids[at_work[0]]))
        os.kill(killed[0], signal.SIGKILL)
state = runner.run_recipe(load_recipe({recipe!r}), root={root!r}, engine="ray", workers=2, lanes=2, on_change=change)
print(json.dumps({{"killed": killed, "done": state.done, "failed": state.failed}}))
"""


def test_two_processes_train_a_run_together(tmp_path: Path, undisturbed: tuple[Path, Path]) -> None:
    recipe, there = undisturbed
    root = Path(shutil.copytree(there, tmp_path / "runs"))
    results = {path.parent: json.loads(path.read_text()) for path in root.glob("*/result.json")}
    again = [folder for folder, one in results.items() if (one["task"], one["seed"]) == ("second", 1)]
    assert len(again) == 2
    for folder in again:
        shutil.rmtree(folder)
    done = warm.run(command(recipe, root, "--workers", "1", "--lanes", "8", "--processes", "2"))
    assert done.returncode == 0, done.stderr
    assert scores(root) == scores(there)


def test_ctrl_c_stops_with_checkpoints_and_the_same_command_goes_on(
    tmp_path: Path, undisturbed: tuple[Path, Path]
) -> None:
    recipe, there = undisturbed
    root = tmp_path / "runs"
    process = warm.Warm(command(recipe, root, "--workers", "1", "--lanes", "2"))
    while not list(root.glob("*/metrics.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130 and "the same command goes on from there" in told and "Traceback" not in told
    assert list(root.glob("*/checkpoint/lane.pt"))
    state = read_state(bench_folder(root, "grid", ""), root)
    assert 0 <= state.done < state.total == 8 and not state.running and not state.failed
    assert warm.run(command(recipe, root, "--workers", "2", "--lanes", "2")).returncode == 0
    assert tables(recipe, root) == tables(recipe, there)


def test_what_is_done_is_not_done_again_and_status_and_report_read_it(
    undisturbed: tuple[Path, Path], tmp_path: Path, cli: Cli
) -> None:
    recipe, there = undisturbed
    root = Path(shutil.copytree(there, tmp_path / "runs"))
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/result.json")}
    told = cli.fine("bench", "run", recipe, "--out", root)
    assert "8 runs, 8 of them done already" in told.err and "A small grid" in told.out
    assert before == {path: path.stat().st_mtime_ns for path in root.glob("*/result.json")}
    assert "8 of 8 runs done" in cli.fine("bench", "status", recipe, "--out", root).out
    next(iter(before)).unlink()
    assert "7 of 8 runs done" in cli.fine("bench", "status", recipe, "--out", root).out
    assert "1 run" in cli.fine("bench", "report", recipe, "--out", root).out
    assert len(list(before)) == 8 and run_folder.is_done(list(before)[1].parent)


def test_a_second_command_on_the_same_bench_is_refused(tmp_path: Path, cli: Cli) -> None:
    recipe, root = write_grid(tmp_path / "recipe"), tmp_path / "runs"
    with locked(bench_folder(root, "grid", ""), ["bench"]):
        done = cli("bench", "run", recipe, "--out", root)
    assert done.code == 2 and "another process is at work on this bench" in done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["bench", "run", "nothing"], "unknown recipe 'nothing'"),
        (["bench", "run", "GRID", "--scale", "big"], "unknown scale 'big'"),
        (["bench", "run", "GRID", "--set", "training.max_step=3"], "did you mean 'max_steps'"),
        (["bench", "run", "GRID", "--set", "x"], "write NAME=VALUE"),
        (["bench", "run", "GRID", "--engine", "slurm"], "unknown engine 'slurm'"),
        (["bench", "run", "GRID", "--engine", "ray", "--processes", "2"], "trains a run in one process"),
        (["bench", "run", "GRID", "--seeds", "a"], "not a whole number"),
        (["bench", "status", "GRID"], "holds no bench"),
        (["bench", "report", "GRID"], "holds no bench"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, cli: Cli, arguments: list[str], told: str) -> None:
    grid = write_grid(tmp_path / "recipe")
    done = cli(*(str(grid) if one == "GRID" else one for one in arguments), "--out", str(tmp_path / "runs"))
    assert done.code == 2 and told in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/config.yaml"))
