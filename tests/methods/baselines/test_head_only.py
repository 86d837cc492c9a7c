"""The head alone: the rate that is asked for is the rate of what trains, and its default was searched for."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

import softprompts as sp
from softprompts.training.config import TrainConfig
from softprompts.training.lane import Lane
from softprompts.training.loop import train
from softprompts.training.optim import learning_rates

ROWS = [{"input_ids": [1, 5 + at % 7, 9, 12 + at % 3], "label": at % 3} for at in range(12)]
DEFAULTS = Path(__file__).parents[3] / "docs" / "defaults.md"


def moved(**rates: object) -> torch.Tensor:
    """By how much the head's weight moves in one step."""
    torch.manual_seed(0)
    model = sp.attach(tiny.model("bert", torch.float32), sp.HeadOnlyConfig(), name="p", labels=["a", "b", "c"], seed=0)
    weight = next(model.prompts["p"].head.parameters())
    before = weight.detach().clone()
    lane = Lane("p", TrainConfig(max_steps=1, batch_size=12, warmup_steps=0, schedule="constant", **rates), ROWS)
    train(model, [lane], pad_id=0, progress=False)
    return (weight.detach() - before).abs().max()


def test_the_rate_is_that_of_the_head() -> None:
    components = sp.attach(tiny.model("bert"), sp.HeadOnlyConfig(), name="p").prompts["p"].components()
    assert list(components) == ["head"] and learning_rates(components, TrainConfig()) == {"head": 0.3}
    assert learning_rates(components, TrainConfig(learning_rate=5.0)) == {"head": 5.0}
    assert learning_rates(components, TrainConfig(learning_rates={"head": 2.0})) == {"head": 2.0}


@pytest.mark.parametrize("rate", [0.02, 5.0])
def test_it_moves_what_trains(rate: float) -> None:
    assert moved(learning_rate=rate).item() == pytest.approx(
        rate, rel=0.05
    )  # the first step of Adam is the rate itself
    assert torch.equal(moved(learning_rate=rate), moved(learning_rates={"head": rate}))


def test_its_default_is_the_one_that_was_searched_for() -> None:
    assert f"**head-only trains at {sp.HeadOnlyConfig.head_learning_rate}**" in DEFAULTS.read_text(encoding="utf-8")
