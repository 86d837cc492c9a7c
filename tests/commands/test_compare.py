"""`softprompts compare`, end to end, on tiny models and files of one's own."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from saved import Cli

from tests.commands.running import interrupt, refuse, result, train


def test_compare_writes_its_report_and_does_nothing_twice(cli: Cli, data: Path) -> None:
    flags = ["--methods", "head-only,prompt-tuning,multi-mask", "--seeds", "0,1", "--set", "num_virtual_tokens=3"]
    command = ["compare", *train(data)[1:], *flags, "--set", "multi-mask.num_masks=2"]
    done = cli.fine(*command)
    told = [line.split(":")[0].split(" ", 1) for line in done.err.splitlines() if line.startswith("[")]
    assert done.err.count("; one answer for all rows: 0.5000 (") == 6
    assert [number for number, _ in told] == [f"[{number}/6]" for number in range(1, 7)]
    # Runs that share passes end together.
    names = ("head-only", "prompt-tuning", "multi-mask")
    assert sorted(name for _, name in told) == sorted(f"{name}, seed {seed}" for name in names for seed in (0, 1))
    for part in (
        "peak memory of all",
        "one answer 50.0",
        "head-only",
        "multi-mask",
        " ± ",
        "4 validation rows",
        "over 2 seeds",
        "(95 %)",
    ):
        assert part in " ".join(done.out.split())
    lines = done.out.splitlines()
    places = lines.index("runs, seed by seed:")
    assert max(map(len, lines[:places])) <= 80
    runs = {str(path.parent) for path in Path("runs").glob("*/result.json")}
    listed = [line.strip().split(": ") for line in lines[places + 1 : places + 4]]
    assert [name for name, _ in listed] == ["head-only", "prompt-tuning", "multi-mask"]
    assert {run for _, names in listed for run in names.split(", ")} == runs and len(runs) == 6
    best = {
        row.split()[0]: row.split()[-1]
        for row in lines[:places]
        if row.split()[:1] and row.split()[0] in ("head-only",)
    }
    assert f"runs/{best['head-only']}" in listed[0][1].split(", ")
    assert {"table.md", "table.csv", "accuracy.png"} == set(os.listdir("runs/compare"))
    assert Path("runs/compare/accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "| multi-mask |" in Path("runs/compare/table.md").read_text()
    table = list(csv.DictReader(Path("runs/compare/table.csv").read_text().splitlines()))
    assert (
        all(f"runs/{name}" in runs for row in table for name in row["runs"].split())
        and len(table[0]["runs"].split()) == 2
    )
    assert [row["method"] for row in table] == ["head-only", "prompt-tuning", "multi-mask"]
    settings = [result(path.parent)["settings"] for path in Path("runs").glob("*/result.json")]
    assert (
        sum(s.get("num_masks") == 2 for s in settings) == 2 and sum(s["num_virtual_tokens"] == 3 for s in settings) == 4
    )

    before = {path: path.stat().st_mtime_ns for path in Path("runs").glob("*/*") if "compare" not in str(path)}
    again = cli.fine(*command)
    assert again.out == done.out
    latex = cli.fine(*command, "--latex")
    text = Path("runs/compare/table.tex").read_text()
    assert "runs/compare/table.tex" in latex.out and text.count(r"\begin{table}") == 2
    assert latex.out.count(": too few pairs (2) to tell them apart") == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_compare_refuses_before_it_trains(cli: Cli, data: Path) -> None:
    command = ["compare", *train(data)[1:]]
    for flags, message in (
        (["--seeds", "0,x"], "'x' is not a whole number"),
        (["--seeds", "0,-1"], "'-1' is not a whole number"),
        (["--seeds", ","], "--seeds names nothing"),
        (["--seeds", "1,1"], "--seeds names 1 twice"),
        (["--methods", ""], "--methods names nothing"),
        (["--methods", "prompt-tuning,prompt-tuning"], "twice"),
        (["--methods", "prompt-tuning,prefx-tuning"], "did you mean 'prefix-tuning'?"),
        (["--set", "num_maks=2"], "none of the methods has this setting"),
        (["--set", "multi-mass.num_masks=2"], "did you mean 'multi-mask'?"),
        (["--methods", "head-only,prompt-tuning", "--lr-of", "prompt=0.1"], "no component 'prompt'"),
        (["--report", str(data)], "is a file"),
    ):
        refuse(cli, message, *command, *flags)


def test_damaged_results_of_a_comparison(cli: Cli, data: Path) -> None:
    command = ["compare", *train(data)[1:], "--methods", "head-only", "--seeds", "0"]
    cli.fine(*command)
    (path,) = Path("runs").glob("*/result.json")
    for content, message in (("{", "is not valid JSON"), ("{}", "lacks 'metrics'"), ("[1]", "but a JSON list")):
        path.write_text(content)
        refuse(cli, message, *command)
    cli_again = path.parent
    path.unlink()  # the checkpoint is that of the last step
    cli.fine(*command)
    assert result(cli_again)["steps"] == 2


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_interrupted_comparison_goes_on_where_it_was(cli: Cli, data: Path, lanes: int) -> None:
    command = ["compare", *train(data, steps=300)[1:], "--methods", "head-only,prefix-tuning", "--seeds", "0"]
    command += ["--eval-every", "10", "--batch-size", "4", "--lanes", str(lanes)]
    stopped = interrupt(command, "runs/*/metrics.jsonl", count=2)
    assert stopped.returncode == 130, stopped.stderr
    assert "the same command goes on from there" in stopped.stderr
    done = list(Path("runs").glob("*/result.json"))
    assert len(done) == 2 - lanes  # one after the other, or both half done
    before = [path.stat().st_mtime_ns for path in done]
    cli.fine(*command)
    assert [path.stat().st_mtime_ns for path in done] == before
    assert {result(path.parent)["steps"] for path in Path("runs").glob("*/result.json")} == {300}
