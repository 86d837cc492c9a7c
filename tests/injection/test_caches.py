"""How many columns caches of all sorts hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from softprompts.injection.caches import columns_in, holds_columns


class StateSpaces:
    """A cache without a column for each token."""

    def __init__(self, begun: bool):
        self.begun = begun

    def get_seq_length(self) -> int:
        raise ValueError("no attention layer")

    def has_previous_state(self) -> bool:
        return self.begun


def filled(columns: int) -> DynamicCache:
    cache = DynamicCache()
    if columns:
        cache.update(torch.zeros(1, 2, columns, 4), torch.zeros(1, 2, columns, 4), 0)
    return cache


@pytest.mark.parametrize(
    ("cache", "columns", "holds"),
    [
        (filled(0), 0, False),
        (filled(3), 3, True),
        (StateSpaces(False), 0, False),
        (StateSpaces(True), 9, False),
        ([torch.zeros(1)], 9, False),
        (SimpleNamespace(seqlen_offset=4), 4, False),
        (SimpleNamespace(rnn_state_initial=True), 0, False),
        (SimpleNamespace(rnn_state_initial=False), 9, False),
    ],
)
def test_columns(cache: Any, columns: int, holds: bool) -> None:
    assert columns_in(cache, 9) == columns
    assert holds_columns(cache) == holds


def test_a_list_of_states_holds_something_even_uncounted() -> None:
    assert columns_in([torch.zeros(1)], 0) == 1
