"""Searches of rate factors, seeds that are added, and results that are taken up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from bench.grids import write_grid
from saved import Cli

from softprompts.bench.plan import GridRun, plan
from softprompts.bench.recipe import FACTOR, Cell, Recipe
from softprompts.bench.recipe_file import load_recipe
from softprompts.bench.report import write_outputs
from softprompts.bench.results import kept_findings, load_findings
from softprompts.bench.runner import bench_folder
from softprompts.bench.stages import best_factor, beyond, staged_cells
from softprompts.bench.worker_pools import LocalWorkers
from softprompts.bench.worker_process import Worker
from softprompts.errors import SoftPromptError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPTS_CACHE", "off")


SEARCH = {"factors": [0.3, 1, 3], "seeds": [1000, 1001], "extend": 2}
Score = Callable[[Cell], float]


def result(score: float, **more: Any) -> dict[str, Any]:
    fields = {"stop_reason": "max_steps", "metrics": {"accuracy": score}, "test_metrics": {}, "test_rows": 0}
    return {"score": score, "trained_parameters": 1, "backbone_parameters": 10, **fields, **more}


def done(recipe: Recipe, score: Score) -> list[Cell]:
    """All runs that a recipe comes to when every run has a result."""
    cells = staged_cells(recipe, lambda cell: result(score(cell)))
    assert not any(waits for _, waits in cells)
    return [cell for cell, _ in cells]


def factors(cells: list[Cell], **place: str) -> list[float]:
    found = [cell for cell in cells if cell.search is not None and cell.task == place.get("task", "First")]
    return list(dict.fromkeys(cell.choice[FACTOR] for cell in found if cell.row.name == "Prefix"))


def test_the_best_factor_is_closest_to_the_default_and_edges_are_followed_by_half_decades() -> None:
    assert best_factor({0.1: 0.5, 0.3: 0.7, 1: 0.7, 3: 0.6}) == 1
    assert beyond({0.3: 0.5, 1: 0.6, 3: 0.5}) is None
    chain = [1.0, 10.0]
    for _ in range(2):
        chain.append(beyond({one: one for one in chain}) or 0)
    assert chain == [1, 10, 30, 100]
    chain = [0.1, 1.0]
    for _ in range(2):
        chain.append(beyond({one: -one for one in chain}) or 0)
    assert chain == [0.1, 1, 0.03, 0.01]


def test_a_search_goes_on_where_an_edge_wins_and_the_table_has_the_best(tmp_path: Path) -> None:
    recipe = load_recipe(write_grid(tmp_path, search=SEARCH))

    def score(cell: Cell) -> float:
        best = {"First": 1, "Second": 30}[cell.task]
        return 0.9 - abs(cell.choice[FACTOR] - best) / 1000 + (cell.seed % 2) / 100

    cells = done(recipe, score)
    assert factors(cells) == [0.3, 1, 3] and factors(cells, task="Second") == [0.3, 1, 3, 10, 30]
    table = [cell for cell in cells if cell.search is None]
    assert {(cell.task, cell.choice[FACTOR]) for cell in table} == {("First", 1), ("Second", 30)}
    assert {cell.seed for cell in table} == {0, 1} and len(table) == 8
    assert [cell.seed for cell in cells if cell.search == 2 and cell.row.name == "Head"] == [1000, 1001]


def test_one_lucky_seed_does_not_choose_and_one_that_diverged_does(tmp_path: Path) -> None:
    recipe = load_recipe(write_grid(tmp_path, search=SEARCH))
    luck = {(0.3, 1000): 0.9, (0.3, 1001): 0.1, (1, 1000): 0.6, (1, 1001): 0.6, (3, 1000): 0.9, (3, 1001): 0.9}

    def result_of(cell: Cell) -> dict[str, Any]:
        key = cell.choice[FACTOR], cell.seed
        return result(luck.get(key, 0), **({"stop_reason": "non-finite loss"} if key == (3, 1001) else {}))

    chosen = {cell.choice[FACTOR] for cell, _ in staged_cells(recipe, result_of) if cell.search is None}
    assert chosen == {1}


def test_the_table_waits_for_its_own_search_only(tmp_path: Path) -> None:
    recipe = load_recipe(write_grid(tmp_path, search=SEARCH))

    def result_of(cell: Cell) -> Mapping[str, Any] | None:
        ready = cell.task == "First" and cell.row.name == "Head"
        return result(0.9 if cell.choice[FACTOR] == 1 else 0.5) if ready else None

    cells = staged_cells(recipe, result_of)
    assert {(cell.row.name, cell.task) for cell, waits in cells if cell.search is None and not waits} == {
        ("Head", "First")
    }
    assert sum(waits for _, waits in cells) == 6


def test_seeds_are_added_where_an_effect_is_open_and_to_the_baseline(tmp_path: Path) -> None:
    rows = [
        {"name": "Head", "method": "head-only", "baseline": True},
        {"name": "Open", "method": "prefix-tuning"},
        {"name": "Sure", "method": "prompt-tuning"},
        {"name": "Nil", "method": "prompt-tuning", "settings": {"num_virtual_tokens": 3}},
    ]
    grid = write_grid(tmp_path, rows=rows, seeds=[0, 1, 2, 3], more_seeds={"to": 6, "effect": 0.5})
    effects = {"Head": [0, 0, 0, 0], "Open": [9, -6, 6, -5], "Sure": [3, 4, 3, 4], "Nil": [0.3, -0.3, 0.2, 0.1]}

    def score(cell: Cell) -> float:
        return 0.5 + effects[cell.row.name][cell.seed % 4] / 100 * (cell.task == "First")

    added = [cell for cell in done(load_recipe(grid), score) if cell.seed > 3]
    assert [(cell.row.name, cell.task, cell.seed) for cell in added] == [
        ("Head", "First", 4), ("Head", "First", 5), ("Open", "First", 4), ("Open", "First", 5)
    ]  # fmt: skip


def written(root: Path, one: GridRun, score: float) -> None:
    (root / str(one.run)).mkdir(parents=True)
    (root / str(one.run) / "result.json").write_text(json.dumps(result(score)))


def test_search_runs_have_no_test_rows_and_the_last_prompt_and_the_plan_is_read_again(tmp_path: Path) -> None:
    changes = {"test": "first-validation.csv"}
    path = write_grid(tmp_path, search=SEARCH, evaluate=False)
    for task in ("first", "second"):
        declared = tmp_path / f"{task}.yaml"
        declared.write_text(declared.read_text() + json.dumps(changes)[1:-1].replace('"', "") + "\n")
    recipe, root = load_recipe(path), tmp_path / "runs"
    first = plan(recipe, root=root)
    search = [one for one in first.runs if one.cell.search is not None]
    assert len(search) == 24 and {one.run for one in first.runs if one.cell.search is None} == {None}
    assert {one.training["eval_every"] for one in search} == {8}
    assert all(one.workbench["evaluate"] and one.workbench["data"]["max_test"] == 0 for one in search)
    assert len({(one.group) for one in search}) == 4  # a row on a task shares passes with itself alone
    for one in search:
        written(root, one, 0.9 if one.cell.choice[FACTOR] == 1 else 0.5)
    second = plan(recipe, root=root)
    table = [one for one in second.runs if one.cell.search is None]
    assert all(one.run and not one.workbench["evaluate"] and "max_test" not in one.workbench["data"] for one in table)
    second.save(tmp_path / "bench")
    for one in table:
        written(root, one, 0.7)
    found = load_findings(tmp_path / "bench", root)
    assert found.missing == 0 and len(found.outcomes) == 8 and len(found.searched) == 24
    assert {one.choice[FACTOR] for one in found.outcomes} == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"factors": [1]}}, "search.factors"),
        ({"search": {"factors": [0, 1]}}, "search.factors"),
        ({"search": {"seeds": [1, 5]}}, "seed 1 is of the search and of the table"),
        ({"search": {"seeds": [3]}, "more_seeds": {"to": 4}}, "seed 3 is of the search and of the table"),
        ({"search": {"extend": 1}, "evaluate": False, "training": {"epochs": 2}}, "needs training.max_steps"),
        ({"more_seeds": {"to": 4}, "rows": [{"name": "Head", "method": "head-only"}]}, "needs a row with 'baseline"),
    ],
)
def test_what_cannot_be_searched(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftPromptError) as error:
        load_recipe(write_grid(tmp_path, **changes))
    assert message in str(error.value)


def test_a_bench_with_a_search_is_run_collected_and_taken_up_elsewhere(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = {"factors": [1, 3], "seeds": [1000], "extend": 1}
    more = {"more_seeds": {"to": 4, "effect": 0}, "claims": [{"says": "It helps", "better": "Prefix", "than": "Head"}]}
    path = write_grid(tmp_path / "here", search=search, results="results", seeds=[0, 1, 2], **more)
    recipe, root = load_recipe(path), tmp_path / "runs"
    folder = bench_folder(root, recipe.name, recipe.scale)
    worker = Worker(root, folder)
    while jobs := (made := plan(recipe, root=root)).jobs(root):
        for job in jobs:
            worker.work(job.to_dict())
    made.save(folder)
    write_outputs(folder, root)
    assert "more results are kept" in cli.fine("bench", "collect", path, "--out", tmp_path / "runs").out
    kept = sorted((tmp_path / "here" / "results").glob("grid/*/result.json"))
    plain = json.loads((tmp_path / "runs" / "bench" / "grid" / "plan.json").read_text())
    assert {one["run"] for one in plain["cells"]} == {one.parent.name for one in kept} and len(kept) >= 20
    found, read = load_findings(folder, root), kept_findings(recipe)
    assert [vars(one) | {"folder": None} for one in read.outcomes + read.searched] == [
        vars(one) | {"folder": None} for one in found.outcomes + found.searched
    ]
    assert len(list((tmp_path / "runs").glob("*/prompt"))) == len(kept)
    assert "0 more results" in cli.fine("bench", "collect", path, "--prune", "--out", tmp_path / "runs").out
    assert not [*(tmp_path / "runs").glob("*/prompt"), *(tmp_path / "runs").glob("*/checkpoint")]
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == len(kept)
    tables = (tmp_path / "runs" / "bench" / "grid" / "tables.csv").read_text()
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.setattr(Worker, "work", lambda *_: pytest.fail("a run is trained again"))
    monkeypatch.setattr(LocalWorkers, "give", lambda *_: pytest.fail("a worker is asked"))
    told = cli.fine("bench", "run", path, "--out", tmp_path / "other")
    assert f"{len(kept)} runs, {len(kept)} of them done already" in told.err
    assert (tmp_path / "other" / "bench" / "grid" / "tables.csv").read_text() == tables
    assert not list((tmp_path / "other").glob("*/prompt"))
