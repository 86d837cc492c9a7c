"""A small backbone's sizes, and the checks that every method has to pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

import softprompts as sp
from softprompts.methods import MethodConfig, Part, Rows, Shape, Vocabulary
from softprompts.methods.contract_check import components_fault, gradient_fault, prompt_fault, settings_fault
from softprompts.soft_prompt import Frozen, SoftPrompt

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

    return Shape(D, SITES, WIDTH, Vocabulary(lambda ids: table[ids], 50, (0, 1), encode), described(MODULES))


def layer(index: int) -> dict[str, tuple[nn.Module, Part]]:
    """A layer of a decoder with cross-attention, its linear layers of both kinds."""

    def linear(name: str, inside: int, out: int, role: str, site: str = "", bias: bool = True) -> None:
        made = Conv1D(out, inside) if role == "ffn.in" else nn.Linear(inside, out, bias=bias)
        kind = "conv1d" if role == "ffn.in" else "linear"
        modules[f"layers.{index}.{name}"] = (made, kind, (role,), inside, out, site)

    modules: dict[str, tuple[nn.Module, str, tuple[str, ...], int, int, str]] = {}
    for name in ("self", "cross"):
        site = f"decoder.{name}"
        linear(f"{name}.q", D, WIDTH, "query", site)
        linear(f"{name}.v", D, WIDTH, "value", site, bias=False)
        linear(f"{name}.o", WIDTH, D, "attention.output", site)
    linear("wi", D, 12, "ffn.in")
    linear("wo", 12, D, "ffn.out")
    modules[f"layers.{index}.norm"] = (nn.LayerNorm(D), "norm", (), D, D, "")
    return {
        path: (module, Part(path, kind, roles, inside, out, index, "decoder", site))
        for path, (module, kind, roles, inside, out, site) in modules.items()
    }


def backbone_modules() -> dict[str, tuple[nn.Module, Part]]:
    """Two layers between embeddings that are tied."""
    torch.manual_seed(3)
    tokens, head = nn.Embedding(50, D), nn.Linear(D, 50, bias=False)
    head.weight = tokens.weight
    table = nn.Embedding(4, 2)
    return {
        "tokens": (tokens, Part("tokens", "embedding", ("input",), 0, D, stack="decoder")),
        "positions": (table, Part("positions", "embedding", (), 0, 2, 0, "decoder", by_row=False)),
        **layer(0),
        **layer(1),
        "head": (head, Part("head", "linear", ("output",), D, 50)),
    }


MODULES = backbone_modules()
for module, _ in MODULES.values():
    module.requires_grad_(False)


def described(modules: dict[str, tuple[nn.Module, Part]]) -> tuple[Part, ...]:
    return tuple(
        dataclasses.replace(part, tensors={k: v for k, v in module._parameters.items() if v is not None})
        for module, part in modules.values()
    )


@pytest.fixture
def modules() -> dict[str, nn.Module]:
    """The modules that `shape` describes, by path, in float64; a test may do with them what it wants."""
    return {path: module.double() for path, (module, _) in backbone_modules().items()}


def given_to(part: Part) -> Tensor:
    """Three rows of two tokens, as a module takes them."""
    draw = torch.Generator().manual_seed(5)
    if part.kind == "embedding":
        return torch.randint(part.tensors["weight"].shape[0], (3, 2), generator=draw)
    return torch.randn(3, 2, part.in_features, dtype=torch.float64, generator=draw)


def run_modules(prompt: SoftPrompt, modules: dict[str, nn.Module], parts: tuple[Part, ...]) -> dict[str, Tensor]:
    """What comes out of each module that a prompt changes."""
    ways = prompt.modules or {}
    made = {}
    for part in parts:
        if part.path in ways:
            module = modules[part.path]
            frozen = Frozen(module, functools.partial(type(module).forward, module))
            made[part.path] = ways[part.path](frozen, given_to(part))
    return made


@pytest.fixture
def through(shape: Shape, modules: dict[str, nn.Module]) -> Callable[[SoftPrompt], dict[str, Tensor]]:
    """Runs `given_to` through every module that a prompt changes."""
    return lambda prompt: run_modules(prompt, modules, shape.parts)


@pytest.fixture
def inputs(shape: Shape) -> dict[str, Tensor]:
    """What `through` gives to each module."""
    return {part.path: given_to(part) for part in shape.parts}


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
def check_contract(
    shape: Shape, rows: Rows, through: Callable[[SoftPrompt], dict[str, Tensor]]
) -> Callable[[MethodConfig], None]:
    """What holds for every method: shapes, gradients, components and the way through JSON."""

    def check(config: MethodConfig) -> None:
        assert settings_fault(config) is None
        method = config.build(shape).double().eval()
        seen = rows if method.per_row else None
        prompt = method(seen)
        assert prompt_fault(method, prompt, len(rows.embeddings), SITES, WIDTH, D) is None
        assert prompt.keys is None or prompt.keys.shape[2] == config.num_virtual_tokens

        def everything(prompt: SoftPrompt) -> tuple[Tensor, ...]:
            return (*outputs(prompt), *through(prompt).values())

        sum(part.square().sum() for part in everything(prompt)).backward()
        assert gradient_fault(method) is None
        assert components_fault(method) is None

        names = [name for name, _ in method.named_parameters()]
        leaves = [parameter.detach().clone().requires_grad_() for parameter in method.parameters()]

        def run(*values: Tensor) -> tuple[Tensor, ...]:
            return everything(functional_call(method, dict(zip(names, values, strict=True)), (seen,)))

        assert torch.autograd.gradcheck(run, leaves)

    return check


@pytest.fixture
def count_on() -> Callable[[MethodConfig, str], int]:
    """Trained parameters of a prompt attached to "t5-base" or "bert-base", of sizes alone."""

    def count(config: MethodConfig, name: str) -> int:
        with torch.device("meta"):
            if name == "t5-base":
                settings = tf.T5Config(vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
                model: Any = tf.T5ForConditionalGeneration(settings)
            else:
                model = tf.BertModel(tf.BertConfig(vocab_size=28996))
        return int(sp.attach(model, config).num_trainable_parameters()[0])

    return count


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
