"""Where words lie in few directions, a superposition of several finds a prompt that a single vector does not."""

from __future__ import annotations

import made
import made_tasks


def test_a_superposition_finds_a_prompt() -> None:
    results = made.outcomes(made_tasks.MADE["superpos"])
    print({arm: str(result) for arm, result in results.items()})
    assert results["off"].mean < results["on"].mean - 4
    for arm in ("disconnected", "prompt tuning"):  # which differ less: they too start among the words
        assert results[arm].mean < results["on"].mean - 1, arm
