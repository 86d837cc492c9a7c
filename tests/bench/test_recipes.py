"""Every recipe that comes with the package, at every scale: it loads, says how much it runs, and names what exists."""

from __future__ import annotations

import re

import pytest
import torch
import yaml

from softprompts.analysis import WHAT
from softprompts.backbones import packaged
from softprompts.bench import published
from softprompts.bench.figures import MEASURED
from softprompts.bench.recipe import PAPER, SCALES, Cell, Recipe
from softprompts.bench.recipe_file import load_recipe, recipe_names, recipes_folder
from softprompts.methods import Shape, Vocabulary, make_config
from softprompts.tasks.catalog import task_names

SHOWN = {
    "multi-mask": ("Table 1", "Table 2", "Table 3", "Table 4", "Figure 2"),
    "ept": (
        "Table 1", "Table 2", "Table 3", "Figure 3", "Figure 4a", "Figure 4b", "Figure 5", "Figure 6", "Figure 7",
        "Figure 8",
    ),
    "selective-prefix": ("Table 1", "Table 2", "Table 3", "Figure 2", "Figure 3", "Figure 4", "Figure 5"),
    "superpos": ("Table 1", "Table 2", "Table 3", "Figure 2"),
}  # fmt: skip
WIDTH = 96  # no smaller than the largest rank


def scales_of(name: str) -> list[str]:
    plain = yaml.safe_load((recipes_folder() / f"{name}.yaml").read_text())
    return [PAPER, *(plain.get("scales") or {})]


EVERY = [(name, scale) for name in recipe_names() for scale in scales_of(name)]


@pytest.fixture(scope="module")
def loaded() -> dict[tuple[str, str], Recipe]:
    return {pair: load_recipe(*pair) for pair in EVERY}


def test_each_table_and_figure_of_the_four_papers_has_its_recipe(loaded: dict[tuple[str, str], Recipe]) -> None:
    there = {(recipe.paper, recipe.shows) for recipe in loaded.values() if recipe.paper}
    assert there == {(paper, shows) for paper, all_of_it in SHOWN.items() for shows in all_of_it}


@pytest.mark.parametrize("name", recipe_names())
def test_papers_have_all_scales_and_the_small_ones_need_no_hub_model(
    name: str, loaded: dict[tuple[str, str], Recipe]
) -> None:
    recipe = loaded[name, PAPER]
    assert recipe.name == name
    if recipe.paper is None:
        assert all(packaged.is_alias(model) for model in recipe.models.values())
        return
    assert name.startswith(f"{recipe.paper}/")
    assert sorted(scales_of(name)) == sorted(SCALES)
    assert recipe.same_setting
    for scale in ("small", "tiny"):
        assert all(packaged.is_alias(model) for model in loaded[name, scale].models.values())
        assert not loaded[name, scale].same_setting


@pytest.mark.parametrize("name", recipe_names())
def test_the_comment_says_how_many_runs_there_are(name: str, loaded: dict[tuple[str, str], Recipe]) -> None:
    text = (recipes_folder() / f"{name}.yaml").read_text()
    said = re.search(r"^# Runs: ([^(.]+)", text, re.MULTILINE)
    assert said is not None
    for part in said[1].strip().split(", "):
        scale, _, counts = part.rpartition(" ") if "+" not in part else (part.split()[0], "", part.split(" ", 1)[1])
        runs, _, sources = counts.partition(" + ")
        recipe = loaded[name, scale or PAPER]
        assert (len(recipe.cells()), len(recipe.source_cells())) == (int(runs), int(sources or 0))
    assert len(said[1].split(", ")) == len(scales_of(name))
    assert f"softprompts bench run {name if '/' in name else f'recipes/{name}.yaml'}" in text


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_every_run_is_shown_and_every_name_exists(name: str, scale: str, loaded: dict[tuple[str, str], Recipe]) -> None:
    recipe = loaded[name, scale]
    cells = recipe.cells()
    assert {cell.task for cell in cells} == {column.task for column in recipe.columns} == set(recipe.tasks)
    assert {cell.row.label for cell in cells} == {row.label for row in recipe.rows}
    assert sum(row.baseline for row in recipe.rows) <= 1
    known = {task for task, _ in task_names()}
    assert {entry.task for entry in recipe.tasks.values()} <= known
    used = {source for row in recipe.rows for named in row.sources.values() for source in _listed(named)}
    assert {recipe.sources[source].task for source in used} <= known
    called = {name for row in recipe.rows for name in (row.name, row.label)}
    for figure in recipe.figures:
        assert set(figure.rows or ()) <= called
        assert set(figure.tasks or ()) <= set(recipe.tasks)
        assert figure.y in MEASURED
        assert figure.kind != "analysis" or figure.what in WHAT
        if figure.kind == "sweep" and figure.x != "model":
            drawn = [row for row in recipe.rows if {row.name, row.label} & set(figure.rows or called)]
            assert any(figure.x in row.values for row in drawn)


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_rates_are_of_components_that_the_methods_have(
    name: str, scale: str, loaded: dict[tuple[str, str], Recipe]
) -> None:
    recipe = loaded[name, scale]
    seen = set()
    for cell in (*recipe.source_cells(), *recipe.cells()):
        rates = recipe.training_of(cell).learning_rates
        settings = settings_of(recipe, cell)
        key = (cell.row.method, str(sorted(rates)), str(sorted(settings.items())))
        if not rates or key in seen:
            continue
        seen.add(key)
        # Sizes do not matter to the names of components; small ones save time.
        small = {"num_sampled_tokens": 4, "hidden_size": 4, "mlp_hidden_size": 4, "bottleneck": 4}
        config = make_config(cell.row.method, **{key: small.get(key, value) for key, value in settings.items()})
        table = torch.randn(200, WIDTH)
        shape = Shape(WIDTH, 2, 4, Vocabulary(lambda ids, table=table: table[ids], 200))  # type: ignore[misc]
        assert set(rates) <= set(config.build(shape).components()), f"{cell}"


@pytest.mark.parametrize("name", recipe_names())
def test_published_tables_rows_and_columns_exist(name: str, loaded: dict[tuple[str, str], Recipe]) -> None:
    recipe = loaded[name, PAPER]
    said = [row for row in recipe.rows if row.published is not None]
    if recipe.published is None:
        assert not said
        return
    table = published.published(recipe.published)
    assert said
    for row in said:
        for model in row.models:
            assert table.row_of(str(row.published).replace("{model}", model), model) in table.rows
    # Table 2 of SuperPos has one number for each model; its columns are those of Table 1.
    of = published.published("superpos/table-1") if recipe.table == "standardized" else table
    assert {column.name for column in recipe.columns} <= set(of.columns)


def settings_of(recipe: Recipe, cell: Cell) -> dict[str, object]:
    """The cell's settings, with the number of its sources in place of their folders."""
    settings = recipe.settings_of(cell, {name: name for name in recipe.sources})
    sources = settings.pop("sources", ())
    settings.pop("source", None)
    return {**settings, **({"restored": len(sources)} if sources else {})}


def _listed(named: str | tuple[str, ...]) -> tuple[str, ...]:
    return (named,) if isinstance(named, str) else named
