"""What the cache of a causal model holds, whatever kind of cache it is."""

from __future__ import annotations

from typing import Any


def columns_in(cache: Any, counted: int) -> int:
    """How many columns a cache holds; ``counted`` where it only says that it holds some, as state spaces do."""
    if isinstance(cache, list | tuple):  # RWKV's
        return counted or 1
    try:
        return int(cache.get_seq_length())
    except ValueError:
        return counted if cache.has_previous_state() else 0
    except AttributeError:  # of models with a cache of their own
        return int(getattr(cache, "seqlen_offset", 0)) or (0 if getattr(cache, "rnn_state_initial", True) else counted)


def holds_columns(cache: Any) -> bool:
    """Whether a cache has a column for each token, which a mask can hide; state spaces have none."""
    try:
        return int(cache.get_seq_length()) > 0
    except (AttributeError, ValueError):
        return False
