"""What is changed in a model after it was attached: prompts go on, or one sentence says why not."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import tiny
import torch
import transformers as tf

import softprompts as sp
from softprompts.injection.state import state_of

ALL = list(tiny.METHODS)
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def inputs_of(family: str) -> dict[str, Any]:
    more = {"decoder_input_ids": torch.ones(1, 3, dtype=torch.long)} if family in tiny.SEQ2SEQ else {}
    return {"input_ids": IDS, **more}


# --- kernels and precision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize("how", ["model", "base model", "config"])
def test_another_kernel_goes_on_with_the_prefix(family: str, how: str) -> None:
    model, given = tiny.attached(family, "prefix-tuning", "selective-prefix"), inputs_of(family)
    before = [model(**given, prompt_names=name).logits for name in model.prompts]
    if how == "config":
        for config, _ in state_of(model).attention:
            config._attn_implementation = "eager"
    else:
        (model if how == "model" else model.base_model).set_attn_implementation("eager")
    for name, logits in zip(model.prompts, before, strict=True):
        torch.testing.assert_close(model(**given, prompt_names=name).logits, logits, rtol=1e-4, atol=1e-5)
    assert model.config._attn_implementation == "softprompts|eager"
    output = model(**given, output_attentions=True)
    maps = output.encoder_attentions if family == "t5" else output.attentions
    assert maps[0].shape[-1] == 6 + 4  # the prefix has its columns
    model.train()
    model(**given).logits.sum().backward()
    assert all(p.grad is not None for n, p in model.prompts["prefix-tuning"].named_parameters() if "head" not in n)
    sp.detach(model)
    assert model.config._attn_implementation == "eager"


def test_a_kernel_without_prefixes_is_one_sentence() -> None:
    model = tiny.attached("llama", "prefix-tuning")
    model.config._attn_implementation = "paged|eager"
    for call in (model, model.model):
        with pytest.raises(sp.SoftPromptError, match="attn_implementation='paged.eager' was set after attach"):
            call(IDS)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_attention_maps_can_be_asked_for_in_the_config(family: str) -> None:
    model = tiny.attached(family, "prefix-tuning", _attn_implementation="eager")
    model.config.output_attentions = True
    assert model(IDS).attentions[0].shape[-2:] == (6, 10)
    model.config.to_json_string()
    model.config.validate()
    model.config.output_attentions = False
    assert model(IDS).attentions is None
    with pytest.raises(ValueError, match="output_attentions"):
        tiny.attached(family, "prefix-tuning").config.output_attentions = True


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_a_model_that_is_halved_keeps_its_prompts_whole(family: str, dtype: torch.dtype) -> None:
    model = tiny.attached(family, *ALL, dtype=torch.float32)
    values = {name: value.clone() for name, value in model.prompts.state_dict().items()}
    model.half() if dtype == torch.float16 else model.to(dtype)
    assert model.dtype == dtype and model.get_input_embeddings().weight.dtype == dtype
    for name, value in model.prompts.state_dict().items():
        assert torch.equal(value, values[name]) and value.dtype == values[name].dtype, name
    model.train()
    loss = model(**tiny.batch(family), prompt_names="prefix-tuning").loss
    loss.backward()
    assert loss.isfinite()
    torch.optim.AdamW(model.prompts["prefix-tuning"].parameters(), 1e-2).step()
    assert model(**tiny.batch(family), prompt_names="prefix-tuning").loss.isfinite()
    model.double()
    assert next(model.prompts["prefix-tuning"].parameters()).dtype == torch.float64
    model.prompts.half()  # asked for by name
    assert next(model.prompts["prefix-tuning"].parameters()).dtype == torch.float16


# --- modules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "bart"])
@pytest.mark.parametrize("method", ["prompt-tuning", "ept", "smop", "multi-mask"])
def test_new_embeddings_are_the_ones_used(family: str, method: str) -> None:
    given, model, plain = inputs_of(family), tiny.attached(family, method), tiny.model(family)
    new = copy.deepcopy(model.get_input_embeddings())
    torch.manual_seed(1)
    new.weight.data += 0.3 * torch.randn_like(new.weight)
    plain.set_input_embeddings(new)
    fresh = sp.attach(plain)
    fresh.place_prompt(method, model.prompts[method])
    model.set_input_embeddings(new)
    torch.testing.assert_close(model(**given).logits, fresh(**given).logits, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "bart"])
@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings(family: str, tied: bool) -> None:
    plain = tiny.model(family, tie_word_embeddings=tied)
    plain.get_input_embeddings().weight.requires_grad_(not tied)
    flags = {name: p.requires_grad for name, p in plain.named_parameters(remove_duplicate=False)}
    model = sp.attach(plain, tiny.METHODS["prompt-tuning"], "x")
    model.prompts.to(torch.float64)
    before = model(**inputs_of(family)).logits
    model.resize_token_embeddings(70, mean_resizing=False)
    assert [name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("prompts.")] == []
    given = inputs_of(family)
    logits = model(**given).logits
    if tied or family not in tiny.SEQ2SEQ:  # whose untied heads transformers draws anew
        torch.testing.assert_close(logits[..., : before.shape[-1]], before, rtol=1e-9, atol=1e-9)
    model(**given | {"input_ids": IDS + 58})
    sp.detach(model)
    assert {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)} == flags
    assert model.config.get_text_config().vocab_size == 70 and tiny.model(family).config.vocab_size == 60


@pytest.mark.parametrize("change", ["fewer layers", "more layers", "attention", "head", "changed module"])
def test_replaced_modules_are_one_sentence(change: str) -> None:
    model, given = tiny.attached("bert", "prefix-tuning", "lora"), inputs_of("bert")
    layers = model.bert.encoder.layer
    if change == "fewer layers":
        model.bert.encoder.layer = layers[:1]
    elif change == "more layers":
        layers.append(tf.models.bert.modeling_bert.BertLayer(model.config).double())
    elif change == "attention":
        layers[0].attention.self = tf.models.bert.modeling_bert.BertSelfAttention(model.config).double()
    elif change == "head":
        model.classifier = torch.nn.Linear(16, 3).double()
    else:
        layers[0].attention.self.query = torch.nn.Linear(16, 16).double()
    for call in (model, model.bert):
        with pytest.raises(sp.SoftPromptError, match="were replaced, added or removed after attach"):
            call(**given)


def test_what_wraps_modules_is_no_change() -> None:
    model, given = tiny.attached("bert", "prefix-tuning", "lora"), inputs_of("bert")
    wanted = model(**given).logits

    class Wrapped(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    model.bert.encoder.layer[0] = Wrapped(model.bert.encoder.layer[0])
    torch.testing.assert_close(model(**given).logits, wanted)
    model.bert.encoder.register_module("more", torch.nn.Identity())
    torch.testing.assert_close(model(**given).logits, wanted)


# --- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "bart", "gemma3"])
def test_the_callers_config_stays_as_it_was(family: str) -> None:
    kind, make = tiny.FAMILIES[family]
    auto = {"encoder": tf.AutoModelForSequenceClassification, "decoder": tf.AutoModelForCausalLM}
    auto_class = auto.get(kind, tf.AutoModelForSeq2SeqLM)
    config = make()
    one, two = auto_class.from_config(config), auto_class.from_config(config)
    before, kernel = config.to_dict(), config._attn_implementation
    labels = ["a", "b", "c", "d"] if kind == "encoder" else None
    for model in (one, two):
        sp.attach(model, tiny.METHODS["prefix-tuning"], labels=labels)
        assert config.to_dict() == before and config._attn_implementation == kernel
    third = auto_class.from_config(one.config)  # as Trainer's model_init may
    sp.attach(third, tiny.METHODS["prefix-tuning"])
    third.prompts["default"].load_state_dict(one.prompts["default"].state_dict(), strict=kind != "encoder")
    third.base_model.load_state_dict(one.base_model.state_dict(), strict=False)
    given = inputs_of(family)
    torch.testing.assert_close(third.base_model(**given)[0], one.base_model(**given)[0])
    for model in (one, two, third):
        sp.detach(model)
        assert model.config._attn_implementation == kernel


def test_two_models_from_one_config_are_their_own() -> None:
    config = tiny.FAMILIES["llama"][1]()
    one, two = tf.LlamaForCausalLM(config), tf.LlamaForCausalLM(config)
    wanted = two(IDS).logits
    sp.attach(one, tiny.METHODS["prefix-tuning"])
    one.set_attn_implementation("eager")
    one.config.num_hidden_layers = 1
    assert torch.equal(two(IDS).logits, wanted) and two.config._attn_implementation == "sdpa"


# --- copies of a model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize("how", ["torch.save", "pickle", "deepcopy"])
def test_a_whole_model_is_saved_and_copied(family: str, how: str) -> None:
    model, given = tiny.attached(family, *ALL), tiny.batch(family)
    model.set_prompt("multi-mask")
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    wanted = {name: model(**given, prompt_names=name).logits for name in ALL}  # leaves a pass behind
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        made = torch.load(file, weights_only=False)
    else:
        made = pickle.loads(pickle.dumps(model)) if how == "pickle" else copy.deepcopy(model)
    assert type(made) is type(model) and made.active_prompt == "multi-mask" and not made.training
    for one in (model, made):
        assert {name: p.requires_grad for name, p in one.named_parameters()} == flags
    for name in ALL:
        assert torch.equal(made(**given, prompt_names=name).logits, wanted[name]), name
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert torch.equal(model(**given).logits, wanted["multi-mask"])
    sp.detach(made)
    assert all(p.requires_grad for p in made.parameters())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_its_class_makes_plain_models(tmp_path: Any) -> None:
    plain = tiny.model("llama")
    kind, wanted = type(plain), plain(IDS).logits
    plain.save_pretrained(tmp_path)
    model = sp.attach(plain, tiny.METHODS["prefix-tuning"])
    for made in (type(model)(model.config), type(model)(config=model.config), type(model).from_pretrained(tmp_path)):
        assert type(made) is kind
        made(IDS)
    assert torch.equal(type(model).from_pretrained(tmp_path)(IDS).logits, wanted)
    assert isinstance(model, kind)


# --- deleting ---------------------------------------------------------------------------------------------------------


def test_deleting_the_active_prompt_goes_on_with_the_first_left() -> None:
    model = tiny.attached("llama", "prefix-tuning", "prompt-tuning", "multi-mask")
    model.delete_prompt("multi-mask")  # which is not active: nothing to say
    with pytest.warns(UserWarning, match="'prefix-tuning' was deleted: 'prompt-tuning' is active now"):
        model.delete_prompt("prefix-tuning")
    assert model.active_prompt == "prompt-tuning"
    assert torch.equal(model(IDS).logits, model(IDS, prompt_names="prompt-tuning").logits)
    model.delete_prompt("prompt-tuning")
    assert model.active_prompt is None and torch.equal(model(IDS).logits, tiny.model("llama")(IDS).logits)
