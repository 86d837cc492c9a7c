"""How large a prompt is at each place, and how far training has moved it from its start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softprompts.analysis.drawing import Picture, as_csv, cells, colour_bar, file_name, heat_map, layers, panels
from softprompts.analysis.sample import sample_of
from softprompts.analysis.saved import PromptTensors, Saved
from softprompts.errors import SoftPromptError
from softprompts.plotting import empty_figure


@dataclass(frozen=True)
class Norms:
    """Norms of a prompt's tokens, or of its keys or values.

    Attributes:
        part: "tokens", "keys" or "values".
        trained: ``(S, l)``, the norm of each vector, a row a site; one row for tokens.
        change: ``(S, l)``, the norm of what training added to it, as a share of its norm at the start; None where the
            start cannot be had.
        sites: names of the rows.
    """

    part: str
    trained: np.ndarray
    change: np.ndarray | None
    sites: tuple[str, ...]


def norms_of(saved: Saved, count: int = 64, data_dir: str | None = None) -> tuple[list[Norms], str]:
    """The norms of a saved prompt's parts; of one that depends on the input, those of the mean over rows of its task.

    Returns:
        The norms, and why there is no change from the start; empty where there is.

    Raises:
        SoftPromptError: it has neither tokens nor a prefix, or its rows cannot be had.
    """
    rows = saved.rows_of(sample_of(saved, count, data_dir).batch()) if saved.method.per_row else None
    trained = saved.tensors(rows)
    start, why = None, ""
    try:
        start = saved.tensors(rows, of=saved.untrained)
    except SoftPromptError as error:
        why = str(error).removeprefix(f"{saved.name}: ")
    norms = [
        _norms(part, trained, start, ("input",) if part == "tokens" else saved.sites)
        for part in ("tokens", "keys", "values")
        if getattr(trained, part) is not None
    ]
    if not norms:
        raise saved.lacks("has neither tokens nor a prefix")
    return norms, why


def _norms(part: str, trained: PromptTensors, start: PromptTensors | None, sites: tuple[str, ...]) -> Norms:
    now = getattr(trained, part)
    now = now[None] if now.ndim == 2 else now
    change = None
    if start is not None:
        before = getattr(start, part).reshape(now.shape)
        change = ((now - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-12)).numpy()
    return Norms(part, now.norm(dim=-1).numpy(), change, sites)


def draw_norms(saved: Saved, count: int = 64, data_dir: str | None = None) -> Picture:
    """Heat maps of sites (down) and tokens (across): norms, and what training changed, for each part of a prompt."""
    norms, why = norms_of(saved, count, data_dir)
    sites, length = max(len(each.trained) for each in norms), max(each.trained.shape[1] for each in norms)
    columns = 1 if why else 2
    high = len(norms) * (1.0 + 0.2 * min(sites, 40))
    figure = empty_figure(2.4 + columns * (1.4 + 0.14 * min(length, 40)), high)
    grid = panels(figure, columns * len(norms), columns)
    lines: list[list[object]] = []
    caption = f"{saved.name}: the norm of each virtual token's vector (across) at each site (down)"
    caption += f"; the change from the start is not shown: {why}." if why else ", and what training added to it."
    for row, each in enumerate(norms):
        order = layers(each.sites)[0] if each.part != "tokens" else [0]
        names = [each.sites[place] for place in order]
        sides = [("norm", each.trained)] + ([("change / start", each.change)] if each.change is not None else [])
        for side, (title, values) in enumerate(sides):
            axes = grid[columns * row + side]
            shown = names if side == 0 else [""] * len(names)
            image = heat_map(axes, values[order], title=f"{each.part}: {title}", rows=shown, across="token", low=0)
            colour_bar(figure, image, axes)
        caption += f" {each.part.capitalize()} have norms from {each.trained.min():.3g} to {each.trained.max():.3g}"
        if each.change is not None:
            by_site = each.change.mean(1)
            caption += f" and moved by {100 * each.change.mean():.0f} % of their start on average"
            if len(by_site) > 1:
                caption += f", least at {each.sites[by_site.argmin()]}, most at {each.sites[by_site.argmax()]}"
        caption += "."
        numbered = cells((each.sites, None), each.trained, each.change)
        lines += [[each.part, *line] for line in numbered]
    figure.suptitle(saved.name, fontsize=10)
    table = as_csv(("part", "site", "token", "norm", "change as a share of the start"), lines)
    return Picture(file_name("norms", saved.name), caption, figure, table)
