"""What a prompt may see is fixed by the call that the user makes: every way of decoding equals greedy by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import DynamicCache

import softprompts as sp

NEW = 5
OPTIONS: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
CONFIGS: dict[str, Callable[[Path], sp.MethodConfig]] = {
    "prompt-tuning": lambda folder: tiny.METHODS["prompt-tuning"],
    "prefix-tuning": lambda folder: tiny.METHODS["prefix-tuning"],
    "multi-mask": lambda folder: tiny.METHODS["multi-mask"],
    "smop": lambda folder: tiny.METHODS["smop"],
    "adaptive-prefix": lambda folder: tiny.METHODS["adaptive-prefix"],
    "adaptive-prefix-first": lambda folder: sp.AdaptivePrefixConfig(num_virtual_tokens=3, summary="first"),
    "ept": lambda folder: tiny.METHODS["ept"],
}


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return made("llama", request.param, tmp_path)


def made(family: str, name: str, folder: Path, **config: Any) -> Any:
    """A model with one prompt, whose parts that look at the input matter."""
    model = tiny.attached(family, **config)
    model.add_prompt("x", CONFIGS[name](folder), seed=0)
    model.prompts.to(torch.float64)
    tiny.shake(model, 0.6)
    return model.eval()


def inputs(rows: int = 3) -> dict[str, Tensor]:
    """Rows with padding on the left; the last starts behind the first pieces of a prefill."""
    given = tiny.batch("llama", rows=rows, columns=9)
    given["attention_mask"][-1, :] = torch.tensor([1] * 5 + [0] * 4) if rows > 1 else 1
    given = tiny.pad_left(given)
    return {name: given[name] for name in ("input_ids", "attention_mask")}


def one_row() -> dict[str, Tensor]:
    """A row with tokens that come twice, so that a look-up finds some."""
    ids = torch.tensor([[7, 8, 9, 10, 11, 7, 8, 9]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def by_hand(model: Any, given: dict[str, Tensor], context: int | None = None, guidance: float | None = None) -> Tensor:
    """Greedy tokens ``(B, NEW)``: each from one pass over all, in which prompts see the first ``context`` columns."""
    ids, mask = given["input_ids"], given["attention_mask"]
    context, first = ids.shape[1] if context is None else context, ids.shape[1]
    for _ in range(NEW):
        visible = torch.arange(ids.shape[1])[None].expand(ids.shape) < context
        last = model(input_ids=ids, attention_mask=mask, context_mask=visible, use_cache=False).logits[:, -1]
        if guidance is not None:
            beside = ids[:, first - 1 :]
            seen = torch.arange(beside.shape[1])[None].expand(beside.shape) < 1
            beside_mask = torch.ones_like(beside)
            other = model(input_ids=beside, attention_mask=beside_mask, context_mask=seen, use_cache=False).logits[
                :, -1
            ]
            last, other = last.log_softmax(-1), other.log_softmax(-1)
            last = guidance * (last - other) + other
        ids, mask = (
            torch.cat([ids, last.argmax(-1, keepdim=True)], 1),
            torch.cat([mask, torch.ones_like(mask[:, :1])], 1),
        )
    return ids[:, -NEW:]


def generated(model: Any, given: dict[str, Tensor], **options: Any) -> Tensor:
    sequences: Tensor = model.generate(**given, **OPTIONS | options)
    return sequences[:, -NEW:]


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without cache": {"use_cache": False},
    "in chunks": {"prefill_chunk_size": 3},
    "static": {"cache_implementation": "static"},
    "static in chunks": {"cache_implementation": "static", "prefill_chunk_size": 3},
}


@pytest.mark.parametrize("way", list(WAYS))
def test_batches(model: Any, way: str) -> None:
    given = inputs()
    assert torch.equal(generated(model, given, **WAYS[way]), by_hand(model, given))


@pytest.mark.parametrize("way", ["look-up", "assisted", "assisted by one with prompts", "assisted by itself"])
def test_guessed_tokens(model: Any, way: str) -> None:
    given = one_row()
    helper = tiny.model("llama", num_hidden_layers=1)
    options: dict[str, dict[str, Any]] = {
        "look-up": {"prompt_lookup_num_tokens": 3},
        "assisted": {"assistant_model": helper},
        "assisted by one with prompts": {"assistant_model": copy.deepcopy(model)},
        "assisted by itself": {"assistant_early_exit": 1},
    }
    assert torch.equal(generated(model, given, **options[way]), by_hand(model, given))


def test_embeddings(model: Any) -> None:
    given = inputs()
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(given["input_ids"]),
        "attention_mask": given["attention_mask"],
    }
    assert torch.equal(generated(model, embedded), by_hand(model, given))


@pytest.mark.parametrize("cached", [True, False])
def test_guidance(model: Any, cached: bool) -> None:
    given = inputs()
    guided = generated(model, given, guidance_scale=2.0, use_cache=cached)
    assert torch.equal(guided, by_hand(model, given, guidance=2.0))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("begun", ["by generate", "by hand"])
def test_going_on_from_a_cache(model: Any, begun: str, whole: bool) -> None:
    given, wanted = inputs(), by_hand(model, inputs())
    if begun == "by generate":
        first = model.generate(**given, **OPTIONS | {"max_new_tokens": 2}, return_dict_in_generate=True)
        cache, ids = first.past_key_values, first.sequences
    else:
        with torch.no_grad():
            cache = model(**given, past_key_values=DynamicCache(config=model.config)).past_key_values
        ids = torch.cat([given["input_ids"], wanted[:, :1]], 1)
    there = ids.shape[1] - given["input_ids"].shape[1]
    mask = torch.cat([given["attention_mask"], torch.ones_like(ids[:, :there])], 1)
    again = copy.deepcopy(cache)
    for kept in (cache, again):  # a copy goes on as well
        rest = model.generate(
            input_ids=ids if whole else ids[:, -1:],
            attention_mask=mask,
            past_key_values=kept,
            **OPTIONS | {"max_new_tokens": NEW - there},
        )
        assert torch.equal(rest[:, -(NEW - there) :], wanted[:, there:])


def test_a_loop_of_the_users(model: Any) -> None:
    """As contrastive search does: several candidates a row at once, on a cache that is repeated for them."""
    given, wanted = inputs(), by_hand(model, inputs())

    def loop(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
        kwargs.pop("generation_config"), kwargs.pop("logits_processor"), kwargs.pop("stopping_criteria")
        mask, cache = kwargs["attention_mask"], kwargs["past_key_values"]
        out = model(input_ids, mask, past_key_values=cache, use_cache=True)
        for _ in range(NEW):
            best = out.logits[:, -1].topk(2).indices
            input_ids = torch.cat([input_ids, best[:, :1]], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            positions = mask.cumsum(1)[:, -1:] - 1
            tried = copy.deepcopy(cache)
            tried.batch_repeat_interleave(2)
            twice = {"attention_mask": mask.repeat_interleave(2, 0), "position_ids": positions.repeat_interleave(2, 0)}
            both = model(best.reshape(-1, 1), past_key_values=tried, use_cache=True, **twice)
            out = model(best[:, :1], mask, position_ids=positions, past_key_values=cache, use_cache=True)
            torch.testing.assert_close(both.logits[::2], out.logits, rtol=1e-9, atol=1e-9)
        return input_ids

    with torch.no_grad():
        assert torch.equal(generated(model, given, custom_generate=loop), wanted)


def test_beams_see_what_generate_was_given(model: Any) -> None:
    given = inputs()
    beams = generated(model, given, num_beams=3, use_cache=False)
    for options in ({}, {"prefill_chunk_size": 3}, {"cache_implementation": "static"}):
        assert torch.equal(generated(model, given, num_beams=3, **options), beams)
    for row in range(3):
        real = given["attention_mask"][row].bool()
        alone = {name: value[row : row + 1, real] for name, value in given.items()}
        assert torch.equal(generated(model, alone, num_beams=3)[0], beams[row])


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "qwen3"])
@pytest.mark.parametrize("name", ["multi-mask", "smop", "adaptive-prefix", "prompt-tuning"])
@pytest.mark.parametrize("way", ["greedy", "in chunks", "static"])
def test_sliding_windows_and_positions(family: str, name: str, way: str, tmp_path: Path) -> None:
    model, given = made(family, name, tmp_path), inputs()
    assert torch.equal(generated(model, given, **WAYS[way]), by_hand(model, given))


def test_a_cache_without_the_prompt_is_refused(tmp_path: Path) -> None:
    for name in ("multi-mask", "smop", "adaptive-prefix"):
        model = made("llama", name, tmp_path)
        with torch.no_grad():
            cache = model(**one_row(), prompt_names=[None]).past_key_values
        with pytest.raises(sp.SoftPromptError, match="past_key_values were made without this prompt"):
            model(torch.tensor([[5]]), past_key_values=cache, prompt_names="x")


def test_later_steps_of_state_spaces_are_told() -> None:
    import transformers as tf

    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
    model = tf.MambaForCausalLM(tf.MambaConfig(**shape, initializer_range=0.3)).double().eval()
    words = torch.tensor([[5, 6, 7]])
    ids = torch.tensor([[8, 9, 10, 11]])
    typed = model.generate(torch.cat([words, ids], 1), **OPTIONS)[:, -NEW:]
    sp.attach(model, sp.PromptTuningConfig(num_virtual_tokens=3), "x")
    model.prompts.to(torch.float64)
    model.prompts["x"].method.prompt.data = model.get_input_embeddings()(words)[0].detach()
    for cached in (True, False):
        assert torch.equal(model.generate(ids, **OPTIONS, use_cache=cached)[:, -NEW:], typed)
    with torch.no_grad():
        out, tokens = model(ids, use_cache=True), []
        for _ in range(NEW):
            tokens.append(out.logits[:, -1:].argmax(-1))
            out = model(tokens[-1], cache_params=out.cache_params, use_cache=True)
    assert torch.equal(torch.cat(tokens, 1), typed)
