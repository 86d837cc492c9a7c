"""A router's load: the share of each route (mask, prompt, source) in rows of each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softprompts.analysis.drawing import Picture, as_csv, cells, colour_bar, colours_of, file_name, heat_map
from softprompts.analysis.sample import Sample, sample_of
from softprompts.analysis.saved import Saved
from softprompts.plotting import empty_figure

_NO_ROUTER = "has no router"


@dataclass(frozen=True)
class Load:
    """How a router treats rows of each class.

    Attributes:
        shares: ``(C, k)``, the mean share that rows of a class give to each route (a mask, a prompt, a source).
        spread: ``(k,)``, standard deviation of the share over all rows: 0 where the router does not look at them.
        chosen: ``(C, k)``, how many rows of a class get the route; where all routes are mixed, those that give it the
            greatest share.
        rows: ``(C,)``, number of rows of each class.
        classes: their names.
        routes: the routes' names.
        mixed: whether every row gets all of them.
        note: what to know of the rows.
    """

    shares: np.ndarray
    spread: np.ndarray
    chosen: np.ndarray
    rows: np.ndarray
    classes: tuple[str, ...]
    routes: tuple[str, ...]
    mixed: bool
    note: str


def load_by_class(saved: Saved, rows: Sample) -> Load:
    """Measures the load of a saved prompt's router on rows.

    Raises:
        SoftPromptError: it has none.
    """
    inputs = saved.rows_of(rows.batch())
    view = saved.view("routes", _NO_ROUTER, inputs)
    shares = view.values.double().numpy()
    picked = [other for other in saved.views("chosen", inputs) if other.part == view.part]
    if picked:
        chosen = picked[0].values.numpy() > 0
    else:
        chosen = np.arange(shares.shape[1]) == shares.argmax(1)[:, None]
    of_class = [np.array([label == name for label in rows.labels]) for name in rows.names]
    entries = view.entries.get(view.axes[1])
    routes = tuple(entries) if entries else tuple(f"{view.axes[1]} {number}" for number in range(shares.shape[1]))
    return Load(
        shares=np.stack([shares[members].mean(0) for members in of_class]),
        spread=shares.std(0),
        chosen=np.stack([chosen[members].sum(0) for members in of_class]),
        rows=np.array([members.sum() for members in of_class]),
        classes=rows.names,
        routes=routes,
        mixed=not picked,
        note=rows.note,
    )


def load_of(saved: Saved, count: int = 64, data_dir: str | None = None) -> Load:
    """`load_by_class` with rows of the prompt's own task.

    Raises:
        SoftPromptError: it has no router, or the rows cannot be had.
    """
    if not saved.method.per_row:  # before any data are looked for
        raise saved.lacks(_NO_ROUTER)
    return load_by_class(saved, sample_of(saved, count, data_dir))


def draw_router(saved: Saved, count: int = 64, data_dir: str | None = None) -> Picture:
    """Two heat maps of classes (down) and routes (across): mean share, and share of rows that choose the route."""
    load = load_of(saved, count, data_dir)
    classes, routes = load.shares.shape
    figure = empty_figure(2.4 + 1.3 * routes, 1.3 + 0.36 * classes)
    left, right = figure.subplots(1, 2)
    names = [f"{name} ({number})" for name, number in zip(load.classes, load.rows, strict=True)]
    kind = "greatest share" if load.mixed else "chosen"
    scale = colours_of(0, 1, load.shares)
    image = heat_map(left, load.shares, title="mean share", columns=load.routes, rows=names, numbers=".2f", **scale)
    part = load.chosen / np.maximum(load.rows[:, None], 1)
    chosen = heat_map(
        right, part, title=f"{kind}, share of rows", columns=load.routes, numbers=".2f", **colours_of(0, 1, part)
    )
    right.set_yticks([])
    if image.get_clim() == chosen.get_clim():
        colour_bar(figure, image, [left, right])
    else:
        colour_bar(figure, image, left)
        colour_bar(figure, chosen, right)
    figure.suptitle(saved.name, fontsize=10)
    apart = float((load.shares.max(0) - load.shares.min(0)).max())
    caption = (
        f"{saved.name}: what {int(load.rows.sum())} rows of its task get from the router, by class. "
        f"Mean shares of two classes differ by {apart:.3f} at most; over rows a share varies by "
        f"{load.spread.max():.3f} (standard deviation) at most. {load.note}"
    ).strip()
    rows = np.broadcast_to(load.rows[:, None], load.shares.shape)
    lines = cells((load.classes, load.routes), load.shares, load.chosen, rows)
    table = as_csv(("class", "route", "mean share", kind, "rows"), lines)
    return Picture(file_name("router", saved.name), caption, figure, table)
