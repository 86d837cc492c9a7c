"""Parts that all pictures share: heat maps, panels, and the numbers behind them as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from softprompts.plotting import ON_COLOUR, SHARES, SIGNED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MANY = 16  # ticks that an axis has room for
_FILLED = 0.2  # share of a fixed scale that values have to fill


class Picture(NamedTuple):
    """One picture.

    Attributes:
        name: fit for a file, without an ending.
        caption: what is drawn, in a sentence or two.
        figure: a `matplotlib.figure.Figure`.
        csv: the numbers behind it, one a line, with a header.
    """

    name: str
    caption: str
    figure: Figure
    csv: str


def panels(figure: Figure, count: int, columns: int) -> list[Any]:
    """Makes ``count`` axes in rows of ``columns``; places that are left over stay empty."""
    grid = figure.subplots(-(-count // columns), columns, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    return list(grid.flat[:count])


def colours_of(low: float, high: float, *matrices: np.ndarray) -> dict[str, Any]:
    """The scale of heat maps that are drawn alike: ``low``, ``high`` and ``colours`` for `heat_map`.

    The ends are those given, around zero with the colours for it; where the values fill so little of that scale that
    all would have one colour, they are the least and the greatest value.
    """
    least, most = (
        float(end(matrix.min() if end is min else matrix.max() for matrix in matrices)) for end in (min, max)
    )
    if 0 < most - least < _FILLED * (high - low):
        return {"low": least, "high": most, "colours": SHARES}
    return {"low": low, "high": high, "colours": SIGNED if low < 0 else SHARES}


def heat_map(
    axes: Any,
    values: np.ndarray,
    *,
    title: str = "",
    across: str = "",
    down: str = "",
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    colours: str = SHARES,
    numbers: str | None = None,
) -> Any:
    """Draws a matrix with its first row on top.

    Args:
        axes: where.
        values: ``(rows, columns)``.
        title: above it.
        across: what the columns are.
        down: what the rows are.
        columns: what each is called; None: numbers.
        rows: likewise.
        low: what the darkest colour stands for; None: the least value.
        high: the other end.
        colours: a colour map of matplotlib.
        numbers: a format such as ".2f" to write the values with; None: they are not written.

    Returns:
        The image, for a colour bar.
    """
    image = axes.imshow(values, vmin=low, vmax=high, cmap=colours, aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(down, fontsize=8)
    for axis, count, names in ((axes.xaxis, values.shape[1], columns), (axes.yaxis, values.shape[0], rows)):
        ticks = range(0, count, max(1, -(-count // _MANY)) if names is None else 1)
        axis.set_ticks(list(ticks), [str(tick) if names is None else names[tick] for tick in ticks])
        axis.set_tick_params(labelsize=7, length=2)
    if columns is not None and max(map(len, columns)) > (3 if len(columns) > 4 else 12):
        axes.tick_params(axis="x", labelrotation=90 if len(columns) > 8 else 45)
    if numbers is not None:
        for (row, column), value in np.ndenumerate(values):
            text = format(value, numbers)
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=on_colour(image, value))
    return image


def on_colour(image: Any, value: float) -> str:
    """The colour of a text on the place of a value in a heat map: light on what is dark."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else ON_COLOUR


def colour_bar(figure: Figure, image: Any, axes: Any, label: str = "") -> None:
    """Draws the colour bar of an image beside axes."""
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def layers(sites: Sequence[str]) -> tuple[list[int], str]:
    """Orders attention sites ("encoder.self 0" ...) by kind, and gives the axis label that says which are which."""
    kinds = [site.rpartition(" ")[0] for site in sites]
    known = list(dict.fromkeys(kinds))
    order = sorted(range(len(kinds)), key=lambda place: known.index(kinds[place]))
    if len(known) < 2:
        return order, "layer"
    first, spans = 0, []
    for kind in known:
        last = first + kinds.count(kind) - 1
        spans.append(f"{first}-{last} {kind}")
        first = last + 1
    return order, ", ".join(spans)


def as_csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Writes lines of values under a header as CSV; floats have seven digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for line in lines:
        writer.writerow([f"{value:.7g}" if isinstance(value, float | np.floating) else value for value in line])
    return out.getvalue()


def cells(names: Sequence[Sequence[str] | None], *arrays: np.ndarray | None) -> Iterable[list[Any]]:
    """A line for each place in arrays of the same shape, for `as_csv`.

    Args:
        names: for each axis what its entries are called; None: they are numbered.
        arrays: the numbers; None: an empty column.
    """
    shape = next(array.shape for array in arrays if array is not None)
    for place in np.ndindex(*shape):
        called = (index if axis is None else axis[index] for index, axis in zip(place, names, strict=True))
        yield [*called, *("" if array is None else array[place] for array in arrays)]


def file_name(*parts: str) -> str:
    """A name for a file, of letters, digits, "." "_" and "-"."""
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts if part)
