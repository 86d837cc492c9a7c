"""Settings that came later: what was saved without them stays as it was, whatever their default is now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
import torch
from torch import Tensor

import softprompts as sp
from softprompts.analysis.saved import Saved
from softprompts.methods import Method, Rows, Shape, make_config, registry, sources
from softprompts.methods.compose import restored_config
from softprompts.methods.contract import Component
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@settings
class ScaledConfig(sp.MethodConfig):
    """A method that once had no scale, which was 1.

    Attributes:
        scale: factor of the prompt.
    """

    scale: float = 2.0

    uses_tokens = True
    absent: ClassVar[dict[str, Any]] = {"scale": 1.0}

    def build(self, shape: Shape) -> Method:
        return Scaled(self, shape)


class Scaled(Method):
    config: ScaledConfig

    def __init__(self, config: ScaledConfig, shape: Shape):
        super().__init__(config)
        self.prompt = torch.nn.Parameter(torch.randn(config.num_virtual_tokens, shape.hidden_size))

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        return SoftPrompt(tokens=self.config.scale * self.prompt[None])

    def components(self) -> dict[str, Component]:
        return {"prompt": Component([self.prompt], 1e-2)}


@settings
class ShiftedConfig(ScaledConfig):
    """One that inherits the scale, and got a shift since."""

    shift: float = 3.0

    absent: ClassVar[dict[str, Any]] = {"shift": 0.0}


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    sp.register("scaled")(ScaledConfig)
    yield
    del registry._REGISTRY["scaled"]


def restored(method: str, fields: dict[str, Any]) -> sp.MethodConfig:
    return restored_config({"method": method, "config": fields}, "here")


def test_a_new_config_has_the_default_and_a_saved_one_without_the_key_the_old_value() -> None:
    assert make_config("scaled") == ScaledConfig(scale=2.0)
    assert restored("scaled", {"num_virtual_tokens": 4}) == ScaledConfig(num_virtual_tokens=4, scale=1.0)
    assert restored("scaled", {"scale": 5.0}) == ScaledConfig(scale=5.0)
    for config in (ScaledConfig(), ScaledConfig(scale=1.0)):
        assert restored("scaled", json.loads(json.dumps(config.to_dict()))) == config


def test_of_a_composition_every_part() -> None:
    parts = [{"method": "scaled", "num_virtual_tokens": 4}, {"method": "lora"}]
    config = restored("scaled+lora", {"parts": parts})
    assert config.setting("scale") == 1.0
    assert make_config("scaled+lora").setting("scale") == 2.0


def test_old_values_are_inherited() -> None:
    before = ShiftedConfig.before()
    assert (before["scale"], before["shift"]) == (1.0, 0.0)


def test_ids_of_runs_are_those_from_before_the_setting_where_it_has_its_old_value() -> None:
    assert "scale" not in ScaledConfig(scale=1.0).identity()
    assert ScaledConfig().identity()["scale"] == 2.0
    assert ScaledConfig(scale=1.0).to_dict()["scale"] == 1.0


def test_whoever_reads_a_saved_prompt_of_old_gets_its_outputs(tmp_path: Path) -> None:
    model, inputs = sp.attach(tiny.model("bert"), ScaledConfig(scale=1.0), name="p", seed=0), tiny.batch("bert")
    model.save_prompt("p", tmp_path, {"seed": 0, "settings": ScaledConfig(scale=1.0).identity()})
    file = tmp_path / "softprompt_config.json"
    config = json.loads(file.read_text())
    del config["config"]["scale"]
    file.write_text(json.dumps(config))

    fresh = sp.attach(tiny.model("bert"), tmp_path)
    with torch.no_grad():
        assert torch.equal(fresh(**inputs).logits, model(**inputs).logits)
        doubled = sp.attach(tiny.model("bert"), ScaledConfig(), seed=0)
        assert not torch.equal(doubled(**inputs).logits, model(**inputs).logits)
    tokens: Tensor = model.prompts["p"].method().tokens
    assert torch.equal(Saved(tmp_path).method().tokens, tokens)
    assert torch.equal(sources.load_tokens("spot", [str(tmp_path)], 16)[0], tokens[0].float())
