"""docs/peft.md: its examples run."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from softprompts.backbones import packaged
from softprompts.errors import SoftPromptError

PAGE = Path(__file__).parents[2] / "docs" / "peft.md"


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        packaged.resolve_model(packaged.DEFAULT_MODEL)
    except SoftPromptError:
        pytest.skip("the packaged model is not installed")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own advice
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    assert (tmp_path / "for-peft" / "adapter_config.json").is_file()
