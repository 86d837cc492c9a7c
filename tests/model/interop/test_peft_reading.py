"""Adapters that PEFT trains and saves give here what they give there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import softprompts as sp
from softprompts.backbones import quantized
from softprompts.errors import SoftPromptError
from softprompts.model.formats import open_saved
from tests.model.interop import adapters

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
        ("bart", "SEQ_2_SEQ_LM"),
    )
    for kind in KINDS
    if (family, kind) != ("bart", "prefix")
]


def ours(family: str, task: str | None, folder: Path, **more: Any) -> Any:
    model = sp.attach(adapters.backbone(family, task), folder, **more)
    model.prompts.double()
    return model.eval()


@pytest.mark.parametrize(("family", "kind", "task"), CASES)
def test_logits_are_those_of_peft(family: str, kind: str, task: str, tmp_path: Path) -> None:
    more = {"num_transformer_submodules": 1} if task == "SEQ_2_SEQ_LM" and kind == "multitask" else {}
    there = adapters.trained(family, kind, tmp_path, task, **more)
    inputs = adapters.batch(family, task)
    wanted = adapters.logits(there, inputs, 0)
    model = ours(family, task, tmp_path)
    with torch.no_grad():
        found = model(**inputs).logits
        bare = model(**inputs, prompt_names=[None] * 3).logits
    torch.testing.assert_close(adapters.real(family, found, inputs), adapters.real(family, wanted, inputs), **EXACT)
    assert (found - bare).abs().max() > 1e-3


def test_a_decoder_with_a_head(tmp_path: Path) -> None:
    # With tokens PEFT pools padding, as it no longer has the ids; with a prefix it has them.
    there = adapters.trained("llama", "prefix", tmp_path, "SEQ_CLS")
    inputs = adapters.batch("llama", "SEQ_CLS")
    with torch.no_grad():
        found = ours("llama", "SEQ_CLS", tmp_path)(**inputs).logits
    torch.testing.assert_close(found, adapters.logits(there, inputs), **EXACT)


def test_a_decoder_with_a_head_and_tokens_where_nothing_is_padded(tmp_path: Path) -> None:
    there = adapters.trained("llama", "prompt", tmp_path, "SEQ_CLS")
    inputs = {"input_ids": adapters.batch("llama")["input_ids"][:1]}
    with torch.no_grad():
        found = ours("llama", "SEQ_CLS", tmp_path)(**inputs).logits
    torch.testing.assert_close(found, adapters.logits(there, inputs), **EXACT)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_rows_with_others_in_the_batch_are_what_they_are_alone(family: str, kind: str, tmp_path: Path) -> None:
    there = adapters.trained(family, kind, tmp_path)
    model = sp.attach(adapters.backbone(family))
    model.load_prompt(tmp_path, "theirs")
    model.add_prompt("prompt", tiny.METHODS["superpos"], seed=1)
    model.add_prompt("prefix", tiny.METHODS["prefix-tuning"], seed=2)
    model.add_prompt("shifted", sp.PrefixTuningConfig(num_virtual_tokens=2, positions="shifted", init_std=0.5), seed=3)
    model.add_prompt("front", sp.PromptTuningConfig(num_virtual_tokens=5, placement="front"), seed=4)
    names = ["theirs", "prompt", "prefix", "shifted", "front", None, "theirs"]
    if family == "t5":
        del names[3]
        model.delete_prompt("shifted")
        config = sp.PrefixTuningConfig(num_virtual_tokens=2, positions="shifted", init_std=0.5, sites=("decoder.self",))
        model.add_prompt("shifted", config, seed=3)
        model.add_prompt("everywhere", sp.PrefixTuningConfig(num_virtual_tokens=2, positions="shifted"), seed=3)
        names[3:3] = ["shifted", "everywhere"]
    model.prompts.double()
    model.eval()
    inputs = tiny.batch(family, rows=len(names), columns=12)
    if family != "t5":
        inputs.pop("labels")
    with torch.no_grad():
        mixed = model(**inputs, prompt_names=names).logits
        alone = {name: model(**inputs, prompt_names=name).logits if name else None for name in names}
        alone[None] = model(**inputs, prompt_names=[None] * len(names)).logits
    wanted = adapters.logits(there, inputs)
    columns = inputs["attention_mask"].bool()
    for row, name in enumerate(names):
        real = columns[row] if family in ("gpt2", "llama") else slice(None)
        one = alone[name]
        assert one is not None
        torch.testing.assert_close(mixed[row][real], one[row][real], **EXACT)
        if name == "theirs":
            torch.testing.assert_close(mixed[row][real], wanted[row][real], **EXACT)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_gives_the_same_tokens(family: str, kind: str, beams: int, tmp_path: Path) -> None:
    there = adapters.trained(family, kind, tmp_path)
    inputs = adapters.batch(family)
    if family == "t5":
        inputs.pop("labels")
    else:
        inputs = {"input_ids": inputs["input_ids"][:1].repeat(2, 1)}
        inputs["input_ids"][1, :3] = torch.tensor([7, 8, 9])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    options = {"max_new_tokens": 9, "do_sample": False, "num_beams": beams, "eos_token_id": None, "pad_token_id": 0}
    with adapters.double():
        wanted = there.generate(**inputs, **options)
    model = ours(family, None, tmp_path)
    found = model.generate(**inputs, **options)
    bare = model.generate(**inputs, **options, prompt_names=[None] * len(found))
    assert torch.equal(found[:, -9:], wanted[:, -9:])
    assert not torch.equal(found, bare)


def test_generate_with_padding_on_the_left_and_a_prefix(tmp_path: Path) -> None:
    there = adapters.trained("gpt2", "prefix", tmp_path)
    inputs = tiny.pad_left(tiny.batch("gpt2"))
    inputs.pop("labels")
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with adapters.double():
        wanted = there.generate(**inputs, **options)
    assert torch.equal(ours("gpt2", None, tmp_path).generate(**inputs, **options), wanted)


def test_t5_layers_share_the_slots_that_peft_shares(tmp_path: Path) -> None:
    adapters.trained("t5", "prefix", tmp_path)
    method = ours("t5", None, tmp_path).prompts["default"].method
    keys = method().keys[:, 0]
    assert len(keys) == 4
    assert torch.equal(keys[0], keys[2])
    assert torch.equal(keys[1], keys[3])
    assert not torch.equal(keys[0], keys[1])


def test_multitask_adapters_are_read_one_task_at_a_time(tmp_path: Path) -> None:
    there = adapters.trained("bert", "multitask", tmp_path, num_tasks=3)
    inputs = adapters.batch("bert")
    found = []
    for task in range(3):
        model = ours("bert", None, tmp_path, task_id=task)
        with torch.no_grad():
            found.append(model(**inputs).logits)
        torch.testing.assert_close(found[-1], adapters.logits(there, inputs, task), **EXACT)
    assert (found[0] - found[1]).abs().max() > 1e-3
    for wrong in (None, 3, -1, True, "0"):
        with pytest.raises(SoftPromptError, match="task_id"):
            sp.attach(adapters.backbone("bert"), tmp_path, task_id=wrong)


def test_multitask_on_t5_generates_as_in_peft(tmp_path: Path) -> None:
    # PEFT's own default; its forward pass puts the second half of the rows into the decoder, its `generate` does not.
    base = adapters.backbone("t5")
    with adapters.double():
        there = peft.get_peft_model(base, adapters.settings("t5", "multitask")).double().eval()
        for parameter in there.prompt_encoder.parameters():
            parameter.data += torch.randn_like(parameter)
        there.save_pretrained(str(tmp_path))
    inputs = adapters.batch("t5", labels=False)
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    task = torch.zeros(3, dtype=torch.long)
    wanted = there.generate(**inputs, **options, task_ids=task)
    assert torch.equal(ours("t5", None, tmp_path).generate(**inputs, **options), wanted)


def test_an_adapter_goes_on_as_a_prompt_of_ours(tmp_path: Path) -> None:
    adapters.trained("bert", "prefix", tmp_path / "theirs")
    model = ours("bert", None, tmp_path / "theirs", name="p")
    assert model.prompts["p"].num_labels == 3
    model.save_prompt("p", tmp_path / "ours")
    again = sp.attach(adapters.backbone("bert"), tmp_path / "ours")
    assert list(again.prompts) == ["p"]
    inputs = adapters.batch("bert")
    torch.testing.assert_close(again.eval()(**inputs).logits, model(**inputs).logits, **EXACT)
    again.train()(**inputs).loss.backward()
    assert all(parameter.grad is not None for parameter in again.prompts.parameters())


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_load_opens_the_backbone_that_an_adapter_names(kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    adapters.backbone("bert").float().save_pretrained(base)
    there = adapters.trained("bert", kind, tmp_path / "adapter", base=str(base))
    model = sp.load(tmp_path / "adapter", dtype=torch.float64)
    model.prompts.double()
    inputs = adapters.batch("bert")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, adapters.logits(there, inputs), **EXACT)


def test_load_counts_labels_by_the_last_layer_of_a_head(tmp_path: Path) -> None:
    """DistilBERT's head is `pre_classifier` and `classifier`, and a file has its tensors in order of the alphabet."""
    base, there = tmp_path / "base", tmp_path / "adapter"
    plain = adapters.backbone("distilbert").float()
    plain.save_pretrained(base)
    plain = type(plain).from_pretrained(base)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"], modules_to_save=["pre_classifier"])
    trained = peft.get_peft_model(plain, config).eval()
    torch.nn.init.normal_(trained.base_model.model.pre_classifier.modules_to_save["default"].weight)
    trained.save_pretrained(there)
    model = sp.load(there)
    assert model.config.num_labels == plain.config.num_labels
    inputs = adapters.batch("distilbert")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, trained(**inputs).logits, rtol=1e-5, atol=1e-6)


def test_load_quantises_the_backbone_of_an_adapter(tmp_path: Path) -> None:
    adapters.backbone("bert").float().save_pretrained(tmp_path / "base")
    adapters.trained("bert", "prompt", tmp_path / "adapter", base=str(tmp_path / "base"))
    assert quantized.name_of(sp.load(tmp_path / "adapter")) is None
    assert quantized.name_of(sp.load(tmp_path / "adapter", quantize="nf4")) == "nf4"


def test_lora_without_a_task_type_is_described(tmp_path: Path) -> None:
    adapters.backbone("bert").float().save_pretrained(tmp_path / "base")
    plain = type(adapters.backbone("bert")).from_pretrained(tmp_path / "base")
    peft.get_peft_model(plain, peft.LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "adapter")
    config, tensors = open_saved(tmp_path / "adapter").describe()
    assert config["backbone"] == {"name": str(tmp_path / "base"), "class": "any class"} and tensors


def test_what_bart_adds_to_positions_is_out_of_reach(tmp_path: Path) -> None:
    with adapters.double():
        there = peft.get_peft_model(
            adapters.backbone("bart"), adapters.settings("bart", "prefix", num_attention_heads=2)
        )
        there.save_pretrained(str(tmp_path))
    with pytest.raises(SoftPromptError, match="cannot shift them"):
        sp.attach(adapters.backbone("bart"), tmp_path)


@pytest.mark.parametrize(("window", "same"), [(16, True), (6, False)])
def test_windows_of_attention_hide_a_prefix_in_peft_only(window: int, same: bool, tmp_path: Path) -> None:
    def backbone() -> Any:
        return tiny.model("gemma3", sliding_window=window)

    plain = backbone()
    with adapters.double():
        torch.manual_seed(3)
        there = peft.get_peft_model(plain, adapters.settings("gemma3", "prefix")).double().eval()
        there.save_pretrained(str(tmp_path))
    inputs = {"input_ids": adapters.batch("gemma3")["input_ids"]}
    wanted = adapters.logits(there, inputs)
    model = sp.attach(backbone(), tmp_path).eval()
    assert torch.allclose(model(**inputs).logits, wanted, **EXACT) is same


def test_classifiers_that_take_a_mean_over_prompt_tokens_too_are_refused(tmp_path: Path) -> None:
    config = sp.PromptTuningConfig(num_virtual_tokens=3, placement="front")
    sp.attach(tiny.model("modernbert"), config).save_peft("default", tmp_path)
    sp.attach(tiny.model("modernbert"), tmp_path)
    with pytest.raises(SoftPromptError, match="a mean over all tokens"):
        sp.attach(tiny.model("modernbert", classifier_pooling="mean"), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_in_half_precision_become_single(dtype: torch.dtype, tmp_path: Path) -> None:
    adapters.trained("bert", "multitask", tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({key: value.to(dtype) for key, value in load_file(file).items()}, file)
    model = sp.attach(adapters.backbone("bert").float(), tmp_path).eval()
    assert {parameter.dtype for parameter in model.prompts.parameters()} == {torch.float32}
    there = adapters.loaded("bert", tmp_path).float()
    inputs = adapters.batch("bert")
    torch.testing.assert_close(model(**inputs).logits, adapters.logits(there, inputs, 0), rtol=1e-4, atol=1e-5)


def test_an_adapter_that_names_itself_as_its_backbone(tmp_path: Path) -> None:
    adapters.trained("bert", "prompt", tmp_path, base=str(tmp_path))
    with pytest.raises(SoftPromptError, match="its backbone"):
        sp.load(tmp_path)


def test_a_name_of_a_method_is_not_taken_for_a_folder() -> None:
    with pytest.raises(SoftPromptError, match="is a method"):
        sp.attach(adapters.backbone("bert"), "prompt-tuning")
