"""``softprompts bench run --dry-run`` and the scales of recipes on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.grids import write_grid
from saved import Cli, files_below

from softprompts.bench.plan import plan, unique_runs
from softprompts.bench.recipe_file import load_recipe


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTPROMPTS_CACHE", "off")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return write_grid(tmp_path / "recipe", seeds=[0])


def test_a_dry_run_says_what_it_takes_and_leaves_nothing(grid: Path, cli: Cli) -> None:
    done = cli.fine("bench", "run", grid, "--dry-run")
    assert "4 runs, 0 done; 2 jobs; 32 steps" in done.out and "of one worker on" in done.out
    assert not files_below(Path.cwd())
    found = json.loads(cli.fine("bench", "run", grid, "--dry-run", "--json").out)
    assert (found["runs"], found["steps"], len(found["kinds"])) == (4, 32, 4) and found["hours"] > 0
    assert not files_below(Path.cwd())


def test_a_dry_run_without_the_model_gives_runs_and_steps(grid: Path, cli: Cli) -> None:
    done = cli.fine("bench", "run", grid, "--dry-run", "--model", "./nowhere")
    assert "nowhere is not measured: no such model './nowhere'" in done.out
    assert "32 steps" in done.out and "hours are not known" in done.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["GRID", "--json"], "--json goes with --dry-run"),
        (["GRID", "--dry-run", "--engine", "slurm"], "unknown engine 'slurm'"),
        (["ept/table-1", "--dry-run", "--scale", "gpu"], "has no scale 'gpu'; it has tiny, small, paper"),
        (["multi-mask/table-1", "--scale", "gpu", "--dry-run", "--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_in_one_line(grid: Path, cli: Cli, arguments: list[str], told: str) -> None:
    done = cli("bench", "run", *(str(grid) if one == "GRID" else one for one in arguments))
    assert done.code == 2 and told in done.err and done.err.count("\n") == 1 and not done.out
    assert not files_below(Path.cwd())


def test_show_says_what_a_recipe_takes_and_leaves_nothing(grid: Path, cli: Cli) -> None:
    def shown() -> str:
        return " ".join(cli.fine("bench", "show", grid).out.split())

    told = shown()
    for part in ("grid: A small grid", "Head (head-only), Prefix (prefix-tuning)", "task First first.yaml: there"):
        assert part in told
    assert "runs 4 (1 seed), 0 done steps 32 hours not known before a run is done" in told
    assert not files_below(Path.cwd())
    # Two of the four have taken 10 and 30 minutes: by them 80 minutes of all.
    runs = unique_runs(plan(load_recipe(grid)).runs)
    for one, minutes in zip(runs, (10, 30), strict=False):
        (Path("runs") / str(one.run)).mkdir(parents=True)
        (Path("runs") / str(one.run) / "result.json").write_text(json.dumps({"seconds": 60 * minutes}))
    assert "runs 4 (1 seed), 2 done steps 32 hours about 80 min for all runs" in shown()
    (grid.parent / "second-train.csv").unlink()
    told = shown()
    assert "task First first.yaml: there task Second second.yaml: not there" in told
    assert "second-train.csv: no such file Run it with its data: softprompts bench run" in told


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_data_that_are_not_there_are_told_before_a_plan_and_leave_nothing(
    grid: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, dry: tuple[str, ...]
) -> None:
    for name in ("first-validation.csv", "second-train.csv"):
        (grid.parent / name).unlink()
    monkeypatch.setattr("softprompts.bench.plan._outline", lambda data: pytest.fail("rows were read"))
    done = cli("bench", "run", grid, *dry)
    assert done.code == 2 and done.err.count("\n") == 1
    assert (
        "needs data that are not there, 2 of 2 tasks: " in done.err and "first-validation.csv: no such file" in done.err
    )
    assert not files_below(Path.cwd())


def test_a_task_that_no_row_uses_is_not_asked_for(grid: Path, cli: Cli) -> None:
    (grid.parent / "second-train.csv").unlink()
    only = ["--set", "rows={Head: {only_tasks: [First]}, Prefix: {only_tasks: [First]}}"]
    assert "2 runs, 0 done" in cli.fine("bench", "run", grid, "--dry-run", *only).out


def test_an_error_before_there_is_a_plan_leaves_no_folder(
    grid: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (grid.parent / "first-train.csv").write_text("text,label\n")
    done = cli("bench", "run", grid)
    assert done.code == 2 and "first-train.csv: no rows in it" in done.err
    assert not files_below(Path.cwd())
    Path("runs/bench").mkdir(parents=True)  # what was there before stays
    assert cli("bench", "run", grid).code == 2 and files_below(Path.cwd()) == ["runs", "runs/bench"]
