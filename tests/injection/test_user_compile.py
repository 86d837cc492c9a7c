"""A user's own ``torch.compile`` of an attached model: the same logits and gradients as without it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import softprompts as sp
from softprompts.training import Lane, TrainConfig, train

NAMES = ("prompt-tuning", "prefix-tuning", "multi-mask", "selective-prefix", "adaptive-prefix")
MIXED: list[str | None] = [*NAMES, None, "prefix-tuning", "multi-mask"]

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def measured(call: Any, model: Any, inputs: dict[str, Tensor], names: Any) -> tuple[Tensor, Tensor, list[Any]]:
    """Logits, loss and gradients of all prompts, from a forward pass of ``call``."""
    model.zero_grad()
    output = call(**inputs, prompt_names=names)
    loss = output.loss if output.loss is not None else output.logits.square().mean()
    loss.backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.prompts.parameters()]
    return output.logits.detach(), loss.detach(), gradients


def assert_same(one: tuple[Tensor, Tensor, list[Any]], two: tuple[Tensor, Tensor, list[Any]]) -> None:
    torch.testing.assert_close(one[0], two[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one[1], two[1], rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(one[2], two[2], strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_prompts_of_all_sorts_and_batches_of_two_sizes() -> None:
    """Traces and guards as ever, and runs the graphs as they are: compiling costs seconds, not minutes."""
    model = tiny.attached("bert", *NAMES, dtype=torch.float32, num_hidden_layers=1).train()
    compiled = torch.compile(model, backend="eager", dynamic=True)
    for count, columns in ((6, 11), (8, 15)):
        inputs = tiny.batch("bert", rows=count, columns=columns)
        names = MIXED[:count]
        assert_same(measured(compiled, model, inputs, names), measured(model, model, inputs, names))


def test_changed_weights_of_some_rows() -> None:
    """By itself: changed modules make many small graphs, each of which takes longer the more methods there are."""
    model = tiny.attached("bert", "lora", "prefix-tuning", dtype=torch.float32, num_hidden_layers=1).train()
    inputs, names = tiny.batch("bert"), ["lora", "prefix-tuning", None]
    compiled = torch.compile(model, backend="eager", dynamic=True)
    assert_same(measured(compiled, model, inputs, names), measured(model, model, inputs, names))


def test_an_encoder_decoder() -> None:
    model = tiny.attached("t5", "multi-mask", dtype=torch.float32, num_layers=1, num_decoder_layers=1).train()
    inputs = tiny.batch("t5")
    compiled = torch.compile(model, backend="eager")
    assert_same(measured(compiled, model, inputs, "multi-mask"), measured(model, model, inputs, "multi-mask"))


def test_a_prefix_is_one_graph() -> None:
    model = tiny.attached("bert", "multi-mask", dtype=torch.float32)
    whole = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for columns in (7, 9):
        inputs = tiny.batch("bert", columns=columns)
        with torch.no_grad():
            wanted = model(**inputs).logits
            torch.testing.assert_close(whole(**inputs).logits, wanted, rtol=1e-5, atol=1e-5)
    inputs = tiny.batch("bert")
    assert_same(measured(whole, model, inputs, "multi-mask"), measured(model, model, inputs, "multi-mask"))


def test_gradient_checkpointing_and_detaching() -> None:
    model = tiny.attached("bert", "multi-mask", dtype=torch.float32, num_hidden_layers=1).train()
    model.gradient_checkpointing_enable()
    inputs = tiny.batch("bert")
    plain = measured(model, model, inputs, "multi-mask")
    assert_same(measured(torch.compile(model, backend="eager"), model, inputs, "multi-mask"), plain)
    twin = copy.deepcopy(model)
    assert_same(measured(twin, twin, inputs, "multi-mask"), plain)
    sp.detach(model)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler")
def test_code_of_the_real_compiler() -> None:
    model = tiny.attached("bert", "multi-mask", dtype=torch.float32, num_hidden_layers=1)
    inputs = {name: value for name, value in tiny.batch("bert").items() if name != "labels"}
    with torch.no_grad():
        wanted = model(**inputs).logits
        torch.testing.assert_close(torch.compile(model)(**inputs).logits, wanted, rtol=1e-5, atol=1e-5)


def test_training_a_model_that_was_compiled_in_place() -> None:
    """In batches of several sizes, through the compiler's own graphs of the backward pass."""
    features = [{"input_ids": [5 + (i + j) % 40 for j in range(3 + i % 5)], "label": i % 3} for i in range(8)]
    results = []
    for compiled in (False, True):
        model = sp.attach(tiny.model("bert", torch.float32, num_hidden_layers=1))
        model.add_prompt("a", tiny.METHODS["multi-mask"], seed=0)
        if compiled:
            model.compile(backend="aot_eager", dynamic=True)
        (trained,) = train(model, [Lane("a", TrainConfig(batch_size=4, epochs=1), features)], pad_id=0)
        results.append(([line["loss"] for line in trained.history], model.prompts.state_dict()))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    for key, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][key], value, rtol=1e-3, atol=1e-4, msg=key)
