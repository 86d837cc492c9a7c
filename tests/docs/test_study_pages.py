"""docs/study: made from the committed results, and true to the recipes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench.kept_results import keep, scores, study
from study_pages import FOLDER, SURPRISES, write_pages

from softprompts.bench.recipe import Cell
from softprompts.bench.recipe_file import load_recipe, recipe_names
from softprompts.bench.results import kept_findings
from softprompts.errors import SoftPromptError
from softprompts.methods import make_config
from softprompts.plotting import have_matplotlib

STUDIES = [name for name in recipe_names() if name.startswith("study/")]


def written(path: Path) -> list[str]:
    """What a figure says; its lines depend on the version of matplotlib."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))


def test_the_pages_are_what_the_results_give(tmp_path: Path) -> None:
    surprises = yaml.safe_load((FOLDER / SURPRISES).read_text(encoding="utf-8"))
    made = write_pages(STUDIES, tmp_path, surprises)
    for path in made:
        kept = FOLDER / path.name
        same = kept.is_file() and (
            written(path) == written(kept) if path.suffix == ".svg" else path.read_text() == kept.read_text()
        )
        assert same, f"{path.name}: python docs/tools/study_pages.py"
    if have_matplotlib():
        assert {path.name for path in FOLDER.glob("*.svg")} == {path.name for path in made if path.suffix == ".svg"}


@pytest.mark.parametrize("name", STUDIES)
def test_committed_results_have_the_settings_of_the_recipe(name: str) -> None:
    recipe = load_recipe(name)
    found = kept_findings(recipe)
    for one in (*found.outcomes, *found.searched):
        config = make_config(one.row.method, **recipe.settings_of(one, {}))
        assert one.result["method"] == one.row.method and one.result["seed"] == one.seed
        before = {**type(config).before(), **one.result["settings"]}
        assert before == {**type(config).before(), **config.identity()}, f"{one}: {one.folder}"


def made_page(folder: Path, gains: Mapping[str, float], **how: Any) -> str:
    recipe = study(folder)
    keep(recipe, scores(dict(gains)), **how)
    write_pages([folder / "c9.yaml"], folder / "pages", {"c9": ["Good came out good."]})
    return (folder / "pages" / "c9.md").read_text()


def test_a_page_says_what_came_out(tmp_path: Path) -> None:
    def more(cell: Cell) -> dict[str, Any]:
        idle = ["mask: is flat"] if cell.row.name == "Same" and cell.seed < 3 else []
        return {"vitals": {"moved.prefix": 0.25 if cell.seed % 2 else 0.75}, "idle": idle}

    page = made_page(tmp_path, {"Base": 0, "Good": 3, "Same": 0}, more=more)
    assert "# Claim 9: made up" in page and "**Verdict: does not hold.** All 66 planned runs are done." in page
    assert re.search(
        r"\| Good helps \| \*\*holds\*\* \| \+3\.\d\d \| \+2\.\d\d to \+3\.\d\d \| 8 \| all tasks \| - ", page
    )
    assert "| Same helps | **does not hold** |" in page and "all tasks (less than 0.5 points)" in page
    assert "Better: Good than Base (+3." in page and "Not better: Same than Base (" in page
    assert "| Good | 1 | 1 |" in page and "| Good | `moved.prefix` | 0.5 | 0.5 |" in page
    assert "- Same: mask: is flat (6 of 16 runs)" in page and page.rstrip().endswith("- Good came out good.")
    assert page.count("Learning rates of") == 0 and "| Base | 4,610 |" in page
    index = (tmp_path / "pages" / "index.md").read_text()
    assert "| Good helps | holds | +3." in index and "2/0/0/0 |" in index and "66 runs" in index
    if have_matplotlib():
        assert {"Good helps", "mean over tasks", "Films"} <= set(written(tmp_path / "pages" / "c9.svg"))


def test_a_page_of_a_part_says_what_is_there(tmp_path: Path) -> None:
    page = made_page(tmp_path, {"Base": 0, "Good": 3, "Same": 0}, ended=lambda c: c.task == "Films" and c.seed != 5)
    assert "**Verdict: not yet.** 30 of 66 planned runs are done" in page and "(7 of 8 seeds)" in page
    assert "Films (7 of 8 seeds); Tweets (0 of 8 seeds)" in page


def test_a_page_without_intervals_shows_no_figure(tmp_path: Path) -> None:
    page = made_page(tmp_path, {"Base": 0, "Good": 3, "Same": 0}, ended=lambda c: c.seed in (0, 1, 1000))
    assert "all tasks (2 of 8 seeds)" in page and "| Good | Base | Films | +3." in page
    assert ".svg" not in page and not list((tmp_path / "pages").glob("*.svg"))


def test_stuck_runs_are_counted_and_edges_of_rates_marked(tmp_path: Path) -> None:
    def more(cell: Cell) -> dict[str, Any]:
        return {"constant_scores": {"accuracy": 0.7}} if cell.row.name == "Base" else {}

    recipe = study(tmp_path)
    keep(
        recipe,
        lambda c: 0.7 if c.row.name == "Base" else 0.8 + c.seed / 1e4 + c.choice["training.learning_rate_factor"] / 100,
        more=more,
    )
    write_pages([tmp_path / "c9.yaml"], tmp_path / "pages", {})
    page = (tmp_path / "pages" / "c9.md").read_text()
    assert "| Good | Base | Films |" in page and "| 0/8 | - | 0 of 8 | better |" in page
    assert "| Good | 10\\* | 10\\* |" in page and "| Base | 1 | 1 |" in page


def test_surprises_of_no_claim_are_refused(tmp_path: Path) -> None:
    study(tmp_path)
    with pytest.raises(SoftPromptError, match="surprises.yaml: there is no claim 'c1'"):
        write_pages([tmp_path / "c9.yaml"], tmp_path / "pages", {"c1": ["?"]})
