"""A bench's figures: score against size, learning curves, sweeps, cost, and pictures of the trained prompts.

Each kind of figure first collects its numbers, which are written as CSV, and then draws them. A figure without numbers
says so in its caption. Without matplotlib there are numbers and captions, and no pictures.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompts.bench.charts import Panel, Series, bars_of, is_number, lines_of, points_of, value_text
from softprompts.bench.recipe import last_part
from softprompts.errors import SoftPromptError
from softprompts.plotting import NO_MATPLOTLIB, Point, Spread, have_matplotlib
from softprompts.storage.run_folder import load_metrics
from softprompts.storage.tables import csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from softprompts.analysis import Saved
    from softprompts.bench.recipe import Column, RecipeRow
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
NO_RESULT = "Nothing to draw: no run has a result yet."
Prompt = tuple[Path, str]  # its folder, and its label in pictures


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a report.

    Attributes:
        name: of its files, without an ending; no other figure of the bench has it.
        title: a heading.
        caption: what is drawn, and what is left out.
        figure: the picture; None without numbers or without matplotlib.
        csv: the numbers, with a line of headings; empty where there are none.
    """

    name: str
    title: str
    caption: str
    figure: Figure | None = None
    csv: str = ""


def figures_of(findings: Findings) -> list[ReportFigure]:
    """The figures that a bench's recipe asks for, one for each model where there are several.

    Raises:
        SoftPromptError: a run folder whose prompt is to be pictured has none.
    """
    kinds = {"sweep": _sweep, "curves": _curves, "parameters": _parameters, "cost": _cost}
    specs = [(spec, _selected(spec.models, findings.recipe.models)) for spec in findings.recipe.figures]
    prompts = [_prompts(findings, spec, models) if spec.kind == "analysis" else [] for spec, models in specs]
    opened = _opened(itertools.chain.from_iterable(prompts))
    figures: list[ReportFigure] = []
    for (spec, models), of_spec in zip(specs, prompts, strict=True):
        if spec.kind == "analysis":
            figures += _analysis(spec, of_spec, opened)
            continue
        for model in [""] if spec.x == MODEL else models:
            figure = kinds[spec.kind](findings, spec, model)
            if model and len(models) > 1:
                figure = replace(figure, name=f"{figure.name}-{model}", title=f"{figure.title}, {model}")
            figures.append(figure)
    names: list[str] = []
    for figure in figures:
        base = re.sub(r"[^a-z0-9]+", "-", figure.name.lower()).strip("-")
        candidates = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
        names.append(next(name for name in candidates if name not in names))
    return [replace(figure, name=name) for figure, name in zip(figures, names, strict=True)]


def _sweep(findings: Findings, spec: FigureSpec, model: str) -> ReportFigure:
    """Scores (or cost, or size) against a value of the grid, the models, or the columns."""
    x, what = str(spec.x), spec.y
    columns, rows, key = _columns(findings, spec), _rows(findings, spec), last_part(x)
    facets = len(columns) > 1 and what != "parameters" and x != COLUMN
    facets = facets and (len(columns) <= MOST_FACETS if spec.facets is None else spec.facets)
    labels = _labels_of_sweep(rows, key)
    panels, left_out = [], dict[str, None]()
    for title, shown in [(column.name, [column]) for column in columns] if facets else [("", columns)]:
        lines: dict[str, list[Spread]] = {}
        levels = set[str]()
        for row in rows:
            places: list[tuple[Any, str, list[Column]]]
            if x == COLUMN:
                places = [(column.name, model, [column]) for column in shown]
            elif x == MODEL:
                places = [(one, one, shown) for one in _selected(spec.models, findings.recipe.models)]
            else:
                value = row.values.get(key)
                places = [(value if is_number(value) else value_text(value), model, shown)]
                levels |= set() if key in row.values else {labels[row.label]}
            for place, on, scored in places:
                values = _measured(findings, row, scored, on, what)
                if values:
                    lines.setdefault(labels[row.label], []).append(Spread(place, tuple(values.values())))
                elif on in row.models:
                    left_out[row.label] = None
        series = tuple(Series(label, _in_order(spreads), label in levels) for label, spreads in lines.items())
        y_label = MEASURED[what] if what != "score" else _metric(shown[:1] if x == COLUMN else shown)
        panels.append(Panel(title, _words(key), y_label, series))
    name, title = f"sweep-{key}{'' if what == 'score' else f'-{what}'}", spec.title or f"By {_words(key)}"
    table: list[tuple[Any, ...]] = [("panel", "line", key, "mean", "std", "n", "values")]
    for panel in panels:
        for line in panel.series:
            table += [(panel.title, line.label, "" if line.level else one.x, *_summary(one)) for one in line.spreads]
    values_of_x = {one.x for panel in panels for line in panel.series for one in line.spreads if not line.level}
    if len(values_of_x) < 2:
        reason = (
            f"only one value ({value_text(*values_of_x)}) has a result" if values_of_x else "no run has a result yet"
        )
        if x not in (MODEL, COLUMN) and not any(key in row.values for row in rows):
            reason = f"no grid of these rows sets '{x}'"
        return ReportFigure(name, title, f"Nothing to draw: {reason}.", csv=_csv(table))
    scored = columns[:1] if len({column.metric for column in columns}) == 1 and (facets or x == COLUMN) else columns
    caption = f"{_metric(scored) if what == 'score' else MEASURED[what]} by {_words(key)}"
    if not facets and len(columns) > 1 and what == "score" and x != COLUMN:
        caption += f", the mean over {', '.join(column.name for column in columns)}"
    caption = f"{caption[0].upper()}{caption[1:]}; {_about_seeds(panels)}"
    if any(line.level for panel in panels for line in panel.series):
        caption += f" Dashed without marks: methods without {_words(key)}."
    if len({line.label for panel in panels for line in panel.series}) > 2 * MOST_LINES:
        panels = [replace(one, series=tuple(line for line in one.series if not line.level)) for one in panels]
        caption += " Those are left out, being too many."
    styles = _styles(findings, {labels[row.label]: row.name for row in rows})
    caption += _missing(left_out)
    return _figure(name, title, caption, lambda: lines_of(panels, styles, marks=True), table)


def _curves(findings: Findings, spec: FigureSpec, model: str) -> ReportFigure:
    """Validation score and training loss against steps."""
    rows = _rows(findings, spec)
    tasks = _tasks(findings, spec)
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
        return ReportFigure("curves", title, NO_RESULT)
    caption = "Score on validation rows and training loss" if any(p.series for p in above) else "Training loss"
    caption += f"; {_about_seeds([*above, *below])} A line ends where the first of its seeds stopped.{note}"
    across = min(3, len(tasks))
    panels: list[Panel | None] = []
    for start in range(0, len(tasks), across):
        for half in (above, below):
            if any(panel.series for panel in half):
                part: list[Panel | None] = [*half[start : start + across]]
                panels += part + [None] * (across - len(part))
    styles = _styles(findings, {row.label: row.name for row in rows})
    return _figure("curves", title, caption, lambda: lines_of(panels, styles, columns=across), table)


def _parameters(findings: Findings, spec: FigureSpec, model: str) -> ReportFigure:
    """Scores against the number of trained parameters."""
    columns, rows = _columns(findings, spec), _rows(findings, spec)
    names = list(dict.fromkeys(row.name for row in findings.recipe.rows))
    points: list[Point] = []
    shared, left_out = [], dict[str, None]()
    table: list[tuple[Any, ...]] = [("line", "trained", "total", "mean", "std", "n", "values")]
    for row in rows:
        sizes, scores = findings.trained(row, model), _measured(findings, row, columns, model, "score")
        if sizes is None or sizes[0] < 1 or not scores:
            if model in row.models:
                left_out[row.label] = None
            continue
        line = [other for other in rows if other.name == row.name]
        join = row.name if len(line) > 1 and len(row.values) == 1 else None
        points.append(Point(sizes[0], tuple(scores.values()), row.label, names.index(row.name), join))
        shared.append(row.name if len(line) > 1 else row.label)
        table.append((row.label, *sizes, *_summary(points[-1])))
    title = spec.title or "Score against trained parameters"
    if not points:
        return ReportFigure("parameters", title, NO_RESULT)
    if len(points) > MOST_NAMES:  # too many to name each: the settings of a method share a name
        points = [replace(point, label=label) for point, label in zip(points, shared, strict=True)]
    seeds = max(len(point.values) for point in points)
    caption = "Trained parameters on a logarithmic axis"
    if len(columns) > 1:
        caption += f"; the score is the mean over {', '.join(column.name for column in columns)}"
    bars = f"bars are one standard deviation over up to {seeds} seeds, dots the seeds."
    caption += f"; {bars if seeds > 1 else 'one seed.'}"
    if any(point.join for point in points):
        caption += " A method's settings are joined by a line."
    y_label = _metric(columns)
    return _figure("parameters", title, caption + _missing(left_out), lambda: points_of(points, y_label), table)


def _cost(findings: Findings, spec: FigureSpec, model: str) -> ReportFigure:
    """Seconds per 100 steps and peak memory, by task and method."""
    rows = _rows(findings, spec)
    tasks = _tasks(findings, spec)
    costs: dict[str, dict[str, tuple[float, float]]] = {}
    table: list[tuple[Any, ...]] = [("task", "line", "seconds_per_100_steps", "peak_memory_gb")]
    for task in tasks:
        for row in rows:
            if cost := findings.cost(row, task, model):
                costs.setdefault(row.label, {})[task] = cost
                table.append((task, row.label, f"{cost[0]:.6g}", f"{cost[1]:.6g}"))
    title = spec.title or "Time and memory"
    if not costs:
        return ReportFigure("cost", title, NO_RESULT)
    caption = "Seconds per 100 steps (median over seeds) and peak memory (largest over seeds)."
    if findings.recipe.measure == "score":
        caption += (
            " Of training runs as they came, some of them sharing passes; the cost recipes measure by a fixed protocol."
        )
    left_out = dict.fromkeys(row.label for row in rows if model in row.models and row.label not in costs)
    styles = _styles(findings, {row.label: row.name for row in rows})
    return _figure("cost", title, caption + _missing(left_out), lambda: bars_of(costs, tasks, styles), table)


def _analysis(spec: FigureSpec, prompts: Sequence[Prompt], opened: Mapping[Prompt, Saved]) -> list[ReportFigure]:
    """Pictures of trained prompts."""
    what = str(spec.what)
    title = spec.title or f"Trained prompts: {what}"
    if not prompts:
        return [ReportFigure(what, title, NO_RESULT)]
    if not have_matplotlib():
        return [ReportFigure(what, title, f"{NO_MATPLOTLIB}.")]
    from softprompts import analysis

    try:
        pictures = analysis.figures(what, [opened[prompt] for prompt in prompts])
    except SoftPromptError as error:
        return [ReportFigure(what, title, f"Nothing to draw: {error}.")]
    return [ReportFigure(picture.name, title, picture.caption, picture.figure, picture.csv) for picture in pictures]


def _prompts(findings: Findings, spec: FigureSpec, models: Sequence[str]) -> list[Prompt]:
    """The run folder and label of the first seed's prompt, for each row and task."""
    prompts = []
    for model, row in itertools.product(models, _rows(findings, spec)):
        for task in _tasks(findings, spec):
            if runs := findings.runs(row, task, model):
                parts = [row.label, task, *([model] if len(findings.recipe.models) > 1 else [])]
                prompts.append((runs[0].folder, ", ".join(parts)))
    return prompts


def _opened(prompts: Iterable[Prompt]) -> dict[Prompt, Saved]:
    """Reads each prompt once for all pictures, so that their backbone is loaded once."""
    prompts = list(dict.fromkeys(prompts))
    if not prompts or not have_matplotlib():
        return {}
    from softprompts import analysis

    saved = analysis.open_prompts([folder for folder, _ in prompts], [name for _, name in prompts])
    return dict(zip(prompts, saved, strict=True))


def _measured(findings: Findings, row: RecipeRow, columns: Sequence[Column], model: str, what: str) -> dict[int, float]:
    """A row's values by seed (cost and size: one value), each the mean over tasks; {} where a column is missing."""
    if what == "parameters":
        sizes = findings.trained(row, model)
        return {} if sizes is None else {0: float(sizes[0])}
    tasks = dict.fromkeys(column.task for column in columns)
    if what != "score":
        costs = [findings.cost(row, task, model) for task in tasks]
        if not costs or any(cost is None for cost in costs):
            return {}
        return {0: statistics.fmean(cost[0] if what == "seconds" else cost[1] for cost in costs if cost is not None)}
    scores = [(column.task, findings.scores(row, column, model)) for column in columns]
    seeds = set.intersection(*(set(by_seed) for _, by_seed in scores)) if scores else set()
    # A task with two metrics counts once.
    return {
        seed: statistics.fmean(
            statistics.fmean(by_seed[seed] for on, by_seed in scores if on == task) for task in tasks
        )
        for seed in sorted(seeds)
    }


def _steps(histories: Sequence[Sequence[Mapping[str, Any]]], what: str, factor: float) -> tuple[Spread, ...]:
    """A value of metrics.jsonl by step, at the steps that all of some runs have."""
    curves = []
    for history in histories:
        values = {record["step"]: record.get(what) for record in history}
        curves.append({step: factor * v for step, v in values.items() if is_number(v) and math.isfinite(v)})
    curves = [curve for curve in curves if curve]
    steps = set.intersection(*map(set, curves)) if curves else set()
    return tuple(Spread(step, tuple(curve[step] for curve in curves)) for step in sorted(steps))


def _rows(findings: Findings, spec: FigureSpec) -> list[RecipeRow]:
    """The rows a figure is of: those with these names or labels, or all."""
    rows = findings.recipe.rows
    wanted = _selected(spec.rows, [name for row in rows for name in (row.name, row.label)])
    return [row for row in rows if row.name in wanted or row.label in wanted]


def _columns(findings: Findings, spec: FigureSpec) -> list[Column]:
    columns = findings.recipe.columns
    wanted = _selected(spec.columns, [name for column in columns for name in (column.name, column.task)])
    return [column for column in columns if column.name in wanted or column.task in wanted]


def _tasks(findings: Findings, spec: FigureSpec) -> list[str]:
    return _selected(spec.tasks, [column.task for column in findings.recipe.columns])


def _selected(names: Sequence[str] | None, every: Iterable[str]) -> list[str]:
    """Those of some names that a figure names; all where it names none."""
    return [name for name in dict.fromkeys(every) if names is None or name in names]


def _labels_of_sweep(rows: Sequence[RecipeRow], key: str) -> dict[str, str]:
    """By row, the label of its line: the row's name, with the other values of its grid where they differ."""
    others = {row.label: {k: v for k, v in row.values.items() if k != key} for row in rows}
    labels = {}
    for row in rows:
        rest = others[row.label]
        same = all(others[other.label] == rest for other in rows if other.name == row.name)
        settings = ", ".join(f"{_words(k)} {value_text(v)}" for k, v in rest.items())
        labels[row.label] = row.name if same or not settings else f"{row.name} ({settings})"
    return labels


def _best_of_each(findings: Findings, rows: list[RecipeRow], model: str) -> tuple[list[RecipeRow], str]:
    """The rows to draw, and a note: of too many, the setting with the best mean score for each method."""
    if len(rows) <= MOST_LINES:
        return rows, ""

    def score(row: RecipeRow) -> float:
        values = [v for column in findings.recipe.columns for v in findings.scores(row, column, model).values()]
        return statistics.fmean(values) if values else -math.inf

    names = list(dict.fromkeys(row.name for row in rows))
    if len(names) == len(rows):
        return rows, ""
    best = [max((row for row in rows if row.name == name), key=score) for name in names]
    return best, " Of each method, only its setting with the best mean score is drawn."


def _styles(findings: Findings, names: Mapping[str, str]) -> dict[str, int]:
    """By line, its style: that of its method, the same in all figures, unless several lines are of one method."""
    every = list(dict.fromkeys(row.name for row in findings.recipe.rows))
    if len(set(names.values())) == len(names):
        return {label: every.index(name) for label, name in names.items()}
    return {label: index for index, label in enumerate(names)}


def _in_order(spreads: Sequence[Spread]) -> tuple[Spread, ...]:
    """Numbers by size; all else as it came."""
    numbers = all(is_number(spread.x) for spread in spreads)
    return tuple(sorted(spreads, key=lambda spread: float(spread.x)) if numbers else spreads)


def _metric(columns: Sequence[Column]) -> str:
    """The label of an axis of scores."""
    metrics = list(dict.fromkeys(column.metric for column in columns))
    tasks = {column.task for column in columns}
    name = f"{metrics[0].replace('_', ' ')} x 100" if len(metrics) == 1 else "score x 100"
    return f"mean {name}" if len(tasks) > 1 else name


def _words(key: str) -> str:
    """A setting's name in words."""
    return {MODEL: "model", COLUMN: "task"}.get(key, key.replace("_", " "))


def _summary(spread: Spread) -> tuple[Any, ...]:
    std = f"{spread.std:.6g}" if len(spread.values) > 1 else ""
    return f"{spread.mean:.6g}", std, len(spread.values), " ".join(f"{value:.6g}" for value in spread.values)


def _about_seeds(panels: Iterable[Panel]) -> str:
    most = max((len(s.values) for panel in panels for line in panel.series for s in line.spreads), default=0)
    return f"mean over up to {most} seeds, the band one standard deviation." if most > 1 else "one value each."


def _missing(labels: Iterable[str]) -> str:
    """A sentence on the rows without complete results."""
    labels = list(labels)
    if not labels:
        return ""
    names = ", ".join(labels[:6]) + (f" and {len(labels) - 6} more" if len(labels) > 6 else "")
    return f" Left out, for want of results: {names}."


def _csv(table: Sequence[Sequence[Any]]) -> str:
    return csv_text(table[0], table[1:], "\n") if len(table) > 1 else ""


def _figure(
    name: str, title: str, caption: str, draw: Callable[[], Figure], table: Sequence[Sequence[Any]]
) -> ReportFigure:
    if not have_matplotlib():
        return ReportFigure(name, title, f"{caption} ({NO_MATPLOTLIB})", csv=_csv(table))
    return ReportFigure(name, title, caption, draw(), _csv(table))
