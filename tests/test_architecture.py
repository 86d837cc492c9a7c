"""docs/architecture.md and its picture say how the package is built now."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "softprompts"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawing() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "tools" / "architecture.py"))


def test_the_picture_is_that_of_the_imports(drawing: dict[str, Any]) -> None:
    committed = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert drawing["draw"]() == committed, "run python docs/tools/architecture.py"


def test_every_room_stands_on_the_floor_that_the_page_says(drawing: dict[str, Any]) -> None:
    on_page = {}
    for floor, rooms in re.findall(r"^\| (\d) \| ([^|]+) \|", PAGE, re.MULTILINE):
        for name in re.findall(r"`(\w+)(?:\.py|/)`", rooms):
            on_page[name] = int(floor)
    floors = {room: number for number, rooms in enumerate(drawing["floors"](), start=1) for room in rooms}
    assert on_page == floors
    there = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert there - {"__init__", "__pycache__"} == set(floors)


def test_the_root_stays_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 10


def test_files_and_names_on_the_page_are_there() -> None:
    for path in re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE):
        assert (PACKAGE / path).is_file(), path
    for folder in re.findall(r"`((?:\w+/)+)`", PAGE):
        assert (PACKAGE / folder).is_dir() or (ROOT / folder).is_dir(), folder
    code = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    for name in re.findall(r"`(?:\w+\.)?(\w+)`", PAGE):
        assert re.search(rf"\b{name}\b", code), name
