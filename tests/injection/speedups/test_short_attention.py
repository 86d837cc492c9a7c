"""Short sequences on the CPU: plain products in place of torch's kernel, with the same outcome."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from softprompts.attention import prefix
from softprompts.injection.speedups import short_attention

# llama and its like share keys and values among heads, so that torch's kernel stays in charge.
OWN_HEADS = ["bert", "roberta", "electra", "distilbert", "t5", "bart"]


def outcome(family: str, method: str) -> list[Tensor]:
    """Loss, logits, and gradient of every trained tensor, of the same model and batch each time."""
    model = tiny.attached(family, method)
    output = model(**tiny.batch(family))
    output.loss.backward()
    return [output.loss, output.logits, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("method", ["prefix-tuning", "multi-mask"])
def test_both_ways_agree(family: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    attend = short_attention.attend

    def counted(*args: Any, **kwargs: Any) -> Tensor | None:
        output = attend(*args, **kwargs)
        calls.extend([1] if output is not None else [])
        return output

    monkeypatch.setitem(prefix.ACCELERATED, "plain", counted)
    mine = outcome(family, method)
    assert bool(calls) >= (family in OWN_HEADS)
    monkeypatch.setattr(short_attention, "SHORT", 0)
    calls.clear()
    for ours, theirs in zip(mine, outcome(family, method), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert not calls


def test_what_they_are_not_for() -> None:
    def tensor(heads: int = 2, tokens: int = 8, **kind: object) -> Tensor:
        return torch.zeros(1, heads, tokens, 4, **kind)  # type: ignore[arg-type]

    assert short_attention._short(tensor(), tensor(), tensor())
    assert not short_attention._short(tensor(), tensor(), tensor(), dropout=0.1)
    assert not short_attention._short(tensor(4), tensor(2), tensor(2))
    assert not short_attention._short(tensor(tokens=64), tensor(tokens=64), tensor(tokens=64))
    half = tensor(dtype=torch.float16)
    assert not short_attention._short(half, half, half)


def test_in_bfloat16_up_to_longer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, tokens, 8, dtype=torch.float64) for tokens in (70, 75, 75))
    mask = torch.zeros(2, 1, 70, 75, dtype=torch.float64).masked_fill(torch.rand(2, 1, 70, 75) < 0.3, -1e9)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)
    given = [part.bfloat16() for part in (query, key, value, mask)]
    for pays in (False, True):
        monkeypatch.setattr(short_attention.frozen_linear, "half_pays", lambda pays=pays: pays)
        with torch.autocast("cpu", torch.bfloat16):
            output = short_attention.attend(*given)
        assert (output is not None) == pays
    assert output is not None and output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), wanted, rtol=0.05, atol=0.03)
