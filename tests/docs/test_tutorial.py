"""docs/tutorial.md: its blocks run in their order and print what the page shows; the notebook is the same."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import warm
from tutorial import NOTEBOOK, PAGE, ROOT, Block, notebook, outputs, parts, with_outputs

from tests.docs.test_site import needs_model

TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = [part for part in parts(TEXT) if isinstance(part, Block)]
NUMBER = re.compile(r"\d[\d.,]*")


def start(arguments: Sequence[str], folder: Path) -> warm.Warm:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "88"}
    return warm.Warm([sys.executable, "-m", "softprompts", *arguments], environment, folder)


def lines_of(output: str) -> list[str]:
    """The lines, without numbers and rulers; of mistakes, which a rounding may replace by others, the title alone."""
    lines = [" ".join(re.sub(r"[─━┏┳┓┡╇┩└┴┘│┃]+", " ", NUMBER.sub("#", line)).split()) for line in output.splitlines()]
    return [line for line in lines if line and not line.startswith(("label #", "label ")) and "." not in line[-2:]]


def shares_of(output: str) -> list[float]:
    """Accuracies and the like, all between 0 and 1, of all but mistakes."""
    return [float(number) for number in re.findall(r"(?<![\d.])[01]\.\d{3,4}\b", output)]


def test_the_page_prints_what_it_shows(tmp_path: Path) -> None:
    needs_model()
    pytest.importorskip("fastapi")
    printed = outputs(BLOCKS, tmp_path, start)
    again = [part.shown for part in parts(with_outputs(TEXT, printed)) if isinstance(part, Block)]
    for block, output in zip(BLOCKS, again, strict=True):
        assert lines_of(output) == lines_of(block.shown), block.code
        for ours, shown in zip(shares_of(output), shares_of(block.shown), strict=True):
            assert ours == pytest.approx(shown, abs=0.25), block.code
    labelled = (tmp_path / "labelled.csv").read_text().splitlines()
    assert labelled[0] == "ticket,message,label,probability" and len(labelled) == 7
    assert (tmp_path / "runs" / "tickets" / "report.html").is_file()


def test_the_notebook_is_the_page() -> None:
    assert NOTEBOOK.read_text(encoding="utf-8") == notebook(TEXT), "run python docs/tools/tutorial.py --notebook"
    cells = json.loads(notebook(TEXT))["cells"]
    assert [cell["cell_type"] == "code" for cell in cells] == [isinstance(part, Block) for part in parts(TEXT)]
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_outputs_go_under_their_blocks() -> None:
    page = "# T\n\n```python\nprint(1)\n```\n\n```text\nold\n```\n\nWords.\n\n```bash\nsoftprompts x\n```\n"
    blocks = [part for part in parts(page) if isinstance(part, Block)]
    assert blocks == [Block("python", "", "print(1)\n", "old\n"), Block("bash", "", "softprompts x\n")]
    new = with_outputs(page, ["1\n", ""])
    assert new == page.replace("old", "1")
    assert with_outputs(new, ["1\n", ""]) == new
