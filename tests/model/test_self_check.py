"""The check of a model when a first prompt of a form joins it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from torch import Tensor, nn

import softprompts as sp
from softprompts.injection.state import state_of
from softprompts.model import self_check

TOKENS, PREFIX = tiny.METHODS["prompt-tuning"], tiny.METHODS["prefix-tuning"]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, in which no model like this one was checked."""
    monkeypatch.setattr(self_check, "_FOUND", {})


def _found(model: Any) -> set[str]:
    return set(state_of(model).checked.values())


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "bart", "llama", "gemma3", "gpt2"])
def test_families_are_exact(family: str, kernel: str) -> None:
    model = tiny.model(family)
    model.set_attn_implementation(kernel)
    sp.attach(model, TOKENS, "tokens", seed=0)
    model.add_prompt("prefix", PREFIX, seed=1)
    model.add_prompt("selective", tiny.METHODS["selective-prefix"], seed=2)
    assert len(state_of(model).checked) == 3 and _found(model) == {"exact"}


def test_each_form_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sp.attach(tiny.model("llama"), TOKENS, "first", seed=0)
    calls: list[Any] = []
    monkeypatch.setattr(type(model.model), "forward", lambda *_, **__: calls.append(1))
    model.add_prompt("second", tiny.METHODS["superpos"], seed=1)  # tokens too
    assert calls == []


def test_models_alike_are_checked_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    tokens = self_check._Check.tokens
    monkeypatch.setattr(self_check._Check, "tokens", lambda self, config: (calls.append(1), tokens(self, config)))
    models = [sp.attach(tiny.model("llama"), TOKENS, seed=seed) for seed in (0, 1)]
    assert len(calls) == 1 and [_found(model) for model in models] == [{"exact"}] * 2
    sp.attach(tiny.model("llama", torch.float32), TOKENS, seed=0)  # another type
    eager = tiny.model("llama")
    eager.set_attn_implementation("eager")
    sp.attach(eager, TOKENS, seed=0)
    sp.attach(tiny.model("llama", num_hidden_layers=1), TOKENS, seed=0)
    assert len(calls) == 4
    changed = sp.attach(tiny.model("llama"))
    changed.model.layers[0].self_attn.forward = changed.model.layers[0].self_attn.forward
    changed.add_prompt("one", TOKENS, seed=0)
    assert len(calls) == 5


def test_models_without_gradients_in_evaluation_mode_are_refused_unless_they_train() -> None:
    config = tf.ReformerConfig(
        vocab_size=60, hidden_size=16, attention_head_size=8, num_attention_heads=2, feed_forward_size=20,
        num_hidden_layers=2, attn_layers=["local", "local"], axial_pos_embds=False, max_position_embeddings=40,
        local_attn_chunk_length=4, is_decoder=False, hidden_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0,
        num_labels=3,
    )  # fmt: skip
    model = tf.ReformerForSequenceClassification(config)
    with pytest.raises(sp.SoftPromptError, match="it gives no gradients in evaluation mode .* backbone_dropout=True"):
        sp.attach(model, TOKENS, seed=0)
    sp.attach(model, TOKENS, "one", seed=0, backbone_dropout=True).train()
    model(torch.randint(5, 60, (2, 9)), labels=torch.tensor([0, 2])).loss.backward()
    assert float(model.prompts["one"].method.prompt.grad.abs().max()) > 0


def test_attention_without_an_effect_is_refused() -> None:
    model = tiny.model("bert")
    for layer in model.bert.encoder.layer:
        layer.attention.self.forward = lambda hidden_states, *_, **__: (torch.zeros_like(hidden_states), None)
    with pytest.raises(sp.SoftPromptError, match="no token changes with those in front of it, as it runs here"):
        sp.attach(model, TOKENS, seed=0)


def test_rows_that_differ_in_length_and_cannot_share_a_cache_are_no_reason_to_refuse() -> None:
    torch.manual_seed(0)
    config = tiny.FAMILIES["bart"][1]()
    config.is_decoder, config.is_encoder_decoder = True, False
    model = sp.attach(tf.models.bart.modeling_bart.BartDecoder(config).double().eval(), TOKENS, "one", seed=0)
    assert _found(model) == {"exact"}


def test_models_whose_rows_change_with_padding_themselves_take_prompts() -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "head_ratio": 2}
    config = tf.ConvBertConfig(vocab_size=60, embedding_size=16, intermediate_size=16, **sizes)
    model = tf.ConvBertForSequenceClassification(config).double().eval()  # convolutions see padding
    sp.attach(model, sp.PromptTuningConfig(num_virtual_tokens=2), "p")
    assert set(state_of(model).checked.values()) == {"exact"}


def test_a_decoder_of_two_streams_is_refused() -> None:
    sizes: dict[str, Any] = {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 2}
    config = tf.ProphetNetConfig(
        vocab_size=60, hidden_size=16, num_decoder_attention_heads=2, decoder_ffn_dim=16, **sizes
    )
    model = tf.ProphetNetForCausalLM(config).double().eval()
    with pytest.raises(sp.SoftPromptError, match="ProphetNetForCausalLM"):
        sp.attach(model, TOKENS, "p")


def test_gradients_pass_recurrent_states() -> None:
    config = tf.RwkvConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16)
    model = sp.attach(tf.RwkvForCausalLM(config).double().eval(), TOKENS, "p", seed=0)
    ids = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.prompts["p"].method.prompt.grad.abs().sum() > 0


def test_the_check_leaves_the_model_as_it_is() -> None:
    model = sp.attach(tiny.model("gpt2").train())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    model.add_prompt("one", TOKENS, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [m.training for name, m in model.named_modules() if not name.startswith("prompts.")]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert model.penalties == {} and state_of(model).last_pass is None


def _broken(forward: Any) -> Any:
    """A Llama whose base model has another forward, which gets the true one."""
    model = tiny.model("llama")
    original = type(model.model).forward
    cls = type(
        "Odd", (type(model.model),), {"forward": lambda self, *args, **more: forward(original, self, *args, **more)}
    )
    cls.forward.__signature__ = __import__("inspect").signature(original)
    model.model.__class__ = cls
    return model


def _counts_rows(original: Any, self: Any, *args: Any, **more: Any) -> Any:
    output = original(self, *args, **more)
    output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean((0, 1))
    return output


def _counts_ids(original: Any, self: Any, input_ids: Tensor | None = None, **more: Any) -> Any:
    output = original(self, input_ids=input_ids, **more)
    if input_ids is not None:
        output.last_hidden_state = output.last_hidden_state + 0.1 * input_ids[..., None]
    return output


def test_a_model_whose_rows_depend_on_each_other_is_refused() -> None:
    model = _broken(_counts_rows)
    with pytest.raises(sp.SoftPromptError, match="prompt-tuning cannot be exact on LlamaForCausalLM: a row without"):
        sp.attach(model, TOKENS, seed=0)
    with pytest.raises(sp.SoftPromptError, match="prefix-tuning cannot be exact on LlamaForCausalLM: a row without"):
        sp.attach(model, PREFIX, seed=0)
    assert type(model) is tf.LlamaForCausalLM  # detached


def test_a_model_that_uses_ids_beyond_their_embeddings_is_refused() -> None:
    with pytest.raises(sp.SoftPromptError, match="LlamaForCausalLM cannot take: it uses token ids beyond"):
        sp.attach(_broken(_counts_ids), TOKENS, seed=0)


def test_a_prefix_that_a_layer_drops_is_refused() -> None:
    model = sp.attach(tiny.model("llama"))
    layer = model.model.layers[1].self_attn
    layer.forward = lambda hidden_states, **_: (torch.zeros_like(hidden_states), None)
    with pytest.raises(sp.SoftPromptError, match="1 of 2 attention sites see no prefix"):
        model.add_prompt("one", PREFIX, seed=0)
    assert list(model.prompts) == []


def test_halves_without_position_ids_are_exact() -> None:
    torch.manual_seed(0)
    config = tiny.FAMILIES["bart"][1]()
    config.is_decoder, config.is_encoder_decoder = True, False
    model = tf.BartForCausalLM(config).double().eval()
    sp.attach(model, TOKENS, "tokens", seed=0)
    model.add_prompt("prefix", PREFIX, seed=1)
    assert _found(model) == {"exact"}


def test_it_can_be_left_out() -> None:
    model = sp.attach(_broken(_counts_rows), TOKENS, seed=0, check=False)
    assert state_of(model).checked is None


def test_a_model_without_values_is_not_checked() -> None:
    with torch.device("meta"):
        model = tf.BertModel(tiny.FAMILIES["bert"][1]())
    state = state_of(sp.attach(model, PREFIX, seed=0))
    assert set(state.checked.values()) == {"it has no values (meta device)"}


def test_marian_scales_prompts_as_tokens() -> None:
    """Case 26: rows without a prompt, and a prompt of real tokens, as typed."""
    torch.manual_seed(0)
    plain = tf.MarianMTModel(tf.MarianConfig(**tiny._BART, scale_embedding=True)).double().eval()
    model = sp.attach(copy.deepcopy(plain), sp.PromptTuningConfig(num_virtual_tokens=2), "one", seed=0)
    model.prompts.double()
    ids, answers = torch.tensor([[7, 8, 9]]), torch.tensor([[2, 11, 12]])
    given = torch.tensor([21, 22])
    with torch.no_grad():
        (prompt,) = model.prompts["one"].parameters()
        prompt.copy_(plain.get_input_embeddings()(given))
        both = model(
            input_ids=ids.repeat(2, 1), decoder_input_ids=answers.repeat(2, 1), prompt_names=["one", None]
        ).logits
        typed = plain(input_ids=torch.cat([given[None], ids], 1), decoder_input_ids=answers).logits[0]
        alone = plain(input_ids=ids, decoder_input_ids=answers).logits[0]
    torch.testing.assert_close(both[0], typed)
    torch.testing.assert_close(both[1], alone)


@pytest.mark.parametrize("make", ["ViT", "CLIPVision", "Wav2Vec2"])
def test_models_without_a_table_of_tokens_get_one_sentence(make: str) -> None:
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    image = {**small, "image_size": 8, "patch_size": 4}
    model: nn.Module = {
        "ViT": lambda: tf.ViTModel(tf.ViTConfig(**image)),
        "CLIPVision": lambda: tf.CLIPVisionModel(tf.CLIPVisionConfig(**image)),
        "Wav2Vec2": lambda: tf.Wav2Vec2Model(
            tf.Wav2Vec2Config(
                **small,
                conv_dim=(8,),
                conv_kernel=(2,),
                conv_stride=(2,),
                num_feat_extract_layers=1,
                num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2,
            )
        ),
    }[make]()
    with pytest.raises(sp.SoftPromptError, match="has no table of token embeddings, which soft prompts need"):
        sp.attach(model, PREFIX, seed=0)


# --- what stands around the base model ----------------------------------------------------------------------------


def test_a_head_that_reads_token_ids_is_refused() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    config = tf.LongformerConfig(vocab_size=60, attention_window=4, max_position_embeddings=40, **sizes)
    model = tf.LongformerForSequenceClassification(config)
    with pytest.raises(sp.SoftPromptError, match="its head or its decoder takes a prompt of tokens' embeddings for"):
        sp.attach(model, sp.PromptTuningConfig(num_virtual_tokens=2))


def test_a_model_whose_generate_adds_tokens_is_refused() -> None:
    config = tf.XLMConfig(vocab_size=60, emb_dim=16, n_layers=1, n_heads=2, max_position_embeddings=40)
    with pytest.raises(sp.SoftPromptError, match="generate puts tokens of its own behind the input"):
        sp.attach(tf.XLMWithLMHeadModel(config), sp.PromptTuningConfig(num_virtual_tokens=2))


def test_heads_that_take_more_than_states_and_give_several_tensors_run_by_row() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    config = tf.SplinterConfig(vocab_size=60, question_token_id=50, max_position_embeddings=40, **sizes)
    model = sp.attach(tf.SplinterForQuestionAnswering(config).eval(), sp.PrefixTuningConfig(), "p")
    ids = torch.tensor([[5, 50, 6, 7], [8, 9, 50, 10]])
    together = model(ids, prompt_names=["p", None])
    for row, name in enumerate(["p", None]):
        alone = model(ids[row : row + 1], prompt_names=[name])
        torch.testing.assert_close(alone.start_logits[0], together.start_logits[row])
        torch.testing.assert_close(alone.end_logits[0], together.end_logits[row])
