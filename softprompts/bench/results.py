"""What the run folders of a bench say: scores, costs and curves by row, task, model and seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from softprompts.bench.plan import failures, load_plan
from softprompts.bench.recipe import Column, Recipe, Row
from softprompts.experiments.compare import score_of
from softprompts.storage import run_folder


@dataclass(frozen=True)
class Outcome:
    """A run of the grid that has ended.

    Attributes:
        row: its row.
        task: name of the recipe's entry.
        model: its short name.
        seed: its seed.
        choice: its value of each setting that the row chooses.
        folder: the run folder.
        result: what is in its result.json.
    """

    row: Row
    task: str
    model: str
    seed: int
    choice: Mapping[str, Any]
    folder: Path
    result: Mapping[str, Any]

    @property
    def validation(self) -> float:
        """The best main metric on validation rows; -inf where there is none, or training broke off."""
        score = self.result.get("score")
        return -math.inf if score is None or self.diverged else float(score)

    @property
    def diverged(self) -> bool:
        """Whether training broke off."""
        return self.result.get("stop_reason") == run_folder.DIVERGED

    def curve(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: step, epoch, loss and validation metrics."""
        return run_folder.load_metrics(self.folder)


@dataclass(frozen=True)
class Findings:
    """What a bench has found so far.

    Attributes:
        recipe: what was asked for.
        outcomes: the runs that have ended, without those of sources.
        missing: number of runs without a result: not done yet, or failed.
        failed: by run id, the last line of what went wrong.
    """

    recipe: Recipe
    outcomes: tuple[Outcome, ...]
    missing: int
    failed: Mapping[str, str]

    @property
    def higher_is_better(self) -> bool:
        """False for costs."""
        return self.recipe.measure == "score"

    @cached_property
    def _chosen(self) -> dict[tuple[str, str, str], list[Outcome]]:
        groups: dict[tuple[str, str, str], dict[str, list[Outcome]]] = {}
        for outcome in self.outcomes:
            key = outcome.row.label, outcome.task, outcome.model
            groups.setdefault(key, {}).setdefault(str(dict(outcome.choice)), []).append(outcome)
        # Where two are as good, the first that the recipe names.
        chosen = {key: max(variants.values(), key=_merit) for key, variants in groups.items()}
        return {key: sorted(found, key=lambda one: one.seed) for key, found in chosen.items()}

    def runs(self, row: Row, task: str, model: str) -> list[Outcome]:
        """The runs behind a place in the table by seed: of several variants, the best by mean validation score."""
        return list(self._chosen.get((row.label, task, model), []))

    def choice(self, row: Row, task: str, model: str) -> Mapping[str, Any]:
        """The values that were chosen; empty where there was nothing to choose."""
        found = self.runs(row, task, model)
        return found[0].choice if found else {}

    def scores(self, row: Row, column: Column, model: str) -> dict[int, float]:
        """By seed, the score x 100: on test rows where there are some, else the best on validation rows.

        A run that diverged has none. Of costs: seconds per 100 steps, or peak memory in GB.
        """
        scores = {}
        for outcome in self.runs(row, column.task, model):
            if self.recipe.measure == "cost":
                value = float(outcome.result["cost"][column.metric])
                scores[outcome.seed] = value / 1e9 if column.metric == "peak_memory" else value
                continue
            score = None if outcome.diverged else score_of(dict(outcome.result), column.metric)
            if score is not None:
                scores[outcome.seed] = 100 * score
        return scores

    def trained(self, row: Row, model: str) -> tuple[int, int] | None:
        """Number of trained parameters and of the backbone's, of the first task that has a run; None without one."""
        for task in self.recipe.tasks:
            for outcome in self.runs(row, task, model):
                return outcome.result["trained_parameters"], outcome.result["backbone_parameters"]
        return None

    def cost(self, row: Row, task: str, model: str) -> tuple[float, float] | None:
        """Seconds per 100 steps (median over seeds) and peak memory in bytes (largest); None without a run.

        Of runs that were trained, not measured on their own, seconds are an even share of shared passes and memory is
        that of the whole process.
        """
        found = self.runs(row, task, model)
        if not found:
            return None
        if self.recipe.measure == "cost":
            costs = [outcome.result["cost"] for outcome in found]
            seconds = [float(cost["seconds_per_100_steps"]) for cost in costs]
            memory = [float(cost["peak_memory"]) for cost in costs]
        else:
            seconds = [100 * one.result["step_seconds"] / one.result["steps"] for one in found if one.result["steps"]]
            memory = [float(one.result["peak_memory"]) for one in found]
        return (statistics.median(seconds), max(memory)) if seconds else None


def _merit(found: Sequence[Outcome]) -> tuple[int, float]:
    """How good a variant is: that with more seeds (a failed or diverged one is none), then by mean validation score.

    A variant of which one lucky seed is there must not win over one that all seeds vouch for.
    """
    scores = [one.validation for one in found if one.validation > -math.inf]
    return len(scores), statistics.fmean(scores) if scores else -math.inf


def load_findings(folder: str | Path, root: str | Path) -> Findings:
    """What is there of a bench.

    Args:
        folder: the bench's folder.
        root: where run folders live.

    Raises:
        SoftPromptError: there is no bench, or something in its folder cannot be read.
    """
    recipe, known = load_plan(folder)
    outcomes, missing, left = [], 0, set()
    for one in known:
        path = Path(root) / str(one.run)
        if one.run is None or not run_folder.is_done(path):
            missing += 1
            left.add(str(one.run))
        elif one.cell.source is None:
            cell = one.cell
            outcomes.append(
                Outcome(cell.row, cell.task, cell.model, cell.seed, cell.choice, path, run_folder.load_result(path))
            )
    return Findings(recipe, tuple(outcomes), missing, failures(folder, left))
