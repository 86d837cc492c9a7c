"""Other methods whose prompt depends on the input serve two kinds of rows that need opposite answers too."""

from __future__ import annotations

import made
import made_tasks
import pytest


@pytest.mark.parametrize("name", ["smop", "adaptive-prefix"])
def test_two_kinds_of_rows(name: str) -> None:
    results = made.outcomes(made_tasks.MADE[name])
    print({arm: str(result) for arm, result in results.items()})
    assert results["on"].mean > 80
    for arm in ("off", "disconnected"):
        assert results[arm].mean < 60, arm
