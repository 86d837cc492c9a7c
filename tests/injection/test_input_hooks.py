"""The injection contract: every method on every family of backbones."""

from __future__ import annotations

import pytest
import tiny
import torch

import softprompts as sp

ALL = [(family, method) for family in tiny.FAMILIES for method in tiny.METHODS]
SEPARATE = ["prompt-tuning", "prefix-tuning", "multi-mask"]
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize(("family", "method"), ALL)
def test_every_parameter_gets_a_gradient_and_the_backbone_none(family: str, method: str) -> None:
    model = tiny.attached(family, method).train()
    tiny.loss_of(model, tiny.batch(family)).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("prompts."):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert not parameter.requires_grad, name
            assert parameter.grad is None, name


@pytest.mark.parametrize(("family", "method"), ALL)
def test_padding_on_either_side_changes_no_real_row(family: str, method: str) -> None:
    model = tiny.attached(family, method)
    inputs = tiny.batch(family)
    inputs.pop("labels") if family not in tiny.SEQ2SEQ else None
    right = model(**inputs).logits
    moved = tiny.pad_left(inputs)
    left = model(**moved).logits
    right_rows = tiny.real_logits(family, right, inputs["attention_mask"])
    left_rows = tiny.real_logits(family, left, moved["attention_mask"])
    for index in range(3):
        alone = model(**tiny.row(inputs, index)).logits[0]
        if family not in ("roberta", "distilbert", "electra", "modernbert"):  # their heads read the first column
            torch.testing.assert_close(left_rows[index], alone, **TOLERANCE)
        torch.testing.assert_close(right_rows[index], alone, **TOLERANCE)


@pytest.mark.parametrize("family", tiny.ENCODERS)
@pytest.mark.parametrize("method", list(tiny.METHODS))
def test_left_padding_leaves_hidden_states_alone(family: str, method: str) -> None:
    model = tiny.attached(family, method)
    inputs = tiny.batch(family)
    inputs.pop("labels")
    moved = tiny.pad_left(inputs)
    right = model(**inputs, output_hidden_states=True).hidden_states[-1]
    left = model(**moved, output_hidden_states=True).hidden_states[-1]
    for index in range(3):
        torch.testing.assert_close(
            left[index][moved["attention_mask"][index].bool()],
            right[index][inputs["attention_mask"][index].bool()],
            **TOLERANCE,
        )


@pytest.mark.parametrize(("family", "method"), ALL)
@pytest.mark.parametrize("dropout", [False, True])
def test_gradient_checkpointing_changes_no_gradient(family: str, method: str, dropout: bool) -> None:
    model = tiny.attached(family, method)
    # Backbone dropout of zero keeps the layers in training mode, where transformers itself checkpoints them.
    model.backbone_dropout = dropout
    for module in model.modules():
        for name in ("dropout", "p", "attention_dropout", "activation_dropout", "dropout_prob", "resid_pdrop"):
            if dropout and isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    inputs = tiny.batch(family)
    model.train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        tiny.loss_of(model, inputs).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    calls = []
    model.activation_checkpointing_enable() if hasattr(model, "activation_checkpointing_enable") else (
        model.gradient_checkpointing_enable()
    )
    for module in model.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if function is not None and not calls:
            original = function.function
            function.function = lambda *a, original=original, **k: (calls.append(1), original(*a, **k))[1]
    checkpointed = gradients()
    assert calls, "no layer was checkpointed"
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], **TOLERANCE)


@pytest.mark.parametrize("family", tiny.DECODERS + tiny.SEQ2SEQ)
@pytest.mark.parametrize("method", list(tiny.METHODS))
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_same_with_and_without_cache(family: str, method: str, beams: int) -> None:
    model = tiny.attached(family, method)
    inputs = tiny.pad_left(tiny.batch(family)) if family in tiny.DECODERS else tiny.batch(family)
    inputs.pop("labels")
    runs = [
        model.generate(**inputs, max_new_tokens=4, num_beams=beams, do_sample=False, use_cache=cache, eos_token_id=None)
        for cache in (True, False)
    ]
    assert torch.equal(*runs)
    with torch.no_grad():  # the prompt does change something, else the test would see no fault
        start = {} if family in tiny.DECODERS else {"decoder_input_ids": torch.zeros(3, 1, dtype=torch.long)}
        assert not torch.allclose(
            model(**inputs, **start).logits, model(**inputs, **start, prompt_names=[None] * 3).logits
        )


@pytest.mark.parametrize("family", tiny.DECODERS)
@pytest.mark.parametrize("method", list(tiny.METHODS))
def test_generation_equals_forward_by_hand(family: str, method: str) -> None:
    model = tiny.attached(family, method)
    ids = tiny.batch(family, rows=1)["input_ids"]
    generated = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=True)
        tokens = []
        for _ in range(5):
            tokens.append(out.logits[:, -1:].argmax(-1))
            out = model(input_ids=tokens[-1], past_key_values=out.past_key_values, use_cache=True)
    assert torch.equal(torch.cat(tokens, 1), generated[:, ids.shape[1] :])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3", "t5"])
@pytest.mark.parametrize("method", SEPARATE)
def test_static_cache(family: str, method: str) -> None:
    model = tiny.attached(family, method)
    inputs = tiny.pad_left(tiny.batch(family)) if family in tiny.DECODERS else tiny.batch(family)
    inputs.pop("labels")
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    dynamic = model.generate(**inputs, **options)
    static = model.generate(**inputs, **options, cache_implementation="static")
    assert torch.equal(dynamic, static)


@pytest.mark.parametrize(("family", "method"), ALL)
def test_eager_and_sdpa_agree(family: str, method: str) -> None:
    inputs = tiny.batch(family)
    logits = []
    for kernel in ("sdpa", "eager"):
        model = tiny.attached(family, method, _attn_implementation=kernel)
        assert model.config._attn_implementation.endswith(kernel)
        logits.append(model(**inputs).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)  # eager kernels take the softmax in float32


@pytest.mark.parametrize(("family", "method"), ALL)
def test_bfloat16_backbone_keeps_prompts_in_float32(family: str, method: str) -> None:
    model = tiny.model(family, torch.bfloat16)
    sp.attach(model, tiny.METHODS[method]).train()
    loss = tiny.loss_of(model, tiny.batch(family))
    loss.backward()
    assert torch.isfinite(loss)
    for parameter in model.prompts.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_without_a_prompt_the_model_is_the_original_bit_for_bit(family: str) -> None:
    model, inputs = tiny.model(family), tiny.batch(family)
    unfrozen = model(**inputs)
    model.requires_grad_(False)  # T5 takes another kernel while its position table is trained, with other last bits
    before = model(**inputs)
    model.requires_grad_(True)
    names = {name for name, _ in model.named_parameters()}
    classes, implementation = type(model), model.config._attn_implementation
    sp.attach(model, tiny.METHODS["prefix-tuning"], "p")
    model.add_prompt("t", tiny.METHODS["prompt-tuning"])
    model.prompts.to(torch.float64)
    assert isinstance(model, classes)
    prompted = model(**inputs)
    assert not torch.equal(prompted.logits, before.logits)
    assert prompted.logits.shape == before.logits.shape
    with model.disable_prompt():
        assert torch.equal(model(**inputs).logits, before.logits)
    assert torch.equal(model(**inputs, prompt_names=[None, None, None]).logits, before.logits)
    sp.detach(model)
    after = model(**inputs)
    assert torch.equal(after.logits, unfrozen.logits)
    assert torch.equal(after.loss, unfrozen.loss)
    assert type(model) is classes
    assert model.config._attn_implementation == implementation
    assert {name for name, _ in model.named_parameters()} == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_rows_of_a_mixed_batch_equal_separate_batches(family: str) -> None:
    names = list(tiny.METHODS)
    model = tiny.attached(family, *names)
    inputs = tiny.batch(family, rows=len(names) + 1, columns=len(names) + 3)
    if family not in tiny.SEQ2SEQ:
        inputs.pop("labels")
    mixed = model(**inputs, prompt_names=[*names, None]).logits
    for index, name in enumerate([*names, None]):
        alone = model(**tiny.row(inputs, index), prompt_names=[name]).logits[0]
        together = tiny.real_logits(family, mixed, inputs["attention_mask"])[index]
        torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", tiny.DECODERS + tiny.SEQ2SEQ)
@pytest.mark.parametrize("beams", [1, 3])
def test_mixed_batches_generate_as_separate_ones(family: str, beams: int) -> None:
    names = list(tiny.METHODS)
    model = tiny.attached(family, *names)
    inputs = tiny.batch(family, rows=len(names), columns=len(names) + 3)
    inputs.pop("labels")
    if family in tiny.DECODERS:
        inputs = tiny.pad_left(inputs)
    options = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, "eos_token_id": None}
    mixed = model.generate(**inputs, **options, prompt_names=names)
    for index, name in enumerate(names):
        alone = model.generate(**tiny.row(inputs, index), **options, prompt_names=name)
        assert torch.equal(mixed[index, -5:], alone[0, -5:]), name


@pytest.mark.parametrize("family", tiny.DECODERS)
@pytest.mark.parametrize("method", list(tiny.METHODS))
def test_position_ids_of_the_caller_are_honoured(family: str, method: str) -> None:
    model = tiny.attached(family, method)
    ids = tiny.batch(family, rows=2)["input_ids"][:1]
    natural = torch.arange(ids.shape[1])[None]
    default = model(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids, position_ids=natural).logits, default, **TOLERANCE)
    spread = model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=natural * 2).logits
    assert (spread - default).abs().max() > 1e-6


def test_prompts_with_prefixes_at_different_sites_mix() -> None:
    model = tiny.attached("t5")
    for index, sites in enumerate([("encoder.self",), ("decoder.self", "decoder.cross"), ("decoder.cross",), None]):
        config = sp.PrefixTuningConfig(num_virtual_tokens=2 + index % 2, sites=sites, init_std=0.5)
        model.add_prompt(f"p{index}", config, seed=index)
    model.prompts.to(torch.float64)
    names = ["p0", "p1", None, "p2", "p3", "p1"]
    inputs = tiny.batch("t5", rows=6)
    mixed = model(**inputs, prompt_names=names).logits
    for index, name in enumerate(names):
        alone = model(**tiny.row(inputs, index), prompt_names=[name]).logits[0]
        torch.testing.assert_close(mixed[index], alone, **TOLERANCE)
