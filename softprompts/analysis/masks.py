"""Multi-mask's masks: the gate of each virtual token at each layer (Figure 2 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softprompts.analysis.drawing import (
    Picture,
    as_csv,
    cells,
    colour_bar,
    colours_of,
    file_name,
    heat_map,
    layers,
    panels,
)
from softprompts.analysis.saved import Saved
from softprompts.plotting import empty_figure


@dataclass(frozen=True)
class Masks:
    """Gates of a prompt.

    Attributes:
        values: ``(k, l, S)``, the gate in 0 to 1 of each mask, token and site; of Multi-mask ``sigmoid(theta)``.
        start: the same before training, made anew from seed and backbone; None where that cannot be had.
        sites: names of the ``S`` attention sites.
    """

    values: np.ndarray
    start: np.ndarray | None
    sites: tuple[str, ...]

    @property
    def closed(self) -> float:
        """Share of gates below 1/2."""
        return float((self.values < 0.5).mean())

    @property
    def likeness(self) -> float:
        """Mean correlation of pairs of masks: 1 where all say the same, about 0 where each has its own."""
        return _likeness(self.values)

    @property
    def likeness_at_start(self) -> float | None:
        """The same before training, where masks are drawn apart from each other."""
        return None if self.start is None else _likeness(self.start)

    @property
    def moved(self) -> float | None:
        """Mean change of a gate in training."""
        return None if self.start is None else float(np.abs(self.values - self.start).mean())


def _likeness(values: np.ndarray) -> float:
    masks = len(values)
    if masks < 2:
        return float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(values.reshape(masks, -1))[np.triu_indices(masks, 1)].mean())


def masks_of(saved: Saved) -> Masks:
    """The masks of a saved prompt.

    Raises:
        SoftPromptError: its method has none that can be seen without an input.
    """
    view = saved.view("masks", "has no masks of its own")
    start, _ = saved.at_start("masks")
    shape = (-1, *view.values.shape[-2:])
    first = None if start is None else start.view(shape).numpy()
    return Masks(view.values.view(shape).numpy(), first, saved.sites)


def draw_masks(saved: Saved) -> Picture:
    """A heat map for each mask, tokens down and sites across, all on one scale: from 0 to 1, or that of the values."""
    masks = masks_of(saved)
    count, length, sites = masks.values.shape
    columns = min(count, 4 if sites <= 16 else 2)
    lines = -(-count // columns)
    figure = empty_figure(1.2 + columns * (1.0 + 0.16 * min(sites, 24)), lines * (1.1 + 0.14 * min(length, 30)))
    grid = panels(figure, count, columns)
    order, across = layers(masks.sites)
    scale = colours_of(0, 1, masks.values)
    for index, axes in enumerate(grid):
        title = "" if count == 1 else f"mask {index}"
        values = masks.values[index][:, order]
        image = heat_map(axes, values, title=title, across=across, down="token", **scale)
    colour_bar(figure, image, figure.axes, "gate")
    figure.suptitle(saved.name, fontsize=10)
    caption = (
        f"{saved.name}: the gate of each virtual token (down) at each attention site (across), one panel a mask. "
        f"{100 * masks.closed:.1f} % of {masks.values.size} gates are below 1/2; they go from {masks.values.min():.2f} "
        f"to {masks.values.max():.2f}, mean {masks.values.mean():.2f}."
    )
    if count > 1:
        caption += f" Pairs of masks correlate by {masks.likeness:.2f} on average."
    if masks.moved is not None:
        caption += f" Training moved gates by {masks.moved:.3f} on average from their random start"
        caption += f", where masks correlate by {masks.likeness_at_start:.2f}." if count > 1 else "."
    table = as_csv(("mask", "token", "site", "gate"), cells((None, None, masks.sites), masks.values))
    return Picture(file_name("masks", saved.name), caption, figure, table)
