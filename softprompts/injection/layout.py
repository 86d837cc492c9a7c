"""Where the columns of a batch go when prompt tokens join it, and how to get the input's columns back.

The columns of a row are permuted, so that padding on either side and prompts of different lengths leave every row just
as it would be alone. Encoders and causal models need different orders: `EncoderLayout` and `CausalLayout`. Padding in
front of a row's first token counts for nothing. Columns that are hidden behind it keep their place, and their position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softprompts.injection.rows import repeat_rows


@dataclass
class Tokens:
    """The prompt tokens of all rows."""

    embeddings: Tensor  # (R|1, l, d), each row's tokens first, zeros behind
    counts: Tensor | None  # (R,) tokens per row; None when all rows have ``length``
    length: int  # l, the longest
    # Whether they go in front of all input on encoders, where they otherwise may go behind its first token; (R,) where
    # rows differ.
    front: bool | Tensor = False

    def count(self, rows: int, device: torch.device) -> Tensor:
        """Tokens per row, ``(rows,)``."""
        if self.counts is None:
            return torch.full((rows,), self.length, device=device)
        return repeat_rows(self.counts.to(device), rows)


class Layout:
    """A permutation of ``[prompt tokens, input]``, row by row.

    Args:
        mask: ``(M, n)`` bool, the real tokens; None when all are.
        shape: ``(M, n)``.
        tokens: the prompt tokens; None when columns are only reordered.
        device: where the indices live.

    Attributes:
        rows: ``M``.
        columns: ``n``.
        length: ``l``, the longest prompt.
        simple: whether no permutation is needed: all prompts are equally long and go to one place.
        new_mask: ``(M, l + n)`` bool; None when all tokens are real.
    """

    keep_first: int | Tensor = 0  # real tokens that stay in front of the prompt; (M, 1) where rows differ

    def __init__(self, mask: Tensor | None, shape: tuple[int, int], tokens: Tokens | None, device: torch.device):
        rows, self.columns = self.rows, _ = shape
        self.length = 0 if tokens is None else tokens.length
        equally_long = tokens is None or tokens.counts is None
        self.simple = equally_long and isinstance(self.keep_first, int) and (mask is None or self._begins(mask))
        self.new_mask: Tensor | None = None
        if self.simple:
            if mask is not None:
                self.new_mask = torch.cat([mask.new_ones(rows, self.length), mask], 1)
            return
        real = torch.ones(rows, self.columns, dtype=torch.bool, device=device) if mask is None else mask
        counts = torch.zeros(rows, dtype=torch.long, device=device) if tokens is None else tokens.count(rows, device)
        token = torch.arange(self.length, device=device)[None].expand(rows, -1)
        held = self.held = token < counts[:, None]
        begun = real.long().cumsum(1) > 0
        self.place = torch.cat(self._places(begun, counts[:, None], token, held), 1)
        self.new_mask = self._merged(held, real)

    def _begins(self, mask: Tensor) -> bool:
        """Whether no row has padding in front; under compilation, where nobody can look: no."""
        return not (torch.compiler.is_compiling() or mask.is_meta) and bool(mask[:, 0].all())

    def _places(self, begun: Tensor, counts: Tensor, token: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """The new column of each prompt token ``(M, l)`` and of each input column ``(M, n)``.

        A row has ``counts`` ``(M, 1)`` of the prompt tokens, whose numbers are ``token`` ``(M, l)``: the ``held`` ones.
        Its input is ``begun`` ``(M, n)`` from its first real token on.
        """
        raise NotImplementedError

    def _merged(self, of_tokens: Tensor, of_input: Tensor) -> Tensor:
        """Prompt columns ``(M, l, ...)`` and input columns ``(M, n, ...)`` in their new order."""
        if self.simple:
            return torch.cat([of_input[:, : self.keep_first], of_tokens, of_input[:, self.keep_first :]], 1)
        both = torch.cat([of_tokens, of_input], 1)
        place = repeat_rows(self.place, len(both)).expand(len(both), -1)
        if both.ndim == 3:
            place = place[..., None].expand(-1, -1, both.shape[2])
        return torch.empty_like(both).scatter_(1, place, both)

    def ids(self, given: Tensor, fill: int = 0) -> Tensor:
        """Widens a ``(M, n, ...)`` tensor such as token types, with zeros or ``fill`` at prompt columns."""
        return self._merged(given.new_full((given.shape[0], self.length, *given.shape[2:]), fill), given)

    def mask(self, given: Tensor) -> Tensor:
        """The mask ``(R, n)`` of rows that may be repeated for beams, with the prompt tokens that each row has."""
        held = given.new_ones(len(given), self.length)
        if not self.simple:
            held = repeat_rows(self.held, len(given)).expand(len(given), -1).to(given.dtype)
        return self._merged(held, given)

    def embeddings(self, given: Tensor, tokens: Tokens | None) -> Tensor:
        """The input embeddings ``(M, n, d)`` with the prompt tokens in place, ``(M, l + n, d)``."""
        if tokens is None:
            return given if self.simple else self._merged(given[:, :0], given)
        prompt = repeat_rows(tokens.embeddings, given.shape[0]).to(device=given.device, dtype=given.dtype)
        return self._merged(prompt.expand(given.shape[0], -1, -1), given)

    def positions(self, given: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Position ids of the widened batch: the caller's, shifted by each row's prompt, or those of the mask."""
        if given is None:
            return None if self.new_mask is None else positions_from_first(self.new_mask)
        given = given.expand(max(given.shape[0], 1 if self.new_mask is None else self.new_mask.shape[0]), -1)
        token = torch.arange(self.length, device=given.device)[None].expand(len(given), -1)
        real = torch.ones_like(given, dtype=torch.bool) if mask is None else mask
        lead = real.long().argmax(1, keepdim=True)
        own = self.new_mask
        counts = self.length if own is None else own.sum(1, keepdim=True) - real.sum(1, keepdim=True)
        column = torch.arange(self.columns, device=given.device)[None]
        shifted = torch.where(column < lead + self.keep_first, given, given + counts)
        return self._merged(given.gather(1, lead) + self.keep_first + token, shifted)

    def unmerged(self, columns: Tensor) -> Tensor:
        """The reverse of `_merged`: ``(M, l + n, d)`` with the prompt's columns first, then the input's in order."""
        if not self.simple:
            place = repeat_rows(self.place, columns.shape[0])
            return columns.gather(1, place[..., None].expand(-1, -1, columns.shape[2]))
        if not self.length or not self.keep_first:
            return columns
        first, behind = self.keep_first, self.keep_first + self.length
        return torch.cat([columns[:, first:behind], columns[:, :first], columns[:, behind:]], 1)

    def restore(self, hidden: Tensor) -> Tensor:
        """Cuts the prompt columns and puts the input's back in their order: ``(M, l + n, d)`` to ``(M, n, d)``."""
        return self.unmerged(hidden)[:, self.length :]


class CausalLayout(Layout):
    """The prompt goes right before the first real token, later columns keep their order.

    So the layout of a step can be told from the attention mask of a later one.
    """

    def _places(self, begun: Tensor, counts: Tensor, token: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        lead = begun.long().argmax(1, keepdim=True)
        column = torch.arange(self.columns, device=begun.device)[None]
        # Each prompt is aligned to the right in its block, so that it touches the first real token.
        of_tokens = lead + torch.where(held, token + self.length - counts, token - counts)
        return of_tokens, torch.where(column < lead, column, column + self.length)


class EncoderLayout(Layout):
    """A row comes from its first real column on, with the prompt behind that one or before all; then what was in front.

    Besides the arguments of `Layout`:

    Args:
        keep_first: real tokens in front of the prompt, in rows whose tokens do not go to the front.
        read_first: the output at the input's first column is that of the first prompt token, in rows whose tokens go
            to the front.
    """

    def __init__(
        self,
        mask: Tensor | None,
        shape: tuple[int, int],
        tokens: Tokens | None,
        device: torch.device,
        keep_first: int = 0,
        read_first: bool = False,
    ):
        front: bool | Tensor = False if tokens is None else tokens.front
        if isinstance(front, Tensor):
            front = repeat_rows(front.to(device), shape[0])
            if keep_first:
                self.keep_first = keep_first * (~front).long()[:, None]
        elif not front:
            self.keep_first = keep_first
        self.front: bool | Tensor = front if read_first else False
        super().__init__(mask, shape, tokens, device)

    def _places(self, begun: Tensor, counts: Tensor, token: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        number = begun.long().cumsum(1) - 1
        total = begun.sum(1, keepdim=True) + counts
        first = torch.minimum(total - counts, torch.as_tensor(self.keep_first, device=begun.device))
        padding = (~begun).long().cumsum(1) - 1 + total + (self.length - counts)
        of_input = torch.where(begun, torch.where(number < first, number, number + counts), padding)
        return torch.where(held, first + token, total + token - counts), of_input

    def first(self) -> int | Tensor:
        """The column of the widened batch that stands for the input's first: one for all rows, or ``(M,)``."""
        if self.front is True:
            return 0
        column: Any = (0 if self.keep_first else self.length) if self.simple else self.place[:, self.length]
        if isinstance(self.front, Tensor):
            return torch.where(self.front, 0, torch.as_tensor(column, device=self.front.device))
        return column  # type: ignore[no-any-return]

    def restore(self, hidden: Tensor) -> Tensor:
        """See `Layout`; the first column is that of the first prompt token where that is read."""
        restored = super().restore(hidden)
        if self.front is False or not self.length:
            return restored
        lead = hidden[:, :1]
        if isinstance(self.front, Tensor):
            lead = torch.where(repeat_rows(self.front, len(hidden))[:, None, None], lead, restored[:, :1])
        return torch.cat([lead, restored[:, 1:]], 1)


def positions_from_first(mask: Tensor) -> Tensor:
    """Positions counted from each row's first real token on, whatever is hidden behind it, as without a cache."""
    return (torch.arange(mask.shape[1], device=mask.device)[None] - mask.long().argmax(1, keepdim=True)).clamp(min=0)


def positions_of(mask: Tensor) -> Tensor:
    """Positions counted over real tokens, as ``generate`` counts them; padding gets 0 at least."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
