"""The selective loss keeps prefix tokens apart, and the mask lets queries leave tokens out that a softmax would not."""

from __future__ import annotations

import made
import made_tasks
from made_tasks import alike


def test_the_loss_keeps_tokens_apart() -> None:
    results = made.outcomes(made_tasks.MADE["selective-prefix (loss)"], names=["on", "off", "disconnected"])
    print({arm: (str(result), round(alike(result), 3)) for arm, result in results.items()})
    assert alike(results["on"]) < 0.2
    for arm in ("off", "disconnected"):
        assert alike(results[arm]) > 0.8, arm
        assert results[arm].mean < results["on"].mean - 10, arm


def test_the_mask_leaves_tokens_out() -> None:
    results = made.outcomes(made_tasks.MADE["selective-prefix (mask)"])
    print({arm: str(result) for arm, result in results.items()})
    assert results["on"].mean > 85
    for arm in ("off", "disconnected"):
        assert results[arm].mean < results["on"].mean - 10, arm
