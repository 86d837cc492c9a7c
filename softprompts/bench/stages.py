"""Runs that follow from results: a search of rate factors for every row and task, the table's runs, and more seeds.

Everything follows from the recipe and from results alone, so that planning again goes on where it was.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from softprompts.bench.column_names import tasks_of
from softprompts.bench.recipe import FACTOR, Cell, Recipe
from softprompts.bench.significance import paired_difference
from softprompts.experiments.compare import score_of
from softprompts.storage.run_folder import DIVERGED

Result = Mapping[str, Any]
Scores = tuple[tuple[tuple[str, int], float], ...]  # task and seed with a score
ResultOf = Callable[[Cell], Result | None]  # None: there is none yet


def staged_cells(recipe: Recipe, result_of: ResultOf) -> list[tuple[Cell, bool]]:
    """All runs known by now, but for sources, each with whether it waits for the results of others.

    Args:
        recipe: the recipe.
        result_of: the result of a run that does not wait.
    """
    if recipe.search is None and recipe.more_seeds is None:
        return [(cell, False) for cell in recipe.cells()]
    tables: list[list[Cell]] = []
    cells: list[tuple[Cell, bool]] = []
    for place in recipe.places():
        searched, factor = _searched(recipe, place, result_of)
        cells += [(cell, False) for cell in searched]
        choice = {**place.choice, **({} if factor is None else {FACTOR: factor})}
        table = [replace(place, seed=seed, choice=choice) for seed in recipe.seeds]
        waits = recipe.search is not None and factor is None
        cells += [(cell, waits) for cell in table]
        tables += [] if waits else [table]
    return cells + [(cell, False) for cell in _more_seeds(recipe, tables, result_of)]


def validation_score(result: Result) -> float:
    """The best main metric of a run on validation rows; -inf without one, and where training broke off."""
    score = result.get("score")
    return -math.inf if score is None or result.get("stop_reason") == DIVERGED else float(score)


def best_factor(scores: Mapping[float, float]) -> float:
    """The factor of the best score; of equally good ones the one closest to the default rates."""
    return max(scores, key=lambda factor: (scores[factor], -abs(math.log(factor))))


def beyond(scores: Mapping[float, float]) -> float | None:
    """The next factor, half a decade on (..., 0.03, 0.1, 0.3, ...), where the best is at an edge; else None."""
    best = best_factor(scores)
    if best not in (min(scores), max(scores)):
        return None
    half_decades = round(2 * math.log10(best)) + (1 if best == max(scores) else -1)
    return float(f"{10 ** (half_decades / 2):.0e}")


def _searched(recipe: Recipe, place: Cell, result_of: ResultOf) -> tuple[list[Cell], float | None]:
    """The runs of a place's search known by now, and the factor that won; None until it is known."""
    if recipe.search is None:
        return [], None
    cells: list[Cell] = []
    scores: dict[float, float] = {}
    fresh: tuple[float, ...] = tuple(recipe.search.factors)
    for turn in itertools.count():
        runs = recipe.search_cells(place, fresh, turn)
        cells += runs
        results = [result_of(cell) for cell in runs]
        for factor in fresh:
            found = [result for cell, result in zip(runs, results, strict=True) if cell.choice[FACTOR] == factor]
            if None in found:
                return cells, None
            scores[factor] = statistics.fmean(validation_score(result) for result in found if result is not None)
        following = beyond(scores)
        if following is None or turn == recipe.search.extend:
            return cells, best_factor(scores)
        fresh = (following,)
    raise AssertionError


def _more_seeds(recipe: Recipe, tables: list[list[Cell]], result_of: ResultOf) -> list[Cell]:
    """The runs of added seeds: of rows that `MoreSeedsSpec` is about, and of their baselines."""
    if recipe.more_seeds is None:
        return []
    first = max(recipe.seeds) + 1
    seeds = range(first, first + max(0, recipe.more_seeds.to - len(recipe.seeds)))
    extended: list[list[Cell]] = []
    for _, group in itertools.groupby(tables, lambda table: (table[0].model, table[0].task)):
        same = list(group)
        base = next((table for table in same if table[0].row.baseline), None)
        theirs = None if base is None else _scores(recipe, base, result_of)
        if theirs is None:
            continue
        wanting = []
        for table in same:
            ours = None if table is base else _scores(recipe, table, result_of)
            if ours is not None and _is_open(tuple(ours.items()), tuple(theirs.items()), recipe.more_seeds.effect):
                wanting.append(table)
        extended += [base, *wanting] if wanting and base is not None else []
    return [replace(table[0], seed=seed) for table in extended for seed in seeds]


@functools.lru_cache(maxsize=4096)  # every planning asks again
def _is_open(ours: Scores, theirs: Scores, effect: float) -> bool:
    """Whether the interval of an effect contains zero although the mean is larger than ``effect``."""
    d = paired_difference(dict(ours), dict(theirs))
    if d.low is None or d.high is None or d.mean is None:
        return False
    return d.low <= 0 <= d.high and abs(d.mean) > effect


def _scores(recipe: Recipe, table: list[Cell], result_of: ResultOf) -> dict[tuple[str, int], float] | None:
    """By task and seed, the scores of a place of the table; None while one has no result."""
    results = [result_of(cell) for cell in table]
    scores = {}
    for cell, result in zip(table, results, strict=True):
        if result is None:
            return None
        score = task_score(recipe, cell.task, result)
        if score is not None:
            scores[cell.task, cell.seed] = score
    return scores


def task_score(recipe: Recipe, task: str, result: Result) -> float | None:
    """A run's score x 100, the mean of the task's columns; None where it diverged or has none."""
    names = [column.name for column in recipe.columns if column.task == task]
    metrics = {column.name: column.metric for column in recipe.columns}
    shown = [names[place] for places in tasks_of(names).values() for place in places]
    scores = [score_of(dict(result), metrics[name]) for name in shown]
    if result.get("stop_reason") == DIVERGED or None in scores or not scores:
        return None
    return 100 * statistics.fmean(score for score in scores if score is not None)
