"""Verdicts of a study: whether each claim of a recipe holds, by one rule.

On a task, a row that is said to be better than another (`task_verdict`)

- **holds** where the effect is above zero and its p, adjusted for all comparisons of the recipe, is below 0.05;
- **does not hold** where it is below zero as clearly, or where its interval ends below the effect that counts
  (``more_seeds.effect`` of the recipe, half a point without it);
- is **not decided** otherwise; also where half or more of the runs of both rows are stuck, and where there is no effect
  but a part of the row's method was idle in half or more of its runs: such a null says nothing of the method;
- is **not yet** told while runs of the recipe's seeds are missing.

Over the tasks (`overall`) a statement holds where it holds on more than half of them, and does not hold as soon as it
can no longer hold on more than half. A claim is all statements of its recipe: one that does not hold is enough against
it, and it holds when all do.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from softprompts.bench.effects import Effect, EffectTable, effects
from softprompts.bench.recipe import Recipe
from softprompts.bench.result_tables import table_of
from softprompts.bench.results import Findings
from softprompts.bench.significance import Difference, paired_difference, pairs_of

HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "not decided", "not yet"
COUNTS = 0.5  # points that an effect needs to count
_POWER = 0.8  # chance that the seeds of `seeds_needed` decide


@dataclass(frozen=True)
class TaskVerdict:
    """What a task says of a statement.

    Attributes:
        task: name of the recipe's entry.
        verdict: one of the four.
        why: in a few words.
        effect: what it rests on; None without a pair of runs.
        seeds: that would decide it; None where it is decided, or no number of seeds is known to.
    """

    task: str
    verdict: str
    why: str
    effect: Effect | None = None
    seeds: int | None = None


@dataclass(frozen=True)
class Statement:
    """A claim of a recipe on one model.

    Attributes:
        says: the statement.
        better: label of the row that is said to be better.
        than: label of the other.
        model: short name; None in a recipe of one model.
        tasks: task by task.
        mean: difference of the means over those tasks that have all seeds, paired by seed; None without such a task.
    """

    says: str
    better: str
    than: str
    model: str | None
    tasks: tuple[TaskVerdict, ...]
    mean: Difference | None

    @property
    def verdict(self) -> str:
        """One of the four."""
        return overall([task.verdict for task in self.tasks])

    def where(self, verdict: str) -> list[TaskVerdict]:
        """The tasks of a verdict."""
        return [task for task in self.tasks if task.verdict == verdict]


def margin_of(recipe: Recipe) -> float:
    """Points that an effect needs to count."""
    return COUNTS if recipe.more_seeds is None else recipe.more_seeds.effect


def task_verdict(
    task: str, effect: Effect | None, margin: float, seeds: int, comparisons: int = 1, done: int = 0
) -> TaskVerdict:
    """The rule on one task, see above.

    Args:
        task: name of the recipe's entry.
        effect: of the row that is said to be better against the other.
        margin: points that an effect needs to count.
        seeds: of the recipe; fewer runs of a row are not all.
        comparisons: of the recipe, for the number of seeds that would decide.
        done: runs of each row that have ended, where there is no effect.
    """
    done = done if effect is None else min(effect.runs)
    if done < seeds:
        return TaskVerdict(task, MISSING, f"{done} of {seeds} seeds", effect)
    d = None if effect is None else effect.difference
    if effect is None or d is None or d.mean is None or d.low is None or d.high is None:
        return TaskVerdict(task, OPEN, "too few runs have a score", effect)
    if all(2 * stuck >= runs for stuck, runs in zip(effect.stuck, effect.runs, strict=True)):
        return TaskVerdict(task, OPEN, "runs of both are stuck", effect)
    if effect.verdict == "better":
        return TaskVerdict(task, HOLDS, "better", effect)
    if effect.verdict == "worse":
        return TaskVerdict(task, FAILS, "worse", effect)
    if d.high < margin:
        if 2 * effect.idle >= effect.runs[0]:
            return TaskVerdict(task, OPEN, "a part of the method did not act", effect)
        return TaskVerdict(task, FAILS, f"less than {margin:g} points", effect)
    return TaskVerdict(task, OPEN, "too few seeds", effect, seeds_needed(d, margin, comparisons))


def overall(verdicts: Sequence[str]) -> str:
    """The verdict over tasks, see above."""
    if 2 * verdicts.count(HOLDS) > len(verdicts):
        return HOLDS
    if verdicts and 2 * (len(verdicts) - verdicts.count(FAILS)) <= len(verdicts):
        return FAILS
    return MISSING if MISSING in verdicts or not verdicts else OPEN


def claim_verdict(statements: Sequence[Statement]) -> str:
    """The verdict over all statements, see above."""
    verdicts = {statement.verdict for statement in statements}
    return next((verdict for verdict in (FAILS, MISSING, OPEN) if verdict in verdicts), HOLDS if verdicts else MISSING)


def seeds_needed(difference: Difference, margin: float, comparisons: int = 1) -> int | None:
    """Seeds that decide in four of five cases, if mean and spread stay as they are; None without an interval.

    With s the spread of the differences (from the interval's width), n = (s (z + z') / d)^2: d is the distance of the
    mean to zero, with z of 0.05 over all comparisons, or that to the margin from below, with z of 0.05; the lesser n
    counts.
    """
    d = difference
    if d.mean is None or d.low is None or d.high is None:
        return None
    normal = NormalDist()
    spread = (d.high - d.low) / 2 / normal.inv_cdf(0.975) * math.sqrt(d.pairs)
    ways = [(abs(d.mean), 0.05 / comparisons), (margin - d.mean, 0.05)]
    reach = max(
        (way / (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(_POWER)) for way, level in ways if way > 0), default=0.0
    )
    return max(d.pairs + 1, math.ceil((spread / reach) ** 2)) if reach else None


def statements(findings: Findings) -> tuple[list[Statement], EffectTable | None]:
    """The claims of a recipe, judged by the results that there are, and the effects that they rest on."""
    recipe, table = findings.recipe, table_of(findings)
    made = effects(findings, table)
    found = {(one.row, one.against, one.task, one.model): one for one in ([] if made is None else made.differences)}
    rows, margin, seeds = {row.label: row for row in recipe.rows}, margin_of(recipe), len(recipe.seeds)
    of_task = {column.task: column.name.partition(":")[0] for column in recipe.columns}
    comparisons = len(recipe.models) * len(recipe.claims) * len(of_task)
    judged = []
    for name in recipe.models:
        model = name if len(recipe.models) > 1 else None
        for claim in recipe.claims:
            pair = rows[claim.better], rows[claim.than]
            if not all(name in row.models for row in pair):
                continue
            tasks = [task for task in of_task if all(not row.only_tasks or task in row.only_tasks for row in pair)]
            told = []
            for task in tasks:
                effect = found.get((claim.better, claim.than, task, model))
                done = min(len(findings.runs(row, task, name)) for row in pair)
                told.append(task_verdict(task, effect, margin, seeds, comparisons, done))
            whole = {of_task[one.task] for one in told if one.verdict != MISSING and one.effect is not None}
            scores = {line.name: pairs_of(table, line) for line in table.lines if line.model == model}
            ours, theirs = (_means(scores.get(row.label, {}), whole) for row in pair)
            mean = paired_difference(ours, theirs, claim.better, claim.than, model) if whole else None
            judged.append(Statement(claim.says, claim.better, claim.than, model, tuple(told), mean))
    return judged, made


def _means(scores: dict[tuple[str, int], float], tasks: set[str]) -> dict[tuple[str, int], float]:
    """The mean over some tasks, of the seeds that have all of them."""
    by_seed: dict[int, list[float]] = {}
    for (task, seed), score in scores.items():
        if task in tasks:
            by_seed.setdefault(seed, []).append(score)
    return {("mean", seed): statistics.fmean(found) for seed, found in by_seed.items() if len(found) == len(tasks)}
