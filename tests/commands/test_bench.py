"""``softprompts bench run --dry-run`` and the scales of recipes on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.grids import write_grid
from saved import Cli, files_below


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
