"""Vitals in a bench's report: numbers that say whether what the rows are about acts."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from softprompts.bench.results import Findings, Outcome


@dataclass(frozen=True)
class VitalsTable:
    """Vitals of the runs of a model.

    Attributes:
        title: its title.
        heads: of the columns: row, vital, and the tasks.
        lines: cells of text and, under tasks, the mean over seeds, None without one.
    """

    title: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, str, tuple[float | None, ...]], ...]


def vitals_tables(findings: Findings) -> list[VitalsTable]:
    """A table for each model: the last vitals of the runs that the tables of scores show."""
    recipe, tables = findings.recipe, []
    for model in recipe.models:
        lines: list[tuple[str, str, tuple[float | None, ...]]] = []
        for row in recipe.rows:
            runs = {task: findings.runs(row, task, model) for task in recipe.tasks}
            names = dict.fromkeys(
                name for found in runs.values() for run in found for name in run.result.get("vitals", {})
            )
            lines += [(row.label, name, tuple(_mean(found, name) for found in runs.values())) for name in names]
        if lines:
            title = f"Vitals, {model}" if len(recipe.models) > 1 else "Vitals"
            tables.append(VitalsTable(title, ("row", "vital", *recipe.tasks), tuple(lines)))
    return tables


def _mean(runs: list[Outcome], name: str) -> float | None:
    numbers = [value for run in runs if (value := run.result.get("vitals", {}).get(name)) is not None]
    return statistics.fmean(numbers) if numbers else None


def idle_notes(findings: Findings) -> list[str]:
    """A line for each row and part of its method that did not act, with the number of runs."""
    notes = []
    for row in findings.recipe.rows:
        runs = [
            run
            for task in findings.recipe.tasks
            for model in findings.recipe.models
            for run in findings.runs(row, task, model)
        ]
        said = [sentence for run in runs for sentence in run.result.get("idle", [])]
        notes += [f"{row.label}: {it} ({said.count(it)} of {len(runs)} runs)" for it in dict.fromkeys(said)]
    return notes
