"""Prefixes for flex_attention, beside sdpa. torch's own kernel runs, uncompiled but for one test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from torch.nn.attention import flex_attention

import softprompts as sp
from softprompts.attention import flex
from softprompts.attention.prefix import Prefix

CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-9}
FAMILIES = ["bert", "gemma3", "t5", "bart", "llama"]
PADDING = ["none", "left", "right"]

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs torch's formula; it has gradients on a CPU too, where the compiled kernel has none."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    with torch.compiler.set_stance("force_eager"):
        yield


def attached(family: str, *names: str, kernel: str = "flex_attention") -> Any:
    model = tiny.model(family)
    model.set_attn_implementation(kernel)
    return tiny.with_prompts(model, *names)


@pytest.mark.parametrize(("family", "padding"), [(family, PADDING[i % 3]) for i, family in enumerate(FAMILIES)])
@pytest.mark.usefixtures("uncompiled")
def test_outputs_and_gradients_are_those_of_sdpa(family: str, padding: str) -> None:
    inputs, outcomes = tiny.unlabelled(family, padding), []
    ones = torch.ones(3, 7, dtype=torch.long)
    for names in (["multi-mask", None, "prefix-tuning"], ["prefix-tuning", "prompt-tuning", "prefix-tuning"]):
        for kernel in ("flex_attention", "sdpa"):
            model = attached(family, "prefix-tuning", "multi-mask", "prompt-tuning", kernel=kernel)
            logits = model(**inputs, prompt_names=names).logits
            real = torch.cat(tiny.real_logits(family, logits, inputs.get("attention_mask", ones)))
            real.square().sum().backward()
            gradients = [parameter.grad for parameter in model.prompts.parameters() if parameter.grad is not None]
            outcomes.append([real, *gradients])
        torch.testing.assert_close(*outcomes[-2:], **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gemma3", "t5"])
@pytest.mark.usefixtures("uncompiled")
def test_generate_is_that_of_sdpa(family: str) -> None:
    inputs = tiny.unlabelled(family, "left")
    inputs.pop("decoder_input_ids", None)
    settings: dict[str, Any] = {
        "max_new_tokens": 5,
        "min_new_tokens": 5,
        "prompt_names": ["prefix-tuning", None, "multi-mask"],
    }
    for extra in ({}, {"num_beams": 2}):
        tokens = [
            attached(family, "prefix-tuning", "multi-mask", kernel=kernel).generate(**inputs, **settings, **extra)
            for kernel in ("flex_attention", "sdpa")
        ]
        assert torch.equal(*tokens), extra


@pytest.mark.usefixtures("uncompiled")
def test_bounds_on_scores_are_kept() -> None:
    logits = []
    for kernel in ("flex_attention", "eager"):
        torch.manual_seed(0)
        config = tf.Gemma2Config(
            vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=4, sliding_window=4, query_pre_attn_scalar=1, attn_logit_softcapping=1.0,
            initializer_range=0.3, pad_token_id=0, attn_implementation=kernel,
        )  # fmt: skip
        model = sp.attach(tf.Gemma2ForCausalLM(config).double(), tiny.METHODS["prefix-tuning"], name="p", seed=0)
        model.prompts.double()
        tiny.shake(model)
        logits.append(model.eval()(torch.arange(5, 19).view(2, 7), prompt_names=["p", None]).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)  # eager kernels take the softmax in float32


@pytest.mark.usefixtures("uncompiled")
def test_packed_sequences_each_have_the_prefix() -> None:
    model, lengths = attached("llama", "prefix-tuning"), [3, 5, 1]
    ids = torch.randint(5, 60, (1, sum(lengths)))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    alone = [model(input_ids=part).logits for part in ids.split(lengths, 1)]
    packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed, torch.cat(alone, 1), **CLOSE)


@pytest.mark.usefixtures("uncompiled")
def test_without_a_mask_only_the_prefix_has_one() -> None:
    prefix = Prefix(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), torch.tensor([[True, False], [False, False]]), None)
    query, key = torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4)
    mask = flex._widened(None, prefix, query, key)
    seen = torch.tensor(
        [[[mask.mask_mod(*map(torch.tensor, (r, 0, q, k))) for k in range(5)] for q in range(3)] for r in range(2)]
    )
    assert seen[0].tolist() == [[True, False, True, True, True]] * 3
    assert seen[1].tolist() == [[False, False, True, True, True]] * 3
    shared = Prefix(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), None, None)
    assert flex._widened(None, shared, query, key) is None


def test_what_changes_scores_is_refused_at_once() -> None:
    model = attached("llama")
    with pytest.raises(sp.SoftPromptError, match="attn_implementation='sdpa'"):
        model.add_prompt("p", sp.SelectivePrefixConfig(num_virtual_tokens=2))
    assert sp.detach(model).config._attn_implementation == "flex_attention"


@pytest.mark.usefixtures("uncompiled")
def test_set_after_attaching() -> None:
    model = attached("llama", "prefix-tuning", kernel="sdpa")
    ids = torch.randint(5, 60, (2, 5))
    wanted = model(ids).logits
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(model(ids).logits, wanted, **CLOSE)
    with pytest.raises(sp.SoftPromptError, match="which flex_attention"):
        model.add_prompt("p", sp.SelectivePrefixConfig(num_virtual_tokens=2))
    model.set_attn_implementation("sdpa")
    model.add_prompt("p", sp.SelectivePrefixConfig(num_virtual_tokens=2))
    model.set_attn_implementation("flex_attention")
    with pytest.raises(sp.SoftPromptError, match="choose 'sdpa' or 'eager'"):
        model(ids, prompt_names="p")
