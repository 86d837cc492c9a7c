"""What the modules of a backbone are for, told without names: every family of `tiny`, and models beyond."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import transformers as tf

import softprompts as sp
from softprompts.backbones.backbone import Backbone
from softprompts.methods import Part

# What each family calls them, to compare with; the library does not know.
NAMES = {
    "query": {"q", "query", "q_lin", "q_proj", "Wqkv", "c_attn"},
    "key": {"k", "key", "k_lin", "k_proj", "Wqkv", "c_attn"},
    "value": {"v", "value", "v_lin", "v_proj", "Wqkv", "c_attn"},
    "attention.output": {"o", "attention.output.dense", "out_lin", "out_proj", "o_proj", "attn.Wo", "attn.c_proj"},
    "ffn.in": {"intermediate.dense", "lin1", "Wi", "wi", "fc1", "gate_proj", "up_proj", "c_fc"},
    "ffn.out": {"output.dense", "lin2", "mlp.Wo", "wo", "fc2", "down_proj", "mlp.c_proj"},
    "output": {"lm_head"},
    "input": {"word_embeddings", "tok_embeddings", "embed_tokens", "shared", "wte"},
}


def parts(family: str) -> list[Part]:
    return [part for part, _ in Backbone(tiny.model(family)).parts]


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_roles(family: str) -> None:
    found = parts(family)
    for part in found:
        for role in part.roles:
            assert any(part.path == name or part.path.endswith(f".{name}") for name in NAMES[role]), part
    sites = {"encoder": ["encoder.self"], "decoder": ["decoder.self"]}.get(
        tiny.FAMILIES[family][0], ["encoder.self", "decoder.self", "decoder.cross"]
    )
    for layer in range(2):
        for site in sites:
            here = [part for part in found if part.site == site and part.layer == layer]
            for role in ("query", "key", "value", "attention.output"):
                assert sum(role in part.roles for part in here) == 1, (site, role)
        for stack in {site.split(".")[0] for site in sites}:
            ffn = [part for part in found if part.layer == layer and part.stack == stack]
            assert sum("ffn.out" in part.roles for part in ffn) == 1
            assert sum("ffn.in" in part.roles for part in ffn) in (1, 2)
    assert sum("input" in part.roles for part in found) == 1
    assert sum("output" in part.roles for part in found) == (tiny.FAMILIES[family][0] != "encoder")


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_parts_have_all_parameters_and_the_right_sizes(family: str) -> None:
    model = tiny.model(family)
    backbone = Backbone(model)
    described = backbone.described_parts("x")
    held = {id(tensor) for part in described for tensor in part.tensors.values()}
    heads = ("classifier.", "pre_classifier.", "head.")
    for name, parameter in model.named_parameters():
        assert (id(parameter) in held) == (not name.startswith(heads)), name
    for part, (_, module) in zip(described, backbone.parts, strict=True):
        shape = tuple(part.tensors["weight"].shape)
        expected = {
            "linear": (part.out_features, part.in_features),
            "conv1d": (part.in_features, part.out_features),
            "norm": (part.in_features,),
        }
        assert shape == expected.get(part.kind, shape), part
        assert part.has_bias == (getattr(module, "bias", None) is not None)
        assert (part.kind == "norm") == ("norm" in type(module).__name__.lower()), part
        assert part.by_row == ("relative_attention_bias" not in part.path)


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
def test_paths_do_not_depend_on_the_head(family: str) -> None:
    model = tiny.model(family)
    whole = {part.path for part, _ in Backbone(model).parts}
    base = tf.AutoModel.from_config(model.config)
    assert {part.path for part, _ in Backbone(base).parts} == whole - {"lm_head"}


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_looking_changes_nothing(family: str) -> None:
    model = tiny.model(family).train()
    inputs = tiny.batch(family)
    torch.manual_seed(0)
    before = model(**inputs).logits
    Backbone(model)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.manual_seed(0)
    assert torch.equal(model(**inputs).logits, before)


def test_a_model_whose_attention_cannot_be_looked_into() -> None:
    config = tf.GPTJConfig(vocab_size=60, n_positions=40, n_embd=16, n_layer=2, n_head=4, rotary_dim=4)
    torch.manual_seed(0)
    model: Any = tf.GPTJForCausalLM(config).double().eval()
    described = Backbone(model).described_parts("x")
    assert {id(t) for part in described for t in part.tensors.values()} == {id(p) for p in model.parameters()}
    ids = torch.randint(5, 60, (2, 6))
    before = model(input_ids=ids).logits
    with pytest.raises(sp.SoftPromptError, match="lora: this backbone has no linear layer known as query or value"):
        sp.attach(model, sp.LoraConfig())
    sp.attach(model, sp.FullConfig())
    tiny.shake(model)
    changed = model(input_ids=ids).logits
    assert not torch.allclose(changed, before)
    theta = {name: p.detach().clone() for name, p in model.prompts["default"].method.theta.items()}
    sp.detach(model)
    assert torch.equal(model(input_ids=ids).logits, before)
    with torch.no_grad():
        for part, module in Backbone(model).parts:
            for name, parameter in module.named_parameters():
                parameter.copy_(theta[f"{part.path}.{name}".replace(".", "/")])
    torch.testing.assert_close(model(input_ids=ids).logits, changed, rtol=1e-6, atol=1e-6)
