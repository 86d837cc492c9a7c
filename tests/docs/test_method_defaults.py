"""The defaults in docs/methods.md are read off prompts: what is recognised, and that it follows the code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_defaults import WIDTH, _kind, _model, defaults_of, start_of

import softprompts as sp
from softprompts.injection.state import state_of


def component(name: str, which: str, **settings: Any) -> Any:
    found = {part.name: part for part in defaults_of(sp.make_config(name, **settings)).components}
    return found[which]


def test_starts_are_recognised_by_their_numbers() -> None:
    draw = torch.Generator().manual_seed(0)
    table = state_of(_model()).backbone.embeddings.weight.detach()
    kinds = {
        "0": torch.zeros(3, 4),
        "2": torch.full((2, 2), 2.0),
        "": torch.tensor([1.0, 2.0]),
        "the sources": torch.tensor([1.0, float("nan")]),
        "token embeddings": table[[5, 7, 5]],
        "standardised token embeddings": (table[[5, 7]] - table.mean(0)) / 3,
        "N(0, 0.5^2)": 0.5 * torch.randn(40, 60, generator=draw),
        "N(2.5, 0.5^2)": 2.5 + 0.5 * torch.randn(4, 10, 6, generator=draw),
        "N(1, 1^2)": 1.0 + torch.randn(4, 10, 6, generator=draw),
        "U(+-0.1)": 0.2 * torch.rand(100, 30, generator=draw) - 0.1,
        "orthogonal rows of norm 1": torch.nn.init.orthogonal_(torch.empty(4, 90), generator=draw),
        "the frozen model": next(_model().base_model.parameters()).detach(),
    }
    assert {kind: _kind(value) for kind, value in kinds.items()} == {kind: kind for kind in kinds}
    assert start_of([("a", torch.zeros(2)), ("b", torch.ones(2)), ("c", torch.zeros(2))]) == "0 (a, c); 1 (b)"


def test_rates_and_starts_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert component("multi-mask", "masks").start == "N(3, 1.5^2) (masks)"
    assert component("multi-mask", "masks", mask_mean=2.5, mask_std=0.5).start == "N(2.5, 0.5^2) (masks)"
    assert component("prefix-tuning", "prefix", init_std=1.0).start == "N(0, 1^2) (prefix)"
    assert component("prompt-tuning", "prompt").start == "token embeddings (prompt)"
    assert component("superpos", "embeddings").weight_decay == 0
    before = component("lora", "lora").learning_rate
    built = sp.LoraConfig.module.components

    def tenfold(self: Any) -> Any:
        parts = built(self)
        parts["lora"].learning_rate *= 10
        return parts

    monkeypatch.setattr(sp.LoraConfig.module, "components", tenfold)
    assert component("lora", "lora").learning_rate == pytest.approx(10 * before)


def test_places_are_those_that_a_prompt_hands_over() -> None:
    def places(name: str, **settings: Any) -> str:
        return defaults_of(sp.make_config(name, **settings)).acts_on

    every = "10 keys and values at encoder.self, decoder.self, decoder.cross (positions kept)"
    assert places("multi-mask") == every
    assert places("prefix-tuning", sites=["decoder.self"], num_virtual_tokens=3, positions="shifted") == (
        "3 keys and values at decoder.self (positions shifted)"
    )
    dept = places("dept", num_virtual_tokens=4, max_length=8, rank=2, placement="front")
    assert dept == "4 tokens in front of the input; embeddings of the first 8 tokens"
    assert places("lora") == "modules `q`, `v`" and places("head-only") == "the task head alone"
    assert WIDTH == 768 and not _model().prompts
