"""From a recipe to runs with ids, and from runs to jobs: those of a job share the passes of one backbone.

Planning loads tasks, whose rows are part of a run's id, but no model. What shares a pass is fixed here, by the recipe
alone: a grid that was interrupted goes on with the same company in every pass, and so to the same bits.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softprompts.bench.recipe import Cell, Recipe, source_names
from softprompts.bench.recipe_file import read_recipe
from softprompts.errors import SoftPromptError
from softprompts.experiments.workbench import Run, resolved, shared_by
from softprompts.methods import make_config
from softprompts.storage import run_folder
from softprompts.storage.files import write_json_atomic
from softprompts.tasks.data import Data, rows_identity
from softprompts.training import run_id

LANES = 8  # runs of a job where nothing else is said; a step that does not fit goes through them in several passes
PLAN = "plan.json"
FAILURES = "failures"


@dataclass(frozen=True)
class Planned:
    """A run of the grid.

    Attributes:
        cell: what it is.
        run: its id, the name of its folder; None while a source that it starts from is not trained.
        bench: what its `Workbench` is made of, as plain values.
        method: name of the method.
        settings: of the method.
        training: fields of `TrainConfig`.
        company: only runs with the same company share a job.
        work: about how much there is to do, to tell how long is left.
        cost: timed and warm-up steps where it measures cost; empty where it trains.
    """

    cell: Cell
    run: str | None
    bench: Mapping[str, Any]
    method: str
    settings: Mapping[str, Any]
    training: Mapping[str, Any]
    company: str
    work: float
    cost: Mapping[str, int]


@dataclass(frozen=True)
class Job:
    """Runs that one worker trains together.

    Attributes:
        runs: none of them twice.
    """

    runs: tuple[Planned, ...]

    @property
    def name(self) -> str:
        """A short hash of its runs."""
        return hashlib.sha256(" ".join(str(run.run) for run in self.runs).encode()).hexdigest()[:12]

    @property
    def bench(self) -> str:
        """What its backbone and task are, to give jobs of the same ones to the same worker."""
        return json.dumps(self.runs[0].bench, sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """What a worker needs, as plain JSON values."""
        first = self.runs[0]
        return {
            "name": self.name,
            "bench": dict(first.bench),
            "cost": dict(first.cost),
            "runs": [
                {"run": run.run, "method": run.method, "settings": dict(run.settings), "training": dict(run.training)}
                for run in self.runs
            ],
        }


@dataclass(frozen=True)
class Plan:
    """All runs of a recipe.

    Attributes:
        recipe: what was asked for.
        runs: sources first.
        lanes: most runs of a job.
    """

    recipe: Recipe
    runs: tuple[Planned, ...]
    lanes: int = LANES

    def jobs(self, root: str | Path) -> list[Job]:
        """What is left to do, of what can be done by now.

        A job is there while any of its runs is not done; its company is that of the whole plan, done or not.
        """
        groups: dict[str, dict[str, Planned]] = {}
        for planned in self.runs:
            if planned.run is not None:
                groups.setdefault(planned.company, {}).setdefault(planned.run, planned)
        found = []
        for group in groups.values():
            members = list(group.values())
            size = 1 if members[0].cost else self.lanes
            # As many jobs as it takes, of like size.
            count = -(-len(members) // size)
            at = [round(part * len(members) / count) for part in range(count + 1)]
            found += [Job(tuple(members[one:end])) for one, end in itertools.pairwise(at)]
        return [job for job in found if not all(run_folder.is_done(Path(root) / str(run.run)) for run in job.runs)]

    def save(self, folder: str | Path) -> None:
        """Writes it into the bench's folder, for `load_plan`."""
        cells = [
            {
                "row": one.cell.row.label,
                "task": one.cell.task,
                "model": one.cell.model,
                "seed": one.cell.seed,
                "choice": dict(one.cell.choice),
                "source": one.cell.source,
                "run": one.run,
            }
            for one in self.runs
        ]
        recipe = self.recipe
        write_json_atomic(
            Path(folder) / PLAN,
            {
                "name": recipe.name,
                "scale": recipe.scale,
                "variant": recipe.variant,
                "same_setting": recipe.same_setting,
                "recipe": recipe.plain,
                "cells": cells,
            },
        )


@dataclass(frozen=True)
class Known:
    """A run as a saved plan knows it: its cell, and its id (None: it waits for a source)."""

    cell: Cell
    run: str | None


def load_plan(folder: str | Path) -> tuple[Recipe, list[Known]]:
    """The recipe and the runs of a bench's folder.

    Raises:
        SoftPromptError: there is no plan, or it cannot be read.
    """
    path = Path(folder) / PLAN
    if not path.is_file():
        raise SoftPromptError(f"{folder} holds no bench ({PLAN} is missing); start it with 'softprompts bench run'")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        recipe = read_recipe(
            plain["recipe"],
            name=plain["name"],
            scale=plain["scale"],
            same_setting=plain["same_setting"],
            path=path,
            variant=plain["variant"],
        )
        cells = {_key(cell): cell for cell in (*recipe.source_cells(), *recipe.cells())}
        found = [Known(cells[_key_of(one)], one["run"]) for one in plain["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, SoftPromptError):
            raise
        raise SoftPromptError(f"{path} is damaged ({error}); run the bench again") from error
    return recipe, found


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
        recipe: what is wanted.
        root: where run folders live, to find the prompts of sources.
        data_dir: folder with a local copy of the tasks' data; None: the hub.
        lanes: most runs that share a job; None: `LANES`.
        outlines: what is known of tasks from an earlier call; it is added to.

    Raises:
        SoftPromptError: data that cannot be had.
    """
    seen = {} if outlines is None else outlines
    prompts: dict[tuple[str, str], str | None] = {}
    found = []
    for cell in recipe.source_cells():
        planned = _planned(recipe, cell, {}, data_dir, seen)
        found.append(planned)
        folder = Path(root).resolve() / str(planned.run)  # a worker may be in another folder
        # One that diverged has nothing to start from: what waits for it goes on waiting, and `diverged` tells.
        usable = run_folder.is_done(folder) and not diverged(folder)
        prompts[cell.model, str(cell.source)] = str(folder) if usable else None
    for cell in recipe.cells():
        own = {name: folder for (model, name), folder in prompts.items() if model == cell.model}
        found.append(_planned(recipe, cell, own, data_dir, seen))
    return Plan(recipe, tuple(found), lanes or LANES)


def failures(folder: str | Path, left: Collection[str]) -> dict[str, str]:
    """By run id, the last line of what went wrong.

    Args:
        folder: the bench's folder.
        left: the runs that are asked about, those without a result: a note may be older than the plan, or than a
            result that another bench has come to.
    """
    found = {}
    for path in sorted((Path(folder) / FAILURES).glob("*.txt")):
        if path.stem not in left:
            continue
        lines = path.read_text(encoding="utf-8").strip().splitlines()
        found[path.stem] = lines[-1] if lines else "failed"
    return found


def diverged(folder: str | Path) -> bool:
    """Whether training of a run that is done broke off."""
    return run_folder.load_result(folder).get("stop_reason") == run_folder.DIVERGED


@dataclass(frozen=True)
class Outline:
    """What planning needs of a task, without its rows."""

    identity: Mapping[str, Any]
    tested: bool
    train_rows: int
    characters: float


def _planned(
    recipe: Recipe, cell: Cell, prompts: Mapping[str, str | None], data_dir: str | None, seen: dict[Data, Outline]
) -> Planned:
    data, training, length = recipe.data_of(cell, data_dir), recipe.training_of(cell), recipe.length_of(cell)
    if data not in seen:
        seen[data] = _outline(data)
    outline = seen[data]
    bench = {
        "model": recipe.models[cell.model],
        "data": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(data).items() if v is not None},
        "max_length": length,
        "evaluate": recipe.evaluate,
        **({"quantize": recipe.quantize} if recipe.quantize is not None else {}),
    }
    steps = training.max_steps or training.epochs * max(1, outline.train_rows // training.batch_size)
    cost: dict[str, int] = recipe.cost.model_dump() if recipe.measure == "cost" and cell.source is None else {}
    steps = sum(cost.values()) if cost else steps
    rows = training.batch_size * training.gradient_accumulation_steps
    work = steps * rows * min(length, 8 + outline.characters / 4)
    waits = any(folder is None for folder in (prompts.get(name) for name in source_names(cell.row.sources)))
    if waits:
        return Planned(cell, None, bench, cell.row.method, {}, {}, "", work, cost)
    settings = recipe.settings_of(cell, {name: str(folder) for name, folder in prompts.items()})
    method = make_config(cell.row.method, **settings)
    evaluate = recipe.evaluate or not outline.tested
    config = resolved(recipe.models[cell.model], outline.identity, method, training, length, evaluate, recipe.quantize)
    if cost:
        config = {**config, "cost": cost}
    company = json.dumps([bench, cost, shared_by(Run(method, training)), cell.source is not None], sort_keys=True)
    return Planned(cell, run_id(config), bench, cell.row.method, settings, training.to_dict(), company, work, cost)


def _outline(data: Data) -> Outline:
    task = data.load()
    some = task.train[:200]
    characters = statistics.fmean(sum(len(str(value)) for value in one.fields.values()) for one in some) if some else 0
    return Outline(rows_identity(data, task), bool(task.test), len(task.train), characters)


def _key(cell: Cell) -> str:
    return _text(cell.row.label, cell.task, cell.model, cell.seed, cell.choice, cell.source)


def _key_of(plain: Mapping[str, Any]) -> str:
    return _text(*(plain[name] for name in ("row", "task", "model", "seed", "choice", "source")))


def _text(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)
