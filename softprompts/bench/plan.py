"""From a recipe to runs with ids, and from runs to jobs: the runs of a job share the passes of one backbone.

Planning loads tasks, whose rows are part of a run's id, but no model. The recipe alone decides which runs share a pass:
a grid that was interrupted goes on with the same runs in every pass, and so comes to the same bits.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from softprompts.bench.recipe import Cell, Recipe
from softprompts.bench.recipe_file import read_recipe
from softprompts.bench.stages import staged_cells
from softprompts.errors import SoftPromptError
from softprompts.experiments.run_record import Run, resolved, shared_by
from softprompts.methods import make_config
from softprompts.methods.imports import imported
from softprompts.storage import run_folder
from softprompts.storage.files import read_json, write_json_atomic, write_text_atomic
from softprompts.tasks.data import Data, rows_identity
from softprompts.training import run_id

LANES = 8  # most runs of a job by default; a step whose memory is short trains them in several passes
PLAN = "plan.json"
FAILURES = "failures"
_FIELDS = ("name", "scale", "variant", "same_setting")  # of a recipe, beside its plain values


@dataclass(frozen=True)
class GridRun:
    """A run of the grid.

    Attributes:
        cell: its place in the recipe.
        run: its id, the name of its folder; None while what it follows from is not there: a source, or a search.
    """

    cell: Cell
    run: str | None


RunT = TypeVar("RunT", bound=GridRun)


@dataclass(frozen=True)
class Planned(GridRun):
    """A run of the grid with all that a worker needs.

    Attributes:
        workbench: what its `Workbench` is made of, as plain values.
        method: name of the method.
        settings: of the method.
        training: fields of `TrainConfig`.
        group: only runs of the same group share a job.
        batch: rows of a step.
        steps: number of steps.
        work: an estimate of the work in tokens, to tell how long is left.
        cost: timed and warm-up steps where it measures cost; empty where it trains.
        config: all that decides its numbers, of which its id is made.
    """

    workbench: Mapping[str, Any]
    method: str
    settings: Mapping[str, Any]
    training: Mapping[str, Any]
    group: str
    batch: int
    steps: int
    work: float
    cost: Mapping[str, int]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """Runs that one worker trains together, none of them twice."""

    runs: tuple[Planned, ...]

    @property
    def name(self) -> str:
        """A short hash of its runs."""
        return hashlib.sha256(" ".join(str(run.run) for run in self.runs).encode()).hexdigest()[:12]

    @property
    def workbench(self) -> str:
        """Its backbone and task as text: a worker gets jobs of the same ones."""
        return json.dumps(self.runs[0].workbench, sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """What a worker needs, as plain JSON values."""
        first = self.runs[0]
        return {
            "name": self.name,
            "workbench": dict(first.workbench),
            "cost": dict(first.cost),
            "imports": imported(),
            "runs": [
                {"run": run.run, "method": run.method, "settings": dict(run.settings), "training": dict(run.training)}
                for run in self.runs
            ],
        }


@dataclass(frozen=True)
class Plan:
    """All runs of a recipe.

    Attributes:
        recipe: the recipe.
        runs: sources first.
        lanes: most runs of a job.
        kept: by run id, result files in the recipe's ``results``.
    """

    recipe: Recipe
    runs: tuple[Planned, ...]
    lanes: int = LANES
    kept: Mapping[str, Path] = field(default_factory=dict)

    def is_done(self, root: str | Path, run: str) -> bool:
        """Whether a run has a result, in its folder or among those that are kept."""
        return run in self.kept or run_folder.is_done(Path(root) / run)

    def take_up(self, root: str | Path) -> None:
        """Makes run folders of the results that are kept, where there are none."""
        for one in unique_runs(self.runs):
            path = self.kept.get(str(one.run))
            if path is not None and not run_folder.is_done(Path(root) / str(one.run)):
                folder = run_folder.open_run(root, one.config, resume=True)
                write_json_atomic(folder / run_folder.RESULT, read_json(path))

    def jobs(self, root: str | Path) -> list[Job]:
        """The jobs that are not done, without those that wait for a source.

        A job is divided off whether its runs are done or not, and is done when all of them are.
        """
        groups: dict[str, dict[str, Planned]] = {}
        for planned in self.runs:
            if planned.run is not None:
                groups.setdefault(planned.group, {}).setdefault(planned.run, planned)
        jobs = []
        for group in groups.values():
            runs = list(group.values())
            count = -(-len(runs) // (1 if runs[0].cost else self.lanes))  # jobs of like size
            bounds = [round(part * len(runs) / count) for part in range(count + 1)]
            jobs += [Job(tuple(runs[start:end])) for start, end in itertools.pairwise(bounds)]
        return [job for job in jobs if not all(self.is_done(root, str(run.run)) for run in job.runs)]

    def save(self, folder: str | Path) -> None:
        """Writes it into the bench's folder, for `load_plan`."""
        recipe = self.recipe
        plain = {
            **{name: getattr(recipe, name) for name in _FIELDS},
            "recipe": recipe.plain,
            "cells": [{**_identity(planned.cell), "run": planned.run} for planned in self.runs],
        }
        write_json_atomic(Path(folder) / PLAN, plain)


def load_plan(folder: str | Path) -> tuple[Recipe, list[GridRun]]:
    """The recipe and the runs of a bench's folder.

    Raises:
        SoftPromptError: there is no plan, or it cannot be read.
    """
    path = Path(folder) / PLAN
    if not path.is_file():
        raise SoftPromptError(f"{folder} holds no bench ({PLAN} is missing); start it with 'softprompts bench run'")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: plain[name] for name in _FIELDS}
        recipe = read_recipe(plain["recipe"], path=path, **fields)
        return recipe, _grid_runs(recipe, plain["cells"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, SoftPromptError):
            raise
        raise SoftPromptError(f"{path} is damaged ({error}); run the bench again") from error


def load_kept(recipe: Recipe) -> list[GridRun]:
    """The runs of a recipe as they were planned when its results were collected last; empty if they never were.

    Raises:
        SoftPromptError: the recipe has other rows by now.
    """
    path = _kept_list(recipe)
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return _grid_runs(recipe, map(json.loads, lines))
    except (ValueError, KeyError, TypeError) as error:
        raise SoftPromptError(f"{path} is not of this recipe ({error}); collect its results again") from error


def _kept_list(recipe: Recipe) -> Path:
    """The file, beside kept results, with the runs of the plan, a line each."""
    if recipe.results is None:
        raise SoftPromptError(f"recipe '{recipe.name}' names no folder to keep results in; give it 'results: FOLDER'")
    name = "-".join(filter(None, ("runs", recipe.scale, recipe.variant)))
    return Path(recipe.results) / recipe.name.rpartition("/")[2] / f"{name}.jsonl"


def _grid_runs(recipe: Recipe, cells: Iterable[dict[str, Any]]) -> list[GridRun]:
    rows = {(cell.row.label, cell.model): cell.row for cell in (*recipe.source_cells(), *recipe.cells())}
    return [
        GridRun(Cell(row=rows[one.pop("row"), one["model"]], **one), run) for one in cells for run in [one.pop("run")]
    ]


def plan(
    recipe: Recipe,
    *,
    root: str | Path = "runs",
    data_dir: str | None = None,
    lanes: int | None = None,
    outlines: dict[Data, Outline] | None = None,
) -> Plan:
    """Finds the id of every run.

    Args:
        recipe: the recipe.
        root: where run folders live, to find the prompts of sources.
        data_dir: folder with a local copy of the tasks' data; None: the hub.
        lanes: most runs that share a job; None: `LANES`.
        outlines: of tasks, from an earlier call; those of new tasks are added.

    Raises:
        SoftPromptError: a task's data is not there.
    """
    outlines = {} if outlines is None else outlines
    prompts: dict[tuple[str, str], str | None] = {}
    runs = []
    kept = kept_results(recipe)

    def planned_of(cell: Cell, waits: bool = False) -> Planned:
        of_model = {name: folder for (model, name), folder in prompts.items() if model == cell.model}
        return _planned(recipe, cell, of_model, data_dir, outlines, waits)

    def result_of(cell: Cell) -> Mapping[str, Any] | None:
        run = str(planned_of(cell).run)
        if run_folder.is_done(Path(root) / run):
            return run_folder.load_result(Path(root) / run)
        return read_json(kept[run]) if run in kept else None

    for cell in recipe.source_cells():
        planned = planned_of(cell)
        runs.append(planned)
        folder = Path(root).resolve() / str(planned.run)  # a worker may be in another folder
        # Nothing can start from a source that diverged: runs go on waiting for it, and the bench's state says so.
        usable = run_folder.is_done(folder) and not diverged(folder)
        prompts[cell.model, str(cell.source)] = str(folder) if usable else None
    runs += [planned_of(cell, waits) for cell, waits in staged_cells(recipe, result_of)]
    ids = {one.run for one in runs}
    return Plan(recipe, tuple(runs), lanes or LANES, {run: path for run, path in kept.items() if run in ids})


def kept_results(recipe: Recipe) -> dict[str, Path]:
    """The result files in the recipe's ``results``, by run id."""
    paths = [] if recipe.results is None else sorted(Path(recipe.results).glob(f"*/*/{run_folder.RESULT}"))
    return {path.parent.name: path for path in paths}


def keep_results(folder: str | Path, root: str | Path, prune: bool = False) -> list[Path]:
    """Copies the results of a bench, without those kept already, into its recipe's ``results``, and lists its runs.

    Args:
        folder: the bench's folder.
        root: where run folders live.
        prune: delete checkpoints and prompts of runs whose results are kept.

    Raises:
        SoftPromptError: there is no bench, or its recipe names no folder of results.
    """
    recipe, runs = load_plan(folder)
    kept, written, listed = kept_results(recipe), [], _kept_list(recipe)
    for run in dict.fromkeys(one.run for one in runs if one.run is not None and one.run not in kept):
        if run_folder.is_done(Path(root) / run):
            written.append(listed.parent / run / run_folder.RESULT)
            write_json_atomic(written[-1], run_folder.load_result(Path(root) / run))
    cells = ({**_identity(one.cell), "run": one.run} for one in runs)
    write_text_atomic(listed, "".join(f"{json.dumps(cell)}\n" for cell in cells))
    if prune:
        for run in {*kept, *(path.parent.name for path in written)} & {
            one.run for one in runs if one.cell.source is None
        }:
            for part in (run_folder.CHECKPOINT, run_folder.PROMPT):
                if run_folder.is_done(Path(root) / run):
                    shutil.rmtree(Path(root) / run / part, ignore_errors=True)
    return written


def failures(folder: str | Path, left: Collection[str]) -> dict[str, str]:
    """Why runs failed: by run id, the last line of its note.

    Args:
        folder: the bench's folder.
        left: ids of the runs without a result. Notes of other runs are older than the plan, or than a result that
            another bench has come to.
    """
    paths = [path for path in sorted((Path(folder) / FAILURES).glob("*.txt")) if path.stem in left]
    return {path.stem: ["failed", *path.read_text(encoding="utf-8").strip().splitlines()][-1] for path in paths}


def unique_runs(planned: Sequence[RunT]) -> list[RunT]:
    """The runs of a plan, each once; those without an id are different."""
    runs: dict[Any, RunT] = {}
    for index, one in enumerate(planned):
        runs.setdefault(one.run or index, one)
    return list(runs.values())


def diverged(folder: str | Path) -> bool:
    """Whether training of a run that is done broke off."""
    return run_folder.load_result(folder).get("stop_reason") == run_folder.DIVERGED


@dataclass(frozen=True)
class Outline:
    """What planning needs to know of a task, without its rows.

    Attributes:
        identity: of its rows, for a run's id.
        tested: whether it has test rows.
        train_rows: number of training rows.
        characters: mean length of a row.
    """

    identity: Mapping[str, Any]
    tested: bool
    train_rows: int
    characters: float


def _planned(
    recipe: Recipe,
    cell: Cell,
    prompts: Mapping[str, str | None],
    data_dir: str | None,
    outlines: dict[Data, Outline],
    waits: bool,
) -> Planned:
    data, training, length = recipe.data_of(cell, data_dir), recipe.training_of(cell), recipe.length_of(cell)
    outline = outlines[data] = outlines.get(data) or _outline(data)
    workbench = {
        "model": recipe.models[cell.model],
        "data": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(data).items() if v is not None},
        "max_length": length,
        "evaluate": recipe.evaluates(cell),
        **({"quantize": recipe.quantize} if recipe.quantize is not None else {}),
    }
    cost: dict[str, int] = recipe.cost.model_dump() if recipe.measure == "cost" and cell.source is None else {}
    rows = training.batch_size * training.gradient_accumulation_steps
    steps = training.max_steps or training.epochs * max(1, -(-outline.train_rows // rows))
    steps = sum(cost.values()) if cost else steps
    work = steps * rows * min(length, 8 + outline.characters / 4)
    if waits or any(prompts.get(name) is None for name in cell.row.source_names):
        return Planned(cell, None, workbench, cell.row.method, {}, {}, "", rows, steps, work, cost, {})
    settings = recipe.settings_of(cell, {name: str(folder) for name, folder in prompts.items()})
    method = make_config(cell.row.method, **settings)
    evaluate = recipe.evaluates(cell) or not outline.tested
    config = resolved(recipe.models[cell.model], outline.identity, method, training, length, evaluate, recipe.quantize)
    if cost:
        config = {**config, "cost": cost}
    alike = [workbench, cost, shared_by(Run(method, training)), cell.source is not None]
    if recipe.search is not None or recipe.more_seeds is not None:  # runs that come later must not change the jobs
        alike += [cell.row.label, cell.search, cell.seed in recipe.seeds]
    of_run = (cell.row.method, settings, training.to_dict(), json.dumps(alike, sort_keys=True), rows, steps, work, cost)
    return Planned(cell, run_id(config), workbench, *of_run, config)


def _outline(data: Data) -> Outline:
    task = data.load()
    some = task.train[:200]
    characters = statistics.fmean(sum(len(str(value)) for value in one.fields.values()) for one in some) if some else 0
    return Outline(rows_identity(data, task), bool(task.test), len(task.train), characters)


def _identity(cell: Cell) -> dict[str, Any]:
    """What tells a cell from the others of its recipe, as plain values."""
    fields = {name: getattr(cell, name) for name in ("task", "model", "seed", "source", "search")}
    return {"row": cell.row.label, "choice": dict(cell.choice), **fields}
