"""Benches whose runs are made up: real run folders with learning curves and results, without training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from softprompts.bench.recipe import Cell, Recipe
from softprompts.bench.recipe_file import read_recipe
from softprompts.bench.results import Findings, Outcome
from softprompts.storage.run_folder import METRICS, RESULT

METHODS = ("head-only", "prompt-tuning", "superpos", "prefix-tuning", "multi-mask", "selective-prefix")
SIZES = (770, 38_400, 43_000, 92_160, 131_000, 98_000)
QUICK: Mapping[str, Any] = {
    "title": "Six methods on three sentiment tasks",
    "about": "The packaged encoder on film reviews, product reviews and tweets, three seeds.",
    "models": {"MiniLM": "all-minilm-l6-v2"},
    "seeds": [0, 1, 2],
    "tasks": {"Films": "reviews", "Products": "reviews/products", "Tweets": "reviews/tweets"},
    "rows": [
        {"name": method.replace("-", " ").capitalize(), "method": method, "baseline": method == "head-only"}
        for method in METHODS
    ],
    "figures": [{"kind": "curves"}, {"kind": "parameters"}, {"kind": "cost"}],
}


def recipe_of(plain: Mapping[str, Any] = QUICK, **changes: Any) -> Recipe:
    """A recipe from plain values."""
    return read_recipe({**plain, **changes}, name="quick", scale="tiny")


def findings_of(
    folder: Path,
    recipe: Recipe,
    *,
    ended: Callable[[Cell], bool] = lambda cell: True,
    score: Callable[[Cell], float] | None = None,
    stops: Callable[[Cell], int] = lambda cell: 150,
    failed: Mapping[str, str] | None = None,
) -> Findings:
    """Findings with a run folder for every cell that has ended.

    Args:
        folder: where run folders go.
        recipe: what was asked for.
        ended: which cells have a result.
        score: final score between 0 and 1; None: better with each row, another for each task and seed.
        stops: last step of a cell.
        failed: by run id, what went wrong.
    """
    outcomes, missing = [], 0
    places = {row.label: place for place, row in enumerate(recipe.rows)}
    for number, cell in enumerate(recipe.cells()):
        if not ended(cell):
            missing += 1
            continue
        place, chance = places[cell.row.label], random.Random(str(cell))
        task = list(recipe.tasks).index(cell.task)
        value = 0.62 + 0.03 * place + 0.05 * task + chance.gauss(0, 0.012) if score is None else score(cell)
        run = folder / f"{number:012x}"
        run.mkdir(parents=True)
        metrics = {column.metric: value for column in recipe.columns if column.task == cell.task}
        lines = []
        for step in range(10, stops(cell) + 1, 10):
            done = 1 - math.exp(-step / (25 + 8 * place))
            loss = 0.7 - 0.05 * place * done - 0.2 * done + chance.gauss(0, 0.01)
            now = {name: 0.5 + (end - 0.5) * done + chance.gauss(0, 0.008) for name, end in metrics.items()}
            lines.append({"step": step, "epoch": step / 50, "loss": loss, **now})
        (run / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = {
            "task": cell.task,
            "method": cell.row.method,
            "seed": cell.seed,
            "trained_parameters": SIZES[place % len(SIZES)] * (1 + place // len(SIZES)),
            "backbone_parameters": 22_713_216,
            "train_rows": 800,
            "eval_rows": 200,
            "test_rows": 400,
            "versions": {"softprompts": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
            "device": "cpu",
            "stop_reason": "max_steps",
            "steps": stops(cell),
            "score": value,
            "metrics": metrics,
            "test_metrics": metrics,
            "step_seconds": stops(cell) * (0.08 + 0.012 * place + 0.01 * task),
            "seconds": 30.0,
            "peak_memory": 700_000_000 + 60_000_000 * place,
            "lanes": 6,
        }
        if recipe.measure == "cost":
            result["cost"] = {"seconds_per_100_steps": 8.0 + place, "peak_memory": result["peak_memory"]}
        (run / RESULT).write_text(json.dumps(result))
        outcomes.append(Outcome(**vars(cell), folder=run, result=result))
    return Findings(recipe, tuple(outcomes), missing, failed or {})
