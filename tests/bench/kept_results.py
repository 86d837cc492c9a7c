"""Kept results of a study that was never run: all that its recipe asks for, made up."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from softprompts.bench.recipe import Cell, Recipe
from softprompts.bench.recipe_file import load_recipe
from softprompts.bench.stages import staged_cells

Score = Callable[[Cell], float | None]


RECIPE: Mapping[str, Any] = {
    "title": "Study, claim 9: made up",
    "about": "Two rows and a baseline.",
    "models": {"MiniLM": "all-minilm-l6-v2"},
    "seeds": list(range(8)),
    "search": {"factors": [0.3, 1, 3], "seeds": [1000], "extend": 1},
    "more_seeds": {"to": 10, "effect": 0.5},
    "results": "results",
    "evaluate": False,
    "training": {"max_steps": 4, "eval_every": 4, "batch_size": 8},
    "tasks": {"Films": "reviews", "Tweets": "reviews/tweets"},
    "rows": [
        {"name": "Base", "method": "head-only", "baseline": True},
        {"name": "Good", "method": "prefix-tuning"},
        {"name": "Same", "method": "prompt-tuning"},
    ],
    "claims": [
        {"says": "Good helps", "better": "Good", "than": "Base"},
        {"says": "Same helps", "better": "Same", "than": "Base"},
        {"says": "Good is better than Same", "better": "Good", "than": "Same"},
    ],
}


def study(folder: Path, **changes: object) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "c9.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}, sort_keys=False))
    return load_recipe(folder / "c9.yaml")


def scores(gains: dict[str, float], noise: float = 0.1) -> Score:
    def score(cell: Cell) -> float:
        chance = random.Random(f"{cell.row.label} {cell.task} {cell.seed}").gauss(0, noise)
        factor = cell.choice.get("training.learning_rate_factor", 1)
        return (70 + gains[cell.row.label] + chance - (5 if cell.search is not None and factor != 1 else 0)) / 100

    return score


def result_of(recipe: Recipe, cell: Cell, score: float, **more: Any) -> dict[str, Any]:
    metric = next(column.metric for column in recipe.columns if column.task == cell.task)
    return {
        "score": score,
        "metrics": {metric: score},
        "test_metrics": {} if cell.search is not None else {metric: score},
        "test_rows": 0 if cell.search is not None else 100,
        "stop_reason": "max_steps",
        "trained_parameters": 4610,
        "backbone_parameters": 22_713_216,
        **more,
    }


def keep(
    recipe: Recipe,
    score: Score,
    ended: Callable[[Cell], bool] = lambda cell: True,
    more: Callable[[Cell], Mapping[str, Any]] = lambda cell: {},
) -> int:
    """Writes results of a recipe as ``softprompts bench collect`` does; returns their number.

    Args:
        recipe: with ``results``.
        score: between 0 and 1; it decides what a search finds and where seeds are added.
        ended: which runs have a result.
        more: fields of a result beside the score.
    """
    folder = Path(str(recipe.results)) / recipe.name.rpartition("/")[2]
    made: dict[str, dict[str, Any]] = {}
    lines = []

    def result(cell: Cell) -> dict[str, Any] | None:
        value = score(cell) if ended(cell) else None
        return None if value is None else result_of(recipe, cell, value, **more(cell))

    for number, (cell, waits) in enumerate(staged_cells(recipe, result)):
        run = None if waits else hashlib.sha256(f"{recipe.name} {number}".encode()).hexdigest()[:12]
        identity = {name: getattr(cell, name) for name in ("task", "model", "seed", "source", "search")}
        lines.append({"row": cell.row.label, "choice": dict(cell.choice), **identity, "run": run})
        if run is not None and (found := result(cell)) is not None:
            made[run] = found
    for run, found in made.items():
        (folder / run).mkdir(parents=True)
        (folder / run / "result.json").write_text(json.dumps(found))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return len(made)
