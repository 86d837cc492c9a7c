"""How alike the prompts of several tasks are, as SPoT compares them to find sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from softprompts.analysis.drawing import SIGNED, Picture, as_csv, colour_bar, heat_map, new_figure
from softprompts.analysis.saved import Saved
from softprompts.analysis.superposition import between, cosines
from softprompts.errors import SoftPromptError

TOKENS, PREFIX = "tokens", "prefix"


@dataclass(frozen=True)
class Similarity:
    """Cosines between prompts.

    Attributes:
        part: "tokens" or "prefix" (keys and values of all sites, gates multiplied in).
        names: of the ``n`` prompts.
        pooled: ``(n, n)``, of the means over a prompt's tokens, as SPoT does it: indifferent to their order.
        flat: ``(n, n)``, of all numbers in their order; None where lengths differ.
    """

    part: str
    names: tuple[str, ...]
    pooled: np.ndarray
    flat: np.ndarray | None


def similarities(prompts: Sequence[Saved]) -> tuple[list[Similarity], list[str]]:
    """The similarities of some prompts, by what they have in common; and why some are left out.

    Raises:
        SoftPromptError: no two of them can be compared.
    """
    parts: dict[tuple[object, ...], list[tuple[Saved, np.ndarray]]] = {}
    reasons = []
    for saved in prompts:
        try:
            plain = saved.plain()
        except SoftPromptError as error:
            reasons.append(str(error))
            continue
        backbone = saved.config["backbone"]
        where = tuple(backbone.get(key) for key in ("name", "model_type", "hidden_size", "vocabulary"))
        if plain.tokens is not None and len(plain.tokens):
            parts.setdefault((TOKENS, *where), []).append((saved, plain.tokens.numpy()))
        if plain.keys is not None and plain.values is not None:
            parts.setdefault((PREFIX, *where, saved.sites), []).append((saved, _by_token(plain.keys, plain.values)))
    found = []
    for (part, *_), members in parts.items():
        names = tuple(saved.name for saved, _ in members)
        if len(members) < 2:
            reasons.append(f"{names[0]}: no other {part} for its backbone to compare with")
            continue
        pooled = cosines(np.stack([rows.mean(0) for _, rows in members]))
        alike = len({rows.shape for _, rows in members}) == 1
        flat = cosines(np.stack([rows.reshape(-1) for _, rows in members])) if alike else None
        found.append(Similarity(str(part), names, pooled, flat))
    if not found:
        raise SoftPromptError("; ".join(reasons) or "similarity needs two prompts or more")
    return found, reasons


def _by_token(keys: Tensor, values: Tensor) -> np.ndarray:
    """``(l, 2*S*w)`` of keys and values ``(S, l, w)``."""
    both = np.stack([keys.numpy(), values.numpy()])
    return both.transpose(2, 0, 1, 3).reshape(both.shape[2], -1)


def draw_similarity(prompts: Sequence[Saved]) -> list[Picture]:
    """A picture for tokens and one for prefixes, each with a matrix of pooled and one of flattened prompts."""
    found, reasons = similarities(prompts)
    return [_drawn(each, reasons) for each in found]


def _drawn(found: Similarity, reasons: Sequence[str]) -> Picture:
    matrices = [("mean over tokens", found.pooled)]
    if found.flat is not None:
        matrices.append(("all numbers in order", found.flat))
    count = len(found.names)
    side = 1.6 + 0.45 * min(count, 20)
    figure = new_figure(1.8 + side * len(matrices), side + 0.6)
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for place, (axes, (title, matrix)) in enumerate(zip(panels, matrices, strict=True)):
        numbers = ".2f" if count <= 12 else None
        image = heat_map(
            axes, matrix, title=title, columns=found.names, rows=found.names if place == 0 else [""] * count, low=-1,
            high=1, colours=SIGNED, numbers=numbers,
        )  # fmt: skip
        axes.tick_params(axis="x", labelrotation=90)
    colour_bar(figure, image, list(panels), "cosine")
    figure.suptitle(f"similarity of prompts ({found.part})", fontsize=10)
    pairs = between(found.pooled)
    first, second = (int(i) for i in np.argwhere(np.triu(found.pooled, 1) == pairs.max())[0])
    caption = (
        f"Cosine between the {found.part} of {count} prompts. Pooled over tokens from {pairs.min():.2f} to "
        f"{pairs.max():.2f} (most alike: {found.names[first]} and {found.names[second]})"
    )
    if found.flat is None:
        caption += "; their lengths differ, so that they are not compared token by token."
    else:
        caption += f", token by token from {between(found.flat).min():.2f} to {between(found.flat).max():.2f}."
    if reasons:
        caption += f" Left out: {'; '.join(reasons)}."
    lines = (
        [found.names[i], found.names[j], found.pooled[i, j], "" if found.flat is None else found.flat[i, j]]
        for i in range(count)
        for j in range(count)
    )
    return Picture(f"similarity-{found.part}", caption, figure, as_csv(("prompt", "other", "pooled", "flat"), lines))
