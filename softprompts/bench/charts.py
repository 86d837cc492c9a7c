"""Charts of a bench: points, lines with bands over seeds, bars, effects; their numbers are collected elsewhere."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from softprompts.plotting import (
    GRID,
    SERIES,
    Point,
    Spread,
    draw_points,
    legend_below,
    legend_rows,
    new_figure,
    plain,
    short,
    style_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_WIDE = 10  # points beyond which effects near zero would be too small to see on an even axis


@dataclass(frozen=True)
class Series:
    """A line of a panel.

    Attributes:
        label: its name; one colour per label in all panels of a figure.
        spreads: its places, in order.
        level: whether it is a horizontal line at its only value.
    """

    label: str
    spreads: tuple[Spread, ...]
    level: bool = False


@dataclass(frozen=True)
class Panel:
    """One coordinate system with its lines."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Estimate:
    """A point with its interval in a forest plot.

    Attributes:
        label: one colour for each; "" is drawn in ink.
        mean: the point.
        low: lower end of the interval.
        high: upper end.
        told: whether zero is told apart; the point is filled then.
    """

    label: str
    mean: float
    low: float
    high: float
    told: bool


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value can stand on an axis of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_text(value: Any) -> str:
    """A setting's value as text."""
    return f"{value:g}" if is_number(value) else "none" if value is None else str(value)


def points_of(points: Sequence[Point], y_label: str) -> Figure:
    """Score against trained parameters, names beside points, or in a legend where several points have the same one.

    Args:
        points: at least one.
        y_label: name of the score.
    """
    named = len({point.label for point in points}) == len(points)
    figure, (axes,) = new_figure(7.4, 4.6)
    axes.set_ylabel(plain(y_label))
    if not named:
        labels = list(dict.fromkeys(point.label for point in points))
        handles = [_handle(next(p.style for p in points if p.label == label), line=False) for label in labels]
        legend_below(figure, handles, labels, 7.4)
    draw_points(axes, points, label=named)
    return figure


def lines_of(
    panels: Sequence[Panel | None], styles: Mapping[str, int], *, columns: int = 3, marks: bool = False
) -> Figure:
    """Lines with bands over seeds, in panels with one legend.

    Args:
        panels: row by row; None leaves a place empty.
        styles: number for `style_of`, by label.
        columns: most panels beside each other.
        marks: whether each value has a mark, and a tick on the axis.
    """
    across = min(columns, len(panels))
    down = -(-len(panels) // across)
    width = {1: 7.0, 2: 9.0}.get(across, 10.5)
    labels = list(dict.fromkeys(line.label for panel in panels if panel for line in panel.series))
    height = down * (3.6 if down == 1 else 2.7) + 0.22 * legend_rows(labels, width)
    figure, places = new_figure(width, height, down, across)
    shown = [*panels, *[None] * (len(places) - len(panels))]
    for place, (axes, panel) in enumerate(zip(places, shown, strict=True)):
        if panel is None:
            axes.set_visible(False)
            continue
        if panel.title:
            axes.set_title(plain(panel.title), fontsize=10)
        axes.set_xlabel(plain(panel.x_label), fontsize=9)
        left = shown[place - 1] if place % across else None
        if left is None or left.y_label != panel.y_label:
            axes.set_ylabel(plain(panel.y_label), fontsize=9)
        if not panel.series:
            axes.text(0.5, 0.5, "no results yet", transform=axes.transAxes, ha="center", va="center", fontsize=9)
        where = _axis(axes, panel) if marks else float
        for line in panel.series:
            _line(axes, line, styles[line.label], where, marks)
    levels = {line.label for panel in panels if panel for line in panel.series if line.level}
    handles = [_handle(styles[label], mark=marks, level=label in levels) for label in labels]
    legend_below(figure, handles, labels, width)
    return figure


def bars_of(
    costs: Mapping[str, Mapping[str, tuple[float, float]]], tasks: Sequence[str], styles: Mapping[str, int]
) -> Figure:
    """Seconds per 100 steps and peak memory as bars, in groups by task.

    Args:
        costs: by method and task, seconds and GB.
        tasks: order of the groups.
        styles: number for `style_of`, by method.
    """
    labels, tasks = list(costs), [task for task in tasks if any(task in by_task for by_task in costs.values())]
    count = len(labels) * len(tasks)
    width = min(12.0, max(7.0, 1.5 + 0.32 * count))
    figure, places = new_figure(width, 5.4 + 0.22 * legend_rows(labels, width), 2, 1, sharex=True)
    size = 0.84 / len(labels)
    for axes, what, name in zip(places, (0, 1), ("seconds per 100 steps", "peak memory (GB)"), strict=True):
        for index, label in enumerate(labels):
            at = [place + (index - (len(labels) - 1) / 2) * size for place, t in enumerate(tasks) if t in costs[label]]
            heights = [costs[label][task][what] for task in tasks if task in costs[label]]
            bars = axes.bar(at, heights, 0.92 * size, **_fill(styles[label]))
            if count <= 40:
                axes.bar_label(bars, [f"{height:.3g}" for height in heights], padding=2, fontsize=7)
        axes.set_ylabel(name, fontsize=9)
        axes.margins(x=0.02, y=0.1)
        axes.grid(visible=False, axis="x")
    places[-1].set_xticks(range(len(tasks)), [plain(task) for task in tasks])
    if len(labels) > 1:
        from matplotlib.patches import Patch

        legend_below(figure, [Patch(**_fill(styles[label])) for label in labels], labels, width)
    return figure


def forest_of(groups: Mapping[str, Sequence[Estimate]], x_label: str, margin: float, ink: str = "") -> Figure:
    """Effects with intervals, group by group from the top.

    Where some are much larger than others, the axis is logarithmic beyond two points either way.

    Args:
        groups: by heading, the estimates.
        x_label: what they are.
        margin: effects up to so many points either way lie on a grey band.
        ink: name of what is drawn in ink.
    """
    estimates = [one for group in groups.values() for one in group]
    labels = list(dict.fromkeys(one.label for one in estimates if one.label))
    labels += [""] * any(not one.label for one in estimates)
    styles = {label: style_of(index) for index, label in enumerate(labels)} | {"": {"color": "#000000", "marker": "D"}}
    heights = [max(2, len(group)) + 0.7 for group in groups.values()]
    figure, (axes,) = new_figure(7.4, 1.1 + 0.17 * sum(heights) + 0.22 * legend_rows(labels, 7.4))
    axes.axvspan(-margin, margin, color=GRID, alpha=0.13, linewidth=0)
    axes.axvline(0, color="#000000", linewidth=0.9)
    y, middles = 0.0, []
    for height, group in zip(heights, groups.values(), strict=True):
        middles.append(y + height / 2)
        for place, one in enumerate(group):
            at, look = middles[-1] + place - (len(group) - 1) / 2, {**styles[one.label], "linestyle": "-"}
            face = look["color"] if one.told else "none"
            axes.plot([one.low, one.high], [at, at], color=look["color"], linewidth=1.6)
            axes.plot(one.mean, at, **look, markerfacecolor=face, markersize=5.5)
        y += height
        axes.axhline(y, color=GRID, alpha=0.25, linewidth=0.8)
    axes.set_ylim(y, 0)
    axes.set_yticks(middles, ["\n".join(map(plain, textwrap.wrap(name, 34))) for name in groups])
    wide = max(max(-one.low, one.high, margin) for one in estimates) > _WIDE
    if wide:
        axes.set_xscale("symlog", linthresh=2, linscale=1.2)
        low, high = axes.get_xlim()
        ticks = [tick for tick in (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50) if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(plain(x_label + ("; logarithmic beyond 2" if wide else "")), fontsize=9)
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **styles[label], markersize=5.5) for label in labels]
    legend_below(figure, handles, [label or ink for label in labels], 7.4)
    return figure


def _fill(index: int) -> dict[str, Any]:
    """Colour and hatching of a bar; hatching tells methods of the same colour apart."""
    hatch = ("", "///", "...", "xx")[index // len(SERIES) % 4]
    return {"facecolor": style_of(index)["color"], "edgecolor": f"{GRID}80", "hatch": hatch}


def _axis(axes: Any, panel: Panel) -> Callable[[Any], float]:
    """Sets up the axis of a sweep; returns a function from a value to its place on the axis."""
    from matplotlib.ticker import NullLocator

    values = list(dict.fromkeys(s.x for line in panel.series for s in line.spreads if not line.level))
    if not all(is_number(value) for value in values):
        values.sort(key=lambda value: (not is_number(value), float(value) if is_number(value) else 0.0))
    else:
        values.sort()
        spaced = values[0] > 0 and values[-1] / values[0] >= 8
        even = all(b - a >= 0.05 * (values[-1] - values[0]) for a, b in itertools.pairwise(values))
        if spaced or even:
            if spaced:
                axes.set_xscale("log")
                axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(values, [short(value) for value in values])
            return float
    # Words, or numbers whose labels would overlap: at equal distances.
    axes.set_xticks(range(len(values)), [plain(value_text(value)) for value in values])
    axes.margins(x=0.1)
    long = max((len(value_text(value)) for value in values), default=0)
    if long * len(values) > 36:
        axes.tick_params(axis="x", rotation=30)
    return lambda value: float(values.index(value))


def _line(axes: Any, line: Series, index: int, where: Callable[[Any], float], marks: bool) -> None:
    style = style_of(index)
    means, stds = [s.mean for s in line.spreads], [s.std for s in line.spreads]
    if line.level:
        axes.axhline(means[0], color=style["color"], linestyle=(0, (5, 3)), linewidth=1.3)
        if stds[0]:
            axes.axhspan(means[0] - stds[0], means[0] + stds[0], color=style["color"], alpha=0.08, linewidth=0)
        return
    at = [where(s.x) for s in line.spreads]
    if not marks and len(at) > 1:
        style["marker"] = None
    axes.plot(at, means, **style, linewidth=1.6, markersize=5)
    if any(stds):
        axes.fill_between(
            at, np.subtract(means, stds), np.add(means, stds), color=style["color"], alpha=0.15, linewidth=0
        )


def _handle(index: int, *, mark: bool = True, level: bool = False, line: bool = True) -> Any:
    """A line for a legend."""
    from matplotlib.lines import Line2D

    style = style_of(index)
    if level:
        return Line2D([], [], color=style["color"], linestyle=(0, (5, 3)), linewidth=1.3)
    if not mark:
        style["marker"] = None
    if not line:
        style["linestyle"] = "none"
    return Line2D([], [], **style, linewidth=1.6, markersize=5 if line else 7)
