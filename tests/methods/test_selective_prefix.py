import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import SelectivePrefixConfig, Shape

D, SITES, WIDTH = 8, 3, 6


def naive_loss(method):
    """SL by Eq. 7-9, pair by pair."""
    total = 0.0
    length = len(method.prefix)
    for site in range(SITES):
        for kind in (0, 1):
            start = (2 * site + kind) * WIDTH
            rows = [row[start : start + WIDTH] for row in method.prefix.tolist()]
            cosines = []
            for i in range(length):
                for j in range(i + 1, length):
                    dot = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
                    norms = math.sqrt(sum(a * a for a in rows[i])) * math.sqrt(sum(b * b for b in rows[j]))
                    cosines.append(abs(dot) / norms)
            total += sum(cosines) * 2 / (length * (length - 1))
    return total / 2


@pytest.mark.parametrize("fields", [{"selective_loss": 1.0}, {"selective_loss": 0}, {"alpha": None}])
def test_contract(check_contract, fields):
    check_contract(SelectivePrefixConfig(num_virtual_tokens=3, init_std=1.0, **fields))


@pytest.mark.parametrize("length", [2, 5])
def test_prefix_and_loss(shape, length):
    method = SelectivePrefixConfig(num_virtual_tokens=length, selective_loss=0.3).build(shape).double()
    prompt = method()
    assert prompt.selectivity == 4.0
    torch.testing.assert_close(prompt.penalty.item(), 0.3 * naive_loss(method))
    for site in range(SITES):
        for token in range(length):
            start = 2 * site * WIDTH
            assert torch.equal(prompt.keys[site, 0, token], method.prefix[token, start : start + WIDTH])
            start += WIDTH
            assert torch.equal(prompt.values[site, 0, token], method.prefix[token, start : start + WIDTH])


def test_loss_of_orthogonal_rows_is_zero(shape):
    method = SelectivePrefixConfig(num_virtual_tokens=4, selective_loss=0.3).build(shape).double()
    with torch.no_grad():
        method.prefix.copy_(3 * torch.eye(WIDTH)[:4].repeat(1, 2 * SITES))
    assert method().penalty.item() == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_loss_of_parallel_rows_is_lambda_per_site(shape, sign):
    method = SelectivePrefixConfig(num_virtual_tokens=2, selective_loss=0.3).build(shape).double()
    with torch.no_grad():
        method.prefix[1] = sign * 2 * method.prefix[0]
    torch.testing.assert_close(method().penalty.item(), 0.3 * SITES)


def test_one_row_has_no_pair(shape):
    method = SelectivePrefixConfig(num_virtual_tokens=1, selective_loss=0.3).build(shape)
    assert method().penalty.item() == 0


def test_variants(shape):
    mask_only = SelectivePrefixConfig(selective_loss=0, alpha=8).build(shape)
    assert mask_only().penalty is None
    assert mask_only().selectivity == 8
    assert mask_only.cannot_fold() == "its mask depends on the queries"
    loss_only = SelectivePrefixConfig(alpha=None).build(shape)
    assert loss_only().penalty is not None
    assert loss_only().selectivity is None
    assert loss_only.cannot_fold() is None


def test_start(shape):
    assert abs(SelectivePrefixConfig(num_virtual_tokens=200).build(shape).prefix.std().item() - 0.5) < 0.025


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 0}, "alpha must be more than 0"),
        ({"alpha": "high"}, "alpha must be a number, not 'high'"),
        ({"selective_loss": -1e-4}, "selective_loss must be at least 0"),
        ({"selective_loss": True}, "selective_loss must be a number, not True"),
        ({"init_std": 0}, "init_std must be more than 0"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        SelectivePrefixConfig(**fields)


def test_needs_sites(shape):
    with pytest.raises(SoftPromptError, match="no attention site that takes a prefix"):
        SelectivePrefixConfig().build(Shape(D, 0, 0, shape.vocabulary))


@pytest.mark.parametrize(("length", "expected"), [(8, 147_456), (20, 368_640), (128, 2_359_296)])
def test_count(count, length, expected):
    assert count(SelectivePrefixConfig(num_virtual_tokens=length)) == expected
