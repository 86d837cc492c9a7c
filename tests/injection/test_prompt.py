"""Prompts are checked against the contract: what is trained, and what is handed over, in sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import tiny
import torch
from torch import Tensor, nn

import softprompts as sp
from softprompts.methods.contract import Component, Method, Rows, Shape
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings

Fault = Literal["none", "unlisted", "twice", "half", "wide", "rows", "flat", "nothing", "gates"]


@settings
class FaultyConfig(sp.MethodConfig):
    """A prefix and tokens with a fault."""

    fault: Fault = "none"

    uses_prefix = True
    uses_tokens = True
    method = "faulty"

    def build(self, shape: Shape) -> Method:
        return Faulty(self, shape)


class Faulty(Method):
    config: FaultyConfig

    def __init__(self, config: FaultyConfig, shape: Shape):
        super().__init__(config)
        self.keys = nn.Parameter(torch.randn(shape.num_sites, 1, 3, shape.kv_width))
        self.scale = nn.Parameter(torch.ones(()))
        self.tokens = nn.Parameter(torch.randn(1, 3, shape.hidden_size))

    def forward(self, rows: Rows | None = None) -> Any:
        keys, tokens = self.keys * self.scale, self.tokens
        handed: dict[str, Callable[[], Any]] = {
            "half": lambda: SoftPrompt(tokens, keys=keys),
            "wide": lambda: SoftPrompt(tokens, keys=torch.cat([keys, keys], 3), values=keys),
            "rows": lambda: SoftPrompt(torch.cat([tokens] * 5)),
            "flat": lambda: SoftPrompt(tokens[0]),
            "gates": lambda: SoftPrompt(keys=keys, values=keys, gates=torch.ones(len(keys), 1, 2)),
            "nothing": lambda: None,
        }
        return handed.get(self.config.fault, lambda: SoftPrompt(tokens, keys=keys, values=keys))()

    def components(self) -> dict[str, Component]:
        fault = self.config.fault
        parameters = [
            self.keys,
            *[self.scale] * (1 if fault != "unlisted" else 0),
            *[self.tokens] * (1 + (fault == "twice")),
        ]
        return {"all": Component(parameters, 1e-2)}


def run(fault: Fault) -> Tensor:
    made = tiny.model("bert")
    made = sp.attach(made, FaultyConfig(fault=fault), check=False)  # by this call, and not before
    with torch.no_grad():
        logits: Tensor = made(**tiny.batch("bert", rows=3)).logits
    return logits


def test_a_method_without_a_fault_runs() -> None:
    assert run("none").isfinite().all()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "unlisted",
            r"faulty: components\(\) lists the parameter 'scale' 0 times; once is right, or nothing trains it",
        ),
        ("twice", r"faulty: components\(\) lists the parameter 'tokens' 2 times"),
        ("half", "faulty: of what forward returned, keys and values go together"),
        (
            "wide",
            r"faulty: of what forward returned, keys are of shape \(2, 1, 3, \d+\), and have to be \(2, 1 or 3, 3, ",
        ),
        (
            "rows",
            r"faulty: of what forward returned, tokens are of shape \(5, 3, \d+\), and have to be \(1 or 3, any, ",
        ),
        ("flat", r"tokens are of shape \(3, \d+\)"),
        ("gates", r"gates are of shape \(2, 1, 2\), and have to be \(2, 1 or 3, 3\)"),
        ("nothing", "faulty: forward returned NoneType, not a SoftPrompt"),
    ],
)
def test_a_fault_is_told_in_a_sentence_that_names_the_method(fault: Fault, said: str) -> None:
    with pytest.raises(sp.SoftPromptError, match=said):
        run(fault)
