"""A small backbone's sizes, and the checks that every method has to pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from softprompts.methods import MethodConfig, Rows, Shape, Vocabulary, make_config
from softprompts.soft_prompt import SoftPrompt

D, SITES, WIDTH = 8, 3, 6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def table() -> Tensor:
    """The token embeddings ``(50, d)``."""
    return torch.randn(50, D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def shape(table: Tensor) -> Shape:
    """Ids 0 and 1 are special; a text's words are spelled in pieces of one letter: "ab" is [2, 3]."""

    def encode(text: str) -> list[int]:
        return [2 + "abcdefghij".index(letter) for letter in text.replace(" ", "")]

    return Shape(D, SITES, WIDTH, Vocabulary(lambda ids: table[ids], 50, (0, 1), encode))


@pytest.fixture
def rows() -> Rows:
    """Three inputs: padded right, padded left, and one without a visible token."""
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()
    return Rows(torch.randn(3, 4, D, dtype=torch.float64), mask)


@pytest.fixture
def count() -> Callable[..., int]:
    """Trained parameters at the size of T5-base (or BERT-base: one stack), without making them."""

    def count(config: MethodConfig, stacks: int = 1) -> int:
        def embed(ids: Tensor) -> Tensor:
            return torch.empty(len(ids), 768, device="meta")

        with torch.device("meta"):
            method = config.build(Shape(768, 12 * stacks, 768, Vocabulary(embed, 32128)))
        assert all(parameter.is_meta for parameter in method.parameters())
        return sum(parameter.numel() for parameter in method.parameters())

    return count


def outputs(prompt: SoftPrompt) -> tuple[Tensor, ...]:
    parts = (prompt.tokens, prompt.update, prompt.keys, prompt.values, prompt.gates, prompt.penalty)
    return tuple(part for part in parts if part is not None)


@pytest.fixture
def check_contract(shape: Shape, rows: Rows) -> Callable[[MethodConfig], None]:
    """What holds for every method: shapes, gradients, components and the way through JSON."""

    def check(config: MethodConfig) -> None:
        assert make_config(config.method, **config.to_dict()) == config
        method = config.build(shape).double().eval()
        seen = rows if method.per_row else None
        leading = {1, len(rows.embeddings)} if method.per_row else {1}
        length = config.num_virtual_tokens

        prompt = method(seen)
        assert (prompt.tokens is not None) == config.uses_tokens
        assert (prompt.keys is not None) == (prompt.values is not None) == config.uses_prefix
        if prompt.tokens is not None:
            assert prompt.tokens.shape[0] in leading
            assert prompt.tokens.shape[1:] == (length, D)
        if prompt.update is not None:
            assert prompt.update.shape[0] in leading
            assert prompt.update.shape[2:] == (D,)
        if prompt.keys is not None and prompt.values is not None:
            assert prompt.keys.shape == prompt.values.shape
            assert prompt.keys.shape[1] in leading
            assert (prompt.keys.shape[0], *prompt.keys.shape[2:]) == (SITES, length, WIDTH)
        if prompt.gates is not None:
            assert prompt.gates.shape[1] in leading
            assert (prompt.gates.shape[0], *prompt.gates.shape[2:]) == (SITES, length)
        assert prompt.penalty is None or prompt.penalty.shape == ()

        sum(part.square().sum() for part in outputs(prompt)).backward()
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name

        listed = [id(parameter) for part in method.components().values() for parameter in part.parameters]
        assert sorted(listed) == sorted(id(parameter) for parameter in method.parameters())
        assert all(part.learning_rate > 0 for part in method.components().values())

        names = [name for name, _ in method.named_parameters()]
        leaves = [parameter.detach().clone().requires_grad_() for parameter in method.parameters()]

        def run(*values: Tensor) -> tuple[Tensor, ...]:
            return outputs(functional_call(method, dict(zip(names, values, strict=True)), (seen,)))

        assert torch.autograd.gradcheck(run, leaves)

    return check


@pytest.fixture
def same_prompt() -> Callable[[SoftPrompt, SoftPrompt], bool]:
    """Whether two prompts hold the same tensors, bit for bit."""

    def same(one: SoftPrompt, other: SoftPrompt) -> bool:
        for field in dataclasses.fields(SoftPrompt):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if (a is None) != (b is None):
                return False
            if isinstance(a, Tensor) and not (a.dtype == b.dtype and torch.equal(a, b)):
                return False
            if isinstance(a, float) and a != b:
                return False
        return True

    return same
