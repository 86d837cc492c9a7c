"""Lanes that share passes: scoring together, pausing, and what happens when memory runs out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompts as sp
from softprompts.tasks import length_bucketed_batches
from softprompts.tasks.batches import shuffled_batches
from softprompts.training import Evaluation, Lane, TrainConfig, predict, train
from softprompts.training.evaluation import evaluate
from softprompts.training.memory import free_memory, out_of_memory, step_memory
from softprompts.training.progress import flat

METHODS = ("prompt-tuning", "prefix-tuning", "multi-mask", "head-only")


def config(method: str) -> Any:
    return sp.make_config(method) if method == "head-only" else sp.make_config(method, num_virtual_tokens=3)


def build(toy: Any, names: Any = METHODS, **fields: Any) -> tuple[Any, list[Lane]]:
    model = toy.model(double=True)
    for name in names:
        made = sp.MultiMaskConfig(num_virtual_tokens=3, router_dropout=0.3) if name == "multi-mask" else config(name)
        model.add_prompt(name, made, num_labels=2, seed=1)
        model.prompts[name].double()
    return model, [toy.lane(name, seed=len(name), **fields) for name in names]


def state(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.prompts.state_dict().items()}


class Calls:
    """Counts forward passes and the rows in them; runs out of memory where there are more rows than fit."""

    def __init__(self, model: Any, fits: int = 10**9, trained: bool | None = None):
        self.rows: list[int] = []
        self.fits = fits

        def before(module: Any, args: Any, kwargs: Any) -> None:
            rows = len(kwargs["input_ids"])
            if trained in (None, torch.is_grad_enabled()):
                if rows > self.fits:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
                self.rows.append(rows)

        model.register_forward_pre_hook(before, with_kwargs=True)


def test_out_of_memory_halves_the_lanes_of_a_pass_and_changes_no_number(toy: Any) -> None:
    expected, lanes = build(toy, epochs=2, gradient_accumulation_steps=2, batch_size=4)
    wanted = train(expected, lanes, pad_id=toy.pad)
    model, lanes = build(toy, epochs=2, gradient_accumulation_steps=2, batch_size=4)
    calls = Calls(model, fits=9, trained=True)
    got = train(model, lanes, pad_id=toy.pad)
    assert max(calls.rows) == 8  # two lanes of four rows
    for one, two in zip(wanted, got, strict=True):
        assert one.metrics == two.metrics
        for mine, theirs in zip(one.history, two.history, strict=True):
            assert flat(mine) == pytest.approx(flat(theirs), abs=1e-9)
    other = state(model)
    for key, value in state(expected).items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=1e-9, msg=key)


def test_out_of_memory_in_the_backward_pass(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, lanes = build(toy, max_steps=3)
    train(expected, lanes, pad_id=toy.pad)
    model, lanes = build(toy, max_steps=3)
    backward, failed = torch.Tensor.backward, []

    def failing(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        backward(self, *args, **kwargs)
        if len(failed) < 2:  # gradients are there by now
            failed.append(True)
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )

    monkeypatch.setattr(torch.Tensor, "backward", failing)
    train(model, lanes, pad_id=toy.pad)
    assert failed == [True, True]
    other = state(model)
    for key, value in state(expected).items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=1e-9, msg=key)


def test_out_of_memory_with_one_lane_is_one_line(toy: Any) -> None:
    model, lanes = build(toy)
    Calls(model, fits=7, trained=True)
    with pytest.raises(sp.SoftPromptError, match="out of memory in a step of 8 rows; set batch_size lower") as caught:
        train(model, lanes, pad_id=toy.pad)
    assert "\n" not in str(caught.value)


def test_other_errors_pass(toy: Any) -> None:
    model, lanes = build(toy)

    def fail(*_: Any) -> None:
        raise RuntimeError("something else")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="something else"):
        train(model, lanes, pad_id=toy.pad)


def test_lanes_are_scored_together(toy: Any) -> None:
    model, lanes = build(toy, eval_batch_size=16)
    calls = Calls(model, trained=False)
    asked = [(lane.name, lane.validation) for lane in lanes]
    found = evaluate(model, asked, toy.pad)
    assert calls.rows == [16] * 8  # 4 lanes of 32 rows
    for (name, evaluation), metrics in zip(asked, found, strict=True):
        assert metrics == evaluation.scores(predict(model, toy.validation, name, pad_id=toy.pad))


def test_scoring_goes_on_with_smaller_batches(toy: Any) -> None:
    model, lanes = build(toy, eval_batch_size=32)
    wanted = evaluate(model, [(lane.name, lane.validation) for lane in lanes], toy.pad)
    calls = Calls(model, fits=10)
    assert evaluate(model, [(lane.name, lane.validation) for lane in lanes], toy.pad) == wanted
    assert max(calls.rows) == 8
    calls.fits = 0
    with pytest.raises(sp.SoftPromptError, match="out of memory with a single row"):
        evaluate(model, [(lanes[0].name, lanes[0].validation)], toy.pad)


def test_different_tasks(toy: Any) -> None:
    """Lanes on other rows, with another number of classes, share passes and scoring."""
    rows = toy.features(30, seed=7, classes=3)

    def made(names: list[str]) -> tuple[Any, list[Lane]]:
        model, lanes = toy.model(double=True), []
        for name in names:
            classes, data = (3, rows) if name == "three" else (2, toy.train)
            model.add_prompt(name, config("prefix-tuning"), num_labels=classes, seed=2)
            model.prompts[name].double()
            training = TrainConfig(batch_size=6, epochs=3)
            lanes.append(Lane(name, training, data, validation=Evaluation(data, ("accuracy", "macro_f1"))))
        return model, lanes

    together, lanes = made(["three", "two"])
    results = {result.name: result for result in train(together, lanes, pad_id=toy.pad)}
    for name in ("three", "two"):
        alone, lanes = made([name])
        (result,) = train(alone, lanes, pad_id=toy.pad)
        assert result.metrics == pytest.approx(results[name].metrics, abs=1e-9)
        other = together.prompts[name].state_dict()
        for key, value in alone.prompts[name].state_dict().items():
            torch.testing.assert_close(value, other[key], rtol=0, atol=1e-9)


def test_pausing(toy: Any, tmp_path: Path) -> None:
    """A run that is laid aside and taken up, in other company, ends as if nothing had happened."""

    def made(root: Path, names: Any, pause: int | None) -> tuple[Any, list[Lane]]:
        model, lanes = build(toy, names, eval_every=2, epochs=2)
        for lane in lanes:
            lane.folder, lane.pause_at = root / lane.name, pause
        return model, lanes

    model, lanes = made(tmp_path / "whole", METHODS, None)
    whole = train(model, lanes, pad_id=toy.pad)
    model, lanes = made(tmp_path / "parts", METHODS, 4)
    paused = train(model, lanes, pad_id=toy.pad)
    assert {(result.stop_reason, result.steps, result.done) for result in paused} == {("paused", 4, False)}
    assert not (tmp_path / "parts" / METHODS[0] / "result.json").exists()
    ended = {}
    for names in (METHODS[2:], METHODS[:2]):
        model, lanes = made(tmp_path / "parts", names, None)
        ended |= {result.name: result for result in train(model, lanes, pad_id=toy.pad)}
    for result in whole:
        other = ended[result.name]
        assert (other.stop_reason, other.steps, other.metrics) == ("max_steps", 12, result.metrics)
        for mine, theirs in zip(result.history, other.history, strict=True):
            assert flat(mine) == pytest.approx(flat(theirs), abs=1e-9)


def test_times_are_shared(toy: Any) -> None:
    model, lanes = build(toy, max_steps=2)
    results = train(model, lanes, pad_id=toy.pad)
    assert {result.lanes for result in results} == {4}
    assert sum(result.step_seconds for result in results) <= results[0].seconds + 0.01


def test_lengths_come_in_the_same_order_for_every_seed() -> None:
    draw = random.Random(0)
    lengths = [draw.randrange(5, 60) for _ in range(640)]
    widths = [
        [max(lengths[i] for i in batch) for batch in length_bucketed_batches(lengths, 4, seed, epoch=1)]
        for seed in range(4)
    ]
    shared = [max(step) for step in zip(*widths, strict=True)]
    # Hardly any padding more than each alone; in an order of chance it would be half as much again.
    assert sum(shared) < 1.1 * sum(widths[0])
    members = [{frozenset(b) for b in length_bucketed_batches(lengths, 4, seed, epoch=1)} for seed in (0, 1)]
    assert len(members[0] & members[1]) < 10


def test_rows_are_drawn_at_random_where_a_run_says_so(toy: Any) -> None:
    """A lane's batches are those of the same draw, cut without sorting."""
    _, (lane, *_) = build(toy, max_steps=2)
    _, (shuffled, *_) = build(toy, max_steps=2, group_by_length=False)
    sizes = [len(rows) for rows in shuffled._batches(0)]
    assert shuffled._batches(0) == shuffled_batches(len(lane.train_features), sizes[0], lane.config.seed, 0)
    assert lane._batches(0) != shuffled._batches(0)
    assert sorted(i for rows in shuffled._batches(0) for i in rows) == list(range(len(lane.train_features)))


def test_what_counts_as_out_of_memory() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert not out_of_memory(KeyboardInterrupt())


def test_memory_of_a_step() -> None:
    assert free_memory(torch.device("cpu")) > 0
    layer = torch.nn.Linear(8, 8)
    inputs = torch.zeros(100, 8, requires_grad=True)
    # tanh keeps its output for the backward pass, the layer its input; weights do not count.
    size = step_memory(lambda: layer(inputs).tanh().sum(), layer, torch.device("cpu"))
    assert size == int(1.25 * 2 * 100 * 8 * 4)
    assert step_memory(lambda: torch.zeros(()), layer, torch.device("cpu")) == 0
