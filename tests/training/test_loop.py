import dataclasses
import json
import math
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from accelerate import Accelerator

from softprompts import SoftPromptError
from softprompts.storage.run_folder import load_metrics
from softprompts.training import Evaluation, Lane, TrainConfig, load_result, train
from softprompts.training.progress import flat

RUN = """
import os, runpy, signal, sys, torch
toy = runpy.run_path(sys.argv[1])["Toy"]
from softprompts.training import Lane, train
torch.set_num_threads(1)
folder, method, kill_at = sys.argv[2], sys.argv[3], int(sys.argv[4])
update = Lane.update
def killed(self, *args):
    if self.step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    update(self, *args)
Lane.update = killed
model = toy.add(toy.model(), "a", method)
train(model, [toy.lane(folder=folder, eval_every=4)], pad_id=toy.pad)
"""


def prompt(model: Any, name: str = "a") -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.prompts[name].state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-9, msg=key)


def numbers(result: Any) -> dict[str, Any]:
    measured = {"seconds": None, "step_seconds": None, "peak_memory": None}
    return {**result.to_dict(), **measured, "history": result.history}


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_learns(toy: Any, method: str, optimizer: str) -> None:
    model = toy.add(toy.model(), "a", method)
    before = {key: value.clone() for key, value in model.state_dict().items() if "prompts." not in key}
    (result,) = train(model, [toy.lane(epochs=10, optimizer=optimizer)], pad_id=toy.pad)
    assert result.stop_reason == "max_steps"
    assert result.done
    assert result.steps == 60
    assert result.history[-1]["loss"] < 0.9 * result.history[0]["loss"]
    majority = max(sum(row["label"] == k for row in toy.validation) for k in (0, 1)) / len(toy.validation)
    assert result.score is not None
    assert result.score > majority + 0.1
    assert result.metrics == {"accuracy": result.score}
    assert_equal(before, {key: value for key, value in model.state_dict().items() if "prompts." not in key})


def test_the_seed_decides(toy: Any) -> None:
    def run(seed: int) -> Any:
        model = toy.add(toy.model(), "a", "noisy")
        train(model, [toy.lane(max_steps=5, seed=seed)], pad_id=toy.pad)
        return prompt(model)

    first = run(0)
    torch.rand(3)  # what the caller draws must not matter
    assert_equal(first, run(0))
    assert not torch.equal(first["method.prompt"], run(1)["method.prompt"])


def test_the_callers_random_state_and_mode_are_left_alone(toy: Any) -> None:
    model = toy.add(toy.model(), "a", "noisy").eval()
    handler = signal.getsignal(signal.SIGINT)
    state = torch.get_rng_state()
    train(model, [toy.lane(max_steps=2)], pad_id=toy.pad)
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training
    assert signal.getsignal(signal.SIGINT) is handler


LANES = {
    "a": ("prompt-tuning", {"learning_rate": 0.1, "epochs": 4}),
    "b": ("prefix-tuning", {"seed": 3, "batch_size": 5, "schedule": "constant", "max_grad_norm": 0.01}),
    # Leaves early, after one evaluation that brings nothing: its learning rate is next to nothing.
    "c": ("prompt-tuning", {"seed": 1, "patience": 1, "eval_every": 2, "epochs": 9, "optimizer": "adafactor"}),
    "d": ("prefix-tuning", {"gradient_accumulation_steps": 2, "batch_size": 4, "warmup_steps": 3}),
}
LANES["c"][1].update({"learning_rate": 1e-12, "learning_rates": {"head": 1e-12}})


def test_lanes_equal_the_runs_alone(toy: Any) -> None:
    def build(names: Any) -> Any:
        model = toy.model(double=True)
        for name in names:
            toy.add(model, name, LANES[name][0], seed=len(name), double=True)
        return model, [toy.lane(name, **LANES[name][1]) for name in names]

    together, lanes = build(LANES)
    results = train(together, lanes, pad_id=toy.pad)
    assert [result.stop_reason for result in results] == ["max_steps", "max_steps", "patience", "max_steps"]
    assert results[2].steps == 4
    for name, shared in zip(LANES, results, strict=True):
        alone, lane = build([name])
        (result,) = train(alone, lane, pad_id=toy.pad)
        assert_close(prompt(together, name), prompt(alone, name))
        assert (result.steps, result.best_step, result.metrics) == (shared.steps, shared.best_step, shared.metrics)
        for one, two in zip(result.history, shared.history, strict=True):
            assert flat(one) == pytest.approx(flat(two), abs=1e-9)


def test_accumulation_equals_the_big_batch(toy: Any) -> None:
    prompts = []
    for fields in ({"batch_size": 15}, {"batch_size": 5, "gradient_accumulation_steps": 3}):
        model = toy.add(toy.model(double=True), "a", double=True)
        # 48 rows: the last step of an epoch has only three.
        (result,) = train(model, [toy.lane(epochs=2, **fields)], pad_id=toy.pad)
        assert result.steps == 8
        prompts.append(prompt(model))
    assert_close(*prompts)


def test_penalty_joins_the_loss_once(toy: Any) -> None:
    prompts = []
    for fields in ({"batch_size": 12}, {"batch_size": 4, "gradient_accumulation_steps": 3}):
        model = toy.add(toy.model(double=True), "a", "noisy", double=True)
        model.prompts["a"].method.dropout.p = 0.0
        train(model, [toy.lane(max_steps=4, max_grad_norm=None, **fields)], pad_id=toy.pad)
        prompts.append(prompt(model))
    assert_close(*prompts)


@pytest.mark.parametrize("method", ["prompt-tuning", "noisy"])
def test_kill_and_resume(toy: Any, method: str, tmp_path: Path) -> None:
    kill_at = random.randint(5, 17)
    print("killed in step", kill_at)
    command = [sys.executable, "-c", RUN, str(Path(__file__).parent / "conftest.py"), str(tmp_path), method]
    killed = warm.run([*command, str(kill_at)])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "result.json").exists()

    resumed, undisturbed = (toy.add(toy.model(), "a", method) for _ in range(2))
    (one,) = train(resumed, [toy.lane(folder=tmp_path, eval_every=4)], pad_id=toy.pad)
    (two,) = train(undisturbed, [toy.lane(eval_every=4)], pad_id=toy.pad)
    assert numbers(one) == numbers(two)
    assert_equal(prompt(resumed), prompt(undisturbed))
    assert load_metrics(tmp_path) == two.history
    assert [line["step"] for line in two.history] == [4, 8, 12, 16, 18]


def test_run_folder(toy: Any, tmp_path: Path) -> None:
    model = toy.add(toy.model(), "a")
    lane = Lane(
        "a",
        TrainConfig(batch_size=8, max_steps=12),
        toy.train,
        validation=Evaluation(toy.validation, metrics=("macro_f1", "accuracy")),
        folder=tmp_path,
        record={"task": "toy"},
    )
    (result,) = train(model, [lane], pad_id=toy.pad)
    saved = load_result(tmp_path)
    assert saved == {"task": "toy", **result.to_dict()}
    assert result.score == result.metrics["macro_f1"]
    assert load_metrics(tmp_path) == result.history
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    metadata = json.loads((tmp_path / "prompt" / "softprompt_config.json").read_text())["metadata"]
    assert metadata["score"] == result.score
    assert metadata["training"] == lane.config.to_dict()
    fresh = toy.model()
    fresh.load_prompt(tmp_path / "prompt", name="a")
    assert_equal(prompt(fresh), prompt(model))
    with pytest.raises(SoftPromptError, match="finished"):
        train(model, [toy.lane(folder=tmp_path)], pad_id=toy.pad)


def test_resume_with_other_settings_is_refused(toy: Any, tmp_path: Path) -> None:
    model = toy.add(toy.model(), "a")
    stop_after(1)(lane := toy.lane(folder=tmp_path))
    (result,) = train(model, [lane], pad_id=toy.pad)
    assert result.stop_reason == "interrupted"
    with pytest.raises(SoftPromptError, match=r"made otherwise \(batch_size is 8 there, 4 here\); start a new run"):
        train(model, [toy.lane(folder=tmp_path, batch_size=4)], pad_id=toy.pad)
    with pytest.raises(SoftPromptError, match=r"made otherwise \(group_by_length is"):
        train(model, [toy.lane(folder=tmp_path, group_by_length=False)], pad_id=toy.pad)
    (tmp_path / "checkpoint" / "lane.pt").write_bytes(b"junk")
    with pytest.raises(SoftPromptError, match=r"lane\.pt is damaged"):
        train(model, [toy.lane(folder=tmp_path)], pad_id=toy.pad)


def stop_after(step: int, number: int = signal.SIGINT) -> Any:
    """Has a lane send its own process a signal after a step."""

    def prepare(lane: Lane) -> None:
        update = lane.update

        def signalling(loss: float, norm: float) -> None:
            update(loss, norm)
            if lane.step == step:
                os.kill(os.getpid(), number)

        lane.update = signalling  # type: ignore[method-assign]

    return prepare


@pytest.mark.parametrize(("number", "optimizer"), [(signal.SIGINT, "adamw"), (signal.SIGTERM, "adafactor")])
def test_interrupt_and_resume(toy: Any, tmp_path: Path, number: int, optimizer: str) -> None:
    lane = toy.lane(folder=tmp_path, optimizer=optimizer)
    stop_after(8, number)(lane)
    model, undisturbed = (toy.add(toy.model(), "a", "noisy") for _ in range(2))
    (stopped,) = train(model, [lane], pad_id=toy.pad)
    assert stopped.stop_reason == "interrupted"
    assert not stopped.done
    assert stopped.steps in (8, 9)
    assert not (tmp_path / "result.json").exists()

    resumed = toy.add(toy.model(), "a", "noisy")
    (one,) = train(resumed, [toy.lane(folder=tmp_path, optimizer=optimizer)], pad_id=toy.pad)
    (two,) = train(undisturbed, [toy.lane(optimizer=optimizer)], pad_id=toy.pad)
    assert numbers(one) == numbers(two)
    assert_equal(prompt(resumed), prompt(undisturbed))


@pytest.mark.parametrize("how", ["huge rate", "nan"])
def test_non_finite_stops_only_that_lane(toy: Any, how: str, tmp_path: Path) -> None:
    model = toy.add(toy.add(toy.model(double=True), "a", double=True), "b", double=True)
    lanes = [toy.lane("a", eval_every=3), toy.lane("b", folder=tmp_path, eval_every=3)]
    kept: dict[str, torch.Tensor] = {}
    if how == "huge rate":
        lanes[1] = toy.lane("b", folder=tmp_path, learning_rates={"prompt": 1e300, "head": 1e300})
    else:
        record_evaluation = lanes[1].record_evaluation

        def poison(*evaluation: Any) -> None:
            kept.update(prompt(model, "b"))
            record_evaluation(*evaluation)
            model.prompts["b"].method.prompt.data[0, 0] = math.nan

        lanes[1].record_evaluation = poison
    healthy, failed = train(model, lanes, pad_id=toy.pad)
    assert failed.stop_reason == "non-finite loss"
    assert failed.done
    assert "run 'b' stopped: the loss is" in failed.message
    assert load_result(tmp_path)["stop_reason"] == "non-finite loss"
    assert all(value.isfinite().all() for value in prompt(model, "b").values())
    load_prompt = toy.model(double=True)
    load_prompt.load_prompt(tmp_path / "prompt")
    if how == "nan":
        assert failed.best_step == 3
        assert failed.score is not None
        assert_equal(prompt(model, "b"), kept)
    else:
        assert failed.best_step == 0
        assert failed.score is None

    alone = toy.add(toy.model(double=True), "a", double=True)
    (result,) = train(alone, [toy.lane("a", eval_every=3)], pad_id=toy.pad)
    assert healthy.stop_reason == "max_steps"
    assert_close(prompt(model), prompt(alone))
    assert healthy.metrics == result.metrics


def test_patience_and_best(toy: Any) -> None:
    scores = iter([0.1, 0.5, 0.4, math.nan, 0.5, 0.9])
    states = []
    model = toy.add(toy.model(), "a")
    lane = toy.lane(eval_every=1, patience=3)

    def score(*_: Any) -> dict[str, float]:
        states.append(prompt(model))
        return {"accuracy": next(scores)}

    lane.validation = dataclasses.replace(lane.validation, score=score)
    (result,) = train(model, [lane], pad_id=toy.pad)
    assert result.stop_reason == "patience"
    assert result.message == "no better score for 3 evaluations"
    assert (result.steps, result.best_step, result.score) == (5, 2, 0.5)
    assert_equal(prompt(model), states[1])
    assert result.history[3]["accuracy"] is None  # JSON has no NaN


def test_without_evaluation_the_last_prompt_is_kept(toy: Any) -> None:
    model = toy.add(toy.model(), "a")
    (result,) = train(model, [toy.lane(validation=None, max_steps=7, patience=1)], pad_id=toy.pad)
    assert (result.steps, result.best_step, result.score, result.metrics) == (7, 7, None, {})


def test_bf16(toy: Any) -> None:
    model = toy.add(toy.model(), "a")
    (result,) = train(model, [toy.lane(bf16=True, epochs=8)], pad_id=toy.pad)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert model.prompts["a"].method.prompt.dtype == torch.float32
    exact = toy.add(toy.model(), "a")
    (other,) = train(exact, [toy.lane(epochs=8)], pad_id=toy.pad)
    assert other.history != result.history


def test_backbone_dropout(toy: Any) -> None:
    losses = []
    for dropout in (None, False, True):
        model = toy.add(toy.model(), "a")
        (result,) = train(model, [toy.lane(max_steps=2, backbone_dropout=dropout)], pad_id=toy.pad)
        losses.append(result.history[-1]["loss"])
        assert not model.train().bert.training
    assert losses[0] == losses[1] != losses[2]


def test_regression(toy: Any) -> None:
    rows = [{**row, "label": float(row["label"])} for row in toy.train]
    model = toy.model()
    model.add_prompt("a", toy.add(model, "x").prompts["x"].config, num_labels=1, seed=0)
    lane = Lane(
        "a",
        TrainConfig(batch_size=8, epochs=12),
        rows,
        validation=Evaluation(rows, metrics=("pearson", "spearman")),
    )
    (result,) = train(model, [lane], pad_id=toy.pad)
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]
    assert result.score is not None
    assert result.score > 0.5


def test_tensorboard(toy: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = toy.add(toy.add(toy.model(), "a"), "b")
    lanes = [toy.lane(name, folder=tmp_path / name, max_steps=6) for name in "ab"]
    results = train(model, lanes, pad_id=toy.pad, trackers="tensorboard")
    (events,) = (path for path in (tmp_path / "trackers").glob("events*"))
    reader = EventAccumulator(str(events.parent))
    reader.Reload()
    assert {"a/loss", "b/loss", "a/accuracy", "a/learning_rate/prompt", "a/learning_rate/head"} <= set(
        reader.Tags()["scalars"]
    )
    assert [event.step for event in reader.Scalars("a/loss")] == [1, 2, 3, 4, 5, 6]
    assert reader.Scalars("b/accuracy")[-1].value == pytest.approx(results[1].history[-1]["accuracy"])
    moved = reader.Scalars("b/vitals/moved.prompt")
    assert [(event.step, event.value) for event in moved] == [(6, pytest.approx(results[1].vitals["moved.prompt"]))]


def test_what_cannot_share_a_pass(toy: Any) -> None:
    model = toy.add(toy.add(toy.model(), "a"), "b")
    values = [{**row, "label": 0.5} for row in toy.train]
    for lanes, message in (
        ([], "no runs"),
        ([toy.lane(), toy.lane()], "share the prompt 'a'"),
        ([toy.lane("aa")], "no prompt 'aa'; did you mean 'a'|no prompt 'aa'; known"),
        ([toy.lane(), toy.lane("b", bf16=True)], "agree in bf16"),
        ([toy.lane(folder="x"), toy.lane("b", folder="x")], "share the folder 'x'"),
        ([toy.lane(), toy.lane("b", train=values)], "kind of labels"),
        ([toy.lane(train=[{"input_ids": [1]}])], "neither 'label', 'labels' nor 'span'"),
    ):
        with pytest.raises(SoftPromptError, match=message):
            train(model, lanes, pad_id=toy.pad)
    with pytest.raises(SoftPromptError, match="gradient_accumulation_steps in TrainConfig"):
        train(model, [toy.lane()], pad_id=toy.pad, accelerator=Accelerator(gradient_accumulation_steps=2))


def test_bad_lanes(toy: Any) -> None:
    with pytest.raises(SoftPromptError, match="nothing to train on"):
        toy.lane(train=[])
    with pytest.raises(SoftPromptError, match="nothing to evaluate on"):
        toy.lane(validation=[])
    with pytest.raises(SoftPromptError, match="have no 'label'"):
        toy.lane(validation=[{"input_ids": [1]}])


def test_a_lane_is_trained_once(toy: Any) -> None:
    model, lane = toy.add(toy.model(), "a"), toy.lane(max_steps=1)
    train(model, [lane], pad_id=toy.pad)
    with pytest.raises(SoftPromptError, match="trained already"):
        train(model, [lane], pad_id=toy.pad)


def test_killed_right_before_the_result(toy: Any, tmp_path: Path) -> None:
    model = toy.add(toy.model(), "a")
    (one,) = train(model, [toy.lane(folder=tmp_path)], pad_id=toy.pad)
    (tmp_path / "result.json").unlink()
    again = toy.add(toy.model(), "a")
    (two,) = train(again, [toy.lane(folder=tmp_path)], pad_id=toy.pad)
    assert numbers(one) == numbers(two)
    assert_equal(prompt(model), prompt(again))
    assert load_result(tmp_path)["score"] == one.score


def test_progress_bar(toy: Any, monkeypatch: Any, capsys: Any) -> None:
    (result,) = train(toy.add(toy.model(), "a"), [toy.lane(max_steps=6, eval_every=3)], pad_id=toy.pad)
    lines = capsys.readouterr().err.splitlines()  # not a terminal
    assert len(lines) == 2 and "step 3/6  loss 0." in lines[0] and lines[0].endswith(" s left")
    assert f"step 6/6  loss {result.history[1]['loss']:.4f}" in lines[1] and lines[1].endswith("max_steps")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    train(toy.add(toy.model(), "a"), [toy.lane(max_steps=6)], pad_id=toy.pad, progress=False)
    assert capsys.readouterr().err == ""
    (result,) = train(toy.add(toy.model(), "a"), [toy.lane(max_steps=6)], pad_id=toy.pad)
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "loss 0." in shown
    assert f"accuracy {result.score:.4f}, best {result.score:.4f}" in shown
    monkeypatch.setenv("COLUMNS", "50")
    train(toy.add(toy.model(), "a"), [toy.lane(max_steps=6)], pad_id=toy.pad)
    shown = capsys.readouterr().err
    assert "6/6" in shown and "0:00:00" in shown and "…" in shown


def test_a_lane_that_leaves_writes_its_result_at_once(toy: Any, tmp_path: Path) -> None:
    model = toy.add(toy.add(toy.model(), "a"), "b")
    short, long = toy.lane("a", folder=tmp_path / "a", max_steps=2), toy.lane("b", folder=tmp_path / "b")
    update, handler = long.update, signal.getsignal(signal.SIGINT)

    def fail(loss: float, norm: float) -> None:
        if long.step == 2:
            assert load_result(tmp_path / "a")["steps"] == 2
            raise KeyboardInterrupt  # as a second Ctrl-C would
        update(loss, norm)

    long.update = fail
    with pytest.raises(KeyboardInterrupt):
        train(model, [short, long], pad_id=toy.pad)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "b" / "result.json").exists()


@pytest.mark.parametrize(
    ("part", "value", "validated", "message"),
    [
        ("method.prompt", math.inf, True, "not all of its parameters are finite after step 1"),
        ("method.prompt", math.inf, False, "not all of its parameters are finite after step 1"),
        ("head.classifier.weight", 3e38, True, "its predictions after step 1 are not finite"),
    ],
)
def test_a_diverged_prompt_is_never_the_best(toy: Any, part: str, value: float, validated: bool, message: str) -> None:
    # The only step ends beyond all bounds, and is evaluated before another loss could tell.
    model = toy.add(toy.model(), "a")
    before = prompt(model)
    lane = toy.lane(max_steps=1, validation=toy.validation if validated else None)
    update = lane.update

    def diverge(loss: float, norm: float) -> None:
        update(loss, norm)
        model.prompts["a"].get_parameter(part).data.fill_(value)

    lane.update = diverge
    (result,) = train(model, [lane], pad_id=toy.pad)
    assert result.stop_reason == "non-finite loss"
    assert result.message == f"run 'a' stopped: {message}; of its prompt, its starting values are kept"
    assert (result.best_step, result.score) == (0, None)
    assert_equal(prompt(model), before)
