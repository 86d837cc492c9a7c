"""Effects task by task: rows of a recipe against others, paired by seed.

They are compared as its ``claims`` say, or without claims each row with the baseline.

An effect is the mean difference over the seeds that both have, with a bootstrap interval over seeds (bias-corrected and
accelerated) and an exact sign-flip test; p is adjusted for all comparisons of the recipe by Holm's step-down method.
Runs that are stuck at an answer that is the same for all rows are counted, and the effect without them stands apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from softprompts.bench.recipe import Recipe, RecipeRow
from softprompts.bench.results import Findings, Outcome
from softprompts.bench.significance import (
    LEAST_PAIRS,
    ComparisonTable,
    Difference,
    p_text,
    paired_difference,
    pairs_of,
)
from softprompts.bench.table_forms import in_full
from softprompts.bench.tables import Table
from softprompts.storage.tables import csv_text

LEAST_SEEDS = 6  # with fewer no sign-flip p is below 0.05


@dataclass(frozen=True)
class Effect:
    """A row against another one on one task.

    Attributes:
        row: its label.
        against: that of the other.
        task: name of the recipe's entry.
        model: its short name; None in a recipe of one model.
        difference: over pairs by seed.
        adjusted: its p by Holm's method; None with too few pairs.
        stuck: number of stuck runs, of the row and of the other.
        runs: number of runs, of the row and of the other.
        free: mean difference over the seeds where neither run is stuck; None where there is none.
        idle: number of the row's runs in which a part of the method did not act.
    """

    row: str
    against: str
    task: str
    model: str | None
    difference: Difference
    adjusted: float | None
    stuck: tuple[int, int]
    runs: tuple[int, int]
    free: float | None
    idle: int

    @property
    def verdict(self) -> str:
        """One of "better", "worse", "not told apart", or "too few pairs"."""
        return self.difference.verdict_at(self.adjusted)


@dataclass(frozen=True)
class EffectTable(ComparisonTable[Effect]):
    """The effects of a recipe, row by row.

    Attributes:
        title: of the table.
        differences: the effects, in the order of the recipe.
        digits: decimals.
    """

    title: str
    differences: tuple[Effect, ...]
    digits: int = 1

    HEADS = ("row", "against", "task", "effect", "95 % interval", "p", "p (Holm)", "seeds", "stuck", "without stuck",
             "idle", "verdict")  # fmt: skip
    ALIGN = "lllrrrrrrrrl"

    @property
    def heading(self) -> str:
        """Its title in HTML."""
        return self.title

    def cells(self, difference: Effect) -> list[str]:
        """A line as text, by `HEADS`."""
        effect, d = difference, difference.difference
        interval = "-" if d.low is None or d.high is None else f"{self._points(d.low)} to {self._points(d.high)}"
        stuck = "/".join(map(str, effect.stuck))
        return [
            effect.row, effect.against, effect.task, self._points(d.mean), interval, p_text(d.p),
            p_text(effect.adjusted), str(d.pairs), stuck, self._points(effect.free) if any(effect.stuck) else "-",
            f"{effect.idle} of {effect.runs[0]}", effect.verdict,
        ]  # fmt: skip

    def notes(self) -> tuple[str, ...]:
        """Notes that explain the numbers."""
        return (
            "Effect: mean difference on the task, in points, paired by seed; positive is better. The interval is a "
            "bootstrap over seeds (bias-corrected and accelerated), p from flipping the signs of the differences in "
            "all ways, adjusted by Holm's method for all comparisons that the recipe plans. A verdict needs an "
            f"adjusted p below 0.05; with fewer than {LEAST_PAIRS} seeds nothing is told.",
            "Stuck: runs (of the row/of the other) whose score is that of one answer for all rows, the "
            "commonest label; beside it the effect over seeds without them. Idle: runs in which a part of the method "
            "did not act.",
        )

    def values(self, difference: Effect) -> list[Any]:
        """What a line is sorted by, by `HEADS`."""
        one, d = difference, difference.difference
        return [
            one.row, one.against, one.task, d.mean, d.low, d.p, one.adjusted, d.pairs, sum(one.stuck), one.free,
            one.idle, one.verdict,
        ]  # fmt: skip

    def csv(self) -> str:
        """One line per effect, for programs; numbers in full."""
        heads = ("model", "row", "against", "task", "effect", "low", "high", "p", "p_holm", "seeds", "runs",
                 "other_runs", "stuck", "other_stuck", "without_stuck", "idle", "verdict")  # fmt: skip
        lines = []
        for one in self.differences:
            d = one.difference
            numbers = [d.mean, d.low, d.high, d.p, one.adjusted, d.pairs, *one.runs, *one.stuck, one.free, one.idle]
            lines.append([one.model or "", one.row, one.against, one.task, *map(in_full, numbers), one.verdict])
        return csv_text(heads, lines, "\n")

    def _points(self, value: float | None) -> str:
        return "-" if value is None else f"{value:+.{self.digits}f}"


def effects(findings: Findings, table: Table) -> EffectTable | None:
    """The effects of a bench of scores; None where nothing is compared, or with fewer than `LEAST_SEEDS` seeds.

    Args:
        findings: results of the bench.
        table: its table of scores.
    """
    recipe = findings.recipe
    pairs = compared_rows(recipe)
    if not pairs or recipe.measure != "score" or len(recipe.seeds) < LEAST_SEEDS:
        return None
    found: list[Effect] = []
    planned = 0
    tasks = {column.task: column.name.partition(":")[0] for column in recipe.columns}
    for name, (row, base) in itertools.product(recipe.models, pairs):
        model = name if len(recipe.models) > 1 else None
        lines = {line.name: pairs_of(table, line) for line in table.lines if line.model == model}
        for task, column in tasks.items():
            planned += all(name in one.models and task in (one.only_tasks or tasks) for one in (row, base))
            ours, theirs = (
                {key: score for key, score in lines.get(label, {}).items() if key[0] == column}
                for label in (row.label, base.label)
            )
            if not ours or not theirs:
                continue
            runs = [findings.runs(one, task, name) for one in (row, base)]
            stuck = {(column, run.seed) for of_row in runs for run in of_row if run.stuck}
            free = paired_difference({key: score for key, score in ours.items() if key not in stuck}, theirs)
            found.append(
                Effect(
                    row=row.label,
                    against=base.label,
                    task=task,
                    model=model,
                    difference=paired_difference(ours, theirs, row.label, base.label, model),
                    adjusted=None,
                    stuck=(_stuck(runs[0]), _stuck(runs[1])),
                    runs=(len(runs[0]), len(runs[1])),
                    free=free.mean,
                    idle=sum(bool(run.result.get("idle")) for run in runs[0]),
                )
            )
    return EffectTable(f"{table.title}: effects", tuple(_adjusted(found, planned)), table.digits)


def compared_rows(recipe: Recipe) -> list[tuple[RecipeRow, RecipeRow]]:
    """The pairs of rows that are compared, each once."""
    rows = {row.label: row for row in recipe.rows}
    if recipe.claims:
        return list(
            {(claim.better, claim.than): (rows[claim.better], rows[claim.than]) for claim in recipe.claims}.values()
        )
    base = next((row for row in recipe.rows if row.baseline), None)
    return [] if base is None else [(row, base) for row in recipe.rows if row is not base]


def holm(values: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted by Holm's step-down method: all of them count as one family."""
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def _adjusted(found: Sequence[Effect], planned: int) -> list[Effect]:
    """With adjusted p; comparisons that have none yet count as those with the largest."""
    known = [one.difference.p for one in found if one.difference.p is not None]
    adjusted = iter(holm(known + [1.0] * (planned - len(known))))
    return [replace(one, adjusted=None if one.difference.p is None else next(adjusted)) for one in found]


def _stuck(runs: Sequence[Outcome]) -> int:
    return sum(run.stuck for run in runs)
