"""What each prompt token takes from each space, trained against its start: Figure 8 of the EPT paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softprompts.analysis.drawing import (
    SIGNED,
    Picture,
    as_csv,
    colour_bar,
    file_name,
    heat_map,
    new_figure,
)
from softprompts.analysis.saved import DoesNotApplyError, Saved


@dataclass(frozen=True)
class Gates:
    """Shares of a prompt's gate.

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
    views = saved.views("gates")
    if not views:
        raise DoesNotApplyError(f"{saved.name}: {saved.config['method']} has no gate over spaces")
    start, why = saved.at_start("gates")
    return Gates(views[0].values.numpy(), None if start is None else start.numpy(), why, views[0].axes[1])


def draw_gates(saved: Saved) -> Picture:
    """Heat maps of tokens (across) and spaces (down): the start, the trained prompt, and what changed."""
    found = gates_of(saved)
    tokens, spaces = found.trained.shape
    panels = [("trained", found.trained)]
    if found.start is not None:
        panels.insert(0, ("at the start", found.start))
    figure = new_figure(2.2 + 0.16 * min(tokens, 60), (len(panels) + (found.start is not None)) * (0.7 + 0.2 * spaces))
    grid = figure.subplots(len(panels) + (found.start is not None), 1, squeeze=False)[:, 0]
    high = max(panel.max() for _, panel in panels)
    for axes, (title, panel) in zip(grid, panels, strict=False):
        image = heat_map(axes, panel.T, title=title, across="token", down=found.over, low=0, high=high)
    colour_bar(figure, image, list(grid[: len(panels)]), "share")
    caption = f"{saved.name}: what each prompt token takes from each of {spaces} {found.over}s."
    if found.start is None:
        caption += f" The start is not shown: {found.why}."
    else:
        change = found.trained - found.start
        largest = float(np.abs(change).max())
        image = heat_map(
            grid[-1], change.T, title="change", across="token", down=found.over, low=-largest, high=largest,
            colours=SIGNED,
        )  # fmt: skip
        colour_bar(figure, image, grid[-1], "change")
        caption += (
            " At the start (made anew from seed and backbone) shares go from "
            f"{found.start.min():.2f} to {found.start.max():.2f}, trained from {found.trained.min():.2f} to "
            f"{found.trained.max():.2f}; they moved by {np.abs(change).mean():.3f} on average, {largest:.3f} at most."
        )
    figure.suptitle(saved.name, fontsize=10)
    lines = (
        [token, space, found.trained[token, space], "" if found.start is None else found.start[token, space]]
        for token in range(tokens)
        for space in range(spaces)
    )
    table = as_csv(("token", found.over, "trained", "start"), lines)
    return Picture(file_name("gates", saved.name), caption, figure, table)
