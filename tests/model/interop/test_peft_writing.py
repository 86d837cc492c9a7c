"""Our prompts, written as adapters: PEFT loads them and gives the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
import transformers as tf

import softprompts as sp
from softprompts.errors import SoftPromptError
from tests.model.interop import adapters

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
    ("bart", "SEQ_2_SEQ_LM", FRONT),
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
    inputs = adapters.batch(family, task, labels=task == "SEQ_2_SEQ_LM")
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


def test_a_shifted_prefix_generates_the_same_in_peft(tmp_path: Path) -> None:
    model = attached("t5", "SEQ_2_SEQ_LM", DECODER)
    model.save_peft("mine", tmp_path / "adapter")
    inputs = adapters.batch("t5", labels=False)
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    there = adapters.loaded("t5", tmp_path / "adapter")
    with adapters.double():
        wanted = there.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options), wanted)


def test_every_layer_of_t5_has_a_prefix_of_its_own_in_peft(tmp_path: Path) -> None:
    attached("t5", "SEQ_2_SEQ_LM", DECODER).save_peft("mine", tmp_path / "adapter")
    there = adapters.loaded("t5", tmp_path / "adapter")
    layers = there.get_prompt(1).self_attention_cache.layers[:4]
    for one in range(4):
        for other in range(one):
            assert not torch.equal(layers[one].keys, layers[other].keys)


def test_a_head_with_labels_of_its_own_goes_along(tmp_path: Path) -> None:
    model = sp.attach(adapters.backbone("bert"), FRONT, "mine", labels=("a", "b", "c", "d", "e"), seed=1)
    model.prompts.double()
    tiny.shake(model)
    model.eval().save_peft("mine", tmp_path / "adapter")
    base = adapters.backbone("bert", num_labels=5)
    with adapters.double():
        there = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).double().eval()
    inputs = adapters.batch("bert", labels=False)
    torch.testing.assert_close(model(**inputs).logits, adapters.logits(there, inputs), **EXACT)
    again = sp.attach(adapters.backbone("bert"), tmp_path / "adapter")
    assert again.prompts["default"].num_labels == 5


@pytest.mark.parametrize(("family", "task", "config"), CASES)
def test_what_is_written_is_read_back(family: str, task: str, config: sp.MethodConfig, tmp_path: Path) -> None:
    model = attached(family, task, config)
    model.save_peft("mine", tmp_path / "adapter")
    again = sp.attach(adapters.backbone(family, task), tmp_path / "adapter").eval()
    inputs = adapters.batch(family, task, labels=task == "SEQ_2_SEQ_LM")
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, **EXACT)


def test_an_adapter_of_peft_survives_being_read_and_written(tmp_path: Path) -> None:
    for family, kind in (("t5", "prefix"), ("bert", "multitask"), ("gpt2", "prefix"), ("llama", "p-tuning")):
        there = adapters.trained(family, kind, tmp_path / family / "one")
        model = sp.attach(adapters.backbone(family), tmp_path / family / "one")
        model.save_peft("default", tmp_path / family / "two")
        again = adapters.loaded(family, tmp_path / family / "two")
        inputs = adapters.batch(family)
        wanted, found = adapters.logits(there, inputs, 0), adapters.logits(again, inputs, 0)
        torch.testing.assert_close(adapters.real(family, found, inputs), adapters.real(family, wanted, inputs), **EXACT)


def test_files_appear_together_and_again(tmp_path: Path) -> None:
    model = attached("bert", "SEQ_CLS", FRONT)
    model.save_peft("mine", tmp_path / "adapter")
    model.save_peft("mine", tmp_path / "adapter")
    names = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert "library_name: peft" in (tmp_path / "adapter" / "README.md").read_text()


REFUSED: list[tuple[str, sp.MethodConfig, str]] = [
    ("bert", sp.PromptTuningConfig(num_virtual_tokens=L), "placement='front'"),
    ("roberta", sp.PromptTuningConfig(num_virtual_tokens=L), "placement='front'"),
    ("bert", PLAIN, "positions='shifted'"),
    ("gpt2", PLAIN, "positions='shifted'"),
    ("t5", dataclasses.replace(PLAIN, sites=("decoder.self",)), "positions='shifted'"),
    ("t5", SHIFTED, r"sites=\('decoder.self',\)"),
    ("distilbert", PLAIN, "past_key_values"),
    ("modernbert", SHIFTED, "past_key_values"),
    *((family, config, "depends on the input") for family in ("bert", "t5") for config in (tiny.METHODS["smop"],)),
    ("llama", tiny.METHODS["multi-mask"], "depends on the input"),
    ("llama", tiny.METHODS["selective-prefix"], "depends on the queries"),
    ("llama", tiny.METHODS["adaptive-prefix"], "what each layer gets"),
    ("llama", tiny.METHODS["dept"], "changes the embeddings"),
    ("llama", tiny.METHODS["ept"], "changes the embeddings"),
    ("llama", tiny.METHODS["adapter"], "changes the model's weights"),
    ("llama", tiny.METHODS["full"], "changes the model's weights"),
    ("bert", sp.HeadOnlyConfig(), "it has no prompt"),
    ("llama", sp.compose(FRONT, SHIFTED), "of which a PEFT adapter has one"),
]


@pytest.mark.parametrize(("family", "config", "says"), REFUSED)
def test_what_peft_cannot_compute_is_refused(family: str, config: sp.MethodConfig, says: str, tmp_path: Path) -> None:
    model = sp.attach(adapters.backbone(family), config, "mine", seed=1)
    with pytest.raises(SoftPromptError, match=says) as caught:
        model.save_peft("mine", tmp_path / "adapter")
    assert "\n" not in str(caught.value)
    assert "'mine'" in str(caught.value)
    assert not (tmp_path / "adapter").exists()


def test_folders_that_are_in_use_and_unknown_names(tmp_path: Path) -> None:
    model = attached("bert", "SEQ_CLS", FRONT)
    model.save_prompt("mine", tmp_path / "ours")
    (tmp_path / "file").write_text("")
    for folder, says in (("ours", "another folder"), ("file", "is a file; name a folder")):
        with pytest.raises(SoftPromptError, match=says):
            model.save_peft("mine", tmp_path / folder)
    with pytest.raises(SoftPromptError, match="unknown prompt"):
        model.save_peft("other", tmp_path / "adapter")


def test_models_that_peft_has_no_task_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = sp.attach(tf.BertForMaskedLM(tiny.FAMILIES["bert"][1]()), FRONT, "mine")
    with pytest.raises(SoftPromptError, match="task_type"):
        model.save_peft("mine", tmp_path / "adapter")
