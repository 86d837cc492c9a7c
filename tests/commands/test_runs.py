"""`softprompts runs`, and names in place of folders in all verbs."""

from __future__ import annotations

import json
from pathlib import Path

from saved import Cli

import softprompts as sp
from tests.commands.running import refuse, result, train


def test_a_named_run_is_found_by_every_verb(cli: Cli, data: Path) -> None:
    done = cli.fine(*train(data), "--name", "tickets")
    assert "run folder: runs/tickets\n" in done.out and "softprompts predict tickets" in done.out
    assert result("runs/tickets")["name"] == "tickets" and sp.Predictor("tickets").name == "tickets"
    text = "the film was good"
    assert cli.fine("predict", "tickets", text).out == cli.fine("predict", "runs/tickets", text).out
    cli.fine("evaluate", "tickets")
    assert Path("runs/tickets/report.html").is_file()
    assert json.loads(cli.fine("inspect", "tickets", "--json").out)["vitals"]
    cli.fine("inspect", "tickets", "tickets")
    cli.fine("export", "tickets", "--to", "folded", "--out", "folded")
    refuse(cli, "is no name of a hub repository", "push", "tickets", "a/b/c")
    refuse(cli, "tikets: no such folder; did you mean 'tickets'?", "predict", "tikets", text)


def test_names_that_are_taken_or_unfit_are_refused_before_a_model_is_loaded(cli: Cli, data: Path) -> None:
    cli.fine(*train(data), "--name", "tickets")
    missing = ["train", "-m", "no/model", "--data", str(data)]
    refuse(cli, "--name tickets: taken by the finished run in runs/tickets", *missing, "--name", "tickets")
    refuse(cli, "--name a/b: a name has letters", *missing, "--name", "a/b")
    refuse(cli, "leave --folder out", *missing, "--name", "new", "--folder", "x")
    Path("runs/tickets/result.json").unlink()
    refuse(cli, "go on with it by --resume", *missing, "--name", "tickets")
    other = [*train(data, steps=3), "--name", "tickets", "--resume"]
    refuse(cli, "training.max_steps is 2 there, 3 here", *other)
    cli.fine(*train(data), "--name", "tickets", "--resume")


def test_the_list_and_the_best(cli: Cli, data: Path) -> None:
    refuse(cli, "runs: no such folder", "runs")
    cli.fine(*train(data), "--name", "one")
    cli.fine(*train(data, steps=1), "--name", "two", "--method", "head-only")
    out = cli.fine("runs").out
    assert all(word in out for word in ("one", "two", "prefix-tuning", "head-only", "data", "accuracy", "kB"))
    listed = json.loads(cli.fine("runs", "--json").out)
    assert [run["name"] for run in listed] == ["two", "one"]
    assert listed[1]["score"] == result("runs/one")["metrics"]["accuracy"] and listed[1]["split"] == "validation"
    (best,) = json.loads(cli.fine("runs", "--best", "--json").out)
    assert best["score"] == max(run["score"] for run in listed)
    Path("empty").mkdir()
    assert cli.fine("runs", "--out", "empty").out == "no runs in empty\n"
    Path("runs/two/result.json").write_text("{")
    done = cli.fine("runs")
    assert "left out: runs/two/result.json is not valid JSON" in done.err and "two" not in done.out
