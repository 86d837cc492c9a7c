from __future__ import annotations

import sys
from pathlib import Path

import pytest
from saved import Cli

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "tools"))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)
