"""Lanes that draw random numbers while they train (dropout, router noise, a head's dropout) equal the runs alone."""

from __future__ import annotations

import copy
import random
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import warm

import softprompts as sp
from softprompts.injection.state import state_of
from softprompts.storage.run_folder import load_metrics
from softprompts.training import Evaluation, Lane, LaneResult, TrainConfig, train
from softprompts.training.progress import flat

DROPOUT = sp.MultiMaskConfig(num_virtual_tokens=3, num_masks=3, router_dropout=0.5)
NOISE = sp.MultiMaskConfig(num_virtual_tokens=3, num_masks=2, router_noise=True, l1_lambda=1e-2)
METHODS: dict[str, sp.MethodConfig] = {
    **{name: tiny.METHODS[name] for name in ("prompt-tuning", "prefix-mlp", "superpos", "ept", "selective-prefix")},
    "dropout": DROPOUT,
    "noise": NOISE,
    "single-mask": sp.MultiMaskConfig(num_virtual_tokens=2, num_masks=1, router_dropout=0.5),
    "smop-noise": sp.SMoPConfig(num_virtual_tokens=2, num_prompts=3),
    "smop-dropout": sp.SMoPConfig(num_virtual_tokens=2, num_prompts=3, router_noise=False, router_dropout=0.5),
    "residual": sp.ResidualConfig(num_virtual_tokens=2, bottleneck=4, dropout=0.5),
    "lstm": sp.PTuningConfig(num_virtual_tokens=3, encoder="lstm", hidden_size=4, lstm_dropout=0.5),
    "head-only": sp.HeadOnlyConfig(),
    "lora": sp.LoraConfig(rank=2, dropout=0.5),
    "bitfit": sp.BitFitConfig(),
    "full": sp.FullConfig(),
    "adapterdrop": sp.AdapterDropConfig(reduction=4, robust=True),
    "adamix": sp.AdaMixConfig(bottleneck=3),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"max_steps": 3, "seed": 2},  # leaves early
    "prefix-mlp": {"batch_size": 5, "seed": 1},
    "dropout": {"gradient_accumulation_steps": 3, "batch_size": 4, "seed": 5},
    "noise": {"batch_size": 7, "seed": 5, "eval_every": 3},
    "smop-noise": {"batch_size": 5, "seed": 3},
    "ept": {"optimizer": "adafactor"},
    "lora": {"gradient_accumulation_steps": 2, "batch_size": 6, "seed": 3},
    "adamix": {"max_steps": 5, "batch_size": 7},
}

Numbers = tuple[LaneResult, list[float], dict[str, torch.Tensor]]


def run(model: Any, lanes: Sequence[Lane], pad_id: int = 0) -> dict[str, Numbers]:
    """Trains, and hands over each lane's result, its loss in every step and its last prompt."""
    losses: dict[str, list[float]] = {lane.name: [] for lane in lanes}
    last: dict[str, dict[str, torch.Tensor]] = {}

    def watch(lane: Lane) -> None:
        update = lane.update

        def noted(loss: float, norm: float) -> None:
            losses[lane.name].append(loss)
            update(loss, norm)
            last[lane.name] = copy.deepcopy(dict(model.prompts[lane.name].state_dict()))

        lane.update = noted  # type: ignore[method-assign]

    for lane in lanes:
        watch(lane)
    torch.manual_seed(random.randrange(1000))  # where the caller's generators are must not matter
    results = train(model, lanes, pad_id=pad_id)
    return {result.name: (result, losses[result.name], last[result.name]) for result in results}


def assert_lanes_equal_runs_alone(build: Callable[[list[str]], tuple[Any, list[Lane]]], names: list[str]) -> None:
    together = run(*build(names))
    for name in names:
        (one, losses, prompt) = run(*build([name]))[name]
        two, others, other = together[name]
        assert losses == pytest.approx(others, abs=1e-9, rel=0)
        assert (one.stop_reason, one.steps, one.best_step) == (two.stop_reason, two.steps, two.best_step)
        assert one.metrics == pytest.approx(two.metrics, abs=1e-9)
        for mine, theirs in zip(one.history, two.history, strict=True):
            assert flat(mine) == pytest.approx(flat(theirs), abs=1e-9)
        assert prompt.keys() == other.keys()
        for key, value in prompt.items():
            torch.testing.assert_close(value, other[key], rtol=0, atol=1e-9, msg=f"{name}: {key}")


def prompted(model: Any, names: list[str], num_labels: int | None = None, **fields: Any) -> Any:
    for name in names:
        model.add_prompt(name, METHODS[name], num_labels=num_labels, seed=len(name))
        model.prompts[name].double()
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_method(toy: Any, checkpointing: bool) -> None:
    def build(names: list[str]) -> tuple[Any, list[Lane]]:
        model = prompted(toy.model(double=True), names, 2)
        if checkpointing:
            model.gradient_checkpointing_enable()
        return model, [toy.lane(name, **{"epochs": 2, **SETTINGS.get(name, {})}) for name in names]

    assert_lanes_equal_runs_alone(build, list(METHODS))


def test_order_and_company_do_not_matter(toy: Any) -> None:
    def build(names: list[str]) -> tuple[Any, list[Lane]]:
        return prompted(toy.model(double=True), names, 2), [toy.lane(name, seed=4) for name in names]

    results = [run(*build(names))["noise"] for names in (["noise", "dropout"], ["single-mask", "dropout", "noise"])]
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-9, rel=0)
    for key, value in results[0][2].items():
        torch.testing.assert_close(value, results[1][2][key], rtol=0, atol=1e-9)


def test_a_heads_dropout() -> None:
    draw = random.Random(3)
    # RoBERTa's classification head drops half of what comes in and of what its first layer makes of it.
    rows = [
        {"input_ids": [draw.randrange(5, 60) for _ in range(draw.randrange(3, 9))], "label": draw.randrange(2)}
        for _ in range(24)
    ]

    def build(names: list[str]) -> tuple[Any, list[Lane]]:
        model = prompted(sp.attach(tiny.model("roberta", classifier_dropout=0.5)), names, 2)
        config = {"batch_size": 6, "epochs": 3}
        return model, [
            Lane(name, TrainConfig(**{**config, "seed": len(name)}), rows, validation=Evaluation(rows))
            for name in names
        ]

    model, lanes = build(["head-only"])
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.5 for m in model.prompts["head-only"].head.modules())
    assert_lanes_equal_runs_alone(build, ["head-only", "dropout", "prompt-tuning", "prefix-mlp"])
    # It is on, and its draws follow from the seed.
    first, again = (run(*build(["head-only"]))["head-only"][1] for _ in range(2))
    assert first == again
    lanes[0].config = TrainConfig(batch_size=6, epochs=3, seed=77)
    assert run(model, lanes)["head-only"][1] != first


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_language_models(family: str) -> None:
    draw = random.Random(4)
    rows = []
    for _ in range(20):
        ids, label = [draw.randrange(10, 60) for _ in range(draw.randrange(3, 8))], draw.randrange(2)
        answer = [[5], [6, 7]][label]
        if family == "llama":
            labels = [-100] * len(ids) + answer
            rows.append({"input_ids": ids + answer, "labels": labels, "label": label})
        else:
            rows.append({"input_ids": ids, "labels": answer, "label": label})

    def build(names: list[str]) -> tuple[Any, list[Lane]]:
        model = prompted(sp.attach(tiny.model(family)), names)
        return model, [
            Lane(
                name,
                TrainConfig(**{"batch_size": 5, "epochs": 2, **SETTINGS.get(name, {})}),
                rows,
                validation=Evaluation(rows, label_ids=[[5], [6, 7]]),
            )
            for name in names
        ]

    assert_lanes_equal_runs_alone(build, ["prompt-tuning", "dropout", "prefix-mlp", "noise", "smop-noise"])


def test_predictions_that_draw(toy: Any) -> None:
    """A lane whose own way to predict is random (sampled answers) keeps its sequence as well, and others theirs."""

    def sampled(model: Any, features: Any, name: str) -> Any:
        from softprompts.training.prediction import Prediction

        return Prediction(torch.randint(0, 2, (len(features),)).tolist(), None)

    def build(names: list[str]) -> tuple[Any, list[Lane]]:
        lanes = [
            Lane(
                name,
                TrainConfig(batch_size=8, epochs=2, eval_every=2, seed=9),
                toy.train,
                validation=Evaluation(toy.validation, predict=sampled),
            )
            for name in names
        ]
        return prompted(toy.model(double=True), names, 2), lanes

    assert_lanes_equal_runs_alone(build, ["noise", "dropout"])


def test_nothing_is_left_behind(toy: Any) -> None:
    names = ["noise", "dropout"]
    model = prompted(toy.model(double=True), names, 2)
    lanes = [toy.lane(name, max_steps=2) for name in names]
    seen: list[Any] = []
    update = lanes[0].update

    def look(loss: float, norm: float) -> None:
        update(loss, norm)
        seen.append((set(state_of(model).random_contexts), state_of(copy.deepcopy(model)).random_contexts))

    lanes[0].update = look
    before = torch.get_rng_state()
    train(model, lanes, pad_id=toy.pad)
    assert seen == [(set(names), None)] * 2
    assert state_of(model).random_contexts is None
    assert torch.equal(before, torch.get_rng_state())


def test_backbone_dropout_is_shared_but_repeatable(toy: Any) -> None:
    def losses() -> list[list[float]]:
        model = prompted(toy.model(double=True), ["noise", "dropout"], 2)
        lanes = [toy.lane(name, max_steps=3, backbone_dropout=True) for name in ("noise", "dropout")]
        return [numbers[1] for numbers in run(model, lanes).values()]

    assert losses() == losses()


RUN = """
import os, pathlib, runpy, signal, sys, torch
folder, kill_at = pathlib.Path(sys.argv[2]), int(sys.argv[3])
from tests.training.test_randomness import killable
from softprompts.training import Lane, train
torch.set_num_threads(1)
update = Lane.update
def killed(self, *args):
    if self.step == kill_at and self.name == "noise":
        os.kill(os.getpid(), signal.SIGKILL)
    update(self, *args)
Lane.update = killed
toy = runpy.run_path(sys.argv[1] + "/training/conftest.py")["Toy"]
train(*killable(toy, ["noise", "noisy", "dropout"], folder), pad_id=toy.pad)
"""


def killable(toy: Any, names: list[str], folder: Path | None = None) -> tuple[Any, list[Lane]]:
    """Lanes that are evaluated, and so checkpointed, in different steps."""
    model, lanes = toy.model(double=True), []
    for name in names:
        if name == "noisy":
            toy.add(model, name, name, double=True)
        else:
            prompted(model, [name], 2)
        every = {"noise": 3, "noisy": 5, "dropout": 4}[name]
        lanes.append(toy.lane(name, None if folder is None else folder / name, eval_every=every, seed=every))
    return model, lanes


def test_kill_and_resume_several(toy: Any, tmp_path: Path) -> None:
    kill_at = random.randint(6, 17)
    print("killed in step", kill_at)
    names = ["noise", "noisy", "dropout"]
    command = [sys.executable, "-c", RUN, str(Path(__file__).parents[1]), str(tmp_path), str(kill_at)]
    killed = warm.run(command)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list(tmp_path.rglob("result.json"))
    states = [torch.load(tmp_path / name / "checkpoint" / "lane.pt", weights_only=True) for name in names]
    assert len({state["step"] for state in states}) > 1 or kill_at == 12

    resumed = run(*killable(toy, names, tmp_path))
    undisturbed = run(*killable(toy, names))
    for name in names:
        alone = run(*killable(toy, [name]))[name]
        for other in (undisturbed[name], alone):
            assert resumed[name][0].metrics == pytest.approx(other[0].metrics, abs=1e-9)
            for one, two in zip(resumed[name][0].history, other[0].history, strict=True):
                assert flat(one) == pytest.approx(flat(two), abs=1e-9)
            for key, value in resumed[name][2].items():
                torch.testing.assert_close(value, other[2][key], rtol=0, atol=1e-9, msg=f"{name}: {key}")
        assert load_metrics(tmp_path / name) == resumed[name][0].history
