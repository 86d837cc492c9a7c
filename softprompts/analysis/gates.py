"""EPT's gates, trained and at the start: the share of each space in each prompt token (Figure 8 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softprompts.analysis.drawing import Picture, as_csv, cells, colour_bar, colours_of, file_name, heat_map, panels
from softprompts.analysis.saved import Saved
from softprompts.plotting import SIGNED, empty_figure


@dataclass(frozen=True)
class Gates:
    """The shares of a prompt's gate.

    Attributes:
        trained: ``(s, N)``, of each token and space, rows summing to 1 (Eq. 6 of the paper).
        start: the same before training, tokens and gate as they were made; None where that cannot be had.
        why: then the reason.
        over: what the second axis is of: "space".
    """

    trained: np.ndarray
    start: np.ndarray | None
    why: str
    over: str


def gates_of(saved: Saved) -> Gates:
    """The gates of a saved prompt, and those that it started with.

    Raises:
        SoftPromptError: its method has none.
    """
    view = saved.view("gates", "has no gate over spaces")
    start, why = saved.at_start("gates")
    return Gates(view.values.numpy(), None if start is None else start.numpy(), why, view.axes[1])


def draw_gates(saved: Saved) -> Picture:
    """Heat maps of tokens (across) and spaces (down): the start, the trained prompt, and what changed."""
    gates = gates_of(saved)
    tokens, spaces = gates.trained.shape
    shares = [("trained", gates.trained)]
    if gates.start is not None:
        shares.insert(0, ("at the start", gates.start))
    count = len(shares) + (gates.start is not None)
    figure = empty_figure(2.2 + 0.16 * min(tokens, 60), count * (0.7 + 0.2 * spaces))
    grid = panels(figure, count, 1)
    scale = colours_of(0, max(values.max() for _, values in shares), *(values for _, values in shares))
    for axes, (title, values) in zip(grid, shares, strict=False):
        image = heat_map(axes, values.T, title=title, across="token", down=gates.over, **scale)
    colour_bar(figure, image, grid[: len(shares)], "share")
    caption = f"{saved.name}: what each prompt token takes from each of {spaces} {gates.over}s."
    if gates.start is None:
        caption += f" The start is not shown: {gates.why}."
    else:
        change = gates.trained - gates.start
        largest = float(np.abs(change).max())
        image = heat_map(
            grid[-1], change.T, title="change", across="token", down=gates.over, low=-largest, high=largest,
            colours=SIGNED,
        )  # fmt: skip
        colour_bar(figure, image, grid[-1], "change")
        caption += (
            " At the start (made anew from seed and backbone) shares go from "
            f"{gates.start.min():.2f} to {gates.start.max():.2f}, trained from {gates.trained.min():.2f} to "
            f"{gates.trained.max():.2f}; they moved by {np.abs(change).mean():.3f} on average, {largest:.3f} at most."
        )
    figure.suptitle(saved.name, fontsize=10)
    table = as_csv(("token", gates.over, "trained", "start"), cells((None, None), gates.trained, gates.start))
    return Picture(file_name("gates", saved.name), caption, figure, table)
