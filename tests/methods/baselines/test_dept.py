import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import DePTConfig

D = 8
SMALL = {"num_virtual_tokens": 2, "rank": 3, "max_length": 5}


@pytest.mark.parametrize("scale", ["paper", "released"])
def test_contract(check_contract, scale):
    check_contract(DePTConfig(**SMALL, scale=scale))


@pytest.mark.parametrize("scale", ["paper", "released"])
def test_prompt_and_update(shape, scale):
    method = DePTConfig(**SMALL, scale=scale).build(shape).double()
    with torch.no_grad():
        method.b.normal_()
    a, b = method.a.tolist(), method.b.tolist()
    c = 8 / math.sqrt(3) if scale == "released" else 1.0
    expected = [[c * sum(a[i][k] * b[k][x] for k in range(3)) for x in range(D)] for i in range(5)]
    torch.testing.assert_close(method().update, torch.tensor([expected], dtype=torch.float64))
    assert torch.equal(method().tokens[0], method.prompt)


def test_start(shape, table):
    method = DePTConfig(num_virtual_tokens=4, rank=25, max_length=400).build(shape)
    chosen = [[bool((row == token).all()) for token in table].index(True) for row in method.prompt]
    assert len(set(chosen)) == 4
    assert not method().update.any()
    assert method.a.abs().max().item() == pytest.approx(1 / 5, rel=0.01)
    assert method.a.std().item() == pytest.approx(1 / 5 / 3**0.5, rel=0.05)
    limited = DePTConfig(num_virtual_tokens=3, rank=1, vocabulary_limit=5).build(shape)
    assert all((row == table[2:5]).all(1).any() for row in limited.prompt)


def test_the_factors_learn_from_their_zero_start(shape):
    method = DePTConfig(**SMALL).build(shape)
    method().update.sum().backward()
    assert method.b.grad.any()


def test_parts_are_trained_at_their_own_rates(shape):
    rates = {name: part.learning_rate for name, part in DePTConfig(**SMALL).build(shape).components().items()}
    assert list(rates) == ["prompt", "low_rank"]
    assert rates["prompt"] > rates["low_rank"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens must be at least 1"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"scale": 2.0}, "scale must be one of paper, released"),
        ({"vocabulary_limit": 0}, "vocabulary_limit must be at least 1"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        DePTConfig(**fields)


def test_count(count):
    assert count(DePTConfig()) == 76_800
    assert count(DePTConfig(num_virtual_tokens=40, rank=45)) == 76_800
