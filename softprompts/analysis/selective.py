"""Attention to prefixes on real rows, and Selective Prefix's mask on scores: its curves (Figure 5 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from softprompts.analysis.attention_maps import EDGES, Attention, attention_maps
from softprompts.analysis.drawing import Picture, as_csv, cells, colour_bar, colours_of, file_name, heat_map, panels
from softprompts.analysis.sample import sample_of
from softprompts.analysis.saved import Saved
from softprompts.errors import SoftPromptError
from softprompts.plotting import GRID, SERIES, empty_figure, legend_below

_SCORES = np.linspace(-4, 4, 161)


@dataclass(frozen=True)
class Curve:
    """The mask of one alpha.

    Attributes:
        alpha: its steepness.
        scores: ``(n,)``, attention scores ``s``.
        mask: ``(n,)``, ``m(s) = sigmoid(alpha s)`` (Eq. 5).
        plain: ``(n,)``, the weight before normalisation without a mask, ``exp(s)``.
        masked: ``(n,)``, with it, ``m(s) exp(s)`` (Eq. 6).
    """

    alpha: float
    scores: np.ndarray
    mask: np.ndarray
    plain: np.ndarray
    masked: np.ndarray


def curve(alpha: float, scores: np.ndarray = _SCORES) -> Curve:
    """Computes the mask of an alpha over scores."""
    mask = expit(alpha * scores)
    return Curve(alpha, scores, mask, np.exp(scores), mask * np.exp(scores))


def alpha_of(saved: Saved) -> float:
    """The steepness of a saved prompt's mask.

    Raises:
        SoftPromptError: its method puts no mask on scores.
    """
    return float(saved.view("selective", "puts no mask on attention scores").values)


def draw_curves(prompts: Sequence[Saved], seen: Attention | None = None) -> Picture:
    """``m(s)`` and ``m(s) exp(s)`` over the score for the alphas of some prompts, over the scores that were seen."""
    curves = [curve(alpha) for alpha in sorted({alpha_of(saved) for saved in prompts})]
    figure = empty_figure(8.2, 3.4)
    left, right = figure.subplots(1, 2)
    drawn = left.plot(_SCORES, np.ones_like(_SCORES), color=SERIES[0])
    right.plot(_SCORES, np.exp(_SCORES), color=SERIES[0])
    for number, each in enumerate(curves, start=1):
        colour = SERIES[number % len(SERIES)]
        drawn += left.plot(each.scores, each.mask, color=colour)
        right.plot(each.scores, each.masked, color=colour)
    legend_below(figure, drawn, ["no mask", *(f"alpha = {each.alpha:g}" for each in curves)], 8.2)
    caption = (
        "The mask m(s) = sigmoid(alpha s) over the attention score s of a prefix token (left), and its weight before "
        "normalisation, m(s) exp(s) against exp(s) (right), with "
        f"{' and '.join(f'alpha = {each.alpha:g}' for each in curves)}."
    )
    if seen is not None:
        # The ends of the histogram hold all that lies beyond them.
        counts, edges = seen.scores.sum(0) / max(seen.scores.sum(), 1), EDGES
        middle = (edges[:-1] + edges[1:]) / 2
        inside = np.abs(middle) <= _SCORES[-1]
        below = left.twinx()
        below.bar(middle[inside], counts[inside], width=edges[1] - edges[0], color=GRID, alpha=0.4, zorder=0)
        below.set_yticks([])
        left.set_zorder(1)
        left.patch.set_visible(False)
        caption += (
            f" Grey: the scores that prefix tokens of {prompts[0].name} had on {seen.rows} rows, of which "
            f"{100 * counts[inside].sum():.0f} % are within the picture."
        )
    right.set_ylim(0, 8)
    for axes, label in ((left, "m(s)"), (right, "weight before normalisation")):
        axes.set_xlabel("score s", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.axvline(0, color=GRID, linewidth=0.6)
        axes.tick_params(labelsize=7)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    columns = [
        (np.full_like(each.scores, each.alpha), each.scores, each.mask, each.plain, each.masked) for each in curves
    ]
    lines = np.concatenate([np.column_stack(numbers) for numbers in columns])
    table = as_csv(("alpha", "score", "mask", "plain", "masked"), lines)
    name = file_name("selective", prompts[0].name if len(prompts) == 1 else "")
    return Picture(name, caption, figure, table)


def draw_attention(saved: Saved, attention: Attention, masked: bool = True) -> Picture:
    """Heat maps of sites (down) and prefix tokens (across): attention before a mask, and after it, or without one."""
    sites, length = attention.before.shape
    shares = (
        [("before the mask", attention.before), ("after it", attention.after)] if masked else [("", attention.after)]
    )
    figure = empty_figure(2.6 + len(shares) * (0.8 + 0.14 * min(length, 40)), 1.3 + 0.2 * min(sites, 40))
    sides = panels(figure, len(shares), len(shares))
    high = max(float(values.max()) for _, values in shares)
    scale = colours_of(0, high, *(values for _, values in shares))
    for axes, (title, values) in zip(sides, shares, strict=True):
        rows = attention.sites if axes is sides[0] else [""] * sites
        image = heat_map(axes, values, title=title, across="prefix token", rows=rows, **scale)
    colour_bar(figure, image, sides, "mean attention")
    figure.suptitle(saved.name, fontsize=10)
    before, after = attention.before.sum(1), attention.after.sum(1)
    caption = (
        f"{saved.name}: attention to each prefix token (across) at each site (down), mean over {attention.rows} rows, "
        f"heads and queries. The prefix takes "
        + (f"{100 * before.mean():.1f} % of all attention before the mask and " if masked else "")
        + f"{100 * after.mean():.1f} % {'after it' if masked else 'of all attention'} (by site from "
        f"{100 * after.min():.1f} to {100 * after.max():.1f} %)"
        + (f"; {100 * attention.negative.mean():.0f} % of its scores are negative." if masked else ".")
    )
    negative = np.broadcast_to(attention.negative[:, None], attention.before.shape)
    lines = cells((attention.sites, None), attention.before, attention.after, negative)
    table = as_csv(("site", "token", "before", "after", "negative scores at this site"), lines)
    return Picture(file_name("attention", saved.name), caption, figure, table)


def draw_mass(saved: Saved, count: int = 64, data_dir: str | None = None) -> Picture:
    """The attention of a prompt without a mask on scores, see `draw_attention`.

    Raises:
        SoftPromptError: it has no prefix, or a mask, with which `draw_selective` shows it; or its rows cannot be had.
    """
    if not saved.method_config.uses_prefix:
        raise saved.lacks("has no prefix to attend to")
    if saved.views("selective"):
        raise saved.lacks("masks its attention, which is drawn as 'selective'")
    return draw_attention(saved, attention_maps(saved, sample_of(saved, count, data_dir)), masked=False)


def draw_selective(prompts: Sequence[Saved], count: int = 64, data_dir: str | None = None) -> list[Picture]:
    """The curves, and the attention of each prompt on rows of its task; without rows the curves alone."""
    for saved in prompts:
        alpha_of(saved)
    seen: list[tuple[Saved, Attention]] = []
    reasons = []
    for saved in prompts:
        try:
            seen.append((saved, attention_maps(saved, sample_of(saved, count, data_dir))))
        except SoftPromptError as error:
            reasons.append(str(error))
    curves = draw_curves(prompts, seen[0][1] if len(prompts) == 1 and seen else None)
    if reasons:
        curves = curves._replace(caption=f"{curves.caption} No attention on real rows: {'; '.join(reasons)}.")
    return [curves, *(draw_attention(saved, attention) for saved, attention in seen)]
