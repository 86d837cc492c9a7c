"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softprompts.injection.rows import repeat_rows


@dataclass
class Tokens:
    """The prompt tokens of all rows.

    Attributes:
        embeddings: ``(R|1, l, d)``, each row's tokens first, zeros behind.
        counts: ``(R,)`` tokens per row; None when all rows have ``length``.
        length: ``l``, the longest.
        front: whether they go in front of all input on encoders, where they otherwise may go behind its first token;
            ``(R,)`` where rows differ.
    """

    embeddings: Tensor
    counts: Tensor | None
    length: int
    front: bool | Tensor = False

    def count(self, rows: int, device: torch.device) -> Tensor:
        """Tokens per row, ``(rows,)``."""
        if self.counts is None:
            return torch.full((rows,), self.length, device=device)
        return repeat_rows(self.counts.to(device), rows)


class Layout:
    """Where the columns of a batch go when prompt tokens join it, and how to get them back.

    Column order is a permutation of ``[prompt tokens, input]``, row by row, so that padding on either side and prompts
    of different lengths leave every row just as it would be alone:

    - encoders: a row's real columns come first, in order, with the prompt after the first ``keep_first`` of them (of
      rows whose tokens go to the front: before all); padding goes to the end;
    - causal models: the prompt goes right before the first real token, later columns stay where they are, so that the
      layout of a step can be told from the attention mask of a later one.

    Args:
        mask: ``(M, n)`` bool, the real tokens; None when all are.
        shape: ``(M, n)``.
        tokens: the prompt tokens; None when columns are only reordered.
        causal: which of the two orders.
        keep_first: real tokens in front of the prompt (encoders).
        read_first: what is read of the first column is that of the first prompt token in rows with these in front.
    """

    def __init__(
        self,
        mask: Tensor | None,
        shape: tuple[int, int],
        tokens: Tokens | None,
        causal: bool,
        keep_first: int,
        device: torch.device,
        read_first: bool = False,
    ):
        rows, columns = shape
        self.length = 0 if tokens is None else tokens.length
        self.columns, self.causal = columns, causal
        front: bool | Tensor = False if tokens is None or causal else tokens.front
        if isinstance(front, Tensor):
            front = repeat_rows(front.to(device), rows)
        self.keep_first: Any = keep_first  # (M, 1) where rows differ
        if keep_first:
            self.keep_first = (
                keep_first * (~front).long()[:, None] if isinstance(front, Tensor) else (1 - front) * keep_first
            )
        self.front = front if read_first else False
        self.new_mask: Tensor | None
        # The usual case needs no permutation: no padding on the left, all prompts equally long and in one place.
        alike = tokens is None or (tokens.counts is None and not isinstance(self.keep_first, Tensor))
        self.simple = alike and _starts_real(mask, causal)
        if self.simple:
            self.new_mask = None
            if mask is not None:
                self.new_mask = torch.cat([mask.new_ones(rows, self.length), mask], 1)
            return
        real = torch.ones(rows, columns, dtype=torch.bool, device=device) if mask is None else mask
        counts = torch.zeros(rows, dtype=torch.long, device=device)
        if tokens is not None:
            counts = tokens.count(rows, device)
        counts = counts[:, None]
        own = torch.arange(self.length, device=device)[None].expand(rows, -1)
        held = own < counts
        column = torch.arange(columns, device=device)[None].expand(rows, -1)
        if causal:
            lead = real.long().argmax(1, keepdim=True)
            # Right-align each prompt in its block, so that it touches the first real token.
            place_own = lead + torch.where(held, own + self.length - counts, own - counts)
            place_input = torch.where(column < lead, column, column + self.length)
        else:
            rank = real.long().cumsum(1) - 1
            total = real.sum(1, keepdim=True) + counts
            first = torch.minimum(total - counts, torch.as_tensor(self.keep_first, device=device))
            place_own = torch.where(held, first + own, total + own - counts)
            spare = (~real).long().cumsum(1) - 1 + total + (self.length - counts)
            place_input = torch.where(real, torch.where(rank < first, rank, rank + counts), spare)
        self.place = torch.cat([place_own, place_input], 1)
        self.new_mask = self._move(held, real)

    def _move(self, own: Tensor, given: Tensor) -> Tensor:
        both = torch.cat([own, given], 1)
        return torch.empty_like(both).scatter_(1, self.place, both)

    def ids(self, given: Tensor, fill: int = 0) -> Tensor:
        """Widens a ``(M, n)`` tensor such as token types, with ``fill`` at prompt columns."""
        own = given.new_full((given.shape[0], self.length), fill)
        if self.simple:
            k = self.keep_first
            return torch.cat([given[:, :k], own, given[:, k:]], 1)
        return self._move(own, given)

    def embeddings(self, given: Tensor, tokens: Tokens | None) -> Tensor:
        """The input embeddings ``(M, n, d)`` with the prompt tokens in place, ``(M, l + n, d)``."""
        if tokens is not None:
            own = repeat_rows(tokens.embeddings, given.shape[0]).to(device=given.device, dtype=given.dtype)
            own = own.expand(given.shape[0], -1, -1)
            if self.simple:
                k = self.keep_first
                return torch.cat([given[:, :k], own, given[:, k:]], 1) if k else torch.cat([own, given], 1)
            given = torch.cat([own, given], 1)
        elif self.simple:
            return given
        index = self.place[..., None].expand(-1, -1, given.shape[2])
        return torch.empty_like(given).scatter(1, index, given)

    def positions(self, given: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Position ids of the widened batch: the caller's, shifted by each row's prompt, or those of the mask."""
        if given is None:
            return None if self.new_mask is None else positions_of(self.new_mask)
        rows = max(given.shape[0], 1 if self.new_mask is None else self.new_mask.shape[0])
        given = given.expand(rows, -1)
        own = torch.arange(self.length, device=given.device)[None].expand(rows, -1)
        if self.simple:
            k = self.keep_first
            start = given[:, :1]
            return torch.cat([given[:, :k], start + k + own, given[:, k:] + self.length], 1)
        column = torch.arange(self.columns, device=given.device)[None]
        real = torch.ones_like(given, dtype=torch.bool) if mask is None else mask
        lead = real.long().argmax(1, keepdim=True)
        start = given.gather(1, lead)
        counts = self.new_mask.sum(1, keepdim=True) - real.sum(1, keepdim=True)  # type: ignore[union-attr]
        shifted = torch.where(column < lead + self.keep_first, given, given + counts)
        return self._move(start + self.keep_first + own, shifted)

    def first(self) -> int | Tensor:
        """The column of the widened batch that stands for the input's first: one for all rows, or ``(M,)``."""
        if self.front is True:
            return 0
        column = (0 if self.keep_first else self.length) if self.simple else self.place[:, self.length]
        if isinstance(self.front, Tensor):
            return torch.where(self.front, 0, torch.as_tensor(column, device=self.front.device))
        return column

    def restore(self, hidden: Tensor) -> Tensor:
        """Cuts the prompt columns and puts the input's back in their order: ``(M, l + n, d)`` to ``(M, n, d)``."""
        cut = self._cut(hidden)
        if self.front is False or not self.length:
            return cut
        lead = hidden[:, :1]
        if isinstance(self.front, Tensor):
            lead = torch.where(repeat_rows(self.front, len(hidden))[:, None, None], lead, cut[:, :1])
        return torch.cat([lead, cut[:, 1:]], 1)

    def _cut(self, hidden: Tensor) -> Tensor:
        if self.simple:
            if not self.length:
                return hidden
            if not self.keep_first:
                return hidden[:, self.length :]
            return torch.cat([hidden[:, : self.keep_first], hidden[:, self.keep_first + self.length :]], 1)
        place = repeat_rows(self.place[:, self.length :], hidden.shape[0])
        return hidden.gather(1, place[..., None].expand(-1, -1, hidden.shape[2]))


def _starts_real(mask: Tensor | None, causal: bool) -> bool:
    """Whether all padding is on the right. Causal models only need the first column to be real."""
    if mask is None:
        return True
    if torch.compiler.is_compiling() or mask.is_meta:
        return False
    return bool(mask[:, 0].all() if causal else (mask[:, 1:] <= mask[:, :-1]).all())


def positions_of(mask: Tensor) -> Tensor:
    """Positions counted over real tokens, as ``generate`` counts them; padding gets 0 at least."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
