"""Results of a bench, read from its run folders: scores and costs by row, task, model and seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from softprompts.bench.plan import GridRun, failures, kept_results, load_kept, load_plan
from softprompts.bench.recipe import Cell, Column, Recipe, RecipeRow
from softprompts.bench.stages import validation_score
from softprompts.experiments.compare import score_of
from softprompts.storage import run_folder

_SAME = 1e-9  # rounding errors between equal scores


@dataclass(frozen=True, kw_only=True)
class Outcome(Cell):
    """A run of the grid that has ended.

    Attributes:
        folder: the run folder.
        result: what is in its result.json.
    """

    folder: Path
    result: Mapping[str, Any]

    @property
    def validation(self) -> float:
        """The best main metric on validation rows; -inf without one, and where training broke off."""
        return validation_score(self.result)

    @property
    def diverged(self) -> bool:
        """Whether training broke off."""
        return self.result.get("stop_reason") == run_folder.DIVERGED

    @property
    def stuck(self) -> bool:
        """Whether its main metric is that of one answer for all rows, see `Task.constant_scores`."""
        metric, constant = next(iter(self.result.get("constant_scores", {}).items()), (None, 0.0))
        score = None if metric is None or self.diverged else score_of(dict(self.result), metric)
        return score is not None and abs(score - constant) < _SAME


@dataclass(frozen=True)
class Findings:
    """The results that a bench has so far.

    Attributes:
        recipe: its recipe.
        outcomes: the runs that have ended, without those of sources and of a search.
        searched: those of a search.
        missing: number of runs without a result: not done yet, or failed.
        failed: by run id, the last line of the error.
    """

    recipe: Recipe
    outcomes: tuple[Outcome, ...]
    missing: int
    failed: Mapping[str, str]
    searched: tuple[Outcome, ...] = ()

    @cached_property
    def _chosen(self) -> dict[tuple[str, str, str], list[Outcome]]:
        groups: dict[tuple[str, str, str], dict[str, list[Outcome]]] = {}
        for outcome in self.outcomes:
            key = outcome.row.label, outcome.task, outcome.model
            groups.setdefault(key, {}).setdefault(str(dict(outcome.choice)), []).append(outcome)
        # Of two that are equally good, the first of the recipe.
        best = {key: max(variants.values(), key=_merit) for key, variants in groups.items()}
        return {key: sorted(runs, key=lambda run: run.seed) for key, runs in best.items()}

    def runs(self, row: RecipeRow, task: str, model: str) -> list[Outcome]:
        """The runs of a cell of the table, by seed: of several choices, those of the best mean validation score."""
        return list(self._chosen.get((row.label, task, model), []))

    def scores(self, row: RecipeRow, column: Column, model: str) -> dict[int, float]:
        """By seed, the score x 100: on test rows where there are some, else the best on validation rows.

        A run that diverged has none. Of costs: seconds per 100 steps, or peak memory in GB.
        """
        scores = {}
        for outcome in self.runs(row, column.task, model):
            if self.recipe.measure == "cost":
                value = float(outcome.result["cost"][column.metric])
                scores[outcome.seed] = value / 1e9 if column.metric == "peak_memory" else value
            elif not outcome.diverged and (score := score_of(dict(outcome.result), column.metric)) is not None:
                scores[outcome.seed] = 100 * score
        return scores

    def seeds_agree(self, row: RecipeRow, column: Column, model: str) -> bool:
        """Whether several seeds have one score, to the last digit: all rows get one answer, or nothing trains."""
        scores = self.scores(row, column, model).values()
        return self.recipe.measure != "cost" and len(scores) > 1 and max(scores) - min(scores) < _SAME

    def trained(self, row: RecipeRow, model: str) -> tuple[int, int] | None:
        """Number of trained parameters and of the backbone's, of the first task that has a run; None without one."""
        for task in self.recipe.tasks:
            for outcome in self.runs(row, task, model):
                return outcome.result["trained_parameters"], outcome.result["backbone_parameters"]
        return None

    def cost(self, row: RecipeRow, task: str, model: str) -> tuple[float, float] | None:
        """Seconds per 100 steps (median over seeds) and peak memory in GB (largest); None without a run.

        Training runs share passes: their seconds are an even share, their memory is that of the whole process.
        """
        results = [run.result for run in self.runs(row, task, model)]
        if self.recipe.measure == "cost":
            seconds = [float(result["cost"]["seconds_per_100_steps"]) for result in results]
            memory = [float(result["cost"]["peak_memory"]) for result in results]
        else:
            seconds = [100 * result["step_seconds"] / result["steps"] for result in results if result["steps"]]
            memory = [float(result["peak_memory"]) for result in results]
        return (statistics.median(seconds), max(memory) / 1e9) if seconds else None


def _merit(runs: Sequence[Outcome]) -> tuple[int, float]:
    """How good a choice is: by its number of seeds with a score, then by mean validation score.

    One lucky seed must not win over a choice of which all seeds are there.
    """
    scores = [run.validation for run in runs if run.validation > -math.inf]
    return len(scores), statistics.fmean(scores) if scores else -math.inf


def load_findings(folder: str | Path, root: str | Path) -> Findings:
    """The results that a bench has so far.

    Args:
        folder: the bench's folder.
        root: where run folders live.

    Raises:
        SoftPromptError: there is no bench, or something in its folder cannot be read.
    """
    recipe, runs = load_plan(folder)
    found, missing = _found(recipe, runs, {str(one.run): Path(root) / str(one.run) for one in runs})
    return replace(found, failed=failures(folder, missing))


def kept_findings(recipe: Recipe) -> Findings:
    """The results of a recipe that are kept (see `softprompts.bench.plan.keep_results`), without any run folder.

    Raises:
        SoftPromptError: the recipe keeps no results, or has other rows by now.
    """
    runs = load_kept(recipe)
    if not runs:
        return Findings(recipe, (), recipe.runs, {})
    return _found(recipe, runs, {run: path.parent for run, path in kept_results(recipe).items()})[0]


def _found(recipe: Recipe, runs: Sequence[GridRun], folders: Mapping[str, Path]) -> tuple[Findings, list[str]]:
    """What has ended of some runs, by the folders of their results, and ids of what has not."""
    outcomes: list[Outcome] = []
    searched: list[Outcome] = []
    missing: list[str] = []
    for one in runs:
        path, cell = folders.get(str(one.run)), one.cell
        if one.run is None or path is None or not run_folder.is_done(path):
            missing.append(str(one.run))
        elif cell.source is None:
            ended = Outcome(**vars(cell), folder=path, result=run_folder.load_result(path))
            (outcomes if cell.search is None else searched).append(ended)
    return Findings(recipe, tuple(outcomes), len(missing), {}, tuple(searched)), missing
