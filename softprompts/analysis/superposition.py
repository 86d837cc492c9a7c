"""SuperPos's weights: cosines between the superpositions of a prompt's tokens (Figure 2d of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softprompts.analysis.drawing import Picture, as_csv, cells, colour_bar, colours_of, file_name, heat_map, panels
from softprompts.analysis.saved import Saved
from softprompts.plotting import empty_figure


@dataclass(frozen=True)
class Superposition:
    """Cosines between the tokens of one prompt.

    Attributes:
        weights: ``(l, l)``, of their weights ``p'_i (m,)``: what the paper draws.
        start: the same before training, made anew from seed and backbone; None where that cannot be had.
        embeddings: ``(l, l)``, of the embeddings ``E_i (m, d)`` that each weighs, flattened, which all start alike.
        moved: mean distance of ``E_i`` from the mean over tokens, as a share of the norm: 0 where none has moved away.
    """

    weights: np.ndarray
    start: np.ndarray | None
    embeddings: np.ndarray
    moved: float


def cosines(rows: np.ndarray) -> np.ndarray:
    """Cosines ``(n, n)`` between the rows of ``(n, d)``, in float64; 0 for a row of zeros."""
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(norms > 0, norms, 1)
    return np.asarray(rows @ rows.T)


def between(matrix: np.ndarray) -> np.ndarray:
    """The entries above the diagonal of a matrix."""
    return np.asarray(matrix[np.triu_indices(len(matrix), 1)])


def superposition_of(saved: Saved) -> Superposition:
    """The cosines of a saved prompt.

    Raises:
        SoftPromptError: its tokens are no superpositions.
    """
    weights, mixed = (
        saved.view(what, "has tokens that are no superpositions").values.flatten(1).numpy()
        for what in ("superposition", "embeddings")
    )
    centre = mixed.mean(0)
    moved = np.linalg.norm(mixed - centre, axis=1).mean() / max(float(np.linalg.norm(centre)), 1e-12)
    start, _ = saved.at_start("superposition")
    first = None if start is None else cosines(start.numpy())
    return Superposition(cosines(weights), first, cosines(mixed), float(moved))


def draw_superposition(prompts: Sequence[Saved]) -> Picture:
    """A matrix of cosines between the weights of each pair of tokens, one panel a prompt."""
    superpositions = [superposition_of(saved) for saved in prompts]
    columns = min(len(prompts), 4)
    figure = empty_figure(1.0 + 2.6 * columns, 0.3 + 2.6 * -(-len(prompts) // columns))
    scale = colours_of(-1, 1, *(each.weights for each in superpositions))
    for axes, saved, each in zip(panels(figure, len(prompts), columns), prompts, superpositions, strict=True):
        image = heat_map(axes, each.weights, title=saved.name, across="token", down="token", **scale)
        axes.set_aspect("equal")
    colour_bar(figure, image, figure.axes, "cosine of weights")
    facts = []
    for saved, each in zip(prompts, superpositions, strict=True):
        pairs = between(each.weights) if len(each.weights) > 1 else np.zeros(1)
        facts.append(
            f"{saved.name}: cosines from {pairs.min():.2f} to {pairs.max():.2f}, mean size {np.abs(pairs).mean():.2f}"
            + ("" if each.start is None else f" ({np.abs(between(each.start)).mean():.2f} at the start, random)")
            + f"; each token's embeddings lie {100 * each.moved:.1f} % of their norm from the tokens' mean."
        )
    caption = "Cosine between the superposition weights of each pair of prompt tokens. " + " ".join(facts)
    table = as_csv(
        ("prompt", "token", "other", "weights", "embeddings"),
        (
            [saved.name, *line]
            for saved, each in zip(prompts, superpositions, strict=True)
            for line in cells((None, None), each.weights, each.embeddings)
        ),
    )
    name = file_name("superposition", prompts[0].name if len(prompts) == 1 else "")
    return Picture(name, caption, figure, table)
