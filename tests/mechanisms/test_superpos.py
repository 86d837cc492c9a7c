"""Where words lie in few directions, a superposition comes nearer to a prompt of known words than one vector does."""

from __future__ import annotations

import made
import made_tasks


def test_a_superposition_finds_a_prompt() -> None:
    results = made.outcomes(made_tasks.MADE["superpos"])
    print({arm: str(result) for arm, result in results.items()})
    assert results["off"].mean < results["on"].mean - 4
    for arm in ("disconnected", "prompt tuning"):  # which differ less
        assert results[arm].mean < results["on"].mean - 1, arm
