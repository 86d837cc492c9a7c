"""What a bench is said to take: steps by the plan, hours by measured steps, and what cannot be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench.grids import TRAINING, write_grid
from saved import files_below, model_folder

from softprompts.bench.estimate import MEASURED, Estimate, estimate
from softprompts.bench.plan import plan
from softprompts.bench.recipe_file import load_recipe
from softprompts.bench.worker_process import Worker
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.storage import run_folder

SECONDS = {"head-only": 0.1, "prefix-tuning": 0.3, "prompt-tuning": 0.2}


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPTS_CACHE", "off")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Measurements in place of real ones: method and task of each, in their order."""
    asked: list[tuple[str, str]] = []

    def cost(workbench: Workbench, run: Run, **steps: int) -> dict[str, Any]:
        assert steps == MEASURED
        asked.append((run.method.method, workbench.task.name))
        return {"device": "a clock", "cost": {"seconds_per_100_steps": 100 * SECONDS[run.method.method], "tokens": 7}}

    monkeypatch.setattr(Workbench, "cost", cost)
    return asked


def test_hours_are_steps_times_the_seconds_of_each_method(tmp_path: Path, measured: list[tuple[str, str]]) -> None:
    training = {"epochs": 3, "batch_size": 3, "gradient_accumulation_steps": 3}
    recipe = load_recipe(write_grid(tmp_path, training=training))
    found = estimate(recipe, root=tmp_path / "runs")
    steps = 3 * 4  # 32 rows in batches of 9: three whole ones and a rest
    assert measured == [(m, t) for t in ("first", "second") for m in ("head-only", "prefix-tuning")]
    assert (found.runs, found.done, found.waiting, found.steps, found.device) == (8, 0, 0, 8 * steps, "a clock")
    assert [(kind.batch, kind.length, kind.runs, kind.steps) for kind in found.kinds] == [(9, 7, 2, 2 * steps)] * 4
    assert found.hours == pytest.approx(4 * steps * (0.1 + 0.3) / 3600)
    assert found.jobs == len(plan(recipe, root=tmp_path / "runs").jobs(tmp_path / "runs"))


def test_steps_are_those_that_training_takes(tmp_path: Path) -> None:
    training = {"epochs": 2, "batch_size": 3, "gradient_accumulation_steps": 3}
    rows = [{"name": "Head", "method": "head-only"}]
    recipe = load_recipe(write_grid(tmp_path, training=training, rows=rows, seeds=[0]))
    planned = plan(recipe, root=tmp_path / "runs")
    job = planned.jobs(tmp_path / "runs")[0]
    Worker(tmp_path / "runs", tmp_path / "bench").work(job.to_dict())
    assert run_folder.load_result(tmp_path / "runs" / str(job.runs[0].run))["steps"] == job.runs[0].steps == 8


def test_what_has_a_result_takes_nothing(tmp_path: Path, measured: list[tuple[str, str]]) -> None:
    recipe, root = load_recipe(write_grid(tmp_path)), tmp_path / "runs"
    for one in plan(recipe, root=root).runs:
        if one.cell.task == "First":
            (root / str(one.run)).mkdir(parents=True)
            (root / str(one.run) / run_folder.RESULT).write_text("{}")
    found = estimate(recipe, root=root)
    assert (found.runs, found.done, found.steps) == (8, 4, 4 * TRAINING["max_steps"])
    assert {task for _, task in measured} == {"second"}
    assert {kind.task for kind in found.kinds} == {"Second"}


def test_runs_that_wait_for_sources_are_counted_at_the_dearest_step(
    tmp_path: Path, measured: list[tuple[str, str]]
) -> None:
    sources = {"Second": {"task": "second.yaml", "method": "prompt-tuning", "training": {"max_steps": 2}}}
    rows = [
        {"name": "Head", "method": "head-only"},
        {"name": "Moved", "method": "spot", "sources": ["Second"]},
    ]
    recipe = load_recipe(write_grid(tmp_path, rows=rows, sources=sources, seeds=[0]))
    found = estimate(recipe, root=tmp_path / "runs")
    moved = [kind for kind in found.kinds if kind.method == "spot"]
    assert found.waiting == 2 and {method for method, _ in measured} == {"prompt-tuning", "head-only"}
    assert [(kind.seconds_per_step, kind.assumed, kind.steps) for kind in moved] == [(0.2, True, 8)] * 2
    assert found.hours == pytest.approx((2 * 0.2 + 2 * 8 * 0.1 + 2 * 8 * 0.2) / 3600)


def test_a_model_that_is_not_there_leaves_runs_and_steps(tmp_path: Path, measured: list[tuple[str, str]]) -> None:
    models = {"Tiny": model_folder("bert"), "Gone": str(tmp_path / "gone")}
    found = estimate(load_recipe(write_grid(tmp_path, models=models)), root=tmp_path / "runs")
    assert len(measured) == 4 and found.runs == 16 and found.steps == 16 * TRAINING["max_steps"]
    assert found.hours is None and {kind.model for kind in found.kinds if kind.hours is None} == {"Gone"}
    (note,) = found.notes
    assert note.startswith("Gone is not measured: no such model")


def test_a_method_that_does_not_fit_is_named(tmp_path: Path) -> None:
    rows = [{"name": "Long", "method": "prompt-tuning", "settings": {"num_virtual_tokens": 39}}]
    found = estimate(load_recipe(write_grid(tmp_path, rows=rows, seeds=[0])), root=tmp_path / "runs")
    assert found.hours is None and found.device is None and len(found.notes) == 2
    assert found.notes[0].startswith("Long on First, Tiny, seed 0 is not measured: prompt-tuning: 39 virtual tokens")


def test_steps_are_measured_and_nothing_is_written(tmp_path: Path) -> None:
    recipe = load_recipe(write_grid(tmp_path, seeds=[0]))
    before = files_below(tmp_path)
    found: Estimate = estimate(recipe, root=tmp_path / "runs")
    assert files_below(tmp_path) == before
    assert all(kind.seconds_per_step and kind.length < recipe.max_length for kind in found.kinds)
    assert found.hours and not found.notes and found.to_dict()["hours"] == found.hours
