"""Selective attention: both ways of computing it against Eq. 4-6 written out, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from softprompts.attention.selective import by_scores
from softprompts.injection.speedups.fused_kernels import KERNELS
from softprompts.injection.speedups.merged_attention import by_merging, kernel_for

CPU = KERNELS[0]
ROWS, HEADS, QUERIES, KEYS, LENGTH, WIDTH = 2, 2, 3, 4, 3, 5
SCALE = 0.4


def tensors(shared: bool, requires_grad: bool = False) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(ROWS, HEADS, QUERIES, WIDTH), (ROWS, HEADS, KEYS, WIDTH), (ROWS, HEADS, KEYS, WIDTH)]
    shapes += [(1 if shared else ROWS, HEADS, LENGTH, WIDTH)] * 2
    return [torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad) for shape in shapes]


def mask() -> Tensor:
    """The last two keys of the second row are hidden."""
    bias = torch.zeros(ROWS, 1, 1, KEYS, dtype=torch.float64)
    bias[1, ..., 2:] = torch.finfo(torch.float64).min
    return bias


def own_columns() -> Tensor:
    """The second row owns the first two prefix columns only."""
    bias = torch.zeros(ROWS, 1, 1, LENGTH, dtype=torch.float64)
    bias[1, ..., 2:] = torch.finfo(torch.float64).min
    return bias


def naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    alphas: list[float | None],
    bias: Tensor | None,
    prefix_bias: Tensor | None,
) -> Tensor:
    output = torch.zeros(ROWS, HEADS, QUERIES, WIDTH, dtype=torch.float64)
    for row in range(ROWS):
        own = 0 if prefix_key.shape[0] == 1 else row
        for head in range(HEADS):
            for position in range(QUERIES):
                weights, values = [], []
                for column in range(LENGTH):
                    if prefix_bias is not None and prefix_bias[row, 0, 0, column] != 0:
                        continue
                    score = float(query[row, head, position] @ prefix_key[own, head, column]) * SCALE
                    alpha = alphas[row]
                    select = 1.0 if alpha is None else 1 / (1 + math.exp(-alpha * score))
                    weights.append(select * math.exp(score))
                    values.append(prefix_value[own, head, column])
                for column in range(KEYS):
                    if bias is not None and bias[row, 0, 0, column] != 0:
                        continue
                    weights.append(math.exp(float(query[row, head, position] @ key[row, head, column]) * SCALE))
                    values.append(value[row, head, column])
                total = sum(weights)
                for weight, vector in zip(weights, values, strict=True):
                    output[row, head, position] += weight / total * vector
    return output


CASES = [
    pytest.param(4.0, [4.0, 4.0], None, None, id="plain"),
    pytest.param(8.0, [8.0, 8.0], mask(), None, id="masked"),
    pytest.param(2.0, [2.0, 2.0], mask(), own_columns(), id="columns"),
    pytest.param(torch.tensor([4.0, float("nan")]), [4.0, None], mask(), None, id="mixed"),
]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("alpha", "alphas", "bias", "own"), CASES)
def test_both_ways_equal_the_formula(
    alpha: float | Tensor, alphas: list[float | None], bias: Tensor | None, own: Tensor | None, shared: bool
) -> None:
    given = tensors(shared)
    wanted = naive(*given, alphas, bias, own)
    merged = by_merging(CPU, *given, alpha, bias, own, SCALE)
    whole = None
    if bias is not None:
        left = torch.zeros(ROWS, 1, 1, LENGTH, dtype=torch.float64) if own is None else own
        whole = torch.cat([left, bias], -1)
    scored, weights = by_scores(*given, alpha, whole, SCALE)
    torch.testing.assert_close(merged, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scored, wanted, rtol=1e-12, atol=1e-12)
    assert weights.shape == (ROWS, HEADS, QUERIES, LENGTH + KEYS)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("alpha", "alphas", "bias", "own"), CASES)
def test_gradients_of_merging(
    alpha: float | Tensor, alphas: list[float | None], bias: Tensor | None, own: Tensor | None, shared: bool
) -> None:
    assert torch.autograd.gradcheck(
        lambda *given: by_merging(CPU, *given, alpha, bias, own, SCALE), tensors(shared, requires_grad=True)
    )


def test_rows_whose_content_is_all_masked_stay_finite() -> None:
    given = tensors(True, requires_grad=True)
    bias = torch.full((ROWS, 1, 1, KEYS), torch.finfo(torch.float64).min, dtype=torch.float64)
    output = by_merging(CPU, *given, 4.0, bias, None, SCALE)
    output.sum().backward()
    assert output.isfinite().all()
    for tensor in given:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_close(dtype: torch.dtype) -> None:
    exact = tensors(True)
    rough = [tensor.to(dtype) for tensor in exact]
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    wanted = by_merging(CPU, *exact, 4.0, None, None, SCALE)
    got = by_merging(CPU, *rough, 4.0, None, None, SCALE)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


def test_what_merging_does_not_cover() -> None:
    query = tensors(True)[0]
    assert kernel_for(query, masked=False) is CPU and kernel_for(query, masked=True) is CPU
    assert kernel_for(query, masked=False, dropout=0.1) is None
    assert kernel_for(query.to("meta"), masked=False) is None
