"""Recipes: what they spell out, what lies over what, and what is wrong with a wrong one."""

from __future__ import annotations

import copy
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench.grids import write_grid

from softprompts.backbones.quantized import BACKENDS
from softprompts.bench.recipe import Cell, Recipe, overlaid
from softprompts.bench.recipe_file import load_recipe, read_recipe
from softprompts.errors import SoftPromptError


def write(path: Path, **plain: Any) -> Path:
    recipe: dict[str, Any] = {
        "title": "T",
        "models": {"A": "all-minilm-l6-v2"},
        "tasks": {"Films": "reviews", "RTE": {"task": "glue/rte", "training": {"batch_size": 4}, "max_length": 64}},
        "rows": [{"name": "Head", "method": "head-only"}],
    }
    path.write_text(yaml.safe_dump({**recipe, **plain}, sort_keys=False))
    return path


def cell_of(recipe: Recipe, label: str, task: str = "Films", **more: Any) -> Cell:
    found = [
        cell
        for cell in recipe.cells()
        if cell.row.label == label and cell.task == task and all(getattr(cell, k) == v for k, v in more.items())
    ]
    assert len(found) == 1
    return found[0]


def test_a_grid_becomes_rows_with_labels_values_and_published_names(tmp_path: Path) -> None:
    row = {
        "name": "Multi-mask",
        "method": "multi-mask",
        "label": "{name} (l={num_virtual_tokens}, k={num_masks})",
        "published": "{name} l={num_virtual_tokens} ({model})",
        "grid": {"num_virtual_tokens": [5, 10], "num_masks": [1, 4], "training.max_steps": 7, "data.max_train": 9},
    }
    recipe = load_recipe(write(tmp_path / "r.yaml", rows=[row]))
    assert [one.label for one in recipe.rows] == [f"Multi-mask (l={n}, k={k})" for n in (5, 10) for k in (1, 4)]
    assert recipe.rows[0].published == "Multi-mask l=5 ({model})"
    assert recipe.rows[3].values == {"num_virtual_tokens": 10, "num_masks": 4, "max_steps": 7, "max_train": 9}
    cell = cell_of(recipe, "Multi-mask (l=10, k=4)")
    assert recipe.settings_of(cell, {}) == {"num_virtual_tokens": 10, "num_masks": 4}
    assert recipe.training_of(cell).max_steps == 7 and recipe.data_of(cell).max_train == 9


def test_coupled_values_are_a_list_of_grids(tmp_path: Path) -> None:
    grid = [{"num_virtual_tokens": 20, "rank": 2}, {"num_virtual_tokens": 4, "rank": [3, 4]}]
    recipe = load_recipe(write(tmp_path / "r.yaml", rows=[{"name": "DePT", "method": "dept", "grid": grid}]))
    assert [one.label for one in recipe.rows] == [
        "DePT (num_virtual_tokens=20, rank=2)",
        "DePT (num_virtual_tokens=4, rank=3)",
        "DePT (num_virtual_tokens=4, rank=4)",
    ]


def test_layers_lie_over_each_other_from_the_recipe_to_the_choice(tmp_path: Path) -> None:
    """Recipe < task < row < the row's task < the row's model < both < grid < choice."""
    row = {
        "name": "Prefix",
        "method": "prefix-tuning",
        "training": {"warmup_steps": 3, "learning_rates": {"prefix": 0.1}},
        "tasks": {"RTE": {"settings": {"num_virtual_tokens": 7}, "training": {"warmup_steps": 4}}},
        "models": {"A": {"training": {"patience": 9}, "tasks": {"RTE": {"training": {"patience": 8}}}}},
        "grid": {"training.epochs": [2]},
        "choose": {"training.learning_rates.head": [0.5, 0.25], "init_std": [1.0]},
    }
    shared = {"batch_size": 32, "epochs": 5, "warmup_steps": 1, "learning_rates": {"head": 0.01}}
    recipe = load_recipe(write(tmp_path / "r.yaml", rows=[row], training=shared, data={"max_train": 10}))
    films, rte = (
        cell_of(recipe, recipe.rows[0].label, task, choice={"training.learning_rates.head": 0.25, "init_std": 1.0})
        for task in ("Films", "RTE")
    )
    one, two = recipe.training_of(films), recipe.training_of(rte)
    assert (one.batch_size, one.epochs, one.warmup_steps, one.patience) == (32, 2, 3, 9)
    assert (two.batch_size, two.epochs, two.warmup_steps, two.patience) == (4, 2, 4, 8)
    assert one.learning_rates == {"prefix": 0.1, "head": 0.25}
    assert recipe.settings_of(rte, {}) == {"num_virtual_tokens": 7, "init_std": 1.0}
    assert (recipe.length_of(films), recipe.length_of(rte)) == (256, 64)
    assert recipe.data_of(rte, "somewhere").data_dir == "somewhere" and recipe.data_of(rte).max_train == 10


def test_a_scale_lies_over_the_recipe(tmp_path: Path) -> None:
    rows = [
        {"name": "Head", "method": "head-only", "models": ["A"], "training": {"learning_rate": 0.5}},
        {"name": "Prefix", "method": "prefix-tuning", "choose": {"training.learning_rate": [1.0, 2.0]}},
    ]
    small = {
        "models": {"B": "other"},
        "training": {"epochs": None, "max_steps": 4},
        "rows": {"*": {"models": None}, "Prefix": {"choose": None, "settings": {"num_virtual_tokens": 2}}},
        "only_tasks": ["RTE"],
    }
    path = write(tmp_path / "r.yaml", rows=rows, training={"epochs": 9, "batch_size": 2}, scales={"small": small})
    recipe = load_recipe(path, "small")
    assert recipe.models == {"B": "other"} and list(recipe.tasks) == ["RTE"] and not recipe.same_setting
    assert [(cell.row.label, cell.task) for cell in recipe.cells()] == [("Head", "RTE"), ("Prefix", "RTE")]
    training = recipe.training_of(recipe.cells()[1])
    assert (training.max_steps, training.epochs, training.batch_size) == (4, 10, 4)
    paper = load_recipe(path, "paper")
    assert paper.same_setting and len(paper.cells()) == 6
    assert not load_recipe(path, "paper", {"seeds": [3]}).same_setting
    assert [cell.seed for cell in load_recipe(path, "small", {"seeds": [3, 4]}).cells()] == [3, 3, 4, 4]
    changed = load_recipe(path, "small", {"seeds": [3]})
    assert (recipe.variant, paper.variant) == ("", "") and len(changed.variant) == 6
    assert changed.variant != load_recipe(path, "small", {"seeds": [4]}).variant
    written = load_recipe(path)  # as it is written, without a paper
    assert (written.scale, len(written.cells())) == ("", 6)
    with pytest.raises(SoftPromptError, match=r"--scale\): small, paper"):
        load_recipe(write(tmp_path / "r.yaml", rows=rows, paper="ept", scales={"small": small}))
    with pytest.raises(SoftPromptError, match="has no scale 'tiny'"):
        load_recipe(path, "tiny")


def test_few_shot_rows_follow_the_seed_and_sources_have_all_rows(tmp_path: Path) -> None:
    rows = [{"name": "SPoT", "method": "spot", "sources": ["S"], "only_tasks": ["RTE"]}]
    sources = {"S": {"task": "glue/sst2", "method": "prompt-tuning", "training": {"max_steps": 3}}}
    path = write(tmp_path / "r.yaml", rows=rows, sources=sources, data={"few_shot": 4}, seeds=[0, 5])
    recipe = load_recipe(path)
    assert [recipe.data_of(cell).few_shot_seed for cell in recipe.cells()] == [0, 5]
    (source,) = recipe.source_cells()
    assert recipe.data_of(source).few_shot is None and recipe.training_of(source).max_steps == 3
    assert recipe.settings_of(recipe.cells()[0], {"S": "there"}) == {"sources": ["there"]}


def test_columns_are_those_said_else_the_main_metric_of_each_task(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml"))
    assert [(column.name, column.metric) for column in recipe.columns] == [("Films", "accuracy"), ("RTE", "accuracy")]
    said = {"Films:F1": {"task": "Films", "metric": "macro_f1"}, "RTE": {}}
    recipe = load_recipe(write(tmp_path / "r.yaml", columns=said))
    assert next((c.name, c.task, c.metric) for c in recipe.columns) == ("Films:F1", "Films", "macro_f1")
    recipe = load_recipe(write(tmp_path / "r.yaml", measure="cost"))
    assert recipe.columns[0].metric == "seconds_per_100_steps"


def test_a_recipe_comes_back_from_its_plain_values(tmp_path: Path) -> None:
    recipe = load_recipe(write_grid(tmp_path))
    again = read_recipe(recipe.plain, name=recipe.name, same_setting=True)
    assert again.cells() == recipe.cells() and again.columns == recipe.columns


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"titel": 1}, "has no key 'titel'; did you mean 'title'"),
        ({"models": {}}, "models is missing"),
        ({"rows": [{"name": "X"}]}, "rows[X].method is missing"),
        ({"rows": [{"name": "X", "method": "prefix"}]}, "unknown method 'prefix'"),
        ({"rows": [{"name": "X", "method": "full", "setings": {}}]}, "did you mean 'settings'"),
        ({"rows": [{"name": "X", "method": "dpt", "settings": {"ranks": 1}}]}, "dpt has no setting 'ranks'"),
        ({"rows": [{"name": "X", "method": "full"}] * 2}, "two rows are called 'X'"),
        ({"rows": [{"name": "X", "method": "full", "models": ["B"]}]}, "speaks of the model 'B'"),
        ({"rows": [{"name": "X", "method": "full", "tasks": {"Film": {}}}]}, "speaks of the task 'Film'; did you mean"),
        ({"rows": [{"name": "X", "method": "spot", "sources": ["S"]}]}, "starts from 'S'"),
        ({"rows": [{"name": "X", "method": "full", "label": "{l}"}]}, "'{l}' has {l}, which its grid does not"),
        (
            {"rows": [{"name": "X", "method": "full", "grid": [3]}]},
            "rows[X].grid[0] must be a mapping of names to values",
        ),
        ({"rows": [{"name": "X", "method": "full", "only_tasks": ["Film"]}]}, "did you mean 'Films'"),
        ({"tasks": {"F": "reviws"}}, "unknown task 'reviws'"),
        ({"tasks": {"F": {"data": {}}}}, "tasks.F.task is missing"),
        ({"data": {"template": "no"}}, "template"),
        ({"data": {"data_dir": "x"}}, "in a recipe, data has no setting 'data_dir'"),
        ({"training": {"optimiser": "adamw"}}, "training has no setting 'optimiser'; did you mean 'optimizer'"),
        ({"training": {"learning_rate": "1e-3"}}, "write 1.0e-3"),
        ({"columns": {"F": {"task": "Films", "metric": "f2"}}}, "reviews has no 'f2'"),
        ({"columns": {"F": {"task": "Film"}}}, "column 'F' is of the task 'Film'; did you mean 'Films'"),
        ({"seeds": [1, 1]}, "a seed is named twice"),
        ({"seeds": [-1]}, "seeds[0] must be at least 0, not -1"),
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"measure": "speed"}, "measure must be one of score, cost, not 'speed'"),
        (
            {"figures": [{"kind": "pie"}]},
            "figures[0].kind must be one of sweep, curves, parameters, cost, analysis, not 'pie'",
        ),
        ({"figures": [{"kind": "curves", "tasks": ["Film"]}]}, "is of the task 'Film'; did you mean 'Films'"),
        ({"figures": [{"kind": "curves", "rows": ["Haed"]}]}, "is of the row 'Haed'; did you mean 'Head'"),
        ({"figures": [{"kind": "curves", "x": 1}]}, "figures[0] (of kind 'curves') has no key 'x'"),
        ({"figures": [{"kind": "sweep"}]}, "figures[0] (of kind 'sweep') needs 'x'"),
        ({"quantize": "nf5"}, f"quantize must be one of {', '.join(BACKENDS)}, not 'nf5'"),
        ({"scales": {"big": {}}}, "scales.big must be one of tiny, small, gpu, not 'big'"),
        ({"rows": "all"}, "rows must be a list, not 'all'"),
        (
            {"evaluate": False, "rows": [{"name": "X", "method": "full", "choose": {"training.epochs": [1]}}]},
            "rows choose by validation",
        ),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = write(tmp_path / "wrong.yaml", **changes)
    with pytest.raises(SoftPromptError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path)) and told in str(caught.value) and "\n" not in str(caught.value)


def test_figures_of_what_a_scale_leaves_out_go_too(tmp_path: Path) -> None:
    rows = [{"name": "Head", "method": "head-only"}, {"name": "Full", "method": "full"}]
    figures = [
        {"kind": "curves", "tasks": ["Films", "RTE"], "rows": ["Full"]},
        {"kind": "curves", "tasks": ["RTE"]},
        {"kind": "curves", "rows": ["Head"]},
        {"kind": "parameters"},
    ]
    small = {"only_tasks": ["Films"], "only_rows": ["Full"]}
    path = write(tmp_path / "r.yaml", rows=rows, figures=figures, scales={"small": small})
    assert [one.model_dump(exclude_unset=True) for one in load_recipe(path, "small").figures] == [
        {"kind": "curves", "tasks": ("Films",), "rows": ("Full",)},
        {"kind": "parameters"},
    ]
    assert len(load_recipe(path, "paper").figures) == 4


def test_what_is_wrong_with_a_scale_is_named(tmp_path: Path) -> None:
    for overlay, told in (
        ({"only_rows": ["Haed"]}, "did you mean 'Head'"),
        ({"rows": {"Haed": {}}}, "the scale changes the row 'Haed'"),
        ({"only_tasks": ["Film"]}, "did you mean 'Films'"),
        ({"scales": {}}, "scales.tiny has no key 'scales'"),
    ):
        with pytest.raises(SoftPromptError) as caught:
            load_recipe(write(tmp_path / "wrong.yaml", scales={"tiny": overlay}), "tiny")
        assert told in str(caught.value)


def test_recipes_that_are_not_there_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(SoftPromptError, match="unknown recipe 'multimask/table-1'; did you mean 'multi-mask/table-1'"):
        load_recipe("multimask/table-1")
    for text, told in (("a: [", "is not valid YAML"), ("- a", "a recipe is a mapping")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(SoftPromptError, match=told):
            load_recipe(tmp_path / "bad.yaml")


def test_overlays() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert overlaid(base, {"a": {"b": None, "e": 3}, "d": [2]}) == {"a": {"c": 2, "e": 3}, "d": [2]}
    assert overlaid(base, {"a": {"e": 3}}, whole=("a",)) == {"a": {"e": 3}, "d": [1]}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1]}


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("data",), "x", "data must be a mapping"),
        (("tasks",), None, "tasks is missing"),
        (("tasks", "First"), 3, "tasks.First must be text or a mapping, not 3"),
        (("tasks", 2024), "first.yaml", "tasks.2024 must be text, not 2024 (put it in quotes)"),
        (("models", "Tiny"), 3, "models.Tiny must be text, not 3"),
        (("columns",), ["First"], "columns must be a mapping"),
        (
            ("data",),
            {"text": date(2024, 1, 1)},
            "data.text must be text, not datetime.date(2024, 1, 1) (put it in quotes)",
        ),
        (("rows", 0, "settings"), {"n": [date(2024, 1, 1)]}, "rows[Head].settings.n[0] must be text"),
        (("scales",), {"tiny": {"training": 3}}, "scales.tiny.training must be a mapping"),
        (("rows",), None, "rows is missing"),
        (("rows", 0), "x", "rows[0] must be a mapping"),
        (("rows", 0, "baseline"), "no", "rows[Head].baseline must be true or false"),
        (("rows", 0, "models"), 3, "rows[Head].models must be a list or a mapping, not 3"),
        (("rows", 0, "models"), {"Tiny": {"tasks": ["First"]}}, "rows[Head].models.Tiny.tasks must be a mapping"),
        (("rows", 0, "choose"), {"training.max_steps": 3}, "must be a list, not 3"),
        (("rows", 0, "grid"), {"training.max_steps": []}, "rows[Head].grid.training.max_steps must be at least 1 long"),
        (("rows", 0, "only_tasks"), [["First"]], "rows[Head].only_tasks[0] must be text"),
        (("rows", 0, "sources"), 3, "rows[Head].sources must be a list or a mapping, not 3"),
        (("rows", 0, "label"), "{", "Single '{'"),
        (("rows", 0, "label"), "{}", "which its grid does not"),
        (("sources",), {"S": {"task": "first.yaml", "method": None}}, "sources.S.method is missing"),
        (("figures",), [{"kind": [1]}], "figures[0].kind must be one of sweep"),
        (("scales",), {"tiny": {"rows": {"Head": 3}}}, "scales.tiny.rows.Head must be a mapping"),
        (("scales",), {"tiny": {"only_rows": 3}}, "scales.tiny.only_rows must be a list"),
    ],
)
def test_recipes_of_odd_shapes_are_told_in_a_line(
    tmp_path: Path, place: tuple[Any, ...], value: Any, told: str
) -> None:
    path = write_grid(tmp_path)
    plain = yaml.safe_load(path.read_text())
    node = made = copy.deepcopy(plain)
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    path.write_text(yaml.safe_dump(made))
    with pytest.raises(SoftPromptError) as error:
        load_recipe(path, "tiny" if "scales" in made else None)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_tasks_of_a_scale_lie_beside_the_recipe_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    path = write_grid(tmp_path / "there", scales={"tiny": {"tasks": {"First": {"task": "second.yaml"}}}})
    assert load_recipe(path, "tiny").tasks["First"].task == str(tmp_path / "there" / "second.yaml")


def test_a_scale_may_change_nothing_and_leave_out_tasks_by_null(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", scales={"tiny": None, "small": {"tasks": {"RTE": None}}})
    assert load_recipe(path, "tiny").cells() == load_recipe(path, "paper").cells()
    assert list(load_recipe(path, "small").tasks) == ["Films"]
