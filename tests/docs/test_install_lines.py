"""Install lines of the docs and of errors name extras and packages that there are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINE = re.compile(r"pip install ([^`\n\"#]*)")


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_a_page_installs_extras_of_the_checkout_that_exist(page: Path) -> None:
    for line in LINE.findall(page.read_text()):
        assert "softprompts[" not in line, "there is a checkout to install from, not an index"
        for extras in re.findall(r"\.\[([a-z,]+)\]", line):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), line


def test_errors_install_packages_that_the_extras_list() -> None:
    listed = {
        re.split(r"[<>=\[]", package)[0]
        for packages in PROJECT["optional-dependencies"].values()
        for package in packages
    }
    found = set()
    for file in (ROOT / "softprompts").rglob("*.py"):
        for line in LINE.findall(file.read_text()):
            words = [word.rstrip(".)").strip("'") for word in line.split() if not word.startswith(("-", "{"))]
            found |= {word.partition("[")[0] for word in words}
    assert {"matplotlib", "optuna", "ray", "fastapi"} <= found <= listed
