"""`softprompts train --config`: the file that a run leaves, one of a user's own, and flags before both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from saved import Cli, model_folder, rows, write_csv

from softprompts.storage.run_folder import run_id
from tests.commands.running import config, refuse, result, train


def write(content: dict[str, Any]) -> str:
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    return "mine.yaml"


def unfinished(run: str) -> None:
    Path(run, "result.json").unlink()


MANY: list[list[str]] = [
    [],
    [
        "--lr",
        "0.02",
        "--lr-of",
        "head=5e-3",
        "--schedule",
        "cosine",
        "--warmup",
        "1",
        "--label",
        "label",
        "--few-shot",
        "8",
    ],
    ["--method", "superpos+multi-mask", "--set", "num_virtual_tokens=3", "--set", "multi-mask.num_masks=2"],
    ["--method", "prompt-tuning", "--set", "init=text", "--set", "init_text=good, bad", "--set", "placement=front"],
]


@pytest.mark.parametrize("flags", MANY)
def test_the_file_of_a_run_makes_the_same_run(cli: Cli, data: Path, flags: list[str], monkeypatch: Any) -> None:
    cli.fine(*train(data, steps=1), *flags, "--max-length", "20")
    (run,) = Path("runs").iterdir()
    assert run.name == run_id(config(run))
    refuse(cli, f"{run} holds this run, finished", "train", "--config", run / "run.yaml")
    refuse(cli, f"{run} holds this run, finished", "train", "--config", run)
    refuse(cli, f"{run} holds this run, finished", "train", "-c", run.name)
    done = cli.fine("train", "--config", run, "--folder", "again")
    assert config("again") == config(run) and "left out" not in done.err
    assert Path("again/run.yaml").read_text() == (run / "run.yaml").read_text()
    assert result("again")["metrics"] == result(run)["metrics"]


def test_flags_go_before_the_file(cli: Cli, data: Path, tmp_path: Path) -> None:
    first = ["--set", "num_virtual_tokens=3", "--lr", "0.02", "--batch-size", "4"]
    cli.fine(*train(data, steps=2), *first, "--name", "first")
    cli.fine("train", "-c", "first", "--lr", "0.5", "--seed", "7", "--set", "sites=encoder.self", "--name", "second")
    one, two = config("runs/first"), config("runs/second")
    assert (two["training"]["learning_rate"], two["training"]["seed"]) == (0.5, 7)
    assert two["settings"] == {**one["settings"], "sites": ["encoder.self"]}
    assert two["training"] == {**one["training"], "learning_rate": 0.5, "seed": 7} and two["rows"] == one["rows"]
    # Epochs that are typed are not silenced by the file's number of steps, nor new rows by the file's.
    other = write_csv(tmp_path / "other.csv", rows(20, seed=5))
    cli.fine("train", "-c", "first", "--epochs", "1", "--data", other, "--name", "third")
    assert config("runs/third")["task"] == "other" and result("runs/third")["steps"] == 5
    done = cli.fine("train", "-c", "first", "--method", "head-only", "--name", "fourth")
    assert "the settings of prefix-tuning in runs/first/run.yaml are left out" in done.err
    assert config("runs/fourth")["method"] == "head-only"


def test_a_value_that_is_typed_counts_even_where_it_is_the_default(cli: Cli, data: Path) -> None:
    cli.fine(*train(data, steps=1), "--batch-size", "4", "--name", "first")
    cli.fine("train", "-c", "first", "--batch-size", "32", "--name", "second")
    assert config("runs/second")["training"]["batch_size"] == 32


def test_a_file_of_ones_own_has_what_flags_have_and_more(cli: Cli, data: Path) -> None:
    mine: dict[str, Any] = {"model": model_folder("bert"), "data": {"train": str(data)}, "method": "multi-mask"}
    mine |= {"settings": {"num_masks": 2}, "training": {"epochs": 1, "batch_size": 18, "max_grad_norm": None}}
    cli.fine("train", "--config", write(mine), "--folder", "run")
    there = config("run")
    assert there["settings"]["num_masks"] == 2 and there["training"]["max_grad_norm"] is None
    assert result("run")["steps"] == 2
    # What it does not name is as without it.
    flags = ["--data", data, "-m", model_folder("bert"), "--epochs", "1"]
    cli.fine("train", "--config", write({"training": {"epochs": 1}}), *flags[:4], "--folder", "a")
    cli.fine("train", *flags, "--folder", "b")
    assert config("a") == config("b")
    cli.fine(
        "train",
        "--config",
        write({**mine, "data": {"train": str(data), "test": str(data)}, "evaluate": False}),
        "--folder",
        "c",
    )
    assert config("c")["evaluate"] is False and result("c")["eval_rows"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"trainin": {}}, "mine.yaml: there is no 'trainin'; did you mean 'training'?"),
        (
            {"training": {"lerning_rate": 1.0}},
            "mine.yaml: training has no setting 'lerning_rate'; did you mean 'learning_rate'?",
        ),
        ({"training": {"lr": 1.0}}, "did you mean 'learning_rate'?"),
        ({"training": {"steps": 1}}, "did you mean 'max_steps'?"),
        ({"data": {"vaildation": "x"}}, "mine.yaml: data has no setting 'vaildation'; did you mean 'validation'?"),
        ({"model": {"nam": "x"}}, "mine.yaml: model has no setting 'nam'; did you mean 'name'?"),
        ({"method": "prefx-tuning"}, "mine.yaml: unknown method 'prefx-tuning'; did you mean 'prefix-tuning'?"),
        (
            {"method": "ept", "settings": {"num_virtual_token": 1}},
            "mine.yaml: ept has no setting 'num_virtual_token'; did",
        ),
        ({"settings": {"num_virtual_tokens": 1}}, "give the method too"),
        ({"training": {"epochs": 0}}, "mine.yaml: training: epochs must be at least 1, not 0"),
        ({"training": {"learning_rate": "1e-3"}}, "YAML takes 1e-3 for text"),
        ({"training": [1]}, "mine.yaml: training must be a mapping"),
        ({"evaluate": "yes"}, "evaluate true or false"),
        ({"data": {"train": "none.csv"}}, "none.csv: no such file"),
    ],
)
def test_what_is_wrong_in_a_file(cli: Cli, data: Path, content: dict[str, Any], message: str) -> None:
    refuse(cli, message, "train", "--config", write(content), "-m", model_folder("bert"))


def test_files_that_are_none(cli: Cli, data: Path) -> None:
    refuse(cli, "--config none.yaml: no such file", "train", "--config", "none.yaml")
    for text, message in (("{", "line 1: no YAML"), ("- 1", "no settings of a run"), ("", "no settings of a run")):
        Path("bad.yaml").write_text(text)
        refuse(cli, message, "train", "--config", "bad.yaml")
    cli.fine(*train(data, steps=1), "--name", "first")
    refuse(cli, "its settings are in the run.yaml beside it", "train", "--config", "runs/first/config.yaml")
