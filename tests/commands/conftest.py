"""The command line, and an empty working folder with labelled texts beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from saved import rows, write_csv


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder is an empty one with data.csv beside it; runs go to runs/ below it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return write_csv(tmp_path / "data.csv", rows())
