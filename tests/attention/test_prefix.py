"""Prefixes in front of keys and values, against the formulas written out in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from torch import Tensor, nn
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.granite_swa import modeling_granite_swa
from transformers.models.llama4 import modeling_llama4

import softprompts as sp
from softprompts.attention.prefix import Prefix, _eager, attend_with, require_known

ROWS, HEADS, KV_HEADS, QUERIES, LENGTH, WIDTH = 3, 4, 2, 5, 3, 4
KINDS = {"prefix": None, "selective": 2.0, "both": torch.tensor([2.0, float("nan"), 0.5])}
MODULES = {"gpt_oss": modeling_gpt_oss, "gemma2": modeling_gemma2, "granite_swa": modeling_granite_swa}


class Site(nn.Module):
    """An attention module as far as kernels look at it."""

    num_key_value_groups = HEADS // KV_HEADS
    head_dim = WIDTH
    is_causal = True

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.sinks = nn.Parameter(torch.randn(HEADS, dtype=torch.float64))
        self.__class__ = type("Site", (Site,), {"__module__": source.__name__})


def naive(
    query: Tensor, key: Tensor, value: Tensor, prefix: Prefix, sinks: Tensor | None, softcap: float | None
) -> Tensor:
    """``softmax`` over prefix and earlier tokens, weight by weight; sinks take their share of the denominator."""
    output = torch.zeros(ROWS, QUERIES, HEADS, WIDTH, dtype=torch.float64)
    prefix_key, prefix_value = (
        part.unflatten(-1, (KV_HEADS, WIDTH)).transpose(1, 2) for part in (prefix.keys, prefix.values)
    )
    for row in range(ROWS):
        alpha = prefix.selectivity[row].item() if isinstance(prefix.selectivity, Tensor) else prefix.selectivity
        for head in range(HEADS):
            shared = head // (HEADS // KV_HEADS)
            for at in range(QUERIES):
                total = 0.0 if sinks is None else math.exp(sinks[head].item())
                for column in range(LENGTH + at + 1):
                    of_prefix = column < LENGTH
                    if of_prefix and prefix.mask is not None and not prefix.mask[row, column]:
                        continue
                    keys, values = (prefix_key, prefix_value) if of_prefix else (key, value)
                    place = column if of_prefix else column - LENGTH
                    score = (query[row, head, at] @ keys[row, shared, place]).item() * 0.5
                    score = score if softcap is None else math.tanh(score / softcap) * softcap
                    weight = math.exp(score)
                    if of_prefix and alpha is not None and not math.isnan(alpha):
                        weight /= 1 + math.exp(-alpha * score)
                    total += weight
                    output[row, at, head] += weight * values[row, shared, place]
                output[row, at, head] /= total
    return output


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("family", MODULES)
def test_eager_kernels_keep_sinks_and_bounds(family: str, masked: bool, kind: str) -> None:
    torch.manual_seed(0)
    site = Site(MODULES[family])
    query = torch.randn(ROWS, HEADS, QUERIES, WIDTH, dtype=torch.float64) * 2
    key, value = torch.randn(2, ROWS, KV_HEADS, QUERIES, WIDTH, dtype=torch.float64).unbind(0)
    owned = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 0]]).bool()
    keys, values = torch.randn(2, ROWS, LENGTH, KV_HEADS * WIDTH, dtype=torch.float64).unbind(0)
    prefix = Prefix(keys, values, owned if masked else None, KINDS[kind])
    hidden = torch.full((QUERIES, QUERIES), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)[None, None]
    softcap = 1.5 if family == "gemma2" else None
    got, weights = attend_with(prefix, "eager", site, query, key, value, hidden, scaling=0.5, softcap=softcap)
    wanted = naive(query, key, value, prefix, None if family == "gemma2" else site.sinks, softcap)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)  # these kernels take parts of it in float32
    assert weights is not None
    assert weights.shape == (ROWS, HEADS, QUERIES, LENGTH + QUERIES)


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("method", ["prefix-tuning", "selective-prefix", "multi-mask"])
@pytest.mark.parametrize("family", ["bert", "bart", "t5", "llama", "gpt2"])
def test_eager_rows_of_different_lengths_are_as_alone(family: str, method: str, padding: str) -> None:
    plain = tiny.model(family)
    plain.set_attn_implementation("eager")
    model = tiny.model(family)
    model.set_attn_implementation("eager")
    model = sp.attach(model)
    model.add_prompt("long", tiny.METHODS[method], seed=0)
    model.add_prompt("short", sp.PrefixTuningConfig(num_virtual_tokens=2, init_std=0.5), seed=1)
    model.prompts.double()
    tiny.shake(model)
    model.eval()
    inputs = tiny.batch(family)
    inputs.pop("labels")
    if padding == "none":
        inputs = {"input_ids": torch.randint(5, 60, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    elif padding == "left":
        inputs = tiny.pad_left(inputs)
    if family in tiny.SEQ2SEQ:
        inputs["decoder_input_ids"] = torch.randint(5, 60, (3, 4))
    names = ["long", None, "short"]
    together = tiny.real_logits(family, model(**inputs, prompt_names=names).logits, inputs["attention_mask"])
    for row, name in enumerate(names):
        alone = tiny.row(inputs, row)
        alone["decoder_input_ids"] = inputs.get("decoder_input_ids", alone["input_ids"])[row : row + 1]
        if family not in tiny.SEQ2SEQ:
            alone.pop("decoder_input_ids")
        output = plain(**alone) if name is None else model(**alone, prompt_names=[name])
        torch.testing.assert_close(together[row], output.logits[0], rtol=1e-11, atol=1e-12)


def gpt_oss() -> Any:
    torch.manual_seed(0)
    config = tf.GptOssConfig(
        vocab_size=60, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, num_local_experts=2, num_experts_per_tok=1, sliding_window=4,
        pad_token_id=0, initializer_range=0.3, attn_implementation="eager", experts_implementation="eager",
    )  # fmt: skip
    model = tf.GptOssForCausalLM(config).double().eval()
    for layer in model.model.layers:
        layer.self_attn.sinks.data.normal_()
    return model


def test_a_row_without_a_prompt_keeps_the_sinks_beside_a_selective_prefix() -> None:
    plain, model = gpt_oss(), sp.attach(gpt_oss(), tiny.METHODS["selective-prefix"], name="p", seed=0)
    model.prompts.double()
    tiny.shake(model)
    model.eval()
    ids = torch.randint(5, 60, (2, 7))
    logits = model(input_ids=ids, prompt_names=["p", None]).logits
    torch.testing.assert_close(logits[1], plain(input_ids=ids).logits[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits[0], model(input_ids=ids[:1], prompt_names=["p"]).logits[0], rtol=1e-9, atol=1e-9)
    assert (logits[0] - plain(input_ids=ids).logits[0]).abs().max() > 1e-3


def test_every_class_has_its_own_eager_kernel() -> None:
    class Derived(modeling_llama4.Llama4VisionAttention):
        """Calls the forward of its base."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    assert _eager(modeling_llama4.Llama4TextAttention) is modeling_llama4.eager_attention_forward
    assert _eager(modeling_llama4.Llama4VisionAttention) is modeling_llama4.vision_eager_attention_forward
    assert _eager(Derived) is modeling_llama4.vision_eager_attention_forward


def test_arguments_that_may_number_keys_are_refused() -> None:
    require_known({"scaling": 1.0, "position_ids": torch.zeros(3, 2, 5), "token_type_ids": torch.zeros(2, 5)})
    with pytest.raises(sp.SoftPromptError, match="'indices'"):
        require_known({"indices": torch.zeros(2, 5, 3)})
    with pytest.raises(sp.SoftPromptError, match="continuous batching"):
        require_known({"cache": SimpleNamespace()})


def test_models_that_choose_keys_by_number_take_no_prefix() -> None:
    torch.manual_seed(0)
    config = tf.DeepseekV32Config(
        vocab_size=60, hidden_size=16, intermediate_size=8, moe_intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4,
        qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1,
        first_k_dense_replace=1, index_topk=2, index_n_heads=2, index_head_dim=8, pad_token_id=0,
    )  # fmt: skip
    model = tf.DeepseekV32ForCausalLM(config).double().eval()
    ids = torch.randint(5, 60, (2, 7))
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    with pytest.raises(sp.SoftPromptError, match="cannot take"):
        sp.attach(model, sp.PrefixTuningConfig(num_virtual_tokens=2))
    model = sp.attach(model, sp.PromptTuningConfig(num_virtual_tokens=2), name="p").eval()
    torch.testing.assert_close(model(input_ids=ids, prompt_names=[None, "p"]).logits[0], wanted[0])
