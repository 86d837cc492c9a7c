"""Frozen linear layers through oneDNN: the numbers of torch's own, forward and backward, and only where they should."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from transformers.pytorch_utils import Conv1D

import softprompts as sp
from softprompts.injection.speedups import frozen_linear
from softprompts.injection.speedups.frozen_linear import FrozenLinear

pytestmark = pytest.mark.skipif(not frozen_linear.works(), reason="this torch has no usable oneDNN")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Switches it on whatever the processor, and notes the shapes that went through it."""
    seen: list[tuple[int, ...]] = []
    product = frozen_linear._product

    def noted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append(tuple(weight.shape))
        return product(x, weight, bias)

    monkeypatch.setattr(frozen_linear, "pays", lambda: True)
    monkeypatch.setattr(frozen_linear, "_product", noted)
    return seen


def test_the_formula_by_loops() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 3, requires_grad=True), torch.randn(4, 3), torch.randn(4)
    for given in (bias, None):
        out = FrozenLinear.apply(x, weight, given)
        grad = torch.randn_like(out)
        (got,) = torch.autograd.grad(out, x, grad)
        out = out.detach()
        for i in range(2):
            for j in range(5):
                for n in range(4):
                    y = sum(float(x.detach()[i, j, k]) * float(weight[n, k]) for k in range(3))
                    y += 0.0 if given is None else float(bias[n])
                    assert float(out[i, j, n]) == pytest.approx(y, abs=1e-5)
                for k in range(3):
                    wanted = sum(float(grad[i, j, n]) * float(weight[n, k]) for n in range(4))
                    assert float(got[i, j, k]) == pytest.approx(wanted, abs=1e-5)


def test_a_gradient_of_a_gradient() -> None:
    x, weight = torch.randn(9, 3, requires_grad=True), torch.randn(4, 3)
    grads = []
    for make in (lambda t: FrozenLinear.apply(t, weight, None), lambda t: t @ weight.t()):
        (first,) = torch.autograd.grad(make(x).tanh().sum(), x, create_graph=True)
        grads.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "t5", "bart", "llama", "gpt2"])
@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning", "multi-mask"])
def test_losses_and_gradients_are_those_of_torch(calls: list[Any], family: str, method: str) -> None:
    inputs = tiny.batch(family)
    fast = tiny.attached(family, method, dtype=torch.float32)
    slow = tiny.attached(family, method, dtype=torch.float32)
    frozen_linear.uninstall(slow)
    losses = [tiny.loss_of(model, inputs, prompt_names=method) for model in (fast, slow)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    assert len(calls) > 10
    for mine, theirs in zip(fast.prompts.parameters(), slow.prompts.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_checkpointing_and_copies(calls: list[Any]) -> None:
    model = tiny.attached("bert", "prefix-tuning", dtype=torch.float32)
    inputs = tiny.batch("bert")
    tiny.loss_of(model, inputs, prompt_names="prefix-tuning").backward()
    wanted = [p.grad.clone() for p in model.prompts.parameters() if p.grad is not None]
    for other in (copy.deepcopy(model), model):
        other.zero_grad()
        other.train().gradient_checkpointing_enable()
        calls.clear()
        tiny.loss_of(other, inputs, prompt_names="prefix-tuning").backward()
        assert calls
        got = [p.grad for p in other.prompts.parameters() if p.grad is not None]
        for mine, theirs in zip(wanted, got, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_copy_has_passes_of_its_own(calls: list[Any]) -> None:
    model = tiny.attached("bert", "prefix-tuning", dtype=torch.float32)
    copied = copy.deepcopy(model)
    for module, twin in zip(model.modules(), copied.modules(), strict=True):
        if frozen_linear._STATE in module.__dict__:
            assert twin.__dict__["forward"].__self__ is twin
            assert twin.__dict__[frozen_linear._STATE] is copied._softprompt_state


def test_without_a_prompt_and_after_detaching_nothing_has_changed(calls: list[Any]) -> None:
    plain = tiny.model("bert", torch.float32)
    inputs = tiny.batch("bert")
    wanted = plain(**inputs).logits
    model = sp.attach(copy.deepcopy(plain), tiny.METHODS["prefix-tuning"], name="a")
    calls.clear()  # of the check at attach
    with torch.no_grad(), model.disable_prompt():
        assert torch.equal(model(**inputs).logits, wanted)
    assert not calls
    with torch.no_grad():
        model(**inputs)
    assert calls
    sp.detach(model)
    assert torch.equal(model(**inputs).logits, wanted)
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("layer", [torch.nn.Linear(6, 4), Conv1D(4, 6)])
def test_what_it_leaves_to_torch(calls: list[Any], layer: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    layer.requires_grad_(False)
    x = torch.randn(10, 6)

    class On:
        current: Any = object()

    layer.__dict__[frozen_linear._STATE] = On
    run = frozen_linear._forward
    torch.testing.assert_close(run(layer, x), layer(x))
    assert len(calls) == 1
    layer.weight.requires_grad_(True)  # unfrozen by its owner
    assert run(layer, x).requires_grad
    layer.weight.requires_grad_(False)
    monkeypatch.setattr(frozen_linear, "half_pays", lambda: False)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(layer, x).dtype == torch.bfloat16
    run(layer, x[:2])  # too few rows to gain anything
    run(layer.double(), x.double())
    run(layer.float(), x[:0])
    assert torch.func.vmap(lambda row: run(layer, row[None]))(x).shape == (10, 1, 4)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    run(layer, x)
    assert len(calls) == 1


def test_the_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_linear, "_amd", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for value, wanted in (("1", True), ("0", False), ("off", False)):
        frozen_linear.pays.cache_clear()
        monkeypatch.setenv("SOFTPROMPTS_ONEDNN", value)
        assert frozen_linear.pays() is wanted
    monkeypatch.setattr(frozen_linear, "_amd", lambda: False)
    monkeypatch.setenv("SOFTPROMPTS_ONEDNN", "1")
    frozen_linear.pays.cache_clear()
    assert not frozen_linear.pays()
    frozen_linear.pays.cache_clear()


SMALL: dict[str, Any] = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def led() -> Any:
    sizes = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = tf.LEDConfig(
        **SMALL, **sizes, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=64, attention_window=[4, 4], decoder_start_token_id=2, init_std=0.3,
    )  # fmt: skip
    return tf.LEDForConditionalGeneration(config)


def longformer() -> Any:
    config = tf.LongformerConfig(
        **SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, attention_window=[4, 4], initializer_range=0.3,
    )  # fmt: skip
    return tf.LongformerForMaskedLM(config)


@pytest.mark.parametrize("make", [led, longformer])
def test_models_that_write_into_products_train(make: Any, calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for pays in (True, False):
        monkeypatch.setattr(frozen_linear, "pays", lambda pays=pays: pays)
        torch.manual_seed(0)
        model = sp.attach(make(), sp.PromptTuningConfig(num_virtual_tokens=3), name="p", seed=0).train()
        ids = torch.randint(5, 60, (2, 9))
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([parameter.grad for parameter in model.prompts.parameters() if parameter.grad is not None])
    assert calls and gradients[0]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not frozen_linear.half_pays(), reason="this processor has no instructions for bfloat16")
@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning", "selective-prefix"])
def test_under_autocast_the_numbers_are_those_of_autocast(calls: list[Any], family: str, method: str) -> None:
    inputs = tiny.batch(family)
    outcomes = []
    for fast in (True, False):
        model = tiny.attached(family, method, dtype=torch.float32)
        exact = tiny.loss_of(model, inputs, prompt_names=method)
        if not fast:
            frozen_linear.uninstall(model)
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16):
            loss = tiny.loss_of(model, inputs, prompt_names=method)
        assert bool(calls) == fast
        assert loss != exact
        torch.testing.assert_close(loss, exact, rtol=2e-2, atol=2e-2)
        loss.backward()
        outcomes.append([loss, *(p.grad for p in model.prompts.parameters() if p.grad is not None)])
    for mine, theirs in zip(*outcomes, strict=True):
        assert mine.dtype == theirs.dtype == torch.float32
        assert (mine - theirs).norm() <= 0.03 * theirs.norm() + 1e-6  # of three figures that bfloat16 has


@pytest.mark.skipif(not frozen_linear.half_pays(), reason="this processor has no instructions for bfloat16")
def test_weights_are_cast_once_and_again_when_they_change() -> None:
    layer = torch.nn.Linear(6, 4).requires_grad_(False)
    weight, bias = frozen_linear._half(layer)
    assert torch.equal(weight, layer.weight.bfloat16()) and bias is not None
    assert frozen_linear._half(layer)[0] is weight
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.equal(frozen_linear._half(layer)[0], layer.weight.bfloat16())
    layer.weight = torch.nn.Parameter(torch.ones(4, 6), requires_grad=False)
    assert torch.equal(frozen_linear._half(layer)[0], torch.ones(4, 6).bfloat16())
