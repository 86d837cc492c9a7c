"""What a recipe is and takes, by what is known without a model and without training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompts.bench.plan import GridRun, kept_results, load_kept, plan, unique_runs
from softprompts.bench.recipe import Recipe
from softprompts.errors import SoftPromptError
from softprompts.storage import run_folder
from softprompts.storage.files import read_json
from softprompts.tasks.catalog import check_data


@dataclass(frozen=True)
class Overview:
    """What is known of a recipe.

    Attributes:
        tasks: the data sets that its runs use, by their names in the recipe.
        missing: of those whose data are not there, why.
        runs: number of runs; without data those that results may ask for are left out.
        done: those with a result.
        steps: of all runs; None where data are missing and decide it.
        seconds: of all runs, as long as runs of the same row on the same task took; None where there is none to go by.
        known: share of the runs that ``seconds`` goes by.
    """

    tasks: Mapping[str, str]
    missing: Mapping[str, str]
    runs: int
    done: int
    steps: int | None
    seconds: float | None
    known: float


def missing_data(recipe: Recipe, data_dir: str | None = None) -> dict[str, str]:
    """The data sets that a recipe's runs use and that are not there: by their names, why. No rows are kept."""
    missing = {}
    for name in dict.fromkeys(used_tasks(recipe).values()):
        try:
            check_data(name, data_dir)
        except SoftPromptError as error:
            missing[name] = str(error)
    return missing


def used_tasks(recipe: Recipe) -> dict[str, str]:
    """The data sets that runs of a recipe use, by their names in it; those of its sources too."""
    return {cell.task: recipe.layers(cell, "data")[0] for cell in (*recipe.source_cells(), *recipe.cells())}


def require_data(recipe: Recipe, data_dir: str | None = None) -> None:
    """Raises a `SoftPromptError` that names all data sets that are not there."""
    missing = missing_data(recipe, data_dir)
    if not missing:
        return
    total, (first, why) = len(set(used_tasks(recipe).values())), next(iter(missing.items()))
    names = ", ".join(missing)
    if len(missing) == 1:
        raise SoftPromptError(f"recipe '{recipe.name}' needs '{first}', which is not there: {why}")
    raise SoftPromptError(
        f"recipe '{recipe.name}' needs data that are not there, {len(missing)} of {total} tasks: {names}; "
        f"the first one: {why}"
    )


def overview(recipe: Recipe, root: str | Path = "runs", data_dir: str | None = None) -> Overview:
    """What is known of a recipe.

    Args:
        recipe: the recipe.
        root: where run folders live; results there and those that the recipe keeps say how long runs take.
        data_dir: folder with a local copy of the tasks' data; None: the hub.
    """
    missing, steps = missing_data(recipe, data_dir), None
    if missing:
        runs: list[Any] = list(unique_runs(_kept(recipe)))
        total = max(len(runs), recipe.runs)
    else:
        planned = unique_runs(plan(recipe, root=root, data_dir=data_dir).runs)
        runs, total, steps = list(planned), len(planned), sum(one.steps for one in planned)
    took = _seconds(recipe, runs, Path(root))
    by_place = defaultdict(list)
    for one in runs:
        if one.run in took:
            by_place[_place(one)].append(took[one.run])
    means = {place: sum(times) / len(times) for place, times in by_place.items()}
    told = [means[_place(one)] for one in runs if _place(one) in means]
    seconds = sum(told) * total / len(told) if told else None
    known = len(told) / total if total else 0.0
    return Overview(used_tasks(recipe), missing, total, len(took), steps, seconds, known)


def _kept(recipe: Recipe) -> list[GridRun]:
    try:
        return [] if recipe.results is None else load_kept(recipe)
    except SoftPromptError:  # of other rows than the recipe has by now
        return []


def _place(one: GridRun) -> tuple[str, str, str]:
    return one.cell.row.label, one.cell.task, one.cell.model


def _seconds(recipe: Recipe, runs: list[Any], root: Path) -> dict[str, float]:
    """How long the runs took that have a result, by their ids."""
    kept, took = kept_results(recipe), {}
    for run in {one.run for one in runs if one.run is not None}:
        path = root / run / run_folder.RESULT
        path = path if path.is_file() else kept.get(run, path)
        if path.is_file():
            took[run] = float(read_json(path).get("seconds") or 0.0)
    return took
