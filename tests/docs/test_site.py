"""The documentation: its programs run, its numbers are those that were measured, and the site can be built."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import home_picture
import pytest
import warm
import yaml
from methods_page import known

import softprompts
from softprompts.backbones import packaged
from softprompts.plotting import css

site_hooks = pytest.importorskip("site_hooks", reason="mkdocs builds the site")
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
    assert (tmp_path / "site" / "palette.css").read_text(encoding="utf-8") == css()
    assert '<link rel="stylesheet" href="palette.css">' in home and 'src="accuracy.svg"' in home
    named = tomllib.loads(site_hooks.PROJECT.read_text(encoding="utf-8"))["project"].get("urls", {})
    assert ("md-source" in home) == (site_hooks.repository(named) is not None)
    assert "SoftPrompt" in (tmp_path / "site" / "api" / "methods" / "index.html").read_text(encoding="utf-8")


def test_a_repository_is_linked_only_where_the_metadata_name_one() -> None:
    assert site_hooks.repository({}) is None
    assert site_hooks.repository({"Homepage": "https://a.test"}) is None
    assert site_hooks.repository({"Homepage": "https://a.test", "Repository": "https://b.test"}) == "https://b.test"


def test_the_home_page_shows_what_was_measured() -> None:
    pytest.importorskip("matplotlib")
    measured = home_picture.measured()
    assert len(measured) > 20
    picture = home_picture.PICTURE.read_text(encoding="utf-8")
    assert all(f">{name}</text>" in picture for name in measured)
    assert all(f">{name}</text>" in home_picture.draw() for name in measured)
    home = (DOCS / "index.md").read_text(encoding="utf-8")
    for name in ("prefix-tuning", "selective-prefix", "head-only", "full"):
        assert str(measured[name][0]) in home
    assert f"{len(measured)} methods]" in home and f"{measured['prefix-tuning'][2]:,} numbers" in home
    assert f"**{len(known())} methods under one roof.**" in home
    speed = rows_of("performance.md", "seconds until 57.8 %")
    for name in ("one run", "5 seeds, their mean"):
        assert all(cell.removesuffix(".0").split(".")[0] in home for cell in speed[name][1:3])


def flags_in(text: str) -> list[str]:
    """Options of the command line in the prose of a page; commands in full, code blocks and tables may have them."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = "\n".join(line for line in prose.splitlines() if not line.startswith("|"))
    return re.findall(r"`(-{1,2}[a-z][^`]*)`", prose)


@pytest.mark.parametrize("page", ["index.md", "methods.md", "choose.md", "comparison.md"])
def test_pages_to_choose_by_have_no_flags_in_their_prose(page: str) -> None:
    assert flags_in("`--a` and `x --b` in prose, `-c 1`\n| `--d` |\n```\n--e\n```\n") == ["--a", "-c 1"]
    assert flags_in((DOCS / page).read_text(encoding="utf-8")) == []


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == softprompts.__version__
    assert cited["cff-version"] == "1.2.0"
    assert cited["title"]
    assert all(reference["title"] for reference in cited["references"])
