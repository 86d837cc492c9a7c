"""`softprompts inspect`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from saved import Cli

from tests.commands.running import train


def test_inspect(cli: Cli, data: Path) -> None:
    cli.fine(*train(data), "--folder", "run")
    out = cli.fine("inspect", "run").out
    assert "prefix-tuning" in out and "negative, positive" in out and "method.prefix" in out and "10 x 64" in out
    assert max(map(len, out.splitlines())) <= 80
    result = json.loads(Path("run/result.json").read_text())
    assert f"accuracy {result['metrics']['accuracy']:.4g}" in out and f"{result['train_rows']:,} rows, seed 0" in out
    assert out.index("validation") < out.index("moved.prefix") < out.index("method.prefix")  # results come first
    assert len(re.findall(rf"\b{result['trained_parameters']:,}\b|\b{result['trained_parameters']}\b", out)) == 1
    vitals = json.loads(cli.fine("inspect", "run", "--json").out)["vitals"]
    (step,) = vitals  # of the only evaluation
    assert f"step {step}" in out and "moved.prefix" in out and vitals[step]["moved.prefix"] > 0
    as_json = json.loads(cli.fine("inspect", "run/prompt", "--json").out)
    assert as_json["vitals"] == {}  # a prompt without its run
    assert as_json["method"] == "prefix-tuning" and as_json["tensors"]["method.prefix"]["shape"] == [10, 64]


def test_vitals_of_the_first_the_kept_and_the_last_evaluation(cli: Cli, data: Path) -> None:
    cli.fine(*train(data, steps=8), "--eval-every", "1", "--folder", "run")
    record = json.loads(Path("run/result.json").read_text())
    vitals = json.loads(cli.fine("inspect", "run", "--json").out)["vitals"]
    assert list(vitals) == list(map(str, sorted({1, record["best_step"], 8})))
    assert vitals["8"] == record["vitals"]
