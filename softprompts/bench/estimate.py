"""What a bench is going to take: runs, jobs and steps by its plan, hours by a few steps that are measured here.

A step of training is measured for each kind of run, as recipes that measure cost do it
(`softprompts.training.step_cost`): one run at a time, every batch padded to the task's longest row. Evaluations come on
top; runs that share passes take less. Nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from softprompts.bench.overview import require_data
from softprompts.bench.plan import Planned, plan, unique_runs
from softprompts.bench.recipe import Recipe
from softprompts.bench.worker_process import Worker
from softprompts.errors import SoftPromptError
from softprompts.experiments.run_record import Run
from softprompts.methods import make_config
from softprompts.storage.files import require_folder
from softprompts.training import TrainConfig

MEASURED: Mapping[str, int] = {"steps": 5, "warmup_steps": 2}


@dataclass(frozen=True)
class RunKind:
    """Runs whose steps cost the same: one model, task, method, batch and number of prompt tokens in the input.

    Attributes:
        model: its short name.
        task: name of the recipe's entry, or of the source.
        method: its name.
        batch: rows of a step.
        length: tokens that batches are padded to; where no step is measured, most tokens of an input.
        runs: how many there are without a result.
        steps: of all of them together.
        seconds_per_step: None where no step can be measured.
        assumed: the seconds are those of another kind.
    """

    model: str
    task: str
    method: str
    batch: int
    length: int
    runs: int
    steps: int
    seconds_per_step: float | None = None
    assumed: bool = False

    @property
    def hours(self) -> float | None:
        """Of all steps, one run after the other."""
        return None if self.seconds_per_step is None else self.steps * self.seconds_per_step / 3600


@dataclass(frozen=True)
class Estimate:
    """What is left to do of a recipe.

    Attributes:
        runs: different runs of the recipe.
        done: those with a result.
        jobs: jobs of the others, those that wait for a source left out.
        waiting: runs that start from a source that is not trained, or follow a search.
        kinds: the runs without a result.
        device: what steps were measured on; None where none could be.
        notes: what could not be measured, and why.
    """

    runs: int
    done: int
    jobs: int
    waiting: int
    kinds: tuple[RunKind, ...]
    device: str | None
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Of all runs without a result."""
        return sum(kind.steps for kind in self.kinds)

    @property
    def hours(self) -> float | None:
        """Of one worker; None unless the steps of all runs are known."""
        hours = [kind.hours for kind in self.kinds]
        return None if None in hours else sum(one for one in hours if one is not None)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        kinds = [{**asdict(kind), "hours": kind.hours} for kind in self.kinds]
        return {**asdict(self), "steps": self.steps, "hours": self.hours, "kinds": kinds}


def estimate(
    recipe: Recipe,
    *,
    root: str | Path = "runs",
    data_dir: str | None = None,
    lanes: int | None = None,
    on_measure: Callable[[RunKind], None] | None = None,
) -> Estimate:
    """Plans a recipe and measures what a step of each kind of run takes on this machine.

    Args:
        recipe: the recipe.
        root: where run folders live; runs that have a result there count as done.
        data_dir: folder with a local copy of the tasks' data; None: the hub.
        lanes: runs that share a pass; None: `softprompts.bench.plan.LANES`.
        on_measure: called before each measurement.

    Raises:
        SoftPromptError: a task's data is not there.
    """
    require_folder(root, "runs")
    require_data(recipe, data_dir)
    planned = plan(recipe, root=root, data_dir=data_dir, lanes=lanes)
    runs = unique_runs(planned.runs)
    left = [one for one in runs if one.run is None or not planned.is_done(root, one.run)]
    groups: dict[tuple[Any, ...], list[Planned]] = {}
    for one in left:
        groups.setdefault(_key(one), []).append(one)
    meter = _Meter(root)
    kinds = []
    for group in groups.values():
        kind = _kind(recipe, group)
        if group[0].run is not None:
            if on_measure is not None:
                on_measure(kind)
            kind = meter.measured(kind, group[0])
        kinds.append(kind)
    return Estimate(
        runs=len(runs),
        done=len(runs) - len(left),
        jobs=len(planned.jobs(root)),
        waiting=sum(one.run is None for one in left),
        kinds=tuple(
            _filled(kind, kinds, waits=group[0].run is None) for kind, group in zip(kinds, groups.values(), strict=True)
        ),
        device=meter.device,
        notes=tuple(meter.notes),
    )


def _key(one: Planned) -> tuple[Any, ...]:
    """What decides the cost of a run's step: of runs that could share a job, the method and rows of a step."""
    return json.dumps(one.workbench, sort_keys=True), one.group, one.method, one.batch


def _kind(recipe: Recipe, group: list[Planned]) -> RunKind:
    cell = group[0].cell
    steps = sum(one.steps for one in group)
    length = recipe.length_of(cell)
    return RunKind(cell.model, cell.source or cell.task, group[0].method, group[0].batch, length, len(group), steps)


def _filled(kind: RunKind, kinds: list[RunKind], *, waits: bool) -> RunKind:
    """A kind that waits for sources, with the seconds of the dearest one on its model."""
    known = [one.seconds_per_step for one in kinds if one.model == kind.model and one.seconds_per_step is not None]
    return replace(kind, seconds_per_step=max(known), assumed=True) if waits and known else kind


class _Meter:
    """Measures steps; keeps backbone and task from one measurement to the next."""

    def __init__(self, root: str | Path):
        self.worker = Worker(root, root)
        self.device: str | None = None
        self.notes: list[str] = []
        self._missing: set[str] = set()  # models that cannot be loaded

    def measured(self, kind: RunKind, one: Planned) -> RunKind:
        """The kind with the seconds of a run's step, and as it was where they cannot be had."""
        if kind.model in self._missing:
            return kind
        try:
            workbench = self.worker.open(one.workbench)
        except SoftPromptError as error:
            self._missing.add(kind.model)
            self.notes.append(f"{kind.model} is not measured: {error}")
            return kind
        try:
            run = Run(make_config(one.method, **one.settings), TrainConfig.from_dict(one.training))
            result = workbench.cost(run, **MEASURED)
        except SoftPromptError as error:
            self.notes.append(f"{one.cell} is not measured: {error}")
            return kind
        self.device, cost = result["device"], result["cost"]
        return replace(kind, length=cost["tokens"], seconds_per_step=cost["seconds_per_100_steps"] / 100)
