"""Findings of a bench that was never run: real recipes, outcomes made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from softprompts.bench.recipe import Recipe
from softprompts.bench.recipe_file import read_recipe
from softprompts.bench.results import Findings, Outcome

BACKBONE = 222_903_552

PLAIN: dict[str, Any] = {
    "title": "Six methods & 50 % of what_they_do",
    "models": {"T5-base": "google-t5/t5-base"},
    "seeds": [0, 1, 2],
    "data": {"template": "smop"},
    "tasks": {"BoolQ": "super_glue/boolq", "CB": "super_glue/cb"},
    "rows": [
        {"name": "Fine-tuning", "method": "full", "published": "Fine-tuning"},
        {
            "name": "Prefix Tuning (l=20)",
            "method": "prefix-tuning",
            "published": "Prefix Tuning (l=20)",
            "baseline": True,
        },
        {
            "name": "Multi-mask",
            "label": "Multi-mask (l={num_virtual_tokens}, k=4)",
            "method": "multi-mask",
            "settings": {"num_masks": 4},
            "grid": {"num_virtual_tokens": [5, 10]},
            "group": "ours",
        },
    ],
}


def recipe(scale: str = "paper", same: bool = True, **changes: Any) -> Recipe:
    return read_recipe({**PLAIN, **changes}, name="made", scale=scale, same_setting=same)


def findings(
    made: Recipe,
    score: Callable[[str, str, str, int], Mapping[str, Any] | None],
    missing: int = 0,
    trained: Mapping[str, int] | None = None,
) -> Findings:
    """An outcome for every cell of the recipe.

    Args:
        made: the recipe.
        score: by label, task, model and seed, what is to stand in the result over what is there; None: no result.
        missing: number of runs without a result.
        trained: parameters by label.
    """
    outcomes = []
    for cell in made.cells():
        said = score(cell.row.label, cell.task, cell.model, cell.seed)
        if said is None:
            continue
        result = {
            "metrics": {},
            "test_metrics": {},
            "test_rows": 100,
            "eval_rows": 100,
            "trained_parameters": (trained or {}).get(cell.row.label, 368_640),
            "backbone_parameters": BACKBONE,
            "score": 0.5,
            "stop_reason": None,
            **said,
        }
        outcomes.append(Outcome(**vars(cell), folder=Path("runs/none"), result=result))
    return Findings(made, tuple(outcomes), missing, {})
