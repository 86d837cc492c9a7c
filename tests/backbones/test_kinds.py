"""What a model is: found by how it attends, generates and caches, not by its name."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import transformers as tf

import softprompts as sp
from softprompts.backbones.backbone import Backbone
from softprompts.backbones.kinds import kind_of, look, trial

_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def _llava() -> Any:
    torch.manual_seed(0)
    text = tf.LlamaConfig(**tiny._DECODER)
    config = tf.LlavaConfig(vision_config=tf.CLIPVisionConfig(**_VISION), text_config=text, image_token_index=59)
    return tf.LlavaForConditionalGeneration(config).double().eval()


def _gemma3() -> Any:
    torch.manual_seed(0)
    text = tiny.FAMILIES["gemma3"][1]()
    vision = tf.SiglipVisionConfig(**_VISION)
    config = tf.Gemma3Config(
        text_config=text, vision_config=vision, image_token_id=59, boi_token_id=58, eoi_token_id=57
    )
    return tf.Gemma3ForConditionalGeneration(config).double().eval()


def _halves(cls: Any) -> Any:
    torch.manual_seed(0)
    config = tiny.FAMILIES["bart"][1]()
    config.is_decoder, config.is_encoder_decoder = True, False
    return cls(config).double().eval()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_kinds_are_those_of_the_families(family: str) -> None:
    model = tiny.model(family)
    assert look(model).name == kind_of(model.config) == tiny.FAMILIES[family][0]


@pytest.mark.parametrize(("make", "entry"), [(_llava, tf.LlamaModel), (_gemma3, tf.Gemma3Model)])
def test_a_model_with_an_image_tower_is_a_decoder(make: Any, entry: type) -> None:
    """Its language model is the entry, or the model around that where masks and positions are made there."""
    model = make()
    found = look(model)
    assert (found.name, type(found.entry), found.decoder, found.no_tokens_reason) == ("decoder", entry, None, "")
    assert kind_of(model.config) == "decoder"
    assert {site.kind for site in Backbone(model).sites} == {"decoder.self"}


def test_a_decoder_by_its_config_and_a_base_model_are_decoders() -> None:
    config = tf.BertConfig(**tiny._BERT, is_decoder=True)
    assert look(tf.BertLMHeadModel(config).eval()).name == "decoder"
    assert look(tf.BertLMHeadModel(tf.BertConfig(**tiny._BERT)).eval()).name == "encoder"
    assert look(tiny.model("llama").model).name == "decoder"


def test_a_half_of_an_encoder_decoder_is_a_decoder() -> None:
    found = look(_halves(tf.BartForCausalLM))
    assert found.name == "decoder" and type(found.entry).__name__ == "BartDecoder"


def test_an_encoder_of_an_encoder_decoder_is_an_encoder() -> None:
    torch.manual_seed(0)
    model = tf.UMT5ForTokenClassification(tf.UMT5Config(**tiny._T5)).double().eval()
    assert look(model).name == "encoder"


def test_on_the_meta_device_the_tables_decide() -> None:
    with torch.device("meta"):
        assert look(tf.LlamaForCausalLM(tiny.FAMILIES["llama"][1]())).name == "decoder"
        assert look(tf.BertModel(tiny.FAMILIES["bert"][1]())).name == "encoder"


@pytest.mark.parametrize("family", ["marian", "pegasus"])
def test_a_scale_of_the_embeddings_of_ids_is_found(family: str) -> None:
    torch.manual_seed(0)
    config = {"marian": tf.MarianConfig, "pegasus": tf.PegasusConfig}[family](**tiny._BART, scale_embedding=True)
    model = {"marian": tf.MarianMTModel, "pegasus": tf.PegasusForConditionalGeneration}[family](config).double().eval()
    found = look(model)
    assert found.name == "encoder-decoder" and found.no_tokens_reason == ""
    assert found.scale == pytest.approx(4.0)  # the square root of d_model


def test_ids_beyond_the_embedding_are_found() -> None:
    torch.manual_seed(0)
    config = tf.EsmConfig(**{**tiny._BERT, "pad_token_id": 1}, mask_token_id=32, token_dropout=True)
    model = tf.EsmForMaskedLM(config).double().eval()
    assert look(model).no_tokens_reason == "it uses token ids beyond their embeddings"


def test_looking_leaves_a_model_and_the_random_state_as_they_are() -> None:
    model = tiny.model("gpt2").train()
    model.transformer.h[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with trial(model):
        model.transformer.scratch = 1
        torch.rand(3)
    look(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [module.training for module in model.modules()]
    assert not hasattr(model.transformer, "scratch")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_prefixes_reach_the_encoder_of_a_glued_model() -> None:
    torch.manual_seed(0)
    decoder = tf.BertConfig(**tiny._BERT, is_decoder=True, add_cross_attention=True)
    model = tf.EncoderDecoderModel(
        encoder=tf.BertModel(tf.BertConfig(**tiny._BERT)), decoder=tf.BertLMHeadModel(decoder)
    ).double()
    kinds = [site.kind for site in Backbone(model.eval()).sites]
    assert kinds == ["encoder.self"] * 2 + ["decoder.self", "decoder.cross"] * 2


def test_attention_that_no_prefix_reaches_is_said() -> None:
    torch.manual_seed(0)
    model = tf.LongT5ForConditionalGeneration(tf.LongT5Config(**tiny._T5, local_radius=3)).double().eval()
    with pytest.warns(UserWarning, match="does not reach LongT5LocalAttention of LongT5ForConditionalGeneration"):
        sp.attach(model, sp.PrefixTuningConfig(num_virtual_tokens=2), seed=0)
