"""Gates: prefix keys and values times a number per token, where a site attends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import tiny
import torch
from torch import Tensor, nn

import softprompts as sp
from softprompts.attention import _Gated
from softprompts.injection import state_of
from softprompts.methods.common import prefix_table, split_prefix
from softprompts.soft_prompt import SoftPrompt


@dataclass(frozen=True, kw_only=True)
class Config(sp.MethodConfig):
    """Settings of `Gated`."""

    num_virtual_tokens: int = 3
    multiplied: bool = False
    selectivity: float | None = None

    method: ClassVar[str] = "gated"
    uses_prefix: ClassVar[bool] = True

    def build(self, shape: sp.Shape) -> sp.Method:
        return Gated(self, shape)


class Gated(sp.Method):
    """A prefix with gates that depend on a row's tokens; ``multiplied``: handed over as a product."""

    per_row = True

    def __init__(self, config: Config, shape: sp.Shape):
        super().__init__(config)
        self.num_sites = shape.num_sites
        self.multiplied, self.selectivity = config.multiplied, config.selectivity
        self.table = prefix_table(config, shape, 1.0)
        self.scale = nn.Parameter(torch.rand(shape.num_sites, 1, config.num_virtual_tokens) + 0.5)

    def forward(self, rows: sp.Rows | None = None) -> SoftPrompt:
        assert rows is not None
        keys, values = split_prefix(self.table, self.num_sites)
        gates = self.scale * (1 + rows.mean().sum(-1)[:, None])
        if self.multiplied:
            return SoftPrompt(
                keys=keys * gates[..., None], values=values * gates[..., None], selectivity=self.selectivity
            )
        return SoftPrompt(keys=keys, values=values, gates=gates, selectivity=self.selectivity)

    def components(self) -> dict[str, sp.Component]:
        return {"all": sp.Component(list(self.parameters()), learning_rate=1e-2)}


def outcome(family: str, names: list[str | None], multiplied: bool, selectivity: float | None) -> list[Tensor]:
    """Loss and gradients of a batch in which "a" and "b" are gated prompts of different lengths and sites."""
    model = tiny.attached(family, "prefix-tuning")
    sites = ("decoder.self", "decoder.cross") if family == "t5" else None
    settings = {"multiplied": multiplied, "selectivity": selectivity}
    model.add_prompt("a", Config(**settings), seed=1)
    model.add_prompt("b", Config(num_virtual_tokens=5, sites=sites, **settings), seed=2)
    model.prompts.to(torch.float64)
    model(**tiny.batch(family, rows=len(names)), prompt_names=names).loss.backward()
    found = {name: p.grad for name, p in model.prompts.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in found} >= {name for name in names if name is not None}
    return list(found.values())


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "gpt2"])
@pytest.mark.parametrize("selectivity", [None, 4.0])
@pytest.mark.parametrize("names", [["a"] * 3, ["a", None, "b", "a", "prefix-tuning", "b"]], ids=["one", "mixed"])
def test_gates_are_a_product(family: str, names: list[str | None], selectivity: float | None) -> None:
    ours = outcome(family, names, False, selectivity)
    for mine, theirs in zip(ours, outcome(family, names, True, selectivity), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shared_gates", [True, False])
@pytest.mark.parametrize(("prefixes", "rows"), [(1, None), (3, None), (2, [1, 0, 1])])
def test_the_function_and_its_gradients(shared_gates: bool, prefixes: int, rows: list[int] | None) -> None:
    part = torch.randn(prefixes, 2, 4, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(1 if shared_gates else 3, 2, dtype=torch.float64, requires_grad=True)
    own = None if rows is None else torch.tensor(rows)
    made = _Gated.apply(part, own, gates)
    for m in range(made.shape[0]):
        source = part[rows[m] if rows is not None else m if prefixes > 1 else 0]
        for token in range(2):
            expected = source[token] * gates[0 if shared_gates else m, token]
            torch.testing.assert_close(made[m, token], expected)
    assert torch.autograd.gradcheck(lambda part, gates: _Gated.apply(part, own, gates), (part, gates))


@pytest.mark.parametrize("mixed", [False, True])
def test_a_gated_prefix_keeps_no_more_than_a_plain_one(mixed: bool) -> None:
    length, rows, width = 200, 4, 16

    def kept(config: sp.MethodConfig) -> int:
        model = sp.attach(tiny.model("bert"))
        for name in ("one", "two"):
            model.add_prompt(name, config, seed=0)
        model.prompts.to(torch.float64)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = 0 if storage.data_ptr() in weights else storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(**tiny.batch("bert", rows=rows), prompt_names=["one", "two"] * 2 if mixed else "one")
        pass_ = state_of(model).last
        sites, tables = len(state_of(model).backbone.sites), 2 if mixed else 1
        assert sum(part.nbytes for part in (*pass_.keys, *pass_.values)) == 2 * tables * sites * length * width * 8
        return sum(sizes.values())

    plain = kept(sp.PrefixTuningConfig(num_virtual_tokens=length))
    gated = kept(sp.MultiMaskConfig(num_virtual_tokens=length, num_masks=2))
    joined = 2 * 2 * 2 * length * width * 8 if mixed else 0  # both tables in one tensor, whose gradient is asked for
    assert gated - plain - joined < rows * length * width * 8  # a copy of the keys of a single site
