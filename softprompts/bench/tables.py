"""Tables in the papers' own form: Markdown, CSV, LaTeX and HTML of the same cells.

A cell is a mean over seeds with the standard deviation as a subscript, the difference to the baseline line as a
superscript and the published number in brackets; the best of a column is bold, the second underlined.
"""

from __future__ import annotations

import csv
import html
import io
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from softprompts.bench.column_names import AVERAGE, MEAN, tasks_of
from softprompts.bench.published import PublishedTable
from softprompts.bench.table_forms import (
    DAGGER,
    _as_printed,
    _html_cell,
    _html_fact,
    _join,
    _marked_published,
    _md,
    _md_part,
    _md_row,
    _number,
    _Part,
    _plain_part,
    _plain_published,
    _tex,
    _tex_part,
    _tex_published,
)
from softprompts.errors import SoftPromptError

DELTAS = ("none", "difference", "ratio")


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table.

    Attributes:
        scores: one per seed, as they are shown (x 100, seconds, GB); empty: nothing to show.
        seeds: the seed of each score; empty where it is not known.
        wanted: how many scores there ought to be; 0: as many as there are.
        failed: True where runs have ended and none gave a score.
        known_std: standard deviation where it is known without the single scores.
        published: the published number beside it.
        published_std: and its standard deviation.
        mark: a sign printed after the number; a note of the table says what it means.
        printed: the number's own text where it is quoted, to stand in place of one with the table's decimals.
        printed_std: and its standard deviation's.
    """

    scores: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    wanted: int = 0
    failed: bool = False
    known_std: float | None = None
    published: float | None = None
    published_std: float | None = None
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

    def text(self, digits: int) -> str | None:
        """The mean as it is shown; None without a score."""
        mean = self.mean
        return None if mean is None else self.printed or f"{mean:.{digits}f}"


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        name: what stands at its front.
        entries: one per column of the table.
        group: heading above it.
        model: lines of one model are ranked among themselves and stand under its name; None: the table has one model.
        facts: texts beside the name, one per fact of the table.
        baseline: differences of the other lines of its model are to this one.
        ranked: whether it can be the best of a column; fine-tuning is a reference and is not.
    """

    name: str
    entries: tuple[Entry, ...]
    group: str | None = None
    model: str | None = None
    facts: tuple[str, ...] = ()
    baseline: bool = False
    ranked: bool = True


@dataclass(frozen=True)
class Table:
    """Lines by columns, and how they are to be read.

    Columns that follow each other and share what stands before a colon ("QQP:F1", "QQP:Acc") are shown as one
    ("QQP (F1/Acc)"), except in CSV.

    Attributes:
        title: what it shows.
        columns: their names.
        lines: with as many entries and facts as there are columns and names of facts.
        facts: names of the columns of text after the name.
        higher_is_better: which end of a column is best.
        digits: decimals of a number.
        comparable: whether published numbers are of the same setting; if not, each has a dagger.
        otherwise: what differs, if not.
        deltas: "difference" to the baseline line, "ratio" to it, or "none".
        notes: lines below.
        legend: whether notes that say how to read the cells are added.
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

    def __post_init__(self) -> None:
        if self.deltas not in DELTAS:
            raise SoftPromptError(f"table '{self.title}': deltas is one of {', '.join(DELTAS)}, not {self.deltas!r}")
        for line in self.lines:
            for what, there, wanted in (
                ("entries", line.entries, self.columns),
                ("facts", line.facts, self.facts),
            ):
                if len(there) != len(wanted):
                    raise SoftPromptError(
                        f"table '{self.title}': line '{line.name}' has {len(there)} {what}, not {len(wanted)}"
                    )

    def baseline(self, model: str | None = None) -> Line | None:
        """The line that those of ``model`` are held against."""
        return next((line for line in self.lines if line.baseline and line.model == model), None)

    def best(self, column: str, model: str | None = None) -> Line | None:
        """The best ranked line of a column by its mean."""
        place = self.place(column)
        scored = [
            (mean, line)
            for line in self.lines
            if line.ranked and line.model == model and (mean := line.entries[place].mean) is not None
        ]
        if not scored:
            return None
        return (max if self.higher_is_better else min)(scored, key=lambda item: item[0])[1]

    def place(self, column: str) -> int:
        """Index of a column.

        Raises:
            SoftPromptError: there is none of this name.
        """
        if column not in self.columns:
            raise SoftPromptError(
                f"table '{self.title}': no column '{column}'; there are {', '.join(self.columns)}"
            ) from None
        return self.columns.index(column)

    def models(self) -> tuple[str | None, ...]:
        """The models of its lines, in their order."""
        return tuple(dict.fromkeys(line.model for line in self.lines))

    def markdown(self) -> str:
        """The table as GitHub shows it, its title above and its notes below."""
        heads = ["", *self.facts, *self._heads()]
        out = [f"**{_md(self.title)}**", "", _md_row(map(_md, heads))]
        out.append("|---|" + "---|" * len(self.facts) + "---:|" * len(self._merged()))
        for headings, line, cells in self._body():
            out += [_md_row([f"*{_md(heading)}*", *[""] * (len(heads) - 1)]) for heading in headings]
            shown = [_join(cell, _md_part, _marked_published) for cell in cells]
            out.append(_md_row([_md(line.name), *map(_md, line.facts), *shown]))
        notes = "".join(f"\n{_md(note)}  " for note in self.all_notes()).rstrip()
        return "\n".join(out) + "\n" + (f"{notes}\n" if notes else "")

    def text(self) -> tuple[list[str], list[list[str]]]:
        """Headings and lines of plain text, for a terminal: the best of a column between asterisks, no differences."""
        lines = []
        for headings, line, cells in self._body():
            lines += [[heading] for heading in headings]
            indent = "  " if line.model is not None or line.group is not None else ""
            shown = [_join(cell, _plain_part, _plain_published) for cell in cells]
            lines.append([indent + line.name, *line.facts, *shown])
        return ["", *self.facts, *self._heads()], lines

    def csv(self) -> str:
        """One line per line and column, for programs; numbers in full, scores and seeds with blanks between."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        numbers = ["mean", "std", "n", "scores", "seeds", "published", "published_std", "same_setting", "delta"]
        writer.writerow(["model", "group", "line", *self.facts, "column", *numbers])
        for line in self.lines:
            for place, entry in enumerate(line.entries):
                known = entry.published is not None
                writer.writerow(
                    [
                        line.model or "",
                        line.group or "",
                        line.name,
                        *line.facts,
                        self.columns[place],
                        _number(entry.mean),
                        _number(entry.std),
                        len(entry.scores),
                        " ".join(map(_number, entry.scores)),
                        " ".join(map(str, entry.seeds)),
                        _number(entry.published),
                        _number(entry.published_std),
                        str(self.comparable).lower() if known else "",
                        _number(self._delta(line, place)),
                    ]
                )
        return out.getvalue()

    def latex(self) -> str:
        r"""A ``table`` to be used with the package booktabs; text is escaped."""
        merged = self._merged()
        width = 1 + len(self.facts) + len(merged)
        kind = "table*" if width > 9 else "table"
        heads = ["", *self.facts, *self._heads()]
        out = [
            r"% needs \usepackage{booktabs}",
            rf"\begin{{{kind}}}[t]",
            r"\centering",
            rf"\caption{{{_tex(self.title)}}}",
            r"\scriptsize" if width > 9 else r"\small",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\begin{{tabular}}{{l{'l' * len(self.facts)}{'r' * len(merged)}}}",
            r"\toprule",
            " & ".join(map(_tex, heads)) + r" \\",
            r"\midrule",
        ]
        for index, (headings, line, cells) in enumerate(self._body()):
            if headings and index:
                out.append(r"\midrule")
            out += [rf"\multicolumn{{{width}}}{{l}}{{\textit{{{_tex(heading)}}}}} \\" for heading in headings]
            shown = [_join(cell, _tex_part, _tex_published, _tex) for cell in cells]
            out.append(" & ".join([_tex(line.name), *map(_tex, line.facts), *shown]) + r" \\")
        out += [r"\bottomrule", r"\end{tabular}"]
        notes = self.all_notes()
        if notes:
            lines = r" \\ ".join(map(_tex, notes))
            out.append(rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {lines}}}")
        out.append(rf"\end{{{kind}}}")
        return "\n".join(out) + "\n"

    def html(self) -> str:
        """A ``<table>``: numbers to sort by in ``data-value``, a ``<tbody>`` per group, notes in ``<tfoot>``."""
        merged = self._merged()
        heads = ["", *self.facts, *self._heads()]
        width = len(heads)
        out = [f'<table class="results" data-higher-is-better="{str(self.higher_is_better).lower()}">']
        out.append(f"<caption>{html.escape(self.title)}</caption>")
        kinds = ["name", *["fact"] * len(self.facts), *["number"] * len(merged)]
        cells_of_head = (
            f'<th scope="col" class="{k}">{html.escape(h)}</th>' for k, h in zip(kinds, heads, strict=True)
        )
        out.append("<thead><tr>" + "".join(cells_of_head) + "</tr></thead>")
        opened = False
        for headings, line, cells in self._body():
            if headings or not opened:
                out.append("</tbody>\n<tbody>" if opened else "<tbody>")
                opened = True
            out += [
                f'<tr class="group"><th colspan="{width}" scope="rowgroup">{html.escape(h)}</th></tr>' for h in headings
            ]
            shown = [f'<th scope="row" data-value="{html.escape(line.name)}">{html.escape(line.name)}</th>']
            shown += [_html_fact(fact) for fact in line.facts]
            shown += [_html_cell(cell) for cell in cells]
            kind = ' class="baseline"' if line.baseline else ""
            out.append(f"<tr{kind}>" + "".join(shown) + "</tr>")
        if opened:
            out.append("</tbody>")
        notes = self.all_notes()
        if notes:
            text = "<br>".join(map(html.escape, notes))
            out.append(f'<tfoot><tr><td colspan="{width}">{text}</td></tr></tfoot>')
        return "\n".join([*out, "</table>"]) + "\n"

    def all_notes(self) -> tuple[str, ...]:
        """Its notes and, with a legend, how its cells are to be read."""
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
        if any(part.rank for cells in self._cells() for cell in cells for part in cell):
            unranked = (
                "" if all(line.ranked for line in self.lines) else "; lines that train the whole model not ranked"
            )
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
            if not self.comparable:
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

    def _merged(self) -> list[list[int]]:
        """Places of the columns that are shown together."""
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

    def _heads(self) -> list[str]:
        """What stands above the columns that are shown."""
        heads = []
        for group in self._merged():
            names = [self.columns[place].partition(":") for place in group]
            metrics = "/".join(metric for _, _, metric in names if metric)
            heads.append(f"{names[0][0]} ({metrics})" if metrics else names[0][0])
        return heads

    def _body(self) -> Iterator[tuple[list[str], Line, list[list[_Part]]]]:
        """Each line with the headings above it and its cells; a cell has a part per column in it."""
        before: Line | None = None
        for line, cells in zip(self.lines, self._cells(), strict=True):
            headings = []
            if line.model is not None and (before is None or before.model != line.model):
                headings.append(line.model)
            if line.group is not None and (headings or before is None or before.group != line.group):
                headings.append(line.group)
            before = line
            yield headings, line, cells

    def _cells(self) -> list[list[list[_Part]]]:
        ranks = self.ranks()
        return [
            [[self._part(line, place, ranks.get((index, place), 0)) for place in group] for group in self._merged()]
            for index, line in enumerate(self.lines)
        ]

    def ranks(self) -> dict[tuple[int, int], int]:
        """1 for the best and 2 for the second of a column, by line and column, as the printed numbers are."""
        ranks: dict[tuple[int, int], int] = {}
        for place in range(len(self.columns)):
            for model in self.models():
                printed: dict[int, float] = {}
                for index, line in enumerate(self.lines):
                    text = line.entries[place].text(self.digits)
                    if line.ranked and line.model == model and text is not None and not math.isnan(float(text)):
                        printed[index] = float(text)
                order = sorted(set(printed.values()), reverse=self.higher_is_better)
                if len(order) < 2:  # nothing to tell apart
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

    def _part(self, line: Line, place: int, rank: int) -> _Part:
        entry = line.entries[place]
        mean, std = entry.mean, entry.std
        missing = "failed" if entry.failed else "-"
        delta = self._delta(line, place)
        known = None if entry.published is None else _as_printed(entry.published, self.digits)
        ratio = None
        if known is not None and self.deltas == "ratio" and not line.baseline:
            base = self.baseline(line.model)
            theirs = None if base is None else base.entries[place].published
            if theirs and entry.published is not None:
                ratio = f"×{entry.published / theirs:.2f}"
        return _Part(
            text=entry.text(self.digits) or missing,
            value=mean,
            std=None if std is None or mean is None else entry.printed_std or f"{std:.{self.digits}f}",
            delta=None if delta is None else self._signed(delta),
            rank=rank,
            published=known,
            published_std=None if entry.published_std is None else _as_printed(entry.published_std, self.digits),
            published_ratio=ratio,
            dagger="" if self.comparable or known is None else DAGGER,
            mark=entry.mark,
            scores=entry.scores,
        )


def with_average(
    table: Table, reference: PublishedTable | None = None, names: Mapping[int, str] | None = None
) -> Table:
    """The table with a column that is the mean over tasks; a task with several metrics counts once, by their mean.

    Where each entry of a line has the same seeds, an average is made for every seed, so that it has a standard
    deviation; else it is the mean of the means, without one. A line that lacks a task has no average.

    Args:
        table: without such a column.
        reference: whose averages are the published ones, if they are over the same tasks.
        names: by index of a line, its row there.
    """
    lines = []
    if reference is not None and tasks_of(table.columns).keys() != tasks_of(reference.columns).keys():
        reference = None
    for index, line in enumerate(table.lines):
        average = average_of(table, line)
        row = (names or {}).get(index)
        known = None
        if reference is not None and row is not None and AVERAGE in reference.columns:
            known = reference.value(row, AVERAGE)
        if known is not None:
            average = replace(average, published=known[0], published_std=known[1])
        lines.append(replace(line, entries=(*line.entries, average)))
    return replace(table, columns=(*table.columns, AVERAGE), lines=tuple(lines))


def average_of(table: Table, line: Line) -> Entry:
    """The average of a line over tasks, see `with_average`."""
    tasks = tasks_of(table.columns)
    if not tasks or any(line.entries[place].mean is None for places in tasks.values() for place in places):
        return Entry()
    seeds = {line.entries[place].seeds for places in tasks.values() for place in places}
    if len(seeds) == 1 and (shared := next(iter(seeds))):
        by_seed = [
            statistics.fmean(
                statistics.fmean(line.entries[place].scores[at] for place in places) for places in tasks.values()
            )
            for at in range(len(shared))
        ]
        return Entry(tuple(by_seed), shared)
    means = [statistics.fmean(line.entries[place].mean or 0.0 for place in places) for places in tasks.values()]
    return Entry((statistics.fmean(means),))
