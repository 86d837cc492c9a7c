"""What other libraries get wrong with soft prompts on today's transformers, one test per fault: here it works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from torch import Tensor

import softprompts as sp

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def prefix_gradients(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Gradients of a plain prefix per site, ``(l, S, 2, w)``."""
    model.zero_grad()
    tiny.loss_of(model, inputs).backward()
    method = model.prompts[model.active_prompt].method
    return method.prefix.grad.clone().view(len(method.prefix), method.num_sites, 2, -1)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_prefixes_train_when_checkpointing_is_enabled_afterwards(family: str) -> None:
    model, inputs = tiny.attached(family, "prefix-tuning").train(), tiny.batch(family)
    plain = prefix_gradients(model, inputs)
    model.gradient_checkpointing_enable()
    checkpointed = prefix_gradients(model, inputs)
    assert (plain.abs().amax((0, 3)) > 0).all()
    torch.testing.assert_close(checkpointed, plain, **EXACT)


def test_a_prefix_moves_under_a_checkpointing_trainer(tmp_path: Path) -> None:
    from datasets import Dataset

    model = tiny.attached("bert", "prefix-tuning")
    before = model.prompts["prefix-tuning"].method.prefix.detach().clone()
    data = Dataset.from_dict({k: v.tolist() for k, v in tiny.batch("bert", rows=6).items()})
    arguments = tf.TrainingArguments(
        str(tmp_path),
        max_steps=3,
        learning_rate=0.1,
        gradient_checkpointing=True,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    tf.Trainer(model, arguments, train_dataset=data).train()
    assert (model.prompts["prefix-tuning"].method.prefix - before).abs().max() > 0.1


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_every_row_uses_the_prompt_it_names(family: str) -> None:
    names = ["prompt-tuning", "prefix-tuning", None]
    model = tiny.attached(family, "prompt-tuning", "prefix-tuning")
    inputs = tiny.batch(family)
    if family != "t5":
        inputs.pop("labels")
    mixed = model(**inputs, prompt_names=names).logits
    alone = {name: model(**inputs, prompt_names=[name] * 3).logits for name in names}
    mask = inputs["attention_mask"]
    real = {
        key: tiny.real_logits(family, value, mask)
        for key, value in ({"mixed": mixed} | {str(k): v for k, v in alone.items()}).items()
    }
    for row, name in enumerate(names):
        torch.testing.assert_close(real["mixed"][row], real[str(name)][row], **EXACT)
        for other in set(names) - {name}:
            assert (real["mixed"][row] - real[str(other)][row]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_every_row_generates_with_the_prompt_it_names(family: str) -> None:
    names = ["prompt-tuning", "prefix-tuning", None]
    model = tiny.attached(family, "prompt-tuning", "prefix-tuning")
    ids = tiny.batch(family, rows=1)["input_ids"].expand(3, -1)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    mixed = model.generate(input_ids=ids, **options, prompt_names=names)
    alone = [model.generate(input_ids=ids, **options, prompt_names=[name] * 3)[0] for name in names]
    assert all(torch.equal(mixed[row], alone[row]) for row in range(3))
    assert len({tuple(row.tolist()) for row in alone}) == 3


def test_a_decoder_classifier_pools_the_last_real_token() -> None:
    torch.manual_seed(0)
    config = tiny.FAMILIES["llama"][1]()
    config.num_labels = 3
    model = sp.attach(tf.LlamaForSequenceClassification(config).double().eval(), tiny.METHODS["prompt-tuning"], "p")
    model.prompts.double()
    inputs = tiny.batch("llama")
    inputs.pop("labels")
    hidden = model.model(**inputs).last_hidden_state
    last = inputs["attention_mask"].sum(1) - 1
    scores = model.prompts["p"].head["score"]
    logits = model(**inputs).logits
    torch.testing.assert_close(logits, scores(hidden[range(3), last]), **EXACT)
    assert not torch.allclose(logits[2], scores(hidden[2, -1]))


def test_an_encoder_classifier_pools_cls() -> None:
    model = tiny.attached("bert", "prompt-tuning")
    inputs = tiny.batch("bert")
    pooled: list[Tensor] = []
    handle = model.bert.pooler.register_forward_hook(lambda module, args, output: pooled.append(args[0]))
    embedded: list[Tensor] = []
    other = model.bert.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: embedded.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(**inputs)
    with model.disable_prompt():
        model(**inputs)
    handle.remove()
    other.remove()
    # [CLS] keeps the first place, so what goes into the layers there is what the bare model has there.
    assert embedded[0].shape[1] == embedded[1].shape[1] + 3
    torch.testing.assert_close(embedded[0][:, 0], embedded[1][:, 0], **EXACT)
    assert not torch.allclose(embedded[0][:, 1], embedded[1][:, 1])


@pytest.mark.parametrize("family", ["modernbert", "distilbert", "roberta", "electra"])
def test_prefixes_on_encoders_that_others_refuse(family: str) -> None:
    model = tiny.attached(family, "prefix-tuning").train()
    gradient = prefix_gradients(model, tiny.batch(family))
    assert gradient.shape[1] == 2
    assert (gradient.abs().amax((0, 3)) > 0).all()


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_prefixes_reach_the_encoder_of_an_encoder_decoder(family: str) -> None:
    model, inputs = tiny.attached(family, "prefix-tuning"), tiny.batch(family)
    prompted, bare = model(**inputs), model(**inputs, prompt_names=[None] * 3)
    difference = prompted.encoder_last_hidden_state - bare.encoder_last_hidden_state
    assert (difference.abs().amax((1, 2)) > 1e-3).all()


def test_every_site_has_its_own_prefix_with_its_own_gradient() -> None:
    torch.manual_seed(0)
    config = tiny.FAMILIES["t5"][1]()
    config.num_layers = config.num_decoder_layers = 4
    model = sp.attach(tf.T5ForConditionalGeneration(config).double(), sp.PrefixTuningConfig(init_std=0.5), seed=0)
    model.prompts.double()
    gradient = prefix_gradients(model, tiny.batch("t5"))
    sites = gradient.shape[1]
    assert sites == 12
    flat = gradient.permute(1, 2, 0, 3).flatten(2)  # (S, key or value, l * w)
    assert (flat.abs().amax(2) > 0).all()
    for which in range(2):
        cosine = torch.nn.functional.cosine_similarity(flat[:, None, which], flat[None, :, which], dim=-1)
        assert (cosine - torch.eye(sites)).abs().max() < 0.99
    # What one site's slice does, no other's does: moving it alone changes the loss.
    inputs = tiny.batch("t5")
    method = model.prompts["default"].method
    with torch.no_grad():
        before = tiny.loss_of(model, inputs)
        for site in range(sites):
            method.prefix.view(10, sites, 2, -1)[:, site] += 0.1
            assert (tiny.loss_of(model, inputs) - before).abs() > 1e-7, site
            method.prefix.view(10, sites, 2, -1)[:, site] -= 0.1


def test_a_prompt_on_an_encoder_decoder_is_allocated_once() -> None:
    model = sp.attach(tiny.model("t5"), sp.PromptTuningConfig(num_virtual_tokens=10))
    assert [tuple(p.shape) for p in model.prompts.parameters()] == [(10, 16)]
    assert model.num_trainable_parameters()[0] == 160


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "multi-mask"])
def test_static_caches(method: str) -> None:
    model = tiny.attached("llama", method)
    inputs = {k: v for k, v in tiny.pad_left(tiny.batch("llama")).items() if k != "labels"}
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    static = model.generate(**inputs, **options, cache_implementation="static")
    assert torch.equal(static, model.generate(**inputs, **options))


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_prompts_can_be_switched_off_on_a_classifier(method: str) -> None:
    model, inputs = tiny.attached("bert", method), tiny.batch("bert")
    plain = tiny.model("bert").requires_grad_(False)(**inputs)
    with model.disable_prompt():
        bare = model(**inputs)
    assert torch.equal(bare.logits, plain.logits)
    assert torch.equal(bare.loss, plain.loss)
    assert not torch.allclose(model(**inputs).logits, plain.logits)


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_position_ids_of_the_caller_are_used(method: str) -> None:
    model = tiny.attached("gpt2", method)
    ids = tiny.batch("gpt2", rows=1)["input_ids"]
    spread, given = torch.arange(0, 14, 2)[None], {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    natural = model(**given).logits
    assert not torch.allclose(model(**given, position_ids=spread).logits, natural)
    torch.testing.assert_close(model(**given, position_ids=torch.arange(7)[None]).logits, natural, **EXACT)


def test_the_position_budget_is_checked() -> None:
    model = tiny.attached("roberta", "prompt-tuning")
    assert torch.isfinite(model(**tiny.batch("roberta", columns=35)).logits).all()
    with pytest.raises(sp.SoftPromptError, match="38 positions"):
        model(**tiny.batch("roberta", columns=36))


@pytest.mark.parametrize("method", ["prefix-tuning", "selective-prefix"])
def test_a_zero_prefix_is_no_identity(method: str) -> None:
    model, inputs = tiny.attached("bert", method), tiny.batch("bert")
    model.prompts[method].method.prefix.data.zero_()
    for key, head in model.prompts[method].head.items():
        head.load_state_dict(getattr(model, key).state_dict())
    difference = model(**inputs).logits - model(**inputs, prompt_names=[None] * 3).logits
    assert difference.abs().max() > 1e-3


def test_our_files_are_not_taken_for_anothers(tmp_path: Path) -> None:
    model = tiny.model("llama")
    model.save_pretrained(tmp_path)
    plain = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    sp.attach(model, tiny.METHODS["prompt-tuning"], "p").save_prompt("p", tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(plain)
    assert not getattr(again, "_hf_peft_config_loaded", False)
    ids = tiny.batch("llama", rows=1)["input_ids"]
    assert torch.equal(again(input_ids=ids).logits, plain(input_ids=ids).logits)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_generate_is_greedy_by_forward(method: str, beams: int) -> None:
    model = tiny.attached("llama", method)
    ids = tiny.batch("llama", rows=1)["input_ids"]
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "num_beams": beams}
    generated = model.generate(input_ids=ids, **options)
    if beams == 1:
        sequence = ids
        for _ in range(5):
            sequence = torch.cat([sequence, model(input_ids=sequence).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(generated, sequence)
    assert torch.equal(generated, model.generate(input_ids=ids, **options, use_cache=False))


@pytest.mark.parametrize("family", tiny.DECODERS)
@pytest.mark.parametrize(
    "extra", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}], ids=str
)
def test_unpadded_mixed_batches_generate_as_separate_ones(family: str, extra: dict[str, Any]) -> None:
    # Without padding `generate` drops the mask, though prompts of different lengths need one in the cache.
    names = ["prompt-tuning", "ept", "prefix-tuning", "superpos", None]
    model = tiny.attached(family, *[name for name in names if name])
    ids = torch.randint(5, 60, (len(names), 6))
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None} | extra
    mixed = model.generate(input_ids=ids, **options, prompt_names=names)
    for row, name in enumerate(names):
        alone = model.generate(input_ids=ids[row : row + 1], **options, prompt_names=[name])
        assert torch.equal(mixed[row], alone[0]), name


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", ["prompt-tuning", "ept", "prefix-tuning", "selective-prefix"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_cache_filled_in_pieces(family: str, method: str, masked: bool) -> None:
    model = tiny.attached(family, method)
    torch.manual_seed(4)
    ids = torch.randint(5, 60, (2, 9))

    def mask(length: int) -> dict[str, Tensor]:
        return {"attention_mask": torch.ones(2, length, dtype=torch.long)} if masked else {}

    whole = model(input_ids=ids, **mask(9)).logits
    first = model(input_ids=ids[:, :4], **mask(4), use_cache=True)
    second = model(input_ids=ids[:, 4:], **mask(9), past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, **EXACT)


@pytest.mark.parametrize("method", ["prompt-tuning", "ept"])
def test_caches_go_with_the_prompts_that_they_were_made_under(method: str) -> None:
    model = tiny.attached("llama", method, "prefix-tuning")
    torch.manual_seed(4)
    ids = torch.randint(5, 60, (1, 9))
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    filled = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    continued = model.generate(input_ids=ids, past_key_values=filled, **options)
    assert torch.equal(continued, model.generate(input_ids=ids, **options))
    with model.disable_prompt():
        bare = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(sp.SoftPromptError, match="made without this prompt"):
        model(input_ids=ids[:, 4:], past_key_values=bare)
    model.set_prompt("prefix-tuning")
    filled = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    continued = model.generate(input_ids=ids, past_key_values=filled, **options)
    assert torch.equal(continued, model.generate(input_ids=ids, **options))
    model.set_prompt(method)
    empty = model.generate(input_ids=ids, past_key_values=tf.DynamicCache(), **options)
    assert torch.equal(empty, model.generate(input_ids=ids, **options))


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "ept"])
def test_speculative_decoding_changes_no_token(method: str) -> None:
    model = tiny.attached("llama", method)
    torch.manual_seed(5)
    ids = torch.randint(5, 60, (1, 9))
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    plain = model.generate(input_ids=ids, **options)
    assert torch.equal(model.generate(input_ids=ids, **options, prompt_lookup_num_tokens=2), plain)
    embedded = model.generate(inputs_embeds=model.get_input_embeddings()(ids), **options)
    assert torch.equal(embedded, plain[:, 9:])


# --- Whisper, whose input is sound ---


def whisper() -> Any:
    torch.manual_seed(0)
    config = tf.WhisperConfig(
        vocab_size=60,
        num_mel_bins=4,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=12,
        max_target_positions=30,
        init_std=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return tf.WhisperForConditionalGeneration(config).double().eval()


@pytest.mark.parametrize("method", ["prefix-tuning", "selective-prefix"])
def test_prefixes_on_whisper(method: str) -> None:
    model = sp.attach(whisper(), tiny.METHODS[method], "p", seed=0)
    model.prompts.double()
    sound = torch.randn(2, 4, 24, dtype=torch.float64)
    labels = torch.randint(5, 60, (2, 5))
    out = model(input_features=sound, labels=labels)
    out.loss.backward()
    prefix = model.prompts["p"].method
    gradient = prefix.prefix.grad.view(len(prefix.prefix), 6, 2, -1)
    assert (gradient.abs().amax((0, 3)) > 0).all()
    bare = model(input_features=sound, labels=labels, prompt_names=[None, None])
    assert not torch.allclose(out.encoder_last_hidden_state, bare.encoder_last_hidden_state)
    mixed = model(input_features=sound, labels=labels, prompt_names=["p", None])
    torch.testing.assert_close(mixed.logits[0], out.logits[0], **EXACT)
    torch.testing.assert_close(mixed.logits[1], bare.logits[1], **EXACT)

    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    generated = model.generate(input_features=sound, **options)
    assert torch.equal(generated, model.generate(input_features=sound, use_cache=False, **options))
    together = model.generate(input_features=sound, **options, prompt_names=["p", None])
    alone = model.generate(input_features=sound, **options, prompt_names=[None, None])
    assert torch.equal(together[0], generated[0])
    assert torch.equal(together[1], alone[1])
    sp.detach(model)
    assert torch.equal(model.generate(input_features=sound, **options), alone)


@pytest.mark.parametrize("method", ["prompt-tuning", "superpos", "ept", "multi-mask"])
def test_what_needs_tokens_refuses_whisper_in_one_line(method: str) -> None:
    model = whisper()
    with pytest.raises(sp.SoftPromptError) as error:
        sp.attach(model, tiny.METHODS[method])
    assert "WhisperForConditionalGeneration" in str(error.value)
    assert "input_features" in str(error.value)
    assert "\n" not in str(error.value)
    assert not sp.is_attached(model)
