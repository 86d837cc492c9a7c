"""Our prompts, written as adapters: PEFT loads them and gives the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import adapters
import pytest
import tiny
import torch

import softprompts as sp

EXACT = {"rtol": 1e-9, "atol": 1e-9}
L = 3
FRONT = sp.PromptTuningConfig(num_virtual_tokens=L, placement="front")
SHIFTED = sp.PrefixTuningConfig(num_virtual_tokens=L, init_std=0.5, positions="shifted")
DECODER = dataclasses.replace(SHIFTED, sites=("decoder.self",))
PLAIN = sp.PrefixTuningConfig(num_virtual_tokens=L, init_std=0.5)
CASES: list[tuple[str, str, sp.MethodConfig]] = [
    *((family, task, FRONT) for family, task in (("bert", "SEQ_CLS"), ("bert", "TOKEN_CLS"), ("roberta", "SEQ_CLS"))),
    *((family, task, SHIFTED) for family, task in (("bert", "SEQ_CLS"), ("bert", "TOKEN_CLS"), ("roberta", "SEQ_CLS"))),
    ("electra", "SEQ_CLS", FRONT),
    ("distilbert", "SEQ_CLS", FRONT),
    ("modernbert", "TOKEN_CLS", FRONT),
    *((family, "CAUSAL_LM", config) for family in ("llama", "qwen3", "gpt2") for config in (FRONT, SHIFTED)),
    ("t5", "SEQ_2_SEQ_LM", FRONT),
    ("t5", "SEQ_2_SEQ_LM", DECODER),
    ("bert", "SEQ_CLS", sp.PTuningConfig(num_virtual_tokens=L, placement="front")),
    ("llama", "CAUSAL_LM", sp.ResidualConfig(num_virtual_tokens=L, bottleneck=4)),
    ("t5", "SEQ_2_SEQ_LM", sp.SuperPosConfig(num_virtual_tokens=L, num_sampled_tokens=5)),
    ("bert", "SEQ_CLS", dataclasses.replace(SHIFTED, reparameterize=True, mlp_hidden_size=8)),
]


def attached(family: str, task: str, config: sp.MethodConfig) -> Any:
    model = sp.attach(adapters.backbone(family, task), config, "mine", seed=1)
    model.prompts.double()
    tiny.shake(model, 0.4)
    return model.eval()


def difference(model: Any, family: str, task: str, folder: Path) -> float:
    """How far PEFT's logits with a written prompt are from ours."""
    model.save_peft("mine", folder)
    there = adapters.loaded(family, folder, task)
    inputs = adapters.batch(family, task, labels=family == "t5")
    with torch.no_grad():
        found = model(**inputs).logits
    wanted = adapters.logits(there, inputs)
    gap = adapters.real(family, found, inputs) - adapters.real(family, wanted, inputs)
    return float(gap.abs().max())


@pytest.mark.parametrize(("family", "task", "config"), CASES)
def test_peft_gives_the_same(family: str, task: str, config: sp.MethodConfig, tmp_path: Path) -> None:
    assert difference(attached(family, task, config), family, task, tmp_path / "adapter") < 1e-9


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_keys_without_positions_are_turned_for_rotary_models(family: str, tmp_path: Path) -> None:
    # cosines are in single precision whatever the model's type
    assert difference(attached(family, "CAUSAL_LM", PLAIN), family, "CAUSAL_LM", tmp_path / "adapter") < 1e-5
