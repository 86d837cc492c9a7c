"""The colours of all pictures and pages, how pictures look, and how they become files: matplotlib without pyplot.

A picture is read on white and on dark pages alike. Pure black, which is what matplotlib gives text, ticks and spines,
is ink: a style sheet in the SVG gives it the colour of the page's text. All other colours stay. What is in `COLOURS`
has a contrast of at least 4.5 with the page; those of `SERIES` have one of at least 3.5 with white and near-black.

matplotlib is an extra: nothing here imports it before a figure is asked for.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from softprompts.errors import SoftPromptError
from softprompts.storage.files import write_atomic, write_text_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = ("#2f7ed8", "#d9650b", "#1f9a5f", "#c9509f", "#8a7d1a", "#8f63d2", "#d6404e", "#0f95a0", "#7b8494", "#a5673f")
SHARES = "viridis"  # matplotlib's map for numbers from little to much
SIGNED = "RdBu_r"  # and for numbers around zero
GRID = "#808080"

# On light and on dark pages.
COLOURS = {
    "paper": ("#ffffff", "#15181c"),  # the page
    "ink": ("#1f2328", "#e6e8eb"),  # its text
    "soft": ("#59636e", "#a3acb7"),  # what is said aside
    "raised": ("#f5f6f8", "#1e2228"),  # boxes and lines that stand out
    "rule": ("#d5d9df", "#3a414b"),  # lines between things
    "edge": ("#767f8a", "#7d8793"),  # frames of fields and buttons
    "link": ("#0b5cad", "#7db7f5"),  # links, bars, the main button
    "on-link": ("#ffffff", "#10151a"),  # text on that
    "good": ("#0b5cad", "#7db7f5"),  # right, better: blue and red are told apart by all eyes
    "bad": ("#b3261e", "#f59a93"),  # wrong, worse, failed
}

NO_MATPLOTLIB = "no pictures: pip install matplotlib"
MARKERS = "osD^vPX<>p"
LINES = ("-", "--", "-.", ":")
ON_COLOUR = "#010101"  # dark text on a heat map, which is not ink
# matplotlib leaves out fills that are black, so that they are inherited. A page that shows the picture among its own
# elements sets ``color`` itself, by a selector that says more than "svg". What `<use>` shows has no ancestors, so that
# the rules for black must not name any.
_INK = f"""
svg {{ color: {COLOURS["ink"][0]}; fill: currentColor; }}
@media (prefers-color-scheme: dark) {{ svg {{ color: {COLOURS["ink"][1]}; }} }}
[style*="stroke: #000000"] {{ stroke: currentColor !important; }}
[style*="fill: #000000"] {{ fill: currentColor !important; }}
"""


def css() -> str:
    """`COLOURS` as variables of a style sheet, by the system's scheme or by ``data-theme`` of the root element."""
    lines = [f"  --{name}: light-dark({light}, {dark});" for name, (light, dark) in COLOURS.items()]
    themes = [f':root[data-theme="{theme}"] {{ color-scheme: {theme}; }}' for theme in ("light", "dark")]
    return "\n".join([":root {", "  color-scheme: light dark;", *lines, "}", *themes]) + "\n"


def have_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def style_of(index: int) -> dict[str, Any]:
    """Colour, marker and line of the ``index``-th of several methods: no two of the first forty look the same."""
    turn, place = divmod(index, len(SERIES))
    return {
        "color": SERIES[place],
        "marker": MARKERS[(place + 3 * turn) % len(MARKERS)],
        "linestyle": LINES[turn % len(LINES)],
    }


def plain(text: object) -> str:
    """Text that matplotlib shows as it is: no dollar starts a formula, no underscore hides it from a legend."""
    clean = "".join(" " if ord(letter) < 32 or ord(letter) == 127 else letter for letter in str(text))
    clean = clean.replace("$", r"\$")
    return f" {clean}" if clean.startswith("_") else clean


def short(value: float) -> str:
    """A number for an axis: 12500 is 12.5k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def empty_figure(width: float, height: float) -> Figure:
    """A figure of so many inches without panels.

    Raises:
        SoftPromptError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SoftPromptError("pictures need matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many inches in the package's style, and its panels, row by row.

    ``subplots`` are further arguments of `Figure.subplots`, such as ``sharex``.
    """
    figure = empty_figure(width, height)
    panels = [axes for line in figure.subplots(rows, columns, squeeze=False, **subplots) for axes in line]
    for axes in panels:
        axes.grid(color=GRID, alpha=0.25, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, panels


def legend_rows(labels: Sequence[str], width: float) -> int:
    """How many lines a legend takes in a figure of so many inches."""
    longest = max((len(label) for label in labels), default=1)
    return -(-len(labels) // max(1, int(width / (0.55 + 0.075 * longest))))


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str], width: float) -> None:
    """One legend for all panels, under a figure of so many inches, in as few lines as it takes, evenly filled."""
    if not labels:
        return
    columns = -(-len(labels) // legend_rows(labels, width))
    names = [plain(label) for label in labels]
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


@dataclass(frozen=True)
class Spread:
    """The values of several seeds at one place of an axis.

    Attributes:
        x: the place.
        values: one per seed, as they are shown.
    """

    x: Any
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds; 0 for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Point(Spread):
    """One method in a picture of score against size: ``x`` is the number of trained parameters, at least 1.

    Attributes:
        label: its name.
        style: number for `style_of`.
        join: points with the same text are joined by a line; None: it stands alone.
    """

    label: str
    style: int = 0
    join: str | None = None


def draw_points(axes: Axes, points: Sequence[Point], *, label: bool = True) -> None:
    """Score against trained parameters: the mean with its spread, the single seeds behind it, names beside them.

    Args:
        axes: an empty panel of `new_figure`.
        points: at least one.
        label: write names beside points; without, a legend has to tell them apart.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for point in points:
        style = style_of(point.style)
        look = {"fmt": style["marker"], "color": style["color"], "capsize": 4, "markersize": 7}
        axes.errorbar(point.x, point.mean, yerr=point.std or None, **look)
        axes.plot([point.x] * len(point.values), point.values, ".", color=style["color"], alpha=0.45)
    for name in dict.fromkeys(point.join for point in points if point.join is not None):
        joined = sorted((p for p in points if p.join == name), key=lambda p: (p.x, p.mean))
        color = style_of(joined[0].style)["color"]
        axes.plot([p.x for p in joined], [p.mean for p in joined], color=color, alpha=0.4)
    low, high = min(p.x for p in points), max(p.x for p in points)
    axes.set_xscale("log")
    axes.set_xlim(low / 3, high * (5 if label else 3))
    axes.xaxis.set_major_locator(LogLocator(numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.12)
    axes.set_xlabel("trained parameters")
    if label:
        place_labels(axes, points)


# Where a name may stand around its point, nearest first: offsets in points.
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7))
_OFFSETS = [(reach * right, reach * up) for reach in (9, 16, 26, 38, 52, 70) for right, up in _SIDES]


def place_labels(axes: Axes, points: Sequence[Point]) -> list[Any]:
    """Writes names beside points where they lie on no other name, no point and within the panel.

    The nearest free place is taken; a name that had to go further is joined to its point by a thin line. Where there is
    no free place at all, the one with the least overlap is taken.

    Args:
        axes: the panel, with its limits set.
        points: what to name.

    Returns:
        The annotations, in the order of ``points``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure: Any = axes.figure
    renderer = cast(Any, FigureCanvasAgg(figure)).get_renderer()
    figure.draw_without_rendering()  # lays the panels out
    unit = figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    centres = [axes.transData.transform((point.x, point.mean)) for point in points]
    taken: list[Any] = []
    for point, (x, y) in zip(points, centres, strict=True):
        spread = (*point.values, point.mean - point.std, point.mean + point.std)
        ends = axes.transData.transform([(point.x, score) for score in spread])[:, 1]
        taken.append(Bbox.from_bounds(x - 5 * unit, y - 5 * unit, 10 * unit, 10 * unit))
        taken.append(Bbox.from_extents(x - 3 * unit, min(ends), x + 3 * unit, max(ends)))
    notes: dict[int, Any] = {}
    # From the top down: what stands highest has the panel's free room above it.
    for index in sorted(range(len(points)), key=lambda i: (-points[i].mean, points[i].x)):
        point, (x, y) = points[index], centres[index]
        place, text = (point.x, point.mean), plain(point.label)
        note = axes.annotate(text, place, xytext=(0, 0), textcoords="offset points", fontsize=9)
        note.set_in_layout(False)
        width, height = note.get_window_extent(renderer).size
        boxes = {}
        for across, along in _OFFSETS:
            left = x + across * unit - width * _share_before(across)
            foot = y + along * unit - height * _share_before(0 if across else along)
            boxes[across, along] = Bbox.from_bounds(left, foot, width, height)
        lost = {
            offset: sum(_shared(box, other) for other in taken) + 2 * (width * height - _shared(box, frame))
            for offset, box in boxes.items()
        }
        free = (offset for offset in lost if lost[offset] < 0.5)
        across, along = next(free, min(lost, key=lambda offset: lost[offset]))
        note.set_position((across, along))
        note.set_horizontalalignment("left" if across > 0 else "right" if across else "center")
        note.set_verticalalignment("center" if across else "bottom" if along > 0 else "top")
        if math.hypot(across, along) > 20:
            line = {"arrowstyle": "-", "color": style_of(point.style)["color"], "alpha": 0.6, "linewidth": 0.8}
            arrow = axes.annotate("", place, xytext=(across, along), textcoords="offset points", arrowprops=line)
            arrow.set_in_layout(False)
        taken.append(boxes[across, along])
        notes[index] = note
    return [notes[index] for index in range(len(points))]


def _share_before(offset: float) -> float:
    """The share of a text that lies before its place: none to the right of (above) a point, all to its left (below)."""
    return 0.5 if offset == 0 else 0.0 if offset > 0 else 1.0


def _shared(first: Any, second: Any) -> float:
    """The area that two boxes share."""
    box: Any = type(first).intersection(first, second)
    return 0.0 if box is None else float(box.width * box.height)


def write_files(figure: Figure | None, folder: Path, name: str, numbers: str = "") -> list[Path]:
    """Writes a figure as PNG and SVG, and its numbers as CSV, where there are any; returns the files."""
    written: list[Path] = []
    if figure is not None:
        written = [folder / f"{name}.png", folder / f"{name}.svg"]
        write_atomic(written[0], png(figure))
        write_text_atomic(written[1], svg(figure, name))
    if numbers:
        written.append(folder / f"{name}.csv")
        write_text_atomic(written[-1], numbers)
    return written


def png(figure: Figure) -> bytes:
    """The figure as PNG, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG file: transparent, text as text, ink by the page's scheme, the same bytes each time.

    Args:
        figure: any matplotlib figure; its legends have no frame, and text on a heat map has another colour than black.
        name: tells its ids from those of other figures on the same page.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    prefix = re.sub(r"[^A-Za-z0-9-]+", "-", name)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", buffer.getvalue())
    return text.replace("</style>", f"{_INK}</style>", 1)
