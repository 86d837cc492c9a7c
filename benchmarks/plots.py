"""One picture for each benchmark, from its JSON; `report.py` puts them into the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

WIDTH, DPI = 8.0, 130
COLOURS = {
    "ours": "#1f5fa8",
    "PEFT": "#c2571a",
    "PEFT, grouped": "#e0a458",
    "prefix-tuning": "#1f5fa8",
    "multi-mask": "#3f9e8f",
    "selective-prefix": "#7a4fa3",
    "prompt-tuning": "#c2571a",
    "ept": "#b5903a",
}
PLAIN, PALE, DARK = "#1f5fa8", "#b8bfc7", "#444444"

Data = dict[str, Any]


def figure(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels on white."""
    chart = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    panels = [chart.add_subplot(rows, columns, number + 1) for number in range(rows * columns)]
    for axes in panels:
        axes.tick_params(labelsize=8.5)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return chart, panels


def label(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)


def ticks(axes: Axes, values: list[int]) -> None:
    """A logarithmic axis with these numbers on it."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def bars(axes: Axes, names: list[str], values: list[float], colours: list[str], digits: int = 2) -> None:
    """Horizontal bars, the first on top, with their numbers."""
    places = range(len(names))
    axes.barh(places, values, color=colours, height=0.72)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, max(values) * 1.15)
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value:.{digits}f}",
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )


def time_to_accuracy(data: Data, path: Path) -> None:
    """Held-out accuracy against seconds since the command was given: one run, and all seeds."""
    chart, panels = figure(len(data["rows"]), 2, 3.1 * len(data["rows"]) + 0.3)
    for row, (single, several) in zip(data["rows"], zip(panels[::2], panels[1::2], strict=True), strict=True):
        several.sharey(single)
        for side, commands in row["one"].items():
            for number, command in enumerate(commands):
                curve = command["runs"][0]["curve"]
                style: dict[str, Any] = {"color": COLOURS[side], "marker": "o", "markersize": 3.5}
                single.plot(*points(curve), label=None if number else side, alpha=1 if number == 0 else 0.45, **style)
        for side, command in row["many"].items():
            for number, one in enumerate(command["runs"]):
                style = {"color": COLOURS[side], "alpha": 0.75, "linewidth": 1.2}
                several.plot(*points(one["curve"]), label=None if number else side, **style)
        for axes in (single, several):
            axes.axhline(100 * row["level"], color=DARK, linestyle="--", linewidth=0.9, label="reached by every run")
            axes.set_xlim(left=0)
        label(single, f"{row['task']}: one run", "seconds since the command was given", "held-out accuracy, %")
        label(several, f"{row['task']}: {data['options']['seeds']} seeds", "seconds since the command was given")
        single.legend(fontsize=8.5, frameon=False, loc="lower right")
    chart.savefig(path)


def points(curve: list[dict[str, float]]) -> tuple[list[float], list[float]]:
    return [point["seconds"] for point in curve], [100 * point["accuracy"] for point in curve]


def step(data: Data, path: Path) -> None:
    """Each variant's ratio to the forward."""
    rows = {name: row for name, row in data["rows"].items() if name != "inference forward"}
    chart, (axes,) = figure(1, 1, 0.33 * len(rows) + 0.9)
    foreign = ("PEFT", "full", "forward")
    colours = [PALE if name.startswith(foreign) else PLAIN for name in rows]
    bars(axes, list(rows), [row["ratio"] for row in rows.values()], colours)
    axes.axvline(2, color=DARK, linestyle="--", linewidth=0.9)
    label(axes, "Time of a training step / inference forward (dashed: twice it)")
    chart.savefig(path)


def lanes(data: Data, path: Path) -> None:
    """What sharing passes gains, for each batch size."""
    chart, (axes,) = figure(1, 1, 3.4)
    shades = ["#9cc0e7", "#4f8fd0", "#1f5fa8", "#123a68"]
    for size, colour in zip(dict.fromkeys(row["batch"] for row in data["rows"]), shades, strict=False):
        rows = [row for row in data["rows"] if row["batch"] == size]
        axes.plot(
            [row["lanes"] for row in rows],
            [row["ratio"] for row in rows],
            "o-",
            color=colour,
            label=f"batches of {size}",
        )
    ticks(axes, list(dict.fromkeys(row["lanes"] for row in data["rows"])))
    axes.axhline(1, color=DARK, linestyle="--", linewidth=0.9)
    axes.set_ylim(0, max(row["ratio"] for row in data["rows"]) * 1.1)
    label(axes, "Runs in shared passes", "runs", "time one after another / shared")
    axes.legend(fontsize=8.5, frameon=False, loc="lower right")
    chart.savefig(path)


def batching(data: Data, path: Path) -> None:
    """An epoch's time against that with buckets."""
    tasks = list(dict.fromkeys(row["task"] for row in data["rows"]))
    chart, panels = figure(1, len(tasks), 2.3)
    shades = {"bucketed": PLAIN, "shuffled": "#8fb4dc", "padded": PALE}
    for axes, task in zip(panels, tasks, strict=True):
        rows = [row for row in data["rows"] if row["task"] == task]
        names = [row["variant"] for row in rows]
        bars(axes, names, [row["ratio"] for row in rows], [shades[name] for name in names])
        if axes is not panels[0]:
            axes.set_yticklabels([])
        label(axes, task, "epoch / bucketed")
    chart.savefig(path)


def mixed(data: Data, path: Path) -> None:
    """Throughput against one prompt for all rows."""
    passes = [row for row in data["rows"] if "variant" in row]
    counts = list(dict.fromkeys(row["rows"] for row in passes))
    names = list(dict.fromkeys(row["variant"] for row in passes))
    chart, panels = figure(1, len(counts), 0.3 * len(names) + 0.9)
    for axes, count in zip(panels, counts, strict=True):
        values = [row["ratio"] for row in passes if row["rows"] == count]
        bars(axes, names, values, [PALE if name.startswith(("PEFT", "no prompt")) else PLAIN for name in names])
        axes.axvline(1, color=DARK, linestyle="--", linewidth=0.9)
        if axes is not panels[0]:
            axes.set_yticklabels([])
        label(axes, f"batches of {count} rows", "rows per second / those of one prompt")
    chart.savefig(path)


def serving(data: Data, path: Path) -> None:
    """Requests per second, one by one and together."""
    names = [f"{row['variant']}, {row['clients']} client{'s' * (row['clients'] != 1)}" for row in data["rows"]]
    chart, (axes,) = figure(1, 1, 0.33 * len(names) + 0.9)
    bars(axes, names, [row["requests_per_second"] for row in data["rows"]], [PALE, PLAIN], digits=0)
    label(axes, "Requests per second")
    chart.savefig(path)


def scaling(data: Data, path: Path) -> None:
    """Time and memory of each sweep; EPT's claim as text in the table only."""
    sweeps = [sweep for sweep in dict.fromkeys(row["sweep"] for row in data["rows"]) if sweep != "ept claim"]
    chart, panels = figure(len(sweeps), 2, 2.55 * len(sweeps) + 0.6)
    handles: dict[str, Any] = {}
    for sweep, (time, memory) in zip(sweeps, zip(panels[::2], panels[1::2], strict=True), strict=True):
        rows = [row for row in data["rows"] if row["sweep"] == sweep and row["variant"] in COLOURS]
        for name in dict.fromkeys(row["variant"] for row in rows):
            points = [row for row in rows if row["variant"] == name]
            for axes, values in (
                (time, [row["ratio"] for row in points]),
                (memory, [row["peak_bytes"] / 1e6 for row in points]),
            ):
                (handles[name],) = axes.plot(
                    [row["x"] for row in points], values, "o-", color=COLOURS[name], markersize=4
                )
        for axes, title in ((time, "step / inference forward"), (memory, "MB of tensors")):
            ticks(axes, list(dict.fromkeys(row["x"] for row in rows)))
            axes.set_ylim(0, axes.dataLim.y1 * 1.1)
            label(axes, f"{sweep}: {title}", sweep)
    chart.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    chart.savefig(path)
