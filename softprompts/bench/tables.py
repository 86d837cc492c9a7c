"""Tables in the papers' own form: Markdown, CSV, LaTeX and HTML of the same cells.

A cell is a mean over seeds with the standard deviation as a subscript, the difference to the baseline line as a
superscript and the published number in brackets; the best of a column is bold, the second underlined.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from softprompts.bench import table_forms
from softprompts.bench.column_names import AVERAGE, MEAN, tasks_of
from softprompts.bench.published import PublishedTable
from softprompts.bench.table_forms import DAGGER, Grid, GridLine, Number, in_full
from softprompts.errors import SoftPromptError
from softprompts.storage.tables import csv_text

DELTAS = ("none", "difference", "ratio")


@dataclass(frozen=True)
class TableEntry:
    """The scores in one place of a table.

    Attributes:
        scores: one per seed, as they are shown (x 100, seconds, GB).
        seeds: the seed of each score; empty where it is not known.
        wanted: number of scores once all runs are done; 0: it is not known.
        failed: whether runs have ended and none has a score.
        known_std: standard deviation where the single scores are not known.
        published: the published number.
        published_std: and its standard deviation.
        other_setting: whether it is known that the published number is of another setting.
        mark: a sign printed after the number; a note of the table says what it means.
        printed: the number as a paper prints it; None: it is printed with the table's decimals.
        printed_std: the same of the standard deviation.
    """

    scores: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    wanted: int = 0
    failed: bool = False
    known_std: float | None = None
    published: float | None = None
    published_std: float | None = None
    other_setting: bool = False
    mark: str = ""
    printed: str | None = None
    printed_std: str | None = None

    def __post_init__(self) -> None:
        if self.seeds and len(self.seeds) != len(self.scores):
            raise SoftPromptError(f"table entry: {len(self.scores)} scores have {len(self.seeds)} seeds; give one each")

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None without a score."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two, unless it is known."""
        if len(self.scores) > 1:
            return statistics.stdev(self.scores)
        return self.known_std if self.scores else None

    def beside(self, reference: PublishedTable | None, row: str | None, column: str) -> TableEntry:
        """The entry with the published number of a place beside it, where there is one."""
        if reference is None or row is None or column not in reference.columns:
            return self
        value = reference.value(row, column)
        return self if value is None else replace(self, published=value[0], published_std=value[1])

    def text(self, digits: int) -> str | None:
        """The mean as it is shown; None without a score."""
        mean = self.mean
        return None if mean is None else self.printed or f"{mean:.{digits}f}"


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        name: its first cell.
        entries: one per column of the table.
        group: heading above it.
        model: lines of one model are ranked among themselves and stand under its name; None: the table has one model.
        facts: texts beside the name, one per fact of the table.
        baseline: whether differences of the other lines of its model are to this one.
        ranked: whether it can be the best of a column; fine-tuning, a reference, cannot.
        published_row: its row in the published table; None: it has none.
    """

    name: str
    entries: tuple[TableEntry, ...]
    group: str | None = None
    model: str | None = None
    facts: tuple[str, ...] = ()
    baseline: bool = False
    ranked: bool = True
    published_row: str | None = None


@dataclass(frozen=True)
class Table:
    """Lines by columns.

    Columns that follow each other and share what stands before a colon ("QQP:F1", "QQP:Acc") are shown as one
    ("QQP (F1/Acc)"), except in CSV.

    Attributes:
        title: its title.
        columns: names of the columns of numbers.
        lines: each with an entry per column and a text per fact.
        facts: names of the columns of text after the name.
        higher_is_better: whether the highest number of a column is the best.
        digits: decimals of a number.
        comparable: whether published numbers are of the same setting; if not, each has a dagger (else, those of entries
            that say so).
        otherwise: how their setting differs.
        deltas: "difference" to the baseline line, "ratio" to it, or "none".
        notes: lines below it.
        legend: whether notes are added that explain the cells.
        under: of each column, what stands below its head: "accuracy, 400 test rows"; empty: nothing.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    facts: tuple[str, ...] = ()
    higher_is_better: bool = True
    digits: int = 1
    comparable: bool = True
    otherwise: str = ""
    deltas: str = "none"
    notes: tuple[str, ...] = ()
    legend: bool = True
    under: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.under and len(self.under) != len(self.columns):
            raise SoftPromptError(
                f"table '{self.title}': {len(self.columns)} columns have {len(self.under)} lines below"
            )
        if self.deltas not in DELTAS:
            raise SoftPromptError(f"table '{self.title}': deltas is one of {', '.join(DELTAS)}, not {self.deltas!r}")
        for line in self.lines:
            for what, count, wanted in (
                ("entries", len(line.entries), len(self.columns)),
                ("facts", len(line.facts), len(self.facts)),
            ):
                if count != wanted:
                    raise SoftPromptError(f"table '{self.title}': line '{line.name}' has {count} {what}, not {wanted}")

    def baseline(self, model: str | None = None) -> Line | None:
        """The line that the others of ``model`` are compared with."""
        return next((line for line in self.lines if line.baseline and line.model == model), None)

    def models(self) -> tuple[str | None, ...]:
        """The models of its lines, in their order."""
        return tuple(dict.fromkeys(line.model for line in self.lines))

    def markdown(self) -> str:
        """The table as GitHub shows it, its title above and its notes below."""
        return table_forms.markdown(self._grid())

    def text(self) -> tuple[list[str], list[list[str]]]:
        """Headings and lines of plain text, for a terminal."""
        grid = self._grid()
        return grid.joined_heads("{}\n{}"), table_forms.plain_lines(grid)

    def latex(self) -> str:
        """A LaTeX ``table``, see `softprompts.bench.table_forms.latex`."""
        return table_forms.latex(self._grid())

    def html(self) -> str:
        """A ``<table>`` to be sorted, see `softprompts.bench.table_forms.html_form`."""
        return table_forms.html_form(self._grid())

    def csv(self) -> str:
        """One line per line and column, for programs; numbers in full, scores and seeds with blanks between."""
        numbers = ["mean", "std", "n", "scores", "seeds", "published", "published_std", "same_setting", "delta"]
        rows = []
        for line in self.lines:
            for place, (column, entry) in enumerate(zip(self.columns, line.entries, strict=True)):
                same_setting = "" if entry.published is None else str(not self._other_setting(entry)).lower()
                scores, seeds = " ".join(map(in_full, entry.scores)), " ".join(map(str, entry.seeds))
                published = (in_full(entry.published), in_full(entry.published_std), same_setting)
                values = (in_full(entry.mean), in_full(entry.std), len(entry.scores), scores, seeds, *published)
                delta = in_full(self._delta(line, place))
                rows.append([line.model or "", line.group or "", line.name, *line.facts, column, *values, delta])
        return csv_text(["model", "group", "line", *self.facts, "column", *numbers], rows, "\n")

    def all_notes(self) -> tuple[str, ...]:
        """Its notes and, with a legend, those that explain the cells."""
        if not self.legend:
            return self.notes
        entries = [entry for line in self.lines for entry in line.entries]
        most = max((len(entry.scores) for entry in entries), default=0)
        legend = []
        if most > 1:
            legend.append(f"Mean over up to {most} seeds, the standard deviation over them as a subscript.")
        elif most == 1 and any(entry.seeds for entry in entries):
            legend.append("One seed: chance is not told from merit.")
        end = "" if self.higher_is_better else ", the lowest being best"
        if self.ranks():
            all_ranked = all(line.ranked for line in self.lines)
            unranked = "" if all_ranked else "; lines that train the whole model not ranked"
            legend.append(f"Best of a column in bold, second underlined{end}{unranked}.")
        against = dict.fromkeys(line.name for line in self.lines if line.baseline)
        if self.deltas != "none" and against:
            what = "difference to" if self.deltas == "difference" else "times that of"
            legend.append(f"Superscript: {what} {', '.join(against)}.")
        if any(entry.published is not None for entry in entries):
            what = "In brackets: the published number"
            if self.deltas == "ratio" and against:
                what += f", and where there is one of {', '.join(against)} too, its ratio to that"
            legend.append(f"{what}.")
            if any(map(self._other_setting, entries)):
                why = self.otherwise or "not to be compared as equals"
                legend.append(f"{DAGGER} Published in another setting: {why}.")
        short = [
            f"{line.name}{f' on {line.model}' if line.model else ''}, {column}: {len(entry.scores)} of {entry.wanted}"
            for line in self.lines
            for column, entry in zip(self.columns, line.entries, strict=True)
            if 0 < len(entry.scores) < entry.wanted
        ]
        if short:
            legend.append(f"Fewer seeds than asked for: {'; '.join(short)}.")
        return (*legend, *self.notes)

    def _other_setting(self, entry: TableEntry) -> bool:
        """Whether a published number is there to compare with, but not as an equal."""
        return entry.published is not None and (entry.other_setting or not self.comparable)

    def _merged(self) -> list[list[int]]:
        """Places of the columns that are shown as one."""
        groups: list[list[int]] = []
        before = ""
        for place, column in enumerate(self.columns):
            task, colon, metric = column.partition(":")
            key = task if colon and metric != MEAN else ""
            if key and key == before:
                groups[-1].append(place)
            else:
                groups.append([place])
            before = key
        return groups

    def _head(self, group: list[int]) -> str:
        """Head of the columns that are shown as one."""
        names = [self.columns[place].partition(":") for place in group]
        metrics = "/".join(metric for _, _, metric in names if metric)
        return f"{names[0][0]} ({metrics})" if metrics else names[0][0]

    def _grid(self) -> Grid:
        ranks, groups, before = self.ranks(), self._merged(), None
        lines = []
        for index, line in enumerate(self.lines):
            headings = []
            if line.model is not None and (before is None or before.model != line.model):
                headings.append(line.model)
            if line.group is not None and (headings or before is None or before.group != line.group):
                headings.append(line.group)
            before = line
            cells = tuple(
                tuple(self._number(line, place, ranks.get((index, place), 0)) for place in group) for group in groups
            )
            indented = line.model is not None or line.group is not None
            lines.append(GridLine(tuple(headings), line.name, line.facts, cells, indented, line.baseline))
        heads = tuple(map(self._head, groups))
        under = tuple("; ".join(dict.fromkeys(self.under[place] for place in group)) for group in groups if self.under)
        return Grid(self.title, self.facts, heads, under, tuple(lines), self.all_notes(), self.higher_is_better)

    def ranks(self) -> dict[tuple[int, int], int]:
        """1 for the best and 2 for the second of a column, by line and column; numbers count as they are printed."""
        ranks: dict[tuple[int, int], int] = {}
        for place in range(len(self.columns)):
            for model in self.models():
                printed: dict[int, float] = {}
                for index, line in enumerate(self.lines):
                    text = line.entries[place].text(self.digits)
                    if line.ranked and line.model == model and text is not None and not math.isnan(float(text)):
                        printed[index] = float(text)
                order = sorted(set(printed.values()), reverse=self.higher_is_better)
                if len(order) < 2:  # all are equal
                    continue
                for index, value in printed.items():
                    if value in order[:2]:
                        ranks[index, place] = 1 + order.index(value)
        return ranks

    def _delta(self, line: Line, place: int) -> float | None:
        base = self.baseline(line.model)
        if self.deltas == "none" or base is None or base is line:
            return None
        ours, theirs = line.entries[place].mean, base.entries[place].mean
        if ours is None or theirs is None or (self.deltas == "ratio" and not theirs):
            return None
        return ours - theirs if self.deltas == "difference" else ours / theirs

    def _signed(self, delta: float) -> str:
        if self.deltas == "ratio":
            return f"×{delta:.2f}"
        text = f"{delta:+.{self.digits}f}"
        return text if text.strip("+-0.") else f"{0:.{self.digits}f}"  # no "-0.0"

    def _number(self, line: Line, place: int, rank: int) -> Number:
        entry = line.entries[place]
        mean, std, published = entry.mean, entry.std, entry.published
        delta, base = self._delta(line, place), self.baseline(line.model)
        ratio = None
        if published is not None and self.deltas == "ratio" and base is not None and base is not line:
            base_published = base.entries[place].published
            ratio = f"×{published / base_published:.2f}" if base_published else None
        return Number(
            text=entry.text(self.digits) or ("failed" if entry.failed else "-"),
            value=mean,
            std=None if std is None or mean is None else entry.printed_std or f"{std:.{self.digits}f}",
            delta=None if delta is None else self._signed(delta),
            rank=rank,
            published=self._as_printed(published),
            published_std=self._as_printed(entry.published_std),
            published_ratio=ratio,
            dagger=DAGGER if self._other_setting(entry) else "",
            mark=entry.mark,
            scores=entry.scores,
        )

    def _as_printed(self, value: float | None) -> str | None:
        """A published number with the decimals it was printed with, and at least those of the table."""
        return None if value is None else max(f"{value:.{self.digits}f}", f"{value:.10g}", key=len)


def with_average(
    table: Table, reference: PublishedTable | None = None, groups: Mapping[str, Sequence[str]] | None = None
) -> Table:
    """The table with a column that is the mean over tasks; a task with several metrics counts once, by their mean.

    Where each entry of a line has the same seeds, an average is made for every seed, so that it has a standard
    deviation; else it is the mean of the means, without one. A line that lacks a task has no average.

    Args:
        table: without such a column.
        reference: whose averages are the published ones, if they are over the same tasks.
        groups: the tasks of several averages, by their names; None or empty: one average over all tasks.
    """
    if reference is not None and tasks_of(table.columns).keys() != tasks_of(reference.columns).keys():
        reference = None
    averages = {f"{AVERAGE}:{name}": tasks for name, tasks in groups.items()} if groups else {AVERAGE: None}
    lines = []
    for line in table.lines:
        entries = [
            average_of(table, line, tasks).beside(reference, line.published_row, name)
            for name, tasks in averages.items()
        ]
        lines.append(replace(line, entries=(*line.entries, *entries)))
    under = (*table.under, *("" for _ in averages)) if table.under else ()
    return replace(table, columns=(*table.columns, *averages), lines=tuple(lines), under=under)


def average_of(table: Table, line: Line, over: Sequence[str] | None = None) -> TableEntry:
    """The average of a line over some tasks (None: all), see `with_average`."""
    places_of = {task: places for task, places in tasks_of(table.columns).items() if over is None or task in over}
    tasks = [[line.entries[place] for place in places] for places in places_of.values()]
    entries = list(itertools.chain(*tasks))
    if not entries or any(entry.mean is None for entry in entries):
        return TableEntry()
    other, seeds = any(entry.other_setting for entry in entries), {entry.seeds for entry in entries}
    if len(seeds) == 1 and (shared := next(iter(seeds))):
        by_task = [[*map(statistics.fmean, zip(*(entry.scores for entry in task), strict=True))] for task in tasks]
        return TableEntry(tuple(map(statistics.fmean, zip(*by_task, strict=True))), shared, other_setting=other)
    means = [statistics.fmean(entry.mean or 0.0 for entry in task) for task in tasks]
    return TableEntry((statistics.fmean(means),), other_setting=other)
