"""A router over masks serves two kinds of rows that need opposite answers to the same words."""

from __future__ import annotations

import made
import made_tasks
import torch


def test_routes_serve_two_kinds_of_rows() -> None:
    results = made.outcomes(made_tasks.MADE["multi-mask"])
    print({arm: str(result) for arm, result in results.items()})
    assert results["on"].mean > 85
    for arm in ("off", "disconnected", "shuffled"):
        assert results[arm].mean < 60, arm


def test_the_layers_do_not_see_the_kind() -> None:
    model = made_tasks.blind().eval()
    ids = torch.tensor([[1, 2, 10, 20, 21], [1, 3, 10, 20, 21]])
    first, second = model(ids, torch.ones_like(ids)).logits
    torch.testing.assert_close(first, second)
