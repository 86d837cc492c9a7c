import dataclasses
import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import DPTConfig, Vocabulary

D = 8


def test_contract(check_contract):
    check_contract(DPTConfig(num_virtual_tokens=4, rank=2))


def test_product(shape):
    method = DPTConfig(num_virtual_tokens=5, rank=3).build(shape).double()
    a, b = method.a.tolist(), method.b.tolist()
    expected = [[sum(a[i][k] * b[k][x] for k in range(3)) for x in range(D)] for i in range(5)]
    torch.testing.assert_close(method().tokens, torch.tensor([expected], dtype=torch.float64))
    assert torch.linalg.matrix_rank(method().tokens[0]) == 3


@pytest.mark.parametrize("scale", [0.5, 0.1])
def test_start(shape, scale):
    method = DPTConfig(num_virtual_tokens=300, rank=200, init_scale=scale).build(shape)
    for factor in (method.a, method.b):
        assert factor.abs().max().item() == pytest.approx(scale, rel=0.05)
        assert factor.std().item() == pytest.approx(scale / 3**0.5, rel=0.05)
        assert abs(factor.mean().item()) < 0.05 * scale


@pytest.mark.parametrize("times", [0.05, 6.0])
def test_tokens_start_as_large_as_embeddings(shape, table, times):
    scaled = dataclasses.replace(shape, vocabulary=Vocabulary(lambda ids: times * table[ids], 50, (0, 1)))
    method = DPTConfig(num_virtual_tokens=300, rank=40).build(scaled)
    size = lambda rows: math.sqrt(sum(x * x for row in rows for x in row) / sum(map(len, rows)))  # noqa: E731
    assert size(method().tokens[0].tolist()) == pytest.approx(size((times * table[2:]).tolist()), rel=0.1)
    for factor in (method.a, method.b):  # still uniform, and alike
        assert factor.std().item() == pytest.approx(factor.abs().max().item() / 3**0.5, rel=0.1)
    assert method.a.abs().max().item() == pytest.approx(method.b.abs().max().item(), rel=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"num_virtual_tokens": 5}, "rank=10 is more than num_virtual_tokens=5; set it lower"),
        ({"init_scale": 0}, "init_scale must be more than 0"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        DPTConfig(**fields)


def test_count(count):
    assert count(DPTConfig()) == 8_680
