"""A prefix from real tokens is what these tokens are to the frozen model."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import softprompts as sp
from softprompts.errors import SoftPromptError
from softprompts.injection.recorded_prefix import recorded_prefix
from softprompts.injection.state import state_of

TEXT, IDS = "e f g h i", [9, 10, 11, 12, 13]
PREFIX_METHODS = ["prefix-tuning", "multi-mask", "selective-prefix", "adaptive-prefix"]


class Letters:
    """A tokenizer of one letter per token: "e" is 9."""

    all_special_ids = (0, 1, 2)

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [5 + "abcdefghijklmnopqrst".index(letter) for letter in text.split()]}


def started(family: str, method: str = "prefix-tuning", text: str = TEXT, length: int = 5, **settings: Any) -> Any:
    """A model whose prefix starts from a text, in float64."""
    config = sp.make_config(method, num_virtual_tokens=length, init="text", init_text=text, **settings)
    return sp.attach(tiny.model(family), config, tokenizer=Letters(), seed=0).eval()


def logits(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("family", tiny.DECODERS)
def test_in_a_causal_model_it_acts_as_the_tokens_typed_in_front(family: str) -> None:
    # A window of attention ends, a prefix is seen from everywhere.
    tiny_config: dict[str, Any] = {"sliding_window": 40} if family == "gemma3" else {}
    inputs = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    config = sp.PrefixTuningConfig(num_virtual_tokens=5, init="text", init_text=TEXT, positions="shifted")
    model = sp.attach(tiny.model(family, **tiny_config), config, tokenizer=Letters())
    typed = torch.cat([torch.tensor([IDS]).expand(3, -1), inputs], 1)
    expected = logits(tiny.model(family, **tiny_config), input_ids=typed)[:, 5:]
    torch.testing.assert_close(logits(model, input_ids=inputs), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(tiny.model(family, **tiny_config), input_ids=inputs), expected, atol=1e-3)


def test_a_decoder_beside_an_encoder_sees_them_as_its_own_tokens() -> None:
    """With the tokens themselves as the encoder's input, as they were recorded."""
    model = started("t5", sites=["decoder.self"], positions="shifted")
    source, target = torch.tensor([IDS]), torch.tensor([[20, 21, 22]])
    expected = logits(tiny.model("t5"), input_ids=source, decoder_input_ids=torch.cat([source, target], 1))[:, 5:]
    got = logits(model, input_ids=source, decoder_input_ids=target)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", tiny.SEQ2SEQ)
def test_cross_attention_sees_them_beside_the_input(family: str) -> None:
    model, plain = started(family, sites=["decoder.cross"]), tiny.model(family)
    source, target = torch.tensor([[30, 31, 32, 33]]), torch.tensor([[20, 21, 22]])
    with torch.no_grad():
        states = [plain.get_encoder()(torch.tensor([ids])).last_hidden_state for ids in (IDS, source[0].tolist())]
        both = (torch.cat(states, 1),)
    expected = logits(plain, encoder_outputs=both, decoder_input_ids=target)
    got = logits(model, input_ids=source, decoder_input_ids=target)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def projections(family: str, model: Any) -> list[tuple[nn.Module, nn.Module]]:
    """The layers that make keys and values, in the order of the sites."""
    encoder = model.base_model.encoder if family != "distilbert" else model.distilbert.transformer
    if family == "t5":
        sites = [block.layer[0].SelfAttention for block in model.encoder.block]
        for block in model.decoder.block:
            sites += [block.layer[0].SelfAttention, block.layer[1].EncDecAttention]
        return [(site.k, site.v) for site in sites]
    if family == "bart":
        sites = [layer.self_attn for layer in model.model.encoder.layers]
        for layer in model.model.decoder.layers:
            sites += [layer.self_attn, layer.encoder_attn]
        return [(site.k_proj, site.v_proj) for site in sites]
    if family == "distilbert":
        return [(layer.attention.k_lin, layer.attention.v_lin) for layer in encoder.layer]
    return [(layer.attention.self.key, layer.attention.self.value) for layer in encoder.layer]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "t5", "bart"])
def test_it_is_what_the_projections_make_of_them(family: str) -> None:
    plain, made = tiny.model(family), {}
    pairs = projections(family, plain)
    for layer in {layer for pair in pairs for layer in pair}:
        layer.register_forward_hook(lambda module, _, output: made.setdefault(module, output[0]))
    row = {"input_ids": torch.tensor([IDS])}
    with torch.no_grad():
        plain.base_model(**row, **({"decoder_input_ids": row["input_ids"]} if family in tiny.SEQ2SEQ else {}))
    keys, values = (torch.stack([made[pair[which]] for pair in pairs]) for which in (0, 1))

    prompt = started(family).prompts["default"].method()
    torch.testing.assert_close(prompt.keys[:, 0].double(), keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prompt.values[:, 0].double(), values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", PREFIX_METHODS)
def test_every_prefix_method_starts_from_it(method: str) -> None:
    prefix = started("llama", method).prompts["default"].method.prefix
    assert torch.equal(prefix, started("llama").prompts["default"].method.prefix)
    both = sp.make_config("prompt-tuning+" + method, **{"init": "text", "init_text": TEXT, "num_virtual_tokens": 5})
    model = sp.attach(tiny.model("llama"), both, tokenizer=Letters())
    assert torch.equal(model.prompts["default"].method.parts[method].prefix, prefix)


def test_a_text_is_repeated_or_cut() -> None:
    ids = {"e f": [9, 10, 9, 10, 9], "e f g h i j k": IDS}
    for text, tokens in ids.items():
        model = started("bert", text=text)
        keys, _ = recorded_prefix(state_of(model), [0, 1], tokens)
        assert torch.equal(model.prompts["default"].method().keys[:, 0], keys)


def test_sampled_tokens_follow_the_seed_and_leave_the_random_state_alone() -> None:
    def keys(seed: int) -> Tensor:
        config = sp.PrefixTuningConfig(num_virtual_tokens=5, init="vocabulary")
        return sp.attach(tiny.model("bert"), config, seed=seed).prompts["default"].method().keys

    before = torch.get_rng_state()
    first = keys(0)
    torch.manual_seed(0)
    assert torch.equal(first, keys(0))
    assert not torch.equal(first, keys(1))
    torch.set_rng_state(before)
    state = state_of(started("bert"))
    state.backbone.model.train()
    recorded_prefix(state, [0], IDS)
    assert torch.equal(torch.get_rng_state(), before)
    ids = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
    ids = [number for number in ids if number not in (0, 1, 2)][:5]
    assert torch.equal(first[:, 0], recorded_prefix(state, [0, 1], ids)[0])


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_it_is_recorded_without_a_trace_and_without_the_prompts_that_are_there(family: str) -> None:
    model = tiny.attached(family, "prompt-tuning", "prefix-tuning", "lora", "multi-mask")
    inputs = tiny.batch(family)
    before = logits(model.train(), **inputs)
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    modes = {name: m.training for name, m in model.named_modules()}
    sites = list(range(len(state_of(model).backbone.sites)))
    for name in (None, "prompt-tuning", "multi-mask"):
        model.set_prompt(name)
        recorded = recorded_prefix(state_of(model), sites, IDS)
        expected = recorded_prefix(state_of(sp.attach(tiny.model(family))), sites, IDS)
        assert all(torch.equal(one, other) for one, other in zip(recorded, expected, strict=True))
        assert not any(part.requires_grad for part in recorded)
    model.set_prompt("prompt-tuning")
    assert hooks == {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    assert modes == {name: m.training for name, m in model.named_modules()}
    assert torch.equal(logits(model, **inputs), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_is_in_float32_whatever_the_model_is_in(dtype: torch.dtype) -> None:
    config = sp.PrefixTuningConfig(num_virtual_tokens=3, init="vocabulary")
    model = sp.attach(tiny.model("llama", dtype), config, seed=0)
    assert model.prompts["default"].method.prefix.dtype == torch.float32
    exact = sp.attach(tiny.model("llama"), config, seed=0).prompts["default"].method.prefix
    torch.testing.assert_close(model.prompts["default"].method.prefix, exact, atol=0.1, rtol=0.1)


def test_on_the_meta_device_it_has_sizes() -> None:
    with torch.device("meta"):
        model = tiny.model("bert", torch.float32)
    made = sp.attach(model, sp.PrefixTuningConfig(num_virtual_tokens=3, init="vocabulary"))
    assert made.prompts["default"].method.prefix.shape == (3, 2 * 2 * 16)


def test_a_saved_prompt_needs_neither_text_nor_tokenizer(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = started("bert"), tiny.batch("bert")
    model.save_prompt("default", tmp_path)

    def fail(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("softprompts.model.prompt_model.recorded_prefix", fail)
    assert torch.equal(logits(sp.attach(tiny.model("bert"), tmp_path), **inputs), logits(model, **inputs))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init": "text"}, "prefix-tuning: init='text' needs init_text"),
        ({"init_text": "a"}, "prefix-tuning: init_text needs init='text', not 'normal'"),
        ({"init": "vocabulary", "reparameterize": True}, "init='vocabulary' is a start of the table, not of a network"),
        ({"init": "tokens"}, "init must be one of normal, vocabulary, text"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        sp.PrefixTuningConfig(**fields)


def test_what_a_model_cannot_run() -> None:
    config = sp.PrefixTuningConfig(num_virtual_tokens=41, init="vocabulary")
    with pytest.raises(
        SoftPromptError, match="^prefix-tuning: a prefix from 41 tokens exceeds the 40 positions of Bert"
    ):
        sp.attach(tiny.model("bert"), config)
