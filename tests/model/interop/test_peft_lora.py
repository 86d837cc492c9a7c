"""LoRA adapters, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import softprompts as sp
from softprompts.errors import SoftPromptError
from tests.model.interop import adapters

EXACT = {"rtol": 1e-9, "atol": 1e-9}
TARGETS = {
    "bert": ["query", "value"],
    "roberta": ["query", "key", "value"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn"],
    "t5": ["q", "v"],
    "bart": ["q_proj", "v_proj"],
    "electra": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "modernbert": ["Wqkv"],
    "qwen3": ["k_proj", "gate_proj", "up_proj"],
}


def trained(family: str, folder: Path, task: str | None = None, **more: Any) -> Any:
    """A LoRA adapter that PEFT has made and saved."""
    more.setdefault("target_modules", TARGETS.get(family))
    plain = adapters.backbone(family)
    with adapters.double():
        torch.manual_seed(3)
        config = peft.LoraConfig(r=4, lora_alpha=6, task_type=task or adapters.TASKS[tiny.FAMILIES[family][0]], **more)
        model = peft.get_peft_model(plain, config).double().eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(str(folder))
    return model


def logits(model: Any, family: str) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**adapters.batch(family)).logits
    return found


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", TARGETS)
def test_logits_are_those_of_peft(family: str, rslora: bool, tmp_path: Path) -> None:
    there = trained(family, tmp_path, use_rslora=rslora, fan_in_fan_out=family == "gpt2")
    model = sp.attach(adapters.backbone(family), tmp_path).eval()
    torch.testing.assert_close(logits(model, family), logits(there, family), **EXACT)
    assert (logits(model, family) - logits(adapters.backbone(family), family)).abs().max() > 1e-3


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("targets", [("query", "value"), ("value", "attention.output", "ffn.in", "ffn.out")])
def test_peft_gives_what_ours_do(family: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    config = sp.LoraConfig(rank=3, alpha=5.0, targets=targets)
    model = sp.attach(adapters.backbone(family), config, "mine", seed=1)
    model.prompts.double()
    tiny.shake(model)
    model.eval().save_peft("mine", tmp_path / "adapter")
    plain = adapters.backbone(family)
    with adapters.double():
        there = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).double().eval()
    torch.testing.assert_close(logits(there, family), logits(model, family), **EXACT)
    again = sp.attach(adapters.backbone(family), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again, family), logits(model, family), **EXACT)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank_pattern": {"layer.0.attention.self.query": 2}}, "rank_pattern"),
        ({"layers_to_transform": [0]}, "all layers of a kind"),
        ({"target_modules": ["pooler.dense"]}, "no query"),
        ({"target_modules": ["query", "word_embeddings"]}, "unknown|no part|no query"),
    ],
)
def test_more_than_plain_lora_is_refused(more: dict[str, Any], says: str, tmp_path: Path) -> None:
    trained("bert", tmp_path, **more)
    model = sp.attach(adapters.backbone("bert"))
    with pytest.raises(SoftPromptError, match=says):
        model.load_prompt(tmp_path)
    assert not model.prompts


def test_damaged_ones_are_refused(tmp_path: Path) -> None:
    trained("bert", tmp_path)
    file, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    good, settings = load_file(file), json.loads(config.read_text())
    name = next(key for key in good if key.endswith("lora_A.weight"))
    model = sp.attach(adapters.backbone("bert"))
    for tensors, says in (
        ({key: value for key, value in good.items() if key != name}, "incomplete"),
        ({**good, name: torch.zeros(3, 5)}, "incomplete"),
        ({}, "no products"),
        ({**good, "base_model.model.bert.../../x.lora_A.weight": torch.zeros(4, 16)}, "no query"),
        ({**good, "base_model.model.bert.pooler.dense.weight": torch.zeros(16, 16)}, "no part of"),
    ):
        save_file(tensors, file)
        with pytest.raises(SoftPromptError, match=says):
            model.load_prompt(tmp_path)
    save_file(good, file)
    for key, value in (("r", 0), ("r", "4"), ("lora_alpha", "x"), ("lora_dropout", 2), ("init_lora_weights", "pissa")):
        config.write_text(json.dumps({**settings, key: value}))
        with pytest.raises(SoftPromptError):
            model.load_prompt(tmp_path)
    assert not model.prompts
