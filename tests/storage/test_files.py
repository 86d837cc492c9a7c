"""Where files are kept by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompts.storage import files


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOFTPROMPTS_CACHE", str(tmp_path))
    assert files.default_cache_dir() == tmp_path
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for value in ("", "off", "Off"):
        monkeypatch.setenv("SOFTPROMPTS_CACHE", value)
        assert files.default_cache_dir() == Path.home() / ".cache" / "softprompts"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.default_cache_dir() == tmp_path / "softprompts"
