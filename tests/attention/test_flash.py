"""Prefixes for FlashAttention, on a stub that computes what its functions do, with loops over sequences."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as utils
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import softprompts as sp
from softprompts.attention import flash
from softprompts.backbones.backbone import attention_of

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
FAMILIES = ["bert", "llama", "qwen3", "gpt2", "bart"]


def one_sequence(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None, window: Any) -> Tensor:
    """``(q, H, d)`` of ``(q, H, d)`` and ``(k, kv_heads, d)``; masks are aligned at the bottom right."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * (query.shape[2] ** -0.5 if scale is None else scale)
    at = torch.arange(len(query))[:, None] + len(key) - len(query)
    column = torch.arange(len(key))[None]
    hidden = (column > at) if causal else torch.zeros(len(query), len(key), dtype=torch.bool)
    if window[0] >= 0:
        hidden = hidden | (column < at - window[0])
    if window[1] >= 0 and not causal:
        hidden = hidden | (column > at + window[1])
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hqk,khd->qhd", weights, value)


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: Any = (-1, -1), softcap: float = 0.0, deterministic: bool = False,
) -> Tensor:  # fmt: skip
    rows = zip(q, k, v, strict=True)
    return torch.stack([one_sequence(*row, causal, softmax_scale, window_size) for row in rows])


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False, window_size: Any = (-1, -1),
    softcap: float = 0.0, deterministic: bool = False,
) -> Tensor:  # fmt: skip
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert len(cu_seqlens_q) == len(cu_seqlens_k)
    assert int(cu_seqlens_q[-1]) == len(q) and int(cu_seqlens_k[-1]) == len(k)
    queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    assert max_seqlen_q == max(queries) and max_seqlen_k == max(keys)
    parts = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    return torch.cat([one_sequence(*part, causal, softmax_scale, window_size) for part in parts])


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Puts the stub in place of the package, and notes the names that it is asked for by."""
    asked: list[str] = []

    def imported(name: str | None, *_: Any, **__: Any) -> Any:
        asked.append(str(name))
        functions = (flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input)
        return functions, (utils._lazy_define_process_function(flash_attn_varlen_func), dict)

    monkeypatch.setattr(utils, "lazy_import_flash_attention", imported)
    return asked


def loaded(family: str, kernel: str = "flash_attention_2", **config: Any) -> Any:
    """A model as if it were loaded with this kernel, whose package is not there."""
    model = tiny.model(family, **config)
    for part, _ in attention_of(model):
        part._attn_implementation = kernel
    return model


def attached(family: str, *names: str, kernel: str = "flash_attention_2", **config: Any) -> Any:
    return tiny.with_prompts(loaded(family, kernel, **config), *names)  # unchecked: the stand-in is slow


@pytest.mark.parametrize("kernel", flash.NAMES)
def test_names(kernel: str, calls: list[str]) -> None:
    model = attached("llama", "prefix-tuning", kernel=kernel)
    model(torch.randint(5, 60, (2, 5)))
    assert set(calls) == {kernel}
    sp.detach(model)
    assert model.config._attn_implementation == kernel
    mask = ALL_MASK_ATTENTION_FUNCTIONS[f"softprompts|{kernel}"]
    assert mask is ALL_MASK_ATTENTION_FUNCTIONS[kernel]


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_sdpa(family: str, padding: str, calls: list[str]) -> None:
    methods = ["prefix-tuning", "multi-mask", "prompt-tuning", "adaptive-prefix"]
    inputs = tiny.unlabelled(family, padding)
    ones, outcomes = torch.ones(3, 7, dtype=torch.long), []
    for names in (
        ["prefix-tuning"] * 3,
        ["multi-mask", None, "prefix-tuning"],
        ["adaptive-prefix", "prompt-tuning", None],
    ):
        for kernel in ("flash_attention_2", "sdpa"):
            model = attached(family, *methods, kernel=kernel)
            logits = model(**inputs, prompt_names=names).logits
            real = torch.cat(tiny.real_logits(family, logits, inputs.get("attention_mask", ones)))
            real.square().sum().backward()
            gradients = [parameter.grad for parameter in model.prompts.parameters() if parameter.grad is not None]
            outcomes.append([real, *gradients])
        torch.testing.assert_close(*outcomes[-2:], **CLOSE)
    assert calls


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bart"])
def test_generate_is_that_of_sdpa(family: str, padding: str) -> None:
    inputs = tiny.unlabelled(family, padding)
    inputs.pop("decoder_input_ids", None)
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}
    names = ["prefix-tuning", None, "multi-mask"]
    for extra in ({}, {"num_beams": 2}, {"use_cache": False}):
        tokens = [
            attached(family, "prefix-tuning", "multi-mask", kernel=kernel).generate(
                **inputs, **settings, **extra, prompt_names=names
            )
            for kernel in ("flash_attention_2", "sdpa")
        ]
        assert torch.equal(*tokens), extra


@pytest.mark.parametrize("told", ["positions", "bounds"])
def test_packed_sequences_each_have_the_prefix(told: str) -> None:
    model = attached("llama", "prefix-tuning")
    lengths = [3, 5, 1]
    ids = torch.randint(5, 60, (1, sum(lengths)))
    given: dict[str, Any] = {"position_ids": torch.cat([torch.arange(length) for length in lengths])[None]}
    if told == "bounds":
        bounds = torch.tensor([0, 3, 8, 9], dtype=torch.int32)
        given |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 5, "max_length_k": 5}
    alone = [model(input_ids=part).logits for part in ids.split(lengths, 1)]
    torch.testing.assert_close(model(input_ids=ids, use_cache=False, **given).logits, torch.cat(alone, 1), **CLOSE)


def test_kernels_of_the_hub(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = "somebody/flash-attn9"
    for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        monkeypatch.setitem(table._global_mapping, name, table["flash_attention_2"])
    ids = torch.randint(5, 60, (2, 5))
    model = attached("llama", "prefix-tuning", kernel=name)
    torch.testing.assert_close(
        model(ids).logits, attached("llama", "prefix-tuning", kernel="sdpa")(ids).logits, **CLOSE
    )
    assert set(calls) == {name}


def test_windows_reach_no_prefix_beyond_them() -> None:
    flashed, reference = (
        attached("gemma3", "prefix-tuning", kernel=kernel) for kernel in ("flash_attention_2", "sdpa")
    )
    ids = torch.randint(5, 60, (2, 6))
    torch.testing.assert_close(flashed(ids).logits, reference(ids).logits, **CLOSE)
    assert torch.equal(flashed.generate(ids, max_new_tokens=5), reference.generate(ids, max_new_tokens=5))
    with pytest.raises(sp.SoftPromptError, match="window of 6 tokens, which 7 exceed"):
        flashed(torch.randint(5, 60, (2, 7)))
    flashed(torch.randint(5, 60, (2, 7)), prompt_names=[None, None])


def test_what_changes_scores_is_refused_at_once() -> None:
    model = sp.attach(loaded("llama"))
    with pytest.raises(sp.SoftPromptError, match="attn_implementation='sdpa'"):
        model.add_prompt("p", sp.SelectivePrefixConfig(num_virtual_tokens=2))
    with pytest.raises(sp.SoftPromptError, match="attn_implementation='sdpa'"):
        model.add_prompt("p", sp.make_config("multi-mask+selective-prefix", num_virtual_tokens=2))
    model.add_prompt("p", sp.SelectivePrefixConfig(num_virtual_tokens=2, alpha=None))
