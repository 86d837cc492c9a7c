"""A bench's figures: score against size, learning curves, sweeps, cost, and pictures of the trained prompts.

Each kind of figure first gathers its numbers, which are kept as CSV, and then draws them. What has nothing to draw yet
says so in its caption. Without matplotlib there are numbers and captions, and no pictures.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompts.bench.charts import (
    Panel,
    Series,
    Spread,
    bars_of,
    is_number,
    lines_of,
    points_of,
    told_value,
)
from softprompts.errors import SoftPromptError
from softprompts.plotting import NO_MATPLOTLIB, Point, have_matplotlib
from softprompts.storage.run_folder import load_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from softprompts.bench.recipe import Column, Row
    from softprompts.bench.recipe_schema import FigureSpec
    from softprompts.bench.results import Findings

MODEL, COLUMN = "model", "column"  # axes of a sweep that no grid sets
MEASURED = {
    "score": "score",
    "seconds": "seconds per 100 steps",
    "memory": "peak memory (GB)",
    "parameters": "trained parameters",
}
MOST_LINES = 10
MOST_NAMES = 14
MOST_FACETS = 6
Prompt = tuple[Path, str]  # its folder, and what it is called


@dataclass(frozen=True)
class Drawn:
    """A figure of a report.

    Attributes:
        name: of its files, without an ending; no other figure of the bench has it.
        title: a heading.
        caption: what is drawn, and what is left out.
        figure: the picture; None where there is nothing to draw or no matplotlib.
        csv: the numbers behind it, with a line of headings; empty where there are none.
    """

    name: str
    title: str
    caption: str
    figure: Figure | None
    csv: str


def figures_of(findings: Findings, *, data_dir: str | Path | None = None) -> list[Drawn]:
    """The figures that a bench's recipe asks for, one for each model where there are several.

    Args:
        findings: what its runs say.
        data_dir: local data of the tasks, for pictures of prompts that need rows.

    Raises:
        SoftPromptError: a run folder whose prompt is to be pictured has none.
    """
    kinds: dict[str, Callable[[Findings, FigureSpec, str], Drawn]] = {
        "sweep": _sweep,
        "curves": _curves,
        "parameters": _parameters,
        "cost": _cost,
    }
    asked = [(spec, _selected(spec.models, findings.recipe.models)) for spec in findings.recipe.figures]
    prompts = [_prompts(findings, spec, models) if spec.kind == "analysis" else [] for spec, models in asked]
    opened = _opened(itertools.chain.from_iterable(prompts))
    drawn: list[Drawn] = []
    for (spec, models), there in zip(asked, prompts, strict=True):
        if spec.kind == "analysis":
            found = _analysis(spec, there, opened, data_dir)
        elif spec.kind == "sweep" and spec.x == MODEL:
            found = [_sweep(findings, spec, "")]
        else:
            found = [kinds[spec.kind](findings, spec, model) for model in models]
            if len(models) > 1:
                found = [
                    replace(one, name=f"{one.name}-{model}", title=f"{one.title}, {model}")
                    for one, model in zip(found, models, strict=True)
                ]
        drawn += found
    names: list[str] = []
    for one in drawn:
        base = re.sub(r"[^a-z0-9]+", "-", one.name.lower()).strip("-")
        more = (f"{base}-{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([base], more) if name not in names))
    return [replace(one, name=name) for one, name in zip(drawn, names, strict=True)]


def _sweep(findings: Findings, spec: FigureSpec, model: str) -> Drawn:
    """Scores (or cost, or size) against a value of the grid, the models, or the columns."""
    x, what = str(spec.x), spec.y
    columns = _columns(findings, spec)
    every = list(_selected(spec.models, findings.recipe.models)) if x == MODEL else [model]
    key = x.rpartition(".")[2]  # the grid says training.max_steps
    facets = (len(columns) <= MOST_FACETS if spec.facets is None else spec.facets) and len(columns) > 1
    facets = facets and what != "parameters" and x != COLUMN
    groups = [(column.name, [column]) for column in columns] if facets else [("", list(columns))]
    rows = _rows(findings, spec)
    labels = _labels_of_sweep(rows, key)
    known = x in (MODEL, COLUMN) or any(key in row.values for row in rows)
    panels, left_out = [], dict[str, None]()
    for title, those in groups:
        lines: dict[str, list[Spread]] = {}
        levels = set[str]()
        for row in rows:
            places: list[tuple[Any, str, list[Column]]]
            if x == COLUMN:
                places = [(column.name, model, [column]) for column in those]
            elif x == MODEL:
                places = [(one, one, those) for one in every]
            else:
                value = row.values.get(key)
                places = [(value if is_number(value) else told_value(value), model, those)]
                levels |= set() if key in row.values else {labels[row.label]}
            for place, on, scored in places:
                values = _measured(findings, row, scored, on, what)
                if values:
                    lines.setdefault(labels[row.label], []).append(Spread(place, tuple(values.values())))
                elif row.models and on in row.models:
                    left_out[row.label] = None
        series = tuple(Series(label, tuple(_in_order(spreads)), label in levels) for label, spreads in lines.items())
        y_label = MEASURED[what] if what != "score" else _metric(those[:1] if x == COLUMN else those)
        panels.append(Panel(title, _spoken(key), y_label, series))
    name, title = f"sweep-{key}{'' if what == 'score' else f'-{what}'}", (spec.title or f"By {_spoken(key)}")
    table = [("panel", "line", key, "mean", "std", "n", "values")] + [
        (panel.title, line.label, "" if line.level else s.x, *_summary(s))
        for panel in panels
        for line in panel.series
        for s in line.spreads
    ]  # fmt: skip
    there = {spread.x for panel in panels for line in panel.series for spread in line.spreads if not line.level}
    if len(there) < 2:
        only = f"only one value ({told_value(*there)}) has a result" if there else "no run has a result yet"
        if not known:
            only = f"no grid of these rows sets '{x}'"
        return Drawn(name, title, f"Nothing to draw: {only}.", None, _csv(table))
    scored = columns[:1] if len({column.metric for column in columns}) == 1 and (facets or x == COLUMN) else columns
    caption = f"{_metric(scored) if what == 'score' else MEASURED[what]} by {_spoken(key)}"
    if not facets and len(columns) > 1 and what == "score" and x != COLUMN:
        caption += f", the mean over {', '.join(column.name for column in columns)}"
    caption = f"{caption[0].upper()}{caption[1:]}; {_about_seeds(panels)}"
    if any(line.level for panel in panels for line in panel.series):
        caption += f" Dashed without marks: methods without {_spoken(key)}."
    panels, note = _fewer(panels)
    styles = _styles(findings, {labels[row.label]: row.name for row in rows})
    return _drawn(name, title, caption + note + _missing(left_out), lambda: lines_of(panels, styles, marks=True), table)


def _curves(findings: Findings, spec: FigureSpec, model: str) -> Drawn:
    """Validation score and training loss against steps."""
    rows = _rows(findings, spec)
    tasks = _selected(spec.tasks, _tasks(findings))
    rows, note = _best_of_each(findings, rows, model)
    above, below = [], []
    table: list[tuple[Any, ...]] = [("task", "line", "what", "step", "mean", "std", "n", "values")]
    for task in tasks:
        metric = next((column.metric for column in findings.recipe.columns if column.task == task), "")
        scores: list[Series] = []
        losses: list[Series] = []
        for row in rows:
            histories = [load_metrics(outcome.folder) for outcome in findings.runs(row, task, model)]
            for what, factor, into in (("loss", 1.0, losses), (metric, 100.0, scores)):
                spreads = _steps(histories, what, factor)
                if spreads:
                    into.append(Series(row.label, spreads))
                    table += [(task, row.label, what, s.x, *_summary(s)) for s in spreads]
        above.append(Panel(task, "steps", f"validation {metric} x 100", tuple(scores)))
        below.append(Panel("" if scores else task, "steps", "training loss", tuple(losses)))
    title = spec.title or "Learning curves"
    if not any(panel.series for panel in (*above, *below)):
        return Drawn("curves", title, "Nothing to draw: no run has a result yet.", None, "")
    caption = ("Score on validation rows and training loss" if any(p.series for p in above) else "Training loss") + "; "
    caption += _about_seeds([*above, *below]) + " A line ends where the first of its seeds stopped." + note
    across = min(3, len(tasks))
    panels: list[Panel | None] = []
    for start in range(0, len(tasks), across):
        for half in (above, below):
            if any(panel.series for panel in half):
                part: list[Panel | None] = [*half[start : start + across]]
                panels += part + [None] * (across - len(part))
    styles = _styles(findings, {row.label: row.name for row in rows})
    return _drawn("curves", title, caption, lambda: lines_of(panels, styles, columns=across), table)


def _parameters(findings: Findings, spec: FigureSpec, model: str) -> Drawn:
    """Scores against the number of trained parameters."""
    columns, rows = _columns(findings, spec), _rows(findings, spec)
    names = list(dict.fromkeys(row.name for row in findings.recipe.rows))
    points, shared, left_out = [], [], dict[str, None]()
    table: list[tuple[Any, ...]] = [("line", "trained", "total", "mean", "std", "n", "values")]
    for row in rows:
        sizes, scores = findings.trained(row, model), _measured(findings, row, columns, model, "score")
        if sizes is None or sizes[0] < 1 or not scores:
            if model in row.models:
                left_out[row.label] = None
            continue
        line = [other for other in rows if other.name == row.name]
        values = tuple(scores.values())
        join = row.name if len(line) > 1 and len(row.values) == 1 else None
        points.append(Point(row.label, sizes[0], values, names.index(row.name), join))
        shared.append(row.name if len(line) > 1 else row.label)
        table.append((row.label, *sizes, *_summary(Spread(None, values))))
    title = spec.title or "Score against trained parameters"
    if not points:
        return Drawn("parameters", title, "Nothing to draw: no run has a result yet.", None, "")
    if len(points) > MOST_NAMES:  # too many to name each: the settings of a method share a name
        points = [replace(point, label=label) for point, label in zip(points, shared, strict=True)]
    seeds = max(len(point.scores) for point in points)
    caption = "Trained parameters on a logarithmic axis"
    if len(columns) > 1:
        caption += f"; the score is the mean over {', '.join(column.name for column in columns)}"
    caption += (
        f"; bars are one standard deviation over up to {seeds} seeds, dots the seeds." if seeds > 1 else "; one seed."
    )
    if any(point.join for point in points):
        caption += " A method's settings are joined by a line."
    y_label = _metric(columns)
    return _drawn("parameters", title, caption + _missing(left_out), lambda: points_of(points, y_label), table)


def _cost(findings: Findings, spec: FigureSpec, model: str) -> Drawn:
    """Seconds per 100 steps and peak memory, by task and method."""
    rows = _rows(findings, spec)
    tasks = _selected(spec.tasks, _tasks(findings))
    costs: dict[str, dict[str, tuple[float, float]]] = {}
    table: list[tuple[Any, ...]] = [("task", "line", "seconds_per_100_steps", "peak_memory_gb")]
    for task in tasks:
        for row in rows:
            cost = findings.cost(row, task, model)
            if cost is not None:
                costs.setdefault(row.label, {})[task] = (cost[0], cost[1] / 1e9)
                table.append((task, row.label, f"{cost[0]:.6g}", f"{cost[1] / 1e9:.6g}"))
    title = spec.title or "Time and memory"
    if not costs:
        return Drawn("cost", title, "Nothing to draw: no run has a result yet.", None, "")
    caption = "Seconds per 100 steps (median over seeds) and peak memory (largest over seeds)."
    if findings.recipe.measure == "score":
        caption += (
            " Of training runs as they came, some of them sharing passes; the cost recipes measure by a fixed protocol."
        )
    left_out = dict.fromkeys(row.label for row in rows if model in row.models and row.label not in costs)
    styles = _styles(findings, {row.label: row.name for row in rows})
    return _drawn("cost", title, caption + _missing(left_out), lambda: bars_of(costs, tasks, styles), table)


def _analysis(
    spec: FigureSpec, prompts: Sequence[Prompt], opened: Mapping[Prompt, Any], data_dir: str | Path | None
) -> list[Drawn]:
    """Pictures of trained prompts."""
    what = str(spec.what)
    title = spec.title or f"Trained prompts: {what}"
    if not prompts:
        return [Drawn(what, title, "Nothing to draw: no run has a result yet.", None, "")]
    if not have_matplotlib():
        return [Drawn(what, title, f"{NO_MATPLOTLIB}.", None, "")]
    from softprompts import analysis

    there = [opened[prompt] for prompt in prompts]
    try:
        pictures = analysis.figures(what, there, data_dir=None if data_dir is None else str(data_dir))
    except SoftPromptError as error:
        return [Drawn(what, title, f"Nothing to draw: {error}.", None, "")]
    return [Drawn(picture.name, title, picture.caption, picture.figure, picture.csv) for picture in pictures]


def _prompts(findings: Findings, spec: FigureSpec, models: Sequence[str]) -> list[Prompt]:
    """The folder of a run and what it is called: for each row and task, that of the first seed."""
    found = []
    for model in models:
        for row in _rows(findings, spec):
            for task in _selected(spec.tasks, _tasks(findings)):
                runs = findings.runs(row, task, model)
                if runs:
                    told = [row.label, task, *([model] if len(findings.recipe.models) > 1 else [])]
                    found.append((runs[0].folder, ", ".join(told)))
    return found


def _opened(prompts: Iterable[Prompt]) -> dict[Prompt, Any]:
    """Prompts read once for all pictures, so that their backbone is loaded once."""
    prompts = list(dict.fromkeys(prompts))
    if not prompts or not have_matplotlib():
        return {}
    from softprompts import analysis

    saved = analysis.open_prompts([folder for folder, _ in prompts], [name for _, name in prompts])
    return dict(zip(prompts, saved, strict=True))


def _measured(findings: Findings, row: Row, columns: Sequence[Column], model: str, what: str) -> dict[int, float]:
    """What a row has, by seed (cost and size: one value), as the mean over tasks; {} where a column is missing."""
    if what == "parameters":
        sizes = findings.trained(row, model)
        return {} if sizes is None else {0: float(sizes[0])}
    tasks = dict.fromkeys(column.task for column in columns)
    if what != "score":
        costs = [findings.cost(row, task, model) for task in tasks]
        if not costs or any(cost is None for cost in costs):
            return {}
        return {0: statistics.fmean(c[0] if what == "seconds" else c[1] / 1e9 for c in costs if c is not None)}
    scores = [(column.task, findings.scores(row, column, model)) for column in columns]
    seeds = set.intersection(*(set(found) for _, found in scores)) if scores else set()
    # A task with two metrics counts once.
    return {
        seed: statistics.fmean(statistics.fmean(found[seed] for on, found in scores if on == task) for task in tasks)
        for seed in sorted(seeds)
    }


def _steps(histories: Sequence[Sequence[Mapping[str, Any]]], what: str, factor: float) -> tuple[Spread, ...]:
    """A value of metrics.jsonl by step, at the steps that all of some runs have."""
    found = []
    for history in histories:
        values = {record["step"]: record.get(what) for record in history}
        found.append(
            {step: factor * v for step, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        )
    found = [values for values in found if values]
    shared = set.intersection(*(set(values) for values in found)) if found else set()
    return tuple(Spread(step, tuple(values[step] for values in found)) for step in sorted(shared))


def _rows(findings: Findings, spec: FigureSpec) -> list[Row]:
    """The rows a figure is of: those with these names or labels, or all."""
    rows = findings.recipe.rows
    wanted = _selected(spec.rows, [name for row in rows for name in (row.name, row.label)])
    return [row for row in rows if row.name in wanted or row.label in wanted]


def _columns(findings: Findings, spec: FigureSpec) -> list[Column]:
    columns = findings.recipe.columns
    wanted = _selected(spec.columns, [name for column in columns for name in (column.name, column.task)])
    return [column for column in columns if column.name in wanted or column.task in wanted]


def _tasks(findings: Findings) -> list[str]:
    return list(dict.fromkeys(column.task for column in findings.recipe.columns))


def _selected(names: Sequence[str] | None, every: Iterable[str]) -> list[str]:
    """Those of some names that a figure names; all where it names none."""
    return [name for name in dict.fromkeys(every) if names is None or name in names]


def _labels_of_sweep(rows: Sequence[Row], key: str) -> dict[str, str]:
    """By row, the line that it belongs to: its name, with the other values of its grid where they differ."""
    others = {row.label: {k: v for k, v in row.values.items() if k != key} for row in rows}
    labels = {}
    for row in rows:
        rest = others[row.label]
        same = all(others[other.label] == rest for other in rows if other.name == row.name)
        told = ", ".join(f"{_spoken(k)} {told_value(v)}" for k, v in rest.items())
        labels[row.label] = row.name if same or not told else f"{row.name} ({told})"
    return labels


def _best_of_each(findings: Findings, rows: list[Row], model: str) -> tuple[list[Row], str]:
    """As few rows as can be told apart: of each method the setting with the best mean score."""
    if len(rows) <= MOST_LINES:
        return rows, ""

    def score(row: Row) -> float:
        values = [v for column in findings.recipe.columns for v in findings.scores(row, column, model).values()]
        return statistics.fmean(values) if values else -math.inf

    names = list(dict.fromkeys(row.name for row in rows))
    if len(names) == len(rows):
        return rows, ""
    best = [max((row for row in rows if row.name == name), key=score) for name in names]
    return best, " Of each method, only its setting with the best mean score is drawn."


def _fewer(panels: list[Panel]) -> tuple[list[Panel], str]:
    """Panels without the levels where there are more lines than can be told apart."""
    labels = {line.label for panel in panels for line in panel.series}
    if len(labels) <= 2 * MOST_LINES:
        return panels, ""
    kept = [replace(panel, series=tuple(line for line in panel.series if not line.level)) for panel in panels]
    return kept, " Those are left out, being too many."


def _styles(findings: Findings, names: Mapping[str, str]) -> dict[str, int]:
    """A style for each line: that of its method, the same in all figures, unless several lines are of one method.

    Args:
        findings: of the bench.
        names: by line, its method's row.
    """
    every = list(dict.fromkeys(row.name for row in findings.recipe.rows))
    if len(set(names.values())) == len(names):
        return {label: every.index(name) for label, name in names.items()}
    return {label: index for index, label in enumerate(names)}


def _in_order(spreads: Sequence[Spread]) -> list[Spread]:
    """Numbers by size; all else as it came."""
    if all(is_number(spread.x) for spread in spreads):
        return sorted(spreads, key=lambda spread: float(spread.x))
    return list(spreads)


def _metric(columns: Sequence[Column]) -> str:
    """What is scored, for an axis."""
    metrics = list(dict.fromkeys(column.metric for column in columns))
    tasks = {column.task for column in columns}
    told = f"{metrics[0].replace('_', ' ')} x 100" if len(metrics) == 1 else "score x 100"
    return f"mean {told}" if len(tasks) > 1 else told


def _spoken(key: str) -> str:
    """A setting's name in words."""
    return {MODEL: "model", COLUMN: "task"}.get(key, key.replace("_", " "))


def _summary(spread: Spread) -> tuple[Any, ...]:
    std = f"{spread.std:.6g}" if len(spread.values) > 1 else ""
    return f"{spread.mean:.6g}", std, len(spread.values), " ".join(f"{value:.6g}" for value in spread.values)


def _about_seeds(panels: Iterable[Panel]) -> str:
    most = max((len(s.values) for panel in panels for line in panel.series for s in line.spreads), default=0)
    return f"mean over up to {most} seeds, the band one standard deviation." if most > 1 else "one value each."


def _missing(labels: Iterable[str]) -> str:
    """A sentence on what has no complete result."""
    labels = list(labels)
    if not labels:
        return ""
    told = ", ".join(labels[:6]) + (f" and {len(labels) - 6} more" if len(labels) > 6 else "")
    return f" Left out, for want of results: {told}."


def _csv(table: Sequence[Sequence[Any]]) -> str:
    if len(table) < 2:
        return ""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(table)
    return out.getvalue()


def _drawn(name: str, title: str, caption: str, draw: Callable[[], Figure], table: Sequence[Sequence[Any]]) -> Drawn:
    if not have_matplotlib():
        return Drawn(name, title, f"{caption} ({NO_MATPLOTLIB})", None, _csv(table))
    return Drawn(name, title, caption, draw(), _csv(table))
