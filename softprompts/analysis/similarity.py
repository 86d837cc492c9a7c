"""How alike the prompts of several tasks are, as SPoT compares them to find sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softprompts.analysis.drawing import (
    SIGNED,
    Picture,
    as_csv,
    colour_bar,
    heat_map,
    new_figure,
)
from softprompts.analysis.saved import Plain, Saved
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
        learned: ``(n, n)``, of what training added to the mean over tokens: prompts that start alike, by their seed,
            stay alike whatever they learn. None where a start cannot be made again, or was not asked for.
    """

    part: str
    names: tuple[str, ...]
    pooled: np.ndarray
    flat: np.ndarray | None
    learned: np.ndarray | None = None


@dataclass(frozen=True)
class _Member:
    """A prompt's part ``(l, n)``, and as it was before training; None where that is not known."""

    name: str
    rows: np.ndarray
    start: np.ndarray | None


def similarities(prompts: Sequence[Saved], with_start: bool = True) -> tuple[list[Similarity], list[str]]:
    """The similarities of some prompts, by what they have in common; and why some are left out.

    Args:
        prompts: the prompts.
        with_start: compare what they learned too, for which their backbone is loaded.

    Raises:
        SoftPromptError: no two of them can be compared.
    """
    parts: dict[tuple[object, ...], list[_Member]] = {}
    reasons = []
    for saved in prompts:
        try:
            plain = saved.plain()
        except SoftPromptError as error:
            reasons.append(str(error))
            continue
        backbone = saved.config["backbone"]
        where = tuple(backbone.get(key) for key in ("name", "model_type", "hidden_size", "vocabulary"))
        start = _start(saved) if with_start else Plain(None, None, None)
        for part, rows, first in (
            (TOKENS, plain.tokens, start.tokens),
            (PREFIX, _by_token(plain.keys, plain.values), _by_token(start.keys, start.values)),
        ):
            if rows is not None and len(rows):
                member = _Member(saved.name, rows.numpy(), None if first is None else first.numpy())
                parts.setdefault((part, *where, saved.sites if part == PREFIX else ()), []).append(member)
    found = []
    for (kind, *_), members in parts.items():
        names = tuple(member.name for member in members)
        if len(members) < 2:
            reasons.append(f"{names[0]}: no other {kind} for its backbone to compare with")
            continue
        means = [member.rows.mean(0) for member in members]
        alike = len({member.rows.shape for member in members}) == 1
        flat = cosines(np.stack([member.rows.reshape(-1) for member in members])) if alike else None
        starts = [member.start.mean(0) for member in members if member.start is not None]
        added = None
        if len(starts) == len(members):
            added = cosines(np.stack([mean - first for mean, first in zip(means, starts, strict=True)]))
        found.append(Similarity(str(kind), names, cosines(np.stack(means)), flat, added))
    if not found:
        raise SoftPromptError("; ".join(reasons) or "similarity needs two prompts or more")
    return found, reasons


def _start(saved: Saved) -> Plain:
    try:
        return saved.plain(of=saved.untrained)
    except SoftPromptError:
        return Plain(None, None, None)


def _by_token(keys: Tensor | None, values: Tensor | None) -> Tensor | None:
    """``(l, 2*S*w)`` of keys and values ``(S, l, w)``."""
    if keys is None or values is None:
        return None
    return torch.stack([keys, values]).permute(2, 0, 1, 3).flatten(1)


def draw_similarity(prompts: Sequence[Saved]) -> list[Picture]:
    """A picture for tokens and one for prefixes, each with a matrix of pooled and one of flattened prompts."""
    found, reasons = similarities(prompts)
    return [_drawn(each, reasons) for each in found]


def _drawn(found: Similarity, reasons: Sequence[str]) -> Picture:
    matrices = [("mean over tokens", found.pooled)]
    if found.flat is not None:
        matrices.append(("all numbers in order", found.flat))
    if found.learned is not None:
        matrices.append(("what training added, mean", found.learned))
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
    if found.learned is not None:
        learned = between(found.learned)
        caption += (
            f" Of what training added to the means, from {learned.min():.2f} to {learned.max():.2f}: prompts that "
            "started from the same seed are alike in part for that alone."
        )
    if reasons:
        caption += f" Left out: {'; '.join(reasons)}."
    lines = (
        [
            found.names[i],
            found.names[j],
            *("" if matrix is None else matrix[i, j] for matrix in (found.pooled, found.flat, found.learned)),
        ]
        for i in range(count)
        for j in range(count)
    )
    return Picture(
        f"similarity-{found.part}", caption, figure, as_csv(("prompt", "other", "pooled", "flat", "learned"), lines)
    )
