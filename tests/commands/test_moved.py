"""Folders that moved: the backbone, the run, and runs that another setting keeps from being taken up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as tf
from saved import Cli, model_folder

import softprompts as sp
from tests.commands.running import refuse, train

TEXT = "the film was good"


@pytest.fixture
def moved(cli: Cli, data: Path) -> Path:
    """A run whose backbone, in the folder "old", now lies in "new"; its own folder moved too."""
    shutil.copytree(model_folder("bert"), "old")
    cli.fine("train", "-m", "old", *train(data)[3:], "--folder", "first")
    Path("first").rename("run")
    Path("wanted").write_text(cli.fine("predict", "run", TEXT).out)
    return Path("old").rename("new")


def other_weights() -> Path:
    config = tf.AutoConfig.from_pretrained("new")
    torch.manual_seed(99)
    tf.BertForSequenceClassification(config).save_pretrained("other")
    tf.AutoTokenizer.from_pretrained("new").save_pretrained("other")
    return Path("other")


def test_every_verb_that_loads_a_backbone_is_told_its_new_place(cli: Cli, moved: Path) -> None:
    assert cli.fine("predict", "run", "-m", "new", TEXT).out == Path("wanted").read_text()
    cli.fine("export", "run", "--to", "folded", "--out", "whole", "--model", "new")
    assert sp.load("whole", model="new").active_prompt
    pictures = json.loads(cli.fine("inspect", "run", "--plots", "--json", "--model", "new").out)["plots"]
    assert not any("cannot be loaded" in picture["text"] for picture in pictures)
    assert sp.Predictor("run", model="new")([TEXT])[0].label in Path("wanted").read_text()
    assert sp.load("run", model=moved).config._name_or_path == "new"


def test_a_backbone_that_is_not_there_or_another_one(cli: Cli, moved: Path) -> None:
    refuse(cli, "has it moved? Name its place: model=... or --model", "predict", "run", TEXT)
    refuse(cli, "'none' cannot be loaded", "predict", "run", TEXT, "--model", "none")
    refuse(cli, "'other' holds other weights than its backbone", "predict", "run", TEXT, "-m", str(other_weights()))
    with pytest.raises(sp.SoftPromptError, match="'other' holds other weights than its backbone"):
        sp.load("run", model="other")
    folder = model_folder("llama")
    with pytest.raises(sp.SoftPromptError):
        sp.load("run", model=folder)


def test_prompts_without_a_sample_go_by_the_sizes(cli: Cli, moved: Path) -> None:
    file = Path("run/prompt/softprompt_config.json")
    saved = json.loads(file.read_text())
    del saved["backbone"]["sample"]
    file.write_text(json.dumps(saved))
    assert cli.fine("predict", "run", "-m", "new", TEXT).out == Path("wanted").read_text()


def test_resume_names_what_differs(cli: Cli, data: Path) -> None:
    cli.fine(*train(data), "--lr", "0.1", "--folder", "runs/mine")
    Path("runs/mine/result.json").unlink()
    told = "nothing to resume: no run in runs has these settings; runs/mine is unfinished and differs: "
    told += "training.learning_rate is 0.1 there, 0.2 here; give its settings"
    refuse(cli, told, *train(data), "--lr", "0.2", "--resume")
    assert "--resume" not in cli.fine(*train(data, steps=3), "--lr", "0.1").err
    refuse(cli, "(training.learning_rate is 0.1 there, 0.3 here)", *train(data), "--lr", "0.3", "--folder", "runs/mine")
