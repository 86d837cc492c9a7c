"""Which virtual tokens a mask lets through at which layer: Figure 2 of the Multi-mask paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softprompts.analysis.drawing import (
    Picture,
    as_csv,
    colour_bar,
    file_name,
    heat_map,
    layers,
    long_form,
    new_figure,
)
from softprompts.analysis.saved import DoesNotApplyError, Saved


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
    views = saved.views("masks")
    if not views:
        raise DoesNotApplyError(f"{saved.name}: {saved.config['method']} has no masks of its own")
    start, _ = saved.at_start("masks")
    values, first = (
        None if each is None else each.view(-1, *each.shape[-2:]).numpy() for each in (views[0].values, start)
    )
    assert values is not None
    return Masks(values, first, saved.sites)


def draw_masks(saved: Saved) -> Picture:
    """A heat map for each mask, tokens down and sites across, all on one scale from 0 to 1."""
    found = masks_of(saved)
    count, length, sites = found.values.shape
    columns = min(count, 4 if sites <= 16 else 2)
    lines = -(-count // columns)
    figure = new_figure(1.2 + columns * (1.0 + 0.16 * min(sites, 24)), lines * (1.1 + 0.14 * min(length, 30)))
    grid = figure.subplots(lines, columns, squeeze=False)
    order, across = layers(found.sites)
    for index, axes in enumerate(grid.flat):
        if index >= count:
            axes.set_axis_off()
            continue
        title = "" if count == 1 else f"mask {index}"
        values = found.values[index][:, order]
        image = heat_map(axes, values, title=title, across=across, down="token", low=0, high=1)
    colour_bar(figure, image, list(grid.flat), "gate")
    figure.suptitle(saved.name, fontsize=10)
    caption = (
        f"{saved.name}: the gate of each virtual token (down) at each attention site (across), one panel a mask. "
        f"{100 * found.closed:.1f} % of {found.values.size} gates are below 1/2; they go from {found.values.min():.2f} "
        f"to {found.values.max():.2f}, mean {found.values.mean():.2f}."
    )
    if count > 1:
        caption += f" Pairs of masks correlate by {found.likeness:.2f} on average."
    if found.moved is not None:
        caption += f" Training moved gates by {found.moved:.3f} on average from their random start"
        caption += f", where masks correlate by {found.likeness_at_start:.2f}." if count > 1 else "."
    lines_of = long_form(found.values, (None, None, found.sites))
    return Picture(file_name("masks", saved.name), caption, figure, as_csv(("mask", "token", "site", "gate"), lines_of))
