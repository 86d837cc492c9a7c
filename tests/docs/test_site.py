"""The documentation: its programs run, its numbers are those that were measured, and the site can be built."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import warm
import yaml

import softprompts
from softprompts.backbones import packaged

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r'^```python(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """The Python blocks of a page, each with the file name it is to have ("" for none)."""
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


def run(program: str, folder: Path) -> str:
    (folder / "page.py").write_text(program, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "HF_HUB_OFFLINE": "1"}
    done = warm.run([sys.executable, "page.py"], environment, folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def needs_model() -> None:
    try:
        packaged.resolve_model(packaged.DEFAULT_MODEL)
    except Exception as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("page", ["start.md", "extend.md"])
def test_the_programs_of_a_page_run_in_their_order(page: str, tmp_path: Path) -> None:
    needs_model()
    found = blocks(page)
    assert found
    for name, code in found:
        if name:
            (tmp_path / name).write_text(code, encoding="utf-8")
    run("\n".join(code for _, code in found), tmp_path)


def rows_of(page: str, after: str) -> dict[str, list[str]]:
    """The first table behind a line of a page: the cells of each row, by the first one."""
    text = (DOCS / page).read_text(encoding="utf-8").split(after, 1)[1]
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table is not None
    lines = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in table[0].splitlines()]
    return {line[0]: line for line in [lines[0], *lines[2:]]}


def test_the_decision_table_shows_what_was_measured() -> None:
    measured = rows_of("comparison.md", "where it was interrupted.")
    shown = rows_of("choose.md", "<!-- from comparison.md -->")
    columns = [measured["method"].index(name) for name in shown["method"]]
    assert len(shown) > 10
    for method, cells in shown.items():
        assert cells == [measured[method][column] for column in columns]


def test_the_site_can_be_built(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    fetched = re.findall(r'(?:src|href)="(https?://[^"]+)"', home)
    assert not [url for url in fetched if not url.startswith("https://squidfunk.github.io")], "nothing from elsewhere"
    assert "SoftPrompt" in (tmp_path / "site" / "api" / "methods" / "index.html").read_text(encoding="utf-8")


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == softprompts.__version__
    assert cited["cff-version"] == "1.2.0"
    assert cited["title"]
    assert all(reference["title"] for reference in cited["references"])
