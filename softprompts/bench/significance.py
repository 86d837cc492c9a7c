"""One score over all tasks, and whether two lines of a table differ by more than chance.

`standardized` is SuperPos's "standardized overall scoring": for task t and line s

    z_ts = 100 (x_ts - min_s x_ts) / (max_s x_ts - min_s x_ts)

with minimum and maximum over all lines and models together, a task's metrics averaged first; a line's score is the mean
over tasks, its spread their population standard deviation. From the numbers of the paper's Table 1 this gives its Table
2 to within 0.1; the z-score that the paper mentions on the way changes nothing under a scale that is set per task.

`significance` compares lines over pairs of a task and a seed.
"""

from __future__ import annotations

import html
import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import scipy.stats

from softprompts.bench.column_names import tasks_of
from softprompts.bench.table_forms import Grid, GridLine, html_table, in_full, latex
from softprompts.bench.tables import Line, Table, TableEntry
from softprompts.errors import SoftPromptError
from softprompts.storage.tables import escape, markdown_table

# Fewer pairs give no usable interval.
LEAST_PAIRS = 3
_RESAMPLES = 9999
_SEED = 0


@dataclass(frozen=True)
class Overall:
    """A line's standardized score.

    Attributes:
        mean: over tasks, from 0 (the worst of all lines on every task) to 100 (the best on every task).
        std: population standard deviation over tasks; the lower, the more even.
        tasks: number of tasks.
    """

    mean: float
    std: float
    tasks: int


def standardized(table: Table) -> dict[tuple[str | None, str], Overall]:
    """The standardized score of every line that has all tasks, by model and name.

    Lines that lack a task are left out before the scales are set, as SuperPos leaves ATTEMPT out; so is a task on which
    all lines are equal.

    Args:
        table: of scores; the lines of all its models share a scale, columns of averages are left out.

    Raises:
        SoftPromptError: no task, or no line that has all of them.
    """
    tasks = tasks_of(table.columns)
    whole: dict[tuple[str | None, str], dict[str, float]] = {}
    for line in table.lines:
        scores = {task: _task_score(line.entries, places) for task, places in tasks.items()}
        known = {task: score for task, score in scores.items() if score is not None}
        if len(known) == len(tasks):
            whole[line.model, line.name] = known
    if not tasks or not whole:
        raise SoftPromptError(
            f"table '{table.title}': no line has a score on every task ({', '.join(tasks) or 'there are none'}); "
            "a standardized score needs one"
        )
    scaled: dict[tuple[str | None, str], list[float]] = {key: [] for key in whole}
    for task in tasks:
        column = [known[task] for known in whole.values()]
        low, high = min(column), max(column)
        if low == high:
            continue
        for key, known in whole.items():
            place = (known[task] - low) / (high - low)
            scaled[key].append(100 * (place if table.higher_is_better else 1 - place))
    return {
        key: Overall(statistics.fmean(values), statistics.pstdev(values), len(values))
        for key, values in scaled.items()
        if values
    }


@dataclass(frozen=True)
class Difference:
    """The difference of two lines, over pairs of a task and a seed that both have.

    Attributes:
        line: name of the line.
        against: name of the line that it is compared with.
        model: of both; None in a table of one model.
        pairs: number of pairs.
        tasks: number of tasks among them.
        mean: of the differences, positive where the line is better; None without a pair.
        low: lower end of the interval; None for fewer than `LEAST_PAIRS` pairs.
        high: upper end.
        p: how often chance alone gives a mean difference this large, either way; None as above.
        wins: pairs in which the line is better.
        ties: pairs in which both are equal.
        losses: pairs in which it is worse.
    """

    line: str
    against: str
    model: str | None
    pairs: int
    tasks: int
    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    wins: int
    ties: int
    losses: int

    @property
    def verdict(self) -> str:
        """One of "better", "worse", "not told apart", or "too few pairs"."""
        return self.verdict_at(self.p)

    def verdict_at(self, p: float | None) -> str:
        """The same by another p, such as one that is adjusted for many comparisons."""
        if self.mean is None or self.low is None or self.high is None or p is None:
            return "too few pairs"
        if p >= 0.05 or self.low <= 0 <= self.high:
            return "not told apart"
        return "better" if self.mean > 0 else "worse"


def p_text(p: float | None) -> str:
    """A p in a table."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


class Compared(Protocol):
    """A line of a `ComparisonTable`."""

    @property
    def model(self) -> str | None:
        """Short name of its model; None in a table of one model."""

    @property
    def verdict(self) -> str:
        """What is said of it."""


ComparedT = TypeVar("ComparedT", bound=Compared)


class ComparisonTable(Generic[ComparedT]):
    """What tables of differences have in common: their forms, model by model.

    Attributes:
        heading: above the table in HTML.
        differences: the lines, those of a model together.
    """

    HEADS: ClassVar[tuple[str, ...]]
    ALIGN: ClassVar[str]  # of the columns, as `markdown_table` takes it
    differences: tuple[ComparedT, ...]

    @property
    def heading(self) -> str:
        """See above."""
        raise NotImplementedError

    def cells(self, difference: ComparedT) -> list[str]:
        """A line as text, by `HEADS`."""
        raise NotImplementedError

    def values(self, difference: ComparedT) -> list[Any]:
        """What a line is sorted by, by `HEADS`."""
        raise NotImplementedError

    def notes(self) -> tuple[str, ...]:
        """Notes that explain the numbers."""
        raise NotImplementedError

    def markdown(self) -> str:
        """The table as Markdown; empty without differences."""
        if not self.differences:
            return ""
        parts = []
        for model, differences in itertools.groupby(self.differences, lambda one: one.model):
            rows = [[*map(escape, self.cells(one))] for one in differences]
            table = markdown_table(self.HEADS, rows, self.ALIGN)
            parts.append(table if model is None else f"*{escape(model)}*\n\n{table}")
        return "\n\n".join([*parts, "\n".join(self.notes())]) + "\n"

    def latex(self) -> str:
        """The table as LaTeX, see `softprompts.bench.table_forms.latex`; empty without differences."""
        if not self.differences:
            return ""
        lines, before = [], None
        for one in self.differences:
            heading = () if one.model in (None, before) else (one.model,)
            name, *facts = (re.sub(r"(?<!\w)-(?=\d)", "−", cell) for cell in self.cells(one))  # a minus, no hyphen
            lines.append(GridLine(heading, name, tuple(facts), (), one.model is not None, False))
            before = one.model
        return latex(Grid(self.heading, tuple(self.HEADS[1:]), (), (), tuple(lines), self.notes(), True))

    def html(self) -> str:
        """The table as HTML, to be sorted by ``data-value``, without the notes."""
        groups = []
        for model, differences in itertools.groupby(self.differences, lambda one: one.model):
            rows = []
            for one in differences:
                cells = "".join(
                    f'<td data-value="{html.escape(in_full(value))}">{html.escape(text)}</td>'
                    for value, text in zip(self.values(one), self.cells(one), strict=True)
                )
                kind = one.verdict if one.verdict in ("better", "worse") else "open"
                rows.append(f'<tr class="{kind}">{cells}</tr>')
            groups.append(([] if model is None else [model], rows))
        return html_table('class="significance"', self.heading, [(head, "") for head in self.HEADS], groups)


@dataclass(frozen=True)
class Significance(ComparisonTable[Difference]):
    """The differences of a table's lines to one of them, model by model.

    Attributes:
        title: of the table.
        differences: in the order of its lines.
        digits: decimals.
    """

    title: str
    differences: tuple[Difference, ...]
    digits: int = 1

    HEADS = ("line", "against", "difference", "95 % interval", "p", "wins/ties/losses", "pairs", "verdict")
    ALIGN = "llrrrrrl"

    @property
    def heading(self) -> str:
        """Its title in HTML."""
        return f"{self.title}: significance"

    def cells(self, difference: Difference) -> list[str]:
        """A line as text, by `HEADS`."""
        d, digits = difference, self.digits
        interval = "-" if d.low is None or d.high is None else f"{d.low:+.{digits}f} to {d.high:+.{digits}f}"
        return [
            d.line,
            d.against,
            "-" if d.mean is None else f"{d.mean:+.{digits}f}",
            interval,
            p_text(d.p),
            f"{d.wins}/{d.ties}/{d.losses}",
            f"{d.pairs} ({d.tasks} {'task' if d.tasks == 1 else 'tasks'})",
            d.verdict,
        ]

    def notes(self) -> tuple[str, ...]:
        """Notes that explain the numbers."""
        return (
            "A pair is a task with a seed that both lines have; several metrics of a task are averaged first. Positive "
            "is better. The interval is a bootstrap over pairs (bias-corrected and accelerated); p is from flipping "
            "the signs of the pairs' differences, all ways where they are few. With fewer than 6 pairs no p is below "
            f"0.05, and with fewer than {LEAST_PAIRS} nothing is told.",
            "Both lines of a pair are scored on the same rows: how far other test rows or other tasks would change the "
            "difference is not in the interval. Of many lines that are no different, one in twenty has p below 0.05.",
        )

    def values(self, difference: Difference) -> list[Any]:
        """What a line is sorted by, by `HEADS`."""
        d = difference
        return [d.line, d.against, d.mean, d.low, d.p, d.wins - d.losses, d.pairs, d.verdict]


def significance(table: Table, against: str | None = None) -> Significance:
    """Compares every line of a table with its baseline, or without one with the line of the best average.

    Without scores by seed nothing is compared.

    Args:
        table: whose entries have seeds.
        against: name of the line to compare with instead.

    Raises:
        SoftPromptError: no line has this name.
    """
    if against is not None and all(line.name != against for line in table.lines):
        names = ", ".join(dict.fromkeys(line.name for line in table.lines))
        raise SoftPromptError(f"table '{table.title}': no line '{against}'; there are {names}")
    differences = []
    for model in table.models():
        lines = [line for line in table.lines if line.model == model]
        base = _base(table, lines, model, against)
        if base is None:
            continue
        theirs = pairs_of(table, base)
        if not theirs:  # no seeds: costs, standardized scores
            continue
        for line in lines:
            if line is not base:
                sign = 1.0 if table.higher_is_better else -1.0
                differences.append(paired_difference(pairs_of(table, line), theirs, line.name, base.name, model, sign))
    return Significance(table.title, tuple(differences), table.digits)


def paired_difference(
    ours: Mapping[tuple[str, int], float],
    theirs: Mapping[tuple[str, int], float],
    line: str = "ours",
    against: str = "theirs",
    model: str | None = None,
    sign: float = 1.0,
) -> Difference:
    """The difference of two lines.

    The bootstrap resamples the differences of the pairs of a task and a seed that both lines have, all tasks together,
    with replacement. Differences vary between seeds and between tasks, and the interval contains both: it is wider than
    one for these very tasks with other seeds, and says nothing about other tasks. p is from the sign-flip test: if the
    two lines were equally good, each pair's difference could as well have the other sign. It needs at least 6 pairs to
    get below 0.05, so that the bootstrap of 3 to 5 pairs, which is too narrow, proves nothing. Both have a fixed seed.

    Args:
        ours: a line's scores by task and seed.
        theirs: those of the other line.
        line: a name for it.
        against: a name for the other.
        model: of both.
        sign: -1 where lower is better.
    """
    shared = [key for key in ours if key in theirs]
    a, b = (sign * np.array([scores[key] for key in shared], dtype=float) for scores in (ours, theirs))
    difference = a - b
    count = len(shared)
    low = high = p = None
    if count >= LEAST_PAIRS:
        low, high = _interval(difference)
        p = _sign_flips(a, b)
    return Difference(
        line=line,
        against=against,
        model=model,
        pairs=count,
        tasks=len({task for task, _ in shared}),
        mean=float(difference.mean()) if count else None,
        low=low,
        high=high,
        p=p,
        wins=int((difference > _TIE).sum()),
        ties=int((np.abs(difference) <= _TIE).sum()),
        losses=int((difference < -_TIE).sum()),
    )


_EXACT = 20
_TIE = 1e-9  # rounding errors between equal scores


def _interval(difference: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean."""
    if np.ptp(difference) <= _TIE:  # all are equal
        return float(difference.mean()), float(difference.mean())
    bootstrap = scipy.stats.bootstrap(
        (difference,), np.mean, n_resamples=_RESAMPLES, method="BCa", random_state=np.random.default_rng(_SEED)
    )
    low, high = bootstrap.confidence_interval
    return float(low), float(high)


def _sign_flips(a: np.ndarray, b: np.ndarray) -> float:
    """The two-sided p of the mean difference; exact for up to `_EXACT` pairs."""
    if len(a) <= _EXACT:
        sums = np.zeros(1)
        for difference in a - b:
            sums = np.concatenate([sums + difference, sums - difference])
        observed = abs((a - b).sum())
        return float((np.abs(sums) >= observed - _TIE * max(1.0, observed)).mean())
    test = scipy.stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        random_state=np.random.default_rng(_SEED),
    )
    return float(test.pvalue)


def _base(table: Table, lines: Sequence[Line], model: str | None, against: str | None) -> Line | None:
    """The line that the others are compared with."""
    if against is not None:
        return next((line for line in lines if line.name == against), None)
    base = table.baseline(model)
    if base is not None:
        return base
    means = [
        (statistics.fmean(pairs.values()), line) for line in lines if line.ranked and (pairs := pairs_of(table, line))
    ]
    if not means:
        return None
    return (max if table.higher_is_better else min)(means, key=lambda item: item[0])[1]


def pairs_of(table: Table, line: Line) -> dict[tuple[str, int], float]:
    """A line's scores by task and seed, those of several metrics averaged."""
    pairs = {}
    for task, places in tasks_of(table.columns).items():
        by_seed = [dict(zip(line.entries[place].seeds, line.entries[place].scores, strict=False)) for place in places]
        for seed in by_seed[0]:
            if all(seed in scores for scores in by_seed):
                pairs[task, seed] = statistics.fmean(scores[seed] for scores in by_seed)
    return pairs


def _task_score(entries: Sequence[TableEntry], places: Sequence[int]) -> float | None:
    means = [entries[place].mean for place in places]
    return None if any(mean is None for mean in means) else statistics.fmean(mean or 0.0 for mean in means)
