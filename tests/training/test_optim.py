import math
from typing import Any

import pytest
import torch
from torch import nn

from softprompts import Component, SoftPromptError
from softprompts.training import TrainConfig
from softprompts.training.optim import build_optimizer, learning_rates, schedule_factor, set_learning_rates


def components() -> dict[str, Component]:
    return {
        "prompt": Component([nn.Parameter(torch.ones(3, 4))], 0.1),
        "mlp": Component([nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.zeros(4))], 0.002),
        "head": Component([nn.Parameter(torch.ones(2, 4))], 0.01),
    }


def test_defaults_are_the_components_own() -> None:
    assert learning_rates(components(), TrainConfig()) == {"prompt": 0.1, "mlp": 0.002, "head": 0.01}


def test_a_new_main_rate_keeps_the_ratio_to_all_others() -> None:
    rates = learning_rates(components(), TrainConfig(learning_rate=0.3))
    assert rates == {"prompt": 0.3, "mlp": pytest.approx(0.006), "head": pytest.approx(0.03)}


@pytest.mark.parametrize("head", ["main", 0.7, None])
def test_single_rates_win(head: Any) -> None:
    config = TrainConfig(learning_rate=0.3, learning_rates={"head": 1.0, "mlp": 0.5}, head_learning_rate=head)
    assert learning_rates(components(), config) == {"prompt": 0.3, "mlp": 0.5, "head": 1.0}


def test_a_factor_multiplies_all_rates_and_is_part_of_an_id_only_where_it_does_something() -> None:
    config = TrainConfig(learning_rates={"mlp": 0.5}, learning_rate_factor=3)
    rates = {"prompt": 0.1 * 3, "mlp": 0.5 * 3, "head": 0.01 * 3}
    assert learning_rates(components(), config) == pytest.approx(rates)
    assert config.to_dict()["learning_rate_factor"] == 3
    assert "learning_rate_factor" not in TrainConfig(learning_rate_factor=1).to_dict()


@pytest.mark.parametrize(
    ("given", "head"),
    [
        ({"head_learning_rate": 0.7}, 0.7),
        ({"head_learning_rate": 0.7, "learning_rate": 0.3}, 0.7),
        ({"head_learning_rate": "main"}, 0.1),
        ({"head_learning_rate": "main", "learning_rate": 0.3}, 0.3),
        ({"head_learning_rate": "main", "learning_rates": {"prompt": 0.4}}, 0.4),
        ({"learning_rates": {"prompt": 0.4}}, 0.01),
    ],
)
def test_the_rate_of_a_head(given: dict[str, Any], head: float) -> None:
    assert learning_rates(components(), TrainConfig(**given))["head"] == head


def test_a_head_alone_is_the_main_component() -> None:
    alone = {"head": components()["head"]}
    assert learning_rates(alone, TrainConfig()) == {"head": 0.01}
    for given in ({"learning_rate": 0.3}, {"head_learning_rate": 0.3}, {"learning_rates": {"head": 0.3}}):
        assert learning_rates(alone, TrainConfig(**given)) == {"head": 0.3}
    assert learning_rates(alone, TrainConfig(learning_rate=0.3, head_learning_rate="main")) == {"head": 0.3}


def test_without_a_head() -> None:
    headless = {name: component for name, component in components().items() if name != "head"}
    rates = {"prompt": 0.3, "mlp": pytest.approx(0.006)}
    assert learning_rates(headless, TrainConfig(learning_rate=0.3)) == rates
    assert learning_rates(headless, TrainConfig(learning_rate=0.3, head_learning_rate="main")) == rates
    with pytest.raises(SoftPromptError, match="head_learning_rate: this prompt has no task head"):
        learning_rates(headless, TrainConfig(head_learning_rate=0.3))


def test_unknown_component_names_those_there() -> None:
    with pytest.raises(SoftPromptError, match=r"no component 'promt' \(it has prompt, mlp, head\); did you mean 'pro"):
        learning_rates(components(), TrainConfig(learning_rates={"promt": 1.0}))


def test_one_group_per_component() -> None:
    optimizer = build_optimizer(components(), TrainConfig())
    assert [group["name"] for group in optimizer.param_groups] == ["prompt", "mlp", "head"]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2, 1]


@pytest.mark.parametrize(("of_run", "plain"), [(None, 0.0), (0.0, 0.0), (0.2, 0.2)])
def test_a_runs_weight_decay_spares_components_with_their_own(of_run: float | None, plain: float) -> None:
    parts = components()
    parts["prompt"].weight_decay, parts["mlp"].weight_decay = 0.0, 0.05
    optimizer = build_optimizer(parts, TrainConfig(weight_decay=of_run))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05, plain]


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_weight_decay_shrinks_by_rate_times_decay(name: str) -> None:
    # Without a gradient all that a step does is p <- p - lr * decay * p.
    start = [parameter.double().clone() for part in components().values() for parameter in part.parameters]
    parts = components()
    parts["prompt"].weight_decay, parts["mlp"].weight_decay = 0.0, 0.05
    config = TrainConfig(optimizer=name, learning_rate=0.2, weight_decay=0.5)
    optimizer = build_optimizer(parts, config)
    for component in parts.values():
        for parameter in component.parameters:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    factors = [1.0, 1 - 0.004 * 0.05, 1 - 0.004 * 0.05, 1 - 0.02 * 0.5]
    after = [parameter.data.double() for part in parts.values() for parameter in part.parameters]
    for before, factor, value in zip(start, factors, after, strict=True):
        torch.testing.assert_close(value, before * factor, rtol=1e-6, atol=0)


def test_nothing_to_train() -> None:
    with pytest.raises(SoftPromptError, match="no parameters"):
        build_optimizer({}, TrainConfig())


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_first_step_is_the_learning_rate(name: str) -> None:
    # Both normalise the gradient: with equal entries, the first step is the rate itself, whatever the gradient's
    # size. (Adafactor would scale it by the parameter's size, here 1000, if that were on.)
    parameter = nn.Parameter(torch.full((3, 4), 1000.0))
    optimizer = build_optimizer({"prompt": Component([parameter], 0.5)}, TrainConfig(optimizer=name))
    (parameter * 1e-3).sum().backward()
    optimizer.step()
    torch.testing.assert_close(parameter.data, torch.full((3, 4), 999.5))


def test_linear_schedule() -> None:
    factors = [schedule_factor(step, 10, 4, "linear") for step in range(10)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert schedule_factor(0, 10, 0, "linear") == 1


def test_cosine_schedule() -> None:
    factors = [schedule_factor(step, 10, 2, "cosine") for step in range(11)]
    assert factors[:2] == [0.5, 1] and factors[2:] == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(9)]
    )
    assert factors[6] == pytest.approx(0.5) and factors[10] == 0
    assert schedule_factor(3, 3, 3, "cosine") == 0  # nothing but warm-up


def test_constant_schedule() -> None:
    assert [schedule_factor(step, 10, 2, "constant") for step in (0, 1, 2, 9)] == [0.5, 1, 1, 1]


def test_schedule_scales_every_group_from_its_own_peak() -> None:
    optimizer = build_optimizer(components(), TrainConfig())
    for step in (0, 5, 5):  # setting twice is setting once
        set_learning_rates(optimizer, TrainConfig(), step, 10)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.001, 0.005])
