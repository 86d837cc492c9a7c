"""The low-rank change of the input does what a prompt cannot: it tells places apart."""

from __future__ import annotations

import made
import made_tasks
import pytest
import torch


@pytest.mark.parametrize("name", ["dept", "ept"])
def test_a_change_of_the_input_tells_places_apart(name: str) -> None:
    results = made.outcomes(made_tasks.MADE[name], names=["on", "off", "disconnected"])
    print({arm: str(result) for arm, result in results.items()})
    assert results["on"].mean > 95
    # That one of six words decides is worth that much to who sees only how many are good.
    assert results["off"].mean < 75
    assert results["disconnected"].mean < 75


def test_the_model_sees_no_places() -> None:
    model = made_tasks.placeless().eval()
    ids = torch.tensor([[1, 10, 14, 20, 21], [1, 14, 10, 21, 20]])
    first, second = model(ids, torch.ones_like(ids)).logits
    torch.testing.assert_close(first, second)
