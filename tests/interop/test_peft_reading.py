"""Adapters that PEFT trains and saves give here what they give there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adapters
import pytest
import tiny
import torch

import softprompts as sp

EXACT = {"rtol": 1e-9, "atol": 1e-9}
KINDS = ["prompt", "p-tuning", "prefix", "multitask"]
CASES = [
    (family, kind, task)
    for family, task in (
        ("bert", "SEQ_CLS"),
        ("bert", "TOKEN_CLS"),
        ("roberta", "SEQ_CLS"),
        ("electra", "SEQ_CLS"),
        ("llama", "CAUSAL_LM"),
        ("qwen3", "CAUSAL_LM"),
        ("gpt2", "CAUSAL_LM"),
        ("t5", "SEQ_2_SEQ_LM"),
    )
    for kind in KINDS
]


def ours(family: str, task: str | None, folder: Path, **more: Any) -> Any:
    model = sp.attach(adapters.backbone(family, task), folder, **more)
    model.prompts.double()
    return model.eval()


@pytest.mark.parametrize(("family", "kind", "task"), CASES)
def test_logits_are_those_of_peft(family: str, kind: str, task: str, tmp_path: Path) -> None:
    more = {"num_transformer_submodules": 1} if (family, kind) == ("t5", "multitask") else {}
    there = adapters.trained(family, kind, tmp_path, task, **more)
    inputs = adapters.batch(family, task)
    wanted = adapters.logits(there, inputs, 0)
    model = ours(family, task, tmp_path)
    with torch.no_grad():
        found = model(**inputs).logits
        bare = model(**inputs, prompt_names=[None] * 3).logits
    torch.testing.assert_close(adapters.real(family, found, inputs), adapters.real(family, wanted, inputs), **EXACT)
    assert (found - bare).abs().max() > 1e-3
