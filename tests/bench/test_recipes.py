"""Every recipe that comes with the package, at every scale: it loads, says how much it runs, and names what exists."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
import yaml

from softprompts.analysis import WHAT
from softprompts.backbones import packaged
from softprompts.bench import published
from softprompts.bench.differences import setting_notes
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
GPU = "gpu"
ON_ONE_GPU = (
    "ept/table-2",
    "multi-mask/table-1",
    "selective-prefix/table-1",
    "selective-prefix/table-3",
    "superpos/table-1",
)
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
    assert {*scales_of(name)} == {*SCALES} - ({GPU} if name not in ON_ONE_GPU else set())
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
        sourced = len(recipe.source_cells())
        assert (recipe.runs - sourced, sourced) == (int(runs), int(sources or 0))
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


PAPERS = [name for name in recipe_names() if name.partition("/")[0] in SHOWN]


@pytest.mark.parametrize("name", PAPERS)
def test_protocols_of_papers_are_theirs_or_it_is_said(name: str, loaded: dict[tuple[str, str], Recipe]) -> None:
    """What goes for all recipes of a paper, however many rows they have."""
    recipe = loaded[name, PAPER]
    assert setting_notes(recipe) and not setting_notes(loaded[name, "small"])
    cells = [*recipe.source_cells(), *recipe.cells()]
    trainings = [recipe.training_of(cell) for cell in cells]
    if recipe.measure == "score":
        # No paper groups rows by length, and none but those on transformers' trainer clip gradients.
        assert not any(training.group_by_length for training in trainings)
        clipped = {training.max_grad_norm for training in trainings}
        assert clipped == ({1.0} if recipe.paper in ("ept", "selective-prefix") else {None})
    if recipe.paper == "selective-prefix":
        assert {training.head_learning_rate for training in trainings} == {"main"}
    for cell, training in zip(cells, trainings, strict=True):
        settings = settings_of(recipe, cell)
        if cell.row.method == "superpos":
            assert training.learning_rates == {"embeddings": 0.01, "weights": 0.01}
            assert training.weight_decay is None and settings["weight_decay"] == 1e-5
        if recipe.paper == "ept":
            # As their released code has it; sources are those of ATTEMPT and MPT, or EPT's own.
            own = cell.row.method in ("spot", "attempt", "mpt", "dpt")
            own |= cell.source is not None and cell.row.method != "ept"
            assert training.weight_decay == (1e-5 if own else 0)
            assert not recipe.data_of(cell).few_shot or training.max_steps == 1000
            many = (cell.source or cell.task).partition(" ")[0] in ("MNLI", "QQP", "QNLI", "ReCoRD")
            if recipe.measure == "score" and not recipe.data_of(cell).few_shot:
                assert training.max_steps == (300_000 if many else 30_000), cell


@pytest.mark.parametrize("name", ON_ONE_GPU)
def test_one_gpu_gets_the_papers_models_and_protocol(name: str, loaded: dict[tuple[str, str], Recipe]) -> None:
    """Fewer tasks, seeds, rates and source epochs, in bfloat16; all else is the paper's, and the difference is told."""
    paper, gpu = loaded[name, PAPER], loaded[name, GPU]
    assert gpu.models == paper.models and gpu.max_length == paper.max_length and gpu.data == paper.data
    assert set(gpu.seeds) <= set(paper.seeds) and gpu.tasks.items() <= paper.tasks.items()
    assert [row.label for row in gpu.rows] == [row.label for row in paper.rows]
    assert not gpu.same_setting and {*paper.differences} < {*gpu.differences}
    notes = "\n".join(setting_notes(gpu))
    assert "bfloat16" in notes
    of_paper = {(cell.row.label, cell.task, cell.model): cell for cell in paper.cells()}
    for cell in gpu.cells():
        theirs = paper.training_of(of_paper[cell.row.label, cell.task, cell.model])
        ours = gpu.training_of(cell)
        kept = {"learning_rates": {}, "learning_rate": None, "seed": 0, "bf16": True}
        assert dataclasses.replace(ours, **kept) == dataclasses.replace(theirs, **kept) and ours.bf16  # type: ignore[arg-type]
        searched = {*cell.choice} or "rates are not searched" in notes
        assert searched or (ours.learning_rates == theirs.learning_rates and ours.learning_rate == theirs.learning_rate)


@pytest.mark.parametrize("name", ["multi-mask/table-1", "multi-mask/table-2"])
def test_every_row_has_as_many_tries_as_multi_mask(name: str, loaded: dict[tuple[str, str], Recipe]) -> None:
    recipe = loaded[name, PAPER]
    assert {math.prod(map(len, row.choose.values())) for row in recipe.rows} == {4}
    for cell in recipe.cells():
        settings = recipe.settings_of(cell, {})
        starts = {"multi-mask": ("init_std", 1), "prefix-tuning": ("init_std", 1), "smop": ("init", "random")}
        key, start = starts.get(cell.row.method, ("init", "normal" if cell.row.method == "prompt-tuning" else None))
        assert settings.get(key) == start
        masked = cell.row.method == "multi-mask"
        assert (settings.get("l1_lambda", 0) > 0) == masked
        if masked:
            assert (settings["router_input"], settings["mask_mean"], settings["mask_std"]) == ("raw", 2.5, 0.5)


def test_the_selective_loss_weighs_the_same_in_tables_and_figures(loaded: dict[tuple[str, str], Recipe]) -> None:
    """The scripts' weight on RTE is that of the figures: 2e-4 times a mean over BERT-base's 12 layers."""
    weights = {
        recipe.settings_of(cell, {})["selective_loss"]
        for name in ("table-1", "table-3", "figure-2", "figure-4", "figure-5")
        for recipe in [loaded[f"selective-prefix/{name}", PAPER]]
        for cell in recipe.cells()
        if cell.task == "RTE" and cell.model == "BERT-base" and cell.row.name == "SPT"
    }
    assert weights == {1.667e-5} and pytest.approx(2e-4 / 12, rel=1e-3) == 1.667e-5


def test_the_dense_layer_of_roberta_is_told_where_it_trains(loaded: dict[tuple[str, str], Recipe]) -> None:
    recipe = loaded["selective-prefix/table-1", PAPER]
    told = {
        (row.name, model, task)
        for row, model in recipe.rows_by_model()
        for task in recipe.tasks
        if any("dense layer" in sentence for sentence in recipe.differences_of(row, task, model))
    }
    # Multiple choice (COPA) and full fine-tuning, which trains all, have no such difference.
    tasks = ("BoolQ", "RTE", "WiC", "WSC")
    assert told == {(row, "RoBERTa-large", task) for row in ("PT-2", "SPT") for task in tasks}


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("study/")])
@pytest.mark.parametrize("scale", [PAPER, GPU])
def test_studies_share_a_protocol(name: str, scale: str, loaded: dict[tuple[str, str], Recipe]) -> None:
    recipe, first = loaded[name, scale], loaded["study/c1", scale]
    for key in ("models", "seeds", "search", "more_seeds", "evaluate", "data", "training", "tasks", "results"):
        assert getattr(recipe, key) == getattr(first, key)
    assert sum(row.baseline for row in recipe.rows) == 1 and not recipe.evaluate and len(recipe.seeds) == 12


@pytest.mark.parametrize(("scale", "width", "numbers"), [(PAPER, 384, 3840), (GPU, 768, 7680)])
def test_the_study_of_ept_trains_equal_numbers(
    scale: str, width: int, numbers: int, loaded: dict[tuple[str, str], Recipe]
) -> None:
    recipe = loaded["study/c4", scale]
    for row in recipe.rows:
        sizes = row.settings
        length, rank = sizes["num_virtual_tokens"], sizes.get("decomposition", True) and sizes.get("rank", 0)
        assert isinstance(length, int) and isinstance(rank, int)
        assert length * width + (recipe.max_length + width) * rank == numbers
        assert sizes.get("max_length", recipe.max_length) == recipe.max_length or not rank


def settings_of(recipe: Recipe, cell: Cell) -> dict[str, object]:
    """The cell's settings, with the number of its sources in place of their folders."""
    settings = recipe.settings_of(cell, {name: name for name in recipe.sources})
    sources = settings.pop("sources", ())
    if settings.pop("source", None):
        settings.pop("source_spaces", None)
    return {**settings, **({"restored": len(sources)} if sources else {})}


def _listed(named: str | tuple[str, ...]) -> tuple[str, ...]:
    return (named,) if isinstance(named, str) else named
