"""How every picture of the package looks, and how it becomes a file: matplotlib figures without pyplot or global state.

A picture is read on white and on dark pages alike. Pure black, which is what matplotlib gives text, ticks and spines,
is ink: in the SVG it is `currentColor`, so that it follows the page. All other colours stay; those of `PALETTE` have a
contrast of at least 3.5 with white and with near-black.

matplotlib is an extra: nothing here imports it before a figure is asked for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from xml.sax.saxutils import quoteattr

from softprompts.errors import SoftPromptError
from softprompts.storage.files import write_atomic, write_text_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NO_MATPLOTLIB = "no pictures: pip install 'softprompts[plots]'"
PALETTE = (
    "#2f7ed8",
    "#d9650b",
    "#1f9a5f",
    "#c9509f",
    "#8a7d1a",
    "#8f63d2",
    "#d6404e",
    "#0f95a0",
    "#7b8494",
    "#a5673f",
)
MARKERS = "osD^vPX<>p"
LINES = ("-", "--", "-.", ":")
# Ink of an SVG file on its own, by the scheme of the page that shows it.
INK, INK_ON_DARK = "#1f2328", "#e6e8eb"
_GRID = "#808080"


def have_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def style_of(index: int) -> dict[str, Any]:
    """Colour, marker and line of the ``index``-th of several methods: no two of the first forty look the same."""
    turn, place = divmod(index, len(PALETTE))
    return {
        "color": PALETTE[place],
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
        raise SoftPromptError("pictures need matplotlib: pip install 'softprompts[plots]'") from None
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure in the package's style.

    Args:
        width: inches.
        height: inches.
        rows: of panels.
        columns: of panels.
        subplots: further arguments of `Figure.subplots`, such as ``sharex``.

    Returns:
        The figure and its panels, row by row.
    """
    figure = empty_figure(width, height)
    panels = [axes for line in figure.subplots(rows, columns, squeeze=False, **subplots) for axes in line]
    for axes in panels:
        axes.grid(color=_GRID, alpha=0.25, linewidth=0.8)
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
    """One legend for all panels, under them, in as few lines as it takes, evenly filled.

    Args:
        figure: the figure.
        handles: what was drawn.
        labels: as many names.
        width: of the figure, in inches.
    """
    if not labels:
        return
    columns = -(-len(labels) // legend_rows(labels, width))
    figure.legend(
        handles,
        [plain(label) for label in labels],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )


@dataclass(frozen=True)
class Point:
    """One method in a picture of score against size.

    Attributes:
        label: its name.
        trained: number of trained parameters, at least 1.
        scores: one per seed, as they are shown.
        style: number for `style_of`.
        join: points with the same text are joined by a line; None: it stands alone.
    """

    label: str
    trained: int
    scores: tuple[float, ...]
    style: int = 0
    join: str | None = None

    @property
    def mean(self) -> float:
        """Mean score."""
        return statistics.fmean(self.scores)

    @property
    def std(self) -> float:
        """Sample standard deviation; 0 for one seed."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


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
        axes.errorbar(
            point.trained,
            point.mean,
            yerr=point.std or None,
            fmt=style["marker"],
            color=style["color"],
            capsize=4,
            markersize=7,
        )
        axes.plot([point.trained] * len(point.scores), point.scores, ".", color=style["color"], alpha=0.45)
    for name in dict.fromkeys(point.join for point in points if point.join is not None):
        those = sorted((p for p in points if p.join == name), key=lambda p: (p.trained, p.mean))
        axes.plot(
            [p.trained for p in those], [p.mean for p in those], color=style_of(those[0].style)["color"], alpha=0.4
        )
    low, high = min(p.trained for p in points), max(p.trained for p in points)
    axes.set_xscale("log")
    axes.set_xlim(low / 3, high * (5 if label else 3))
    axes.xaxis.set_major_locator(LogLocator(numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.12)
    axes.set_xlabel("trained parameters")
    if label:
        place_labels(axes, points)


# Where a name may stand around its point, nearest first: offsets in points and how the text lies to them.
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7))
_REACH = (9, 16, 26, 38, 52, 70)
_HORIZONTAL: dict[int, Any] = {1: "left", 0: "center", -1: "right"}
_VERTICAL: dict[int, Any] = {1: "bottom", 0: "center", -1: "top"}


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

    figure: Any = axes.figure
    renderer = cast(Any, FigureCanvasAgg(figure)).get_renderer()
    figure.draw_without_rendering()  # lays the panels out
    unit = figure.dpi / 72
    frame = axes.get_window_extent(renderer).extents
    centres = [axes.transData.transform((p.trained, p.mean)) for p in points]
    taken: list[tuple[float, float, float, float]] = []
    for point, (x, y) in zip(points, centres, strict=True):
        taken.append((x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit))
        ends = [axes.transData.transform((point.trained, end))[1] for end in (*point.scores, point.mean - point.std)]
        ends.append(axes.transData.transform((point.trained, point.mean + point.std))[1])
        taken.append((x - 3 * unit, min(ends), x + 3 * unit, max(ends)))
    notes: dict[int, Any] = {}
    # From the top down: what stands highest has the panel's free room above it.
    for index in sorted(range(len(points)), key=lambda i: (-points[i].mean, points[i].trained)):
        point, (x, y) = points[index], centres[index]
        note = axes.annotate(
            plain(point.label),
            (point.trained, point.mean),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=9,
        )
        note.set_in_layout(False)
        box = note.get_window_extent(renderer)
        best: tuple[float, float, float, int, int, tuple[float, float, float, float]] | None = None
        for reach in _REACH:
            for right, up in _SIDES:
                side = (round(right + math.copysign(0.1, right)) if right else 0, round(up) if not right else 0)
                left = x + right * reach * unit - {1: 0.0, 0: box.width / 2, -1: box.width}[side[0]]
                foot = y + up * reach * unit - {1: 0.0, 0: box.height / 2, -1: box.height}[side[1]]
                there = (left, foot, left + box.width, foot + box.height)
                lost = sum(_shared(there, other) for other in taken) + 2 * (
                    box.width * box.height - _shared(there, frame)
                )
                if best is None or lost < best[0] - 0.5:
                    best = (lost, right * reach, up * reach, *side, there)
            if best is not None and best[0] < 0.5:
                break
        assert best is not None
        _, across, along, h, v, there = best
        note.set_position((across, along))
        note.set_horizontalalignment(_HORIZONTAL[h])
        note.set_verticalalignment(_VERTICAL[v])
        if math.hypot(across, along) > 20:
            axes.annotate(
                "",
                (point.trained, point.mean),
                xytext=(across, along),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": style_of(point.style)["color"], "alpha": 0.6, "linewidth": 0.8},
            ).set_in_layout(False)
        taken.append(there)
        notes[index] = note
    return [notes[index] for index in range(len(points))]


def _shared(first: Iterable[float], second: Iterable[float]) -> float:
    """The area that two boxes (left, foot, right, top) share."""
    a, b = tuple(first), tuple(second)
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def write_files(figure: Figure, folder: Path, name: str, numbers: str = "") -> list[Path]:
    """Writes a figure as PNG and SVG, and the numbers behind it as CSV where there are some; returns what it wrote."""
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
        figure: any matplotlib figure.
        name: tells its ids from those of other figures on the same page.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), _on_any_page(figure):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    prefix = re.sub(r"[^A-Za-z0-9-]+", "-", name)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    # What is black is drawn in the colour of the surrounding text; matplotlib leaves black fills out altogether.
    text = text.replace("stroke: #000000", "stroke: currentColor").replace("fill: #000000", "fill: currentColor")
    text = re.sub(r"(font-family: |font: [^;\"]*?px )[^;\"]*", r"\1'DejaVu Sans', Verdana, sans-serif", text)
    # Its own style sheet would hold for a whole page; the two settings in it are inherited as well.
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, count=1, flags=re.DOTALL)
    root = f'<svg fill="currentColor" color="{INK}" stroke-linejoin="round" stroke-linecap="butt"'
    scheme = f"<style>@media (prefers-color-scheme: dark) {{ svg {{ color: {INK_ON_DARK} }} }}</style>"
    text = text.replace("<svg", root, 1)
    opening = text.index(">") + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text[:opening]}\n {scheme}{text[opening:]}'


@contextlib.contextmanager
def _on_any_page(figure: Figure) -> Iterator[None]:
    """For as long as it is open, legends have no white box, and black on the cells of a heat map is no ink."""
    from matplotlib.colors import to_hex
    from matplotlib.legend import Legend

    with contextlib.ExitStack() as restore:
        for legend in figure.findobj(Legend):
            frame = legend.get_frame()  # type: ignore[attr-defined]
            restore.callback(frame.set_visible, frame.get_visible())
            frame.set_visible(False)
        for axes in figure.axes:
            for text in axes.texts if axes.images else ():
                if to_hex(text.get_color()) == "#000000":
                    restore.callback(text.set_color, text.get_color())
                    text.set_color("#010101")
        yield


def inline(document: str, title: str) -> str:
    """What `svg` made as an element of an HTML page: ink is the colour of the text around it.

    Args:
        document: the SVG file's text.
        title: what it is called for those who do not see it.
    """
    text = re.sub(r"<style>.*?</style>", "", document[document.index("<svg") :], count=1, flags=re.DOTALL)
    text = text.replace(f' color="{INK}"', "", 1)
    return text.replace("<svg", f'<svg role="img" aria-label={quoteattr(title)}', 1).strip()
