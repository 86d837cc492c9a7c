"""The vocabulary tokens that lie nearest to each soft token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from softprompts.analysis.drawing import Picture, as_csv, cells, colour_bar, colours_of, file_name, heat_map, on_colour
from softprompts.analysis.saved import Saved
from softprompts.errors import SoftPromptError
from softprompts.methods.contract import Method
from softprompts.plotting import empty_figure


@dataclass(frozen=True)
class Neighbours:
    """The ``k`` nearest vocabulary tokens of ``t`` soft tokens, the nearest first.

    Attributes:
        tokens: ``(t, d)``, the soft tokens as the backbone gets them.
        names: of the soft tokens.
        by_cosine: ``(t, k)`` ids with the greatest cosine.
        cosines: ``(t, k)``.
        by_distance: ``(t, k)`` ids with the least Euclidean distance.
        distances: ``(t, k)``.
        norm: median norm of the vocabulary's embeddings, to compare distances with.
    """

    tokens: Tensor
    names: tuple[str, ...]
    by_cosine: np.ndarray
    cosines: np.ndarray
    by_distance: np.ndarray
    distances: np.ndarray
    norm: float


def soft_tokens(saved: Saved, of: Method | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """The tokens ``(t, d)`` that a prompt comes down to, or those that its rows choose from, and their names.

    Args:
        saved: the prompt.
        of: another module of its method; None: the trained one.

    Raises:
        SoftPromptError: it has none.
    """
    views = saved.views("tokens", of=of)
    if views:
        values = views[0].values
        names = (f"{views[0].axes[0]} {i}, {j}" for i in range(values.shape[0]) for j in range(values.shape[1]))
        return values.flatten(0, 1), tuple(names)
    tokens = saved.tensors(of=of).tokens
    if tokens is None or not len(tokens):
        raise saved.lacks("puts no tokens into the input")
    return tokens, tuple(map(str, range(len(tokens))))


def neighbours(tokens: Tensor, names: tuple[str, ...], vocabulary: Tensor, count: int = 5) -> Neighbours:
    """The nearest of a vocabulary ``(V, d)`` to tokens ``(t, d)``; rows of zeros in it are left out."""
    norms = vocabulary.norm(dim=1)
    count = min(count, int((norms > 0).sum()))
    cosines = functional.normalize(tokens, dim=1) @ functional.normalize(vocabulary, dim=1).T
    cosines = cosines.masked_fill(norms == 0, -torch.inf)
    near = cosines.topk(count)
    far = torch.cdist(tokens, vocabulary, compute_mode="donot_use_mm_for_euclid_dist")
    short = far.masked_fill(norms == 0, torch.inf).topk(count, largest=False)
    by_cosine, by_distance = near.indices.numpy(), short.indices.numpy()
    norm = float(norms[norms > 0].median())
    return Neighbours(tokens, names, by_cosine, near.values.numpy(), by_distance, short.values.numpy(), norm)


def draw_tokens(saved: Saved, count: int = 5) -> Picture:
    """A table of the nearest tokens by cosine, its cells coloured by the cosine."""
    tokens, names = soft_tokens(saved)
    near = neighbours(tokens, names, saved.vocabulary(), count)
    shown = near.cosines[:40]
    figure = empty_figure(1.6 + 1.1 * shown.shape[1], 0.9 + 0.2 * len(shown))
    axes = figure.subplots()
    ranks = [str(rank + 1) for rank in range(shown.shape[1])]
    image = heat_map(
        axes, shown, title=saved.name, across="nearest by cosine", down="soft token", **colours_of(0, 1, shown),
        rows=near.names[:40], columns=ranks,
    )  # fmt: skip
    words = np.array([saved.words(ids) for ids in near.by_cosine.tolist()])
    other = np.array([saved.words(ids) for ids in near.by_distance.tolist()])
    for (place, rank), value in np.ndenumerate(shown):
        text = "".join(c if c.isprintable() and ord(c) < 0x530 else "?" for c in words[place, rank]).replace("$", r"\$")
        axes.text(rank, place, text, ha="center", va="center", fontsize=6, color=on_colour(image, value))
    colour_bar(figure, image, axes, "cosine")
    same = float((near.by_cosine[:, 0] == near.by_distance[:, 0]).mean())
    try:
        start, _ = soft_tokens(saved, saved.untrained)
        before = neighbours(start, names, saved.vocabulary(), 1).by_cosine[:, 0]
        stayed = (
            f" {int((before == near.by_cosine[:, 0]).sum())} of {len(before)} have the same nearest as at the start."
        )
    except SoftPromptError as error:
        stayed = f" What they started from is not known: {error}."
    caption = (
        f"{saved.name}: the vocabulary tokens nearest to each soft token. The nearest has a cosine of "
        f"{np.median(near.cosines[:, 0]):.2f} (median; from {near.cosines[:, 0].min():.2f} to "
        f"{near.cosines[:, 0].max():.2f}) and lies {np.median(near.distances[:, 0]):.2f} away, where embeddings have "
        f"a norm of {near.norm:.2f} and soft tokens one of {float(tokens.norm(dim=1).median()):.2f}; cosine and "
        f"distance name the same token for {100 * same:.0f} %." + stayed
    )
    if len(near.cosines) > len(shown):
        caption += f" The first {len(shown)} of {len(near.cosines)} are shown."
    lines = cells((near.names, ranks), words, near.cosines, other, near.distances)
    table = as_csv(("soft token", "rank", "by cosine", "cosine", "by distance", "distance"), lines)
    return Picture(file_name("tokens", saved.name), caption, figure, table)
