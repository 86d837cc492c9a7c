"""`softprompts train --from`: goes on from a trained prompt with its tensors, its head's rows and its labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved import Cli, model_folder, rows, write_csv

import softprompts as sp
from softprompts.experiments.workbench import Workbench
from softprompts.storage import run_folder
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig
from tests.commands.running import config, refuse, result, train

NEW = [{"text": f"the {noun} was text", "label": "mixed"} for noun in ("film", "plot") for _ in range(10)]


def tensors(run: str | Path) -> dict[str, Any]:
    return load_file(Path(run) / "prompt/softprompt.safetensors")


def start_of(run: str | Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(Path(run) / "checkpoint/start.pt", weights_only=True)
    return state


@pytest.mark.parametrize("method", ["prefix-tuning", "multi-mask", "superpos", "superpos+multi-mask", "lora", "full"])
def test_a_run_starts_where_another_ended(cli: Cli, data: Path, method: str) -> None:
    cli.fine(*train(data), "--method", method, "--folder", "first")
    cli.fine("train", "--from", "first", "--data", data, "--steps", "1", "--folder", "second")
    ended, started = tensors("first"), start_of("second")
    assert ended.keys() == started.keys() and all(torch.equal(ended[key], started[key]) for key in ended)
    assert any(not torch.equal(ended[key], value) for key, value in tensors("second").items())
    assert config("second")["settings"] == config("first")["settings"] and config("second")["method"] == method


def test_known_labels_keep_their_rows_and_new_ones_get_some(cli: Cli, data: Path, tmp_path: Path) -> None:
    cli.fine(*train(data, steps=4), "--folder", "first")
    more = write_csv(tmp_path / "more.csv", [*rows(20, seed=1), *NEW])
    few = write_csv(tmp_path / "few.csv", [row for row in [*rows(20, seed=1), *NEW] if row["label"] != "negative"])
    for file, name in ((more, "more"), (few, "few")):
        cli.fine("train", "--from", "first", "--data", file, "--steps", "1", "--folder", name)
        said = result(name)
        assert said["start"]["new_labels"] == ["mixed"] and said["start"]["gone_labels"] == []
        assert said["task_form"]["labels"] == [
            "negative",
            "positive",
            "mixed",
        ]  # known ones first, also those without rows
        ended, started = tensors("first"), start_of(name)
        for part in ("weight", "bias"):
            assert torch.equal(started[f"head.classifier.{part}"][:2], ended[f"head.classifier.{part}"])
        assert started["head.classifier.weight"][2].abs().sum() > 0
        cli.fine("evaluate", name)  # its own rows are found again
    named = ["--labels", "mixed,positive"]
    cli.fine("train", "--from", "first", "--data", few, "--steps", "1", "--folder", "named", *named)
    assert result("named")["start"]["gone_labels"] == ["negative"]
    assert torch.equal(start_of("named")["head.classifier.weight"][1], tensors("first")["head.classifier.weight"][1])


def test_the_id_is_of_what_it_started_from_and_not_of_where_that_lay(cli: Cli, data: Path, tmp_path: Path) -> None:
    cli.fine(*train(data, steps=3), "--folder", "first")
    Path("first").rename(tmp_path / "moved")
    cli.fine("train", "--from", tmp_path / "moved", "--data", data, "--steps", "1", "--out", "a")
    cli.fine("train", "--from", tmp_path / "moved/prompt", "--data", data, "--steps", "1", "--out", "b")
    cli.fine(*train(data, steps=1), "--out", "c")
    ids = [next(Path(root).iterdir()).name for root in "abc"]
    assert ids[0] == ids[1] != ids[2]
    folder = Path("a", ids[0])
    saved = json.loads((tmp_path / "moved/prompt/softprompt_config.json").read_text())
    assert config(folder)["start"]["sha256"] == result(folder)["start"]["sha256"] == saved["sha256"]
    assert str(tmp_path / "moved") in (folder / "config.yaml").read_text()
    assert "start" not in config(Path("c", ids[2])) and ids[2] == run_folder.run_id(config(Path("c", ids[2])))
    refuse(
        cli,
        "holds a run with other settings",
        "train",
        "--from",
        folder,
        "--data",
        data,
        "--steps",
        "1",
        "--folder",
        folder,
    )


def test_language_models_go_on_too_and_python_does_the_same(cli: Cli, data: Path) -> None:
    cli.fine(*train(data, "llama"), "--method", "prompt-tuning", "--folder", "first")
    bench = Workbench(model_folder("llama"), Data(train=str(data)), start="first")
    (key,) = tensors("first")
    path, _ = bench.run(bench.start.method, TrainConfig(max_steps=1), progress=False)
    assert torch.equal(start_of(path)[key], tensors("first")[key])
    with pytest.raises(sp.SoftPromptError, match="first is a prompt of prompt-tuning: a run of prefix-tuning cannot"):
        bench.check(sp.PrefixTuningConfig())
    with pytest.raises(sp.SoftPromptError, match="first has 10 virtual tokens: a run with 4 cannot go on from it"):
        bench.check(sp.PromptTuningConfig(num_virtual_tokens=4))


def test_the_record_of_a_named_run_says_where_its_start_lies(cli: Cli, data: Path) -> None:
    cli.fine(*train(data), "--name", "first")
    start = Workbench(model_folder("bert"), Data(train=str(data)), start="first").start
    assert start is not None and start.place == str(Path("runs/first").resolve())


def test_what_does_not_fit_is_refused_and_leaves_nothing(cli: Cli, data: Path) -> None:
    cli.fine(*train(data), "--folder", "first")
    go_on = ["train", "--from", "first", "--data", data, "--steps", "1"]
    refuse(cli, "name the rows to go on with", "train", "--from", "first")
    refuse(cli, "is a prompt of prefix-tuning: --method multi-mask cannot", *go_on, "--method", "multi-mask")
    refuse(cli, "has 10 virtual tokens: a run with 3 cannot", *go_on, "--set", "num_virtual_tokens=3")
    refuse(cli, "prefix-tuning has no setting 'num_mask'", *go_on, "--set", "num_mask=3")
    refuse(cli, "has tensors of other shapes than a run with these settings", *go_on, "--set", "reparameterize=true")
    for family in ("roberta", "llama", "electra"):
        refuse(cli, "was trained on another backbone", *go_on, "--model", model_folder(family))
    scores = write_csv(
        data.parent / "scores.csv", [{"text": f"film {place}", "label": str(place)} for place in range(20)]
    )
    refuse(
        cli, "has a head for classification: a run of regression", *go_on[:3], "--data", scores, "--kind", "regression"
    )
    refuse(cli, "nowhere: no such folder", "train", "--from", "./nowhere", "--data", data)
    Path("first/prompt/softprompt.safetensors").write_bytes(b"x")
    refuse(cli, "is not the file that", *go_on)
