"""Results of a bench: which of several choices stands in the table, and which notes count."""

from __future__ import annotations

import json
from pathlib import Path

from bench.grids import write_grid

from softprompts.bench.plan import plan
from softprompts.bench.recipe_file import load_recipe
from softprompts.bench.results import load_findings


def written(root: Path, run: str, score: float | None, stop: str = "max_steps", trained: int = 1) -> None:
    (root / run).mkdir(parents=True, exist_ok=True)
    made = {
        "score": score, "stop_reason": stop, "metrics": {"accuracy": score}, "test_metrics": {}, "test_rows": 0,
        "trained_parameters": trained, "backbone_parameters": 10,
    }  # fmt: skip
    (root / run / "result.json").write_text(json.dumps(made))


def test_a_variant_of_one_lucky_seed_is_not_chosen(tmp_path: Path) -> None:
    choose = {"num_virtual_tokens": [2, 3, 4]}
    rows = [{"name": "Prefix", "method": "prefix-tuning", "choose": choose}]
    recipe = load_recipe(write_grid(tmp_path, rows=rows))
    made = plan(recipe, root=tmp_path)
    made.save(tmp_path)
    for one in (one for one in made.runs if one.cell.task == "First"):
        tokens = one.cell.choice["num_virtual_tokens"]
        if tokens == 2 and one.cell.seed == 0:  # of the other seed there is nothing
            written(tmp_path, str(one.run), 0.9, trained=2)
        elif tokens == 3:  # one seed diverged
            written(tmp_path, str(one.run), 0.8, "non-finite loss" if one.cell.seed else "max_steps", trained=3)
        elif tokens == 4:
            written(tmp_path, str(one.run), 0.5, trained=4)
    found = load_findings(tmp_path, tmp_path)
    assert found.runs(recipe.rows[0], "First", "Tiny")[0].choice == {"num_virtual_tokens": 4}
    assert found.trained(recipe.rows[0], "Tiny") == (4, 10)


def test_notes_of_runs_that_are_done_or_of_another_plan_are_not_told(tmp_path: Path) -> None:
    made = plan(load_recipe(write_grid(tmp_path)), root=tmp_path)
    made.save(tmp_path)
    (tmp_path / "failures").mkdir()
    done, open_ = str(made.runs[0].run), str(made.runs[1].run)
    for run in (done, open_, "of-another-plan"):
        (tmp_path / "failures" / f"{run}.txt").write_text("no luck\n")
    written(tmp_path, done, 0.5)
    assert load_findings(tmp_path, tmp_path).failed == {open_: "no luck"}
