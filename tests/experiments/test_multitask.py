"""Several tasks trained at once with a part in common."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from saved import model_folder, rows, write_csv
from source_prompts import PLAIN, saved

import softprompts as sp
from softprompts.experiments.multitask import train_together
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.predictor import Predictor
from softprompts.tasks.data import Data
from softprompts.training import Lane, TrainConfig

TRAINING = TrainConfig(max_steps=5, batch_size=4)


@pytest.fixture
def tasks(tmp_path: Path) -> list[Data]:
    """Three tasks; the last with three labels."""
    lines = [rows(24, seed) for seed in range(3)]
    lines[2] = [{**row, "label": ("first", "second", "text")[place % 3]} for place, row in enumerate(lines[2])]
    return [Data(train=str(write_csv(tmp_path / f"{'abc'[place]}.csv", some))) for place, some in enumerate(lines)]


def method(name: str, folder: Path) -> sp.MethodConfig:
    if name == "mpt":
        return sp.MPTConfig(num_virtual_tokens=3, rank=2)
    paths = [saved(folder / f"s{i}", PLAIN, i, hidden_size=16) for i in range(2)]
    return sp.AttemptConfig(num_virtual_tokens=3, sources=tuple(paths), bottleneck=4, temperature=0.5)


def shared(name: str) -> tuple[str, ...]:
    return ("shared",) if name == "mpt" else ("down.weight", "up.weight", "norm.weight", "norm.bias")


@pytest.mark.parametrize("name", ["mpt", "attempt"])
def test_gradients_of_all_tasks_add_up_in_the_common_part(tmp_path: Path, name: str) -> None:
    """A batch of mixed tasks, against each task's rows alone."""
    config, model = method(name, tmp_path), sp.attach(tiny.model("bert"))
    for task in "abc":
        model.add_prompt(task, config, num_labels=3, seed=ord(task))
    model.prompts.double()
    first = model.prompts["a"].method
    for task in "bc":
        model.prompts[task].method.share_with(first)
    tiny.shake(model)
    inputs, names = tiny.batch("bert", 6), list("abcabc")
    labels = inputs.pop("labels")

    def gradients(chosen: list[int]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        part = {key: value[chosen] for key, value in inputs.items()}
        logits = model(**part, prompt_names=[names[i] for i in chosen]).logits
        torch.nn.functional.cross_entropy(logits, labels[chosen], reduction="sum").backward()
        return {key: p.grad.clone() for key, p in model.prompts.named_parameters() if p.grad is not None}

    together = gradients(list(range(6)))
    alone = [gradients([i, i + 3]) for i in range(3)]
    for key in shared(name):
        parts = [part[f"a.method.{key}"] for part in alone]
        assert all(part.any() for part in parts)
        torch.testing.assert_close(together[f"a.method.{key}"], sum(parts[1:], parts[0]))
    own = "left" if name == "mpt" else "prompt"
    for task, part in zip("abc", alone, strict=True):
        torch.testing.assert_close(together[f"{task}.method.{own}"], part[f"{task}.method.{own}"])

    # Every parameter is trained by one prompt only, and one optimizer over the model's has each once.
    listed = [p for task in "abc" for c in model.prompts[task].components().values() for p in c.parameters]
    assert sorted(map(id, listed)) == sorted(id(p) for p in model.prompts.parameters())
    model.save_pretrained(tmp_path / "all", state_dict={})
    assert len(load_file(tmp_path / "all" / "model.safetensors")) == len(model.prompts.state_dict())


@pytest.mark.parametrize(("family", "name"), [("bert", "mpt"), ("bert", "attempt"), ("t5", "mpt")])
def test_tasks_trained_together_have_one_common_part(
    tmp_path: Path, tasks: list[Data], family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = method(name, tmp_path / "sources")
    bench = Workbench(model_folder(family), tasks[0])
    wanted = tasks if family == "bert" else tasks[:2]
    found = train_together(bench, wanted, config, TRAINING, root=tmp_path / "joint")
    assert [path.name for path, _ in found] == list("abc")[: len(wanted)]
    tensors = [load_file(path / "prompt" / "softprompt.safetensors") for path, _ in found]
    for key in shared(name):
        assert all(torch.equal(tensors[0][f"method.{key}"], some[f"method.{key}"]) for some in tensors[1:])
    own = "left" if name == "mpt" else "prompt"
    assert not torch.equal(tensors[0][f"method.{own}"], tensors[1][f"method.{own}"])
    assert all(result["lanes"] == len(wanted) and result["best_step"] == 5 for _, result in found)
    # The common part has learned from more than the first task.
    alone, _ = Workbench(model_folder(family), tasks[0]).run(
        config, TrainConfig(max_steps=5, batch_size=4, eval_every=5), root=tmp_path / "alone"
    )
    key = f"method.{shared(name)[0]}"
    lonely = load_file(alone / "prompt" / "softprompt.safetensors")[key]
    assert not torch.allclose(lonely, tensors[0][key], atol=1e-5)

    if name == "mpt":  # what they are for: a new task starts from them
        target = sp.MPTConfig(num_virtual_tokens=3, rank=2, sources=tuple(str(path) for path, _ in found))
        bench.model.add_prompt("target", target, num_labels=2 if family == "bert" else None)
        assert torch.equal(bench.model.prompts["target"].method.shared.data, tensors[0][key])
        bench.model.delete_prompt("target")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("softprompts.experiments.workbench.train", never)
    again = train_together(Workbench(model_folder(family), tasks[0]), wanted, config, TRAINING, root=tmp_path / "joint")
    assert again == found


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_tasks_learn_from_teachers(tmp_path: Path, tasks: list[Data], family: str) -> None:
    bench = Workbench(model_folder(family), tasks[0])
    plain = sp.MPTConfig(num_virtual_tokens=3)
    folders = [tmp_path / "teachers" / name for name in "ab"]
    for data, folder in zip(tasks[:2], folders, strict=True):
        bench.on(data).run(sp.PrefixTuningConfig(num_virtual_tokens=2), TRAINING, folder=folder)
    there = list(bench.model.prompts)
    taught = [dataclasses.replace(plain, teacher=str(folder)) for folder in folders]
    ends = {}
    for name, methods in (("plain", [plain] * 2), ("taught", taught)):
        ends[name] = train_together(bench, tasks[:2], methods, TRAINING, root=tmp_path / name)
        for key in "ab":
            bench.model.delete_prompt(key)
        assert list(bench.model.prompts) == there  # no teacher is left on the model
    assert train_together(bench, tasks[:2], [plain] * 2, TRAINING, root=tmp_path / "plain") == ends["plain"]
    assert train_together(bench, tasks[:2], plain, TRAINING, root=tmp_path / "plain") == ends["plain"]
    for (path, result), (_, other), folder in zip(ends["taught"], ends["plain"], folders, strict=True):
        sha = json.loads((folder / "prompt" / "softprompt_config.json").read_text())["sha256"]
        assert result["settings"]["teacher"] == sha and result["settings"]["distillation"] == 0.9
        assert not {"teacher", "distillation", "temperature", "match_states"} & set(other["settings"])
        assert str(folder) in (path / "config.yaml").read_text()
    saved_tensors = [load_file(ends[name][0][0] / "prompt" / "softprompt.safetensors") for name in ends]
    assert not torch.allclose(saved_tensors[0]["method.shared"], saved_tensors[1]["method.shared"], atol=1e-6)
    shutil.rmtree(tmp_path / "teachers")
    path = ends["taught"][0][0]
    assert json.loads((path / "prompt" / "softprompt_config.json").read_text())["config"]["teacher"] is None
    assert Predictor(path)(["the film was good"])[0].label in ("negative", "positive")


def test_teachers_that_do_not_fit(tmp_path: Path, tasks: list[Data]) -> None:
    bench = Workbench(model_folder("bert"), tasks[0])
    three = tmp_path / "three"
    bench.on(tasks[2]).run(sp.PromptTuningConfig(num_virtual_tokens=2), TRAINING, folder=three)
    long = tmp_path / "long"
    bench.run(sp.PromptTuningConfig(num_virtual_tokens=20), TRAINING, folder=long)
    there = list(bench.model.prompts)
    wide = saved(tmp_path / "wide", hidden_size=32)
    for teacher, message in (
        (three, r"its teacher answers with other labels \(first, second, text\) than it does \(negative, positive\)"),
        (long, f"mpt: the teacher {long} leaves 20 tokens: set max_length to that"),
        (wide, "wide was trained on another backbone"),
        ("nowhere", "nowhere: no such folder"),
    ):
        config = sp.MPTConfig(num_virtual_tokens=3, teacher=str(teacher))
        with pytest.raises(sp.SoftPromptError, match=message):
            bench.run(config, TRAINING, root=tmp_path / "runs")
        assert list(bench.model.prompts) == there and not (tmp_path / "runs").exists()
    # Several runs with teachers of their own find out how many of them fit, and leave nothing behind.
    runs = [
        Run(sp.MPTConfig(num_virtual_tokens=3, teacher=str(long)), TrainConfig(max_steps=2, seed=i)) for i in (0, 1)
    ]
    short = Workbench(model_folder("bert"), tasks[0], max_length=20)
    short.run(sp.PromptTuningConfig(num_virtual_tokens=20), TRAINING, folder=tmp_path / "again")
    found = short.run_all(runs, root=tmp_path / "runs")
    assert all(result is not None and result["lanes"] == 2 for _, result in found)
    assert list(short.model.prompts) == ["prompt-tuning-seed0"]
    with pytest.raises(sp.SoftPromptError, match="there are 1 methods for 2 tasks"):
        train_together(bench, tasks[:2], [sp.MPTConfig()], TRAINING)


def test_an_interrupted_training_goes_on_to_the_same_end(
    tmp_path: Path, tasks: list[Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, update, steps = method("mpt", tmp_path), Lane.update, []
    whole = train_together(Workbench(model_folder("bert"), tasks[0]), tasks, config, TRAINING, root=tmp_path / "w")

    def stop(self: Lane, *args: Any) -> None:
        steps.append(self.step)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        update(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Lane, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            train_together(Workbench(model_folder("bert"), tasks[0]), tasks, config, TRAINING, root=tmp_path / "p")
    parts = train_together(Workbench(model_folder("bert"), tasks[0]), tasks, config, TRAINING, root=tmp_path / "p")
    for (one, _), (other, _) in zip(whole, parts, strict=True):
        mine, theirs = (load_file(path / "prompt" / "softprompt.safetensors") for path in (one, other))
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_what_cannot_be_trained_together(tmp_path: Path, tasks: list[Data]) -> None:
    bench, root = Workbench(model_folder("bert"), tasks[0]), tmp_path / "runs"
    config = method("mpt", tmp_path)
    cases: list[tuple[list[Data], sp.MethodConfig, TrainConfig, str]] = [
        (tasks[:1], config, TRAINING, "at least two tasks"),
        ([tasks[0], tasks[0]], config, TRAINING, "named twice"),
        (tasks, config, TrainConfig(), "max_steps"),
        (tasks, sp.SuperPosConfig(), TRAINING, "superpos: it has no part that several tasks could share"),
        (tasks, sp.MPTConfig(num_virtual_tokens=39), TRAINING, "leave no room"),
    ]
    for wanted, made, training, message in cases:
        with pytest.raises(sp.SoftPromptError, match=message):
            train_together(bench, wanted, made, training, root=root)
    assert not root.exists() and not bench.model.prompts


def test_what_does_not_go_together(tmp_path: Path) -> None:
    model = sp.attach(tiny.model("bert"))
    configs = {
        "mpt": sp.MPTConfig(num_virtual_tokens=3),
        "long": sp.MPTConfig(num_virtual_tokens=4),
        "attempt": method("attempt", tmp_path),
        "wide": sp.AttemptConfig(sources=saved(tmp_path / "x", hidden_size=16), bottleneck=5),
    }
    for name, config in configs.items():
        model.add_prompt(name, config)
    for one, other, message in (
        ("mpt", "long", "only mpt prompts of one length"),
        ("mpt", "mpt", "only mpt prompts of one length"),
        ("mpt", "attempt", "only mpt prompts of one length"),
        ("attempt", "wide", "only attempt prompts of one bottleneck"),
        ("attempt", "mpt", "only attempt prompts of one bottleneck"),
    ):
        with pytest.raises(sp.SoftPromptError, match=message):
            model.prompts[one].method.share_with(model.prompts[other].method)
