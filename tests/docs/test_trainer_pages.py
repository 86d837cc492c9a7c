"""The Python in the pages about trainers and quantised backbones runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["trainers", "quantized"])
def test_blocks_run_one_after_the_other(page: str) -> None:
    if page == "quantized":
        pytest.importorskip("bitsandbytes")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), names)
    if page == "quantized":
        from softprompts.backbones import quantized

        assert [quantized.name_of(names[name]) for name in ("model", "again", "plain")] == ["nf4", "nf4", None]
