"""Cosine similarity of the prompts of several tasks, by which SPoT finds sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softprompts.analysis.drawing import Picture, as_csv, cells, colour_bar, colours_of, heat_map, panels
from softprompts.analysis.saved import PromptTensors, Saved
from softprompts.analysis.superposition import between, cosines
from softprompts.errors import SoftPromptError
from softprompts.plotting import empty_figure

TOKENS, PREFIX = "tokens", "prefix"
_NOTHING = PromptTensors(None, None, None)


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
    """Compares prompts that share a backbone and a part (tokens or prefix); also returns why some are left out.

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
            trained = saved.tensors()
        except SoftPromptError as error:
            reasons.append(str(error))
            continue
        backbone = saved.config["backbone"]
        where = tuple(backbone.get(key) for key in ("name", "model_type", "hidden_size", "vocabulary"))
        start = _start(saved) if with_start else _NOTHING
        for part, rows, first in (
            (TOKENS, trained.tokens, start.tokens),
            (PREFIX, _by_token(trained.keys, trained.values), _by_token(start.keys, start.values)),
        ):
            if rows is not None and len(rows):
                member = _Member(saved.name, rows.numpy(), None if first is None else first.numpy())
                parts.setdefault((part, *where, saved.sites if part == PREFIX else ()), []).append(member)
    similar = []
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
        similar.append(Similarity(str(kind), names, cosines(np.stack(means)), flat, added))
    if not similar:
        raise SoftPromptError("; ".join(reasons) or "similarity needs two prompts or more")
    return similar, reasons


def _start(saved: Saved) -> PromptTensors:
    try:
        return saved.tensors(of=saved.untrained)
    except SoftPromptError:
        return _NOTHING


def _by_token(keys: Tensor | None, values: Tensor | None) -> Tensor | None:
    """Flattens keys and values ``(S, l, w)`` to ``(l, 2*S*w)``."""
    if keys is None or values is None:
        return None
    return torch.stack([keys, values]).permute(2, 0, 1, 3).flatten(1)


def draw_similarity(prompts: Sequence[Saved]) -> list[Picture]:
    """A picture for tokens and one for prefixes, each with a matrix of pooled and one of flattened prompts."""
    similar, reasons = similarities(prompts)
    return [_drawn(each, reasons) for each in similar]


def _drawn(similar: Similarity, reasons: Sequence[str]) -> Picture:
    matrices = [("mean over tokens", similar.pooled)]
    if similar.flat is not None:
        matrices.append(("all numbers in order", similar.flat))
    if similar.learned is not None:
        matrices.append(("what training added, mean", similar.learned))
    count = len(similar.names)
    side = 1.6 + 0.45 * min(count, 20)
    figure = empty_figure(1.8 + side * len(matrices), side + 0.6)
    row = panels(figure, len(matrices), len(matrices))
    scale = colours_of(-1, 1, *(matrix for _, matrix in matrices))
    for place, (axes, (title, matrix)) in enumerate(zip(row, matrices, strict=True)):
        names = similar.names if place == 0 else [""] * count
        image = heat_map(
            axes, matrix, title=title, columns=similar.names, rows=names,
            numbers=".2f" if count <= 12 else None, **scale,
        )  # fmt: skip
        axes.tick_params(axis="x", labelrotation=90)
    colour_bar(figure, image, row, "cosine")
    figure.suptitle(f"similarity of prompts ({similar.part})", fontsize=10)
    pairs = between(similar.pooled)
    first, second = (int(i) for i in np.argwhere(np.triu(similar.pooled, 1) == pairs.max())[0])
    caption = (
        f"Cosine between the {similar.part} of {count} prompts. Pooled over tokens from {pairs.min():.2f} to "
        f"{pairs.max():.2f} (most alike: {similar.names[first]} and {similar.names[second]})"
    )
    if similar.flat is None:
        caption += "; their lengths differ, so that they are not compared token by token."
    else:
        caption += f", token by token from {between(similar.flat).min():.2f} to {between(similar.flat).max():.2f}."
    if similar.learned is not None:
        learned = between(similar.learned)
        caption += (
            f" Of what training added to the means, from {learned.min():.2f} to {learned.max():.2f}: prompts that "
            "started from the same seed are alike in part for that alone."
        )
    if reasons:
        caption += f" Left out: {'; '.join(reasons)}."
    lines = cells((similar.names, similar.names), similar.pooled, similar.flat, similar.learned)
    table = as_csv(("prompt", "other", "pooled", "flat", "learned"), lines)
    return Picture(f"similarity-{similar.part}", caption, figure, table)
