import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import DPTConfig

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
