"""Classifiers that read one position: the last layer computes no other, and nobody can tell."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from torch import Tensor, nn

import softprompts as sp
from softprompts.injection.state import state_of

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
METHODS = ["prompt-tuning", "prefix-tuning", "selective-prefix", "ept"]
ALL = [(family, method) for family in tiny.ENCODERS for method in METHODS]


@contextlib.contextmanager
def watched(modules: Sequence[nn.Module]) -> Iterator[list[int]]:
    """The widths of what the modules are called with. Not by hooks, with which all positions would be computed."""
    widths: list[int] = []

    def forward(module: nn.Module, states: Tensor) -> Tensor:
        widths.append(states.shape[1])
        return type(module).forward(module, states)

    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.__dict__["forward"] = functools.partial(forward, module)
    try:
        yield widths
    finally:
        for module, own in zip(modules, before, strict=True):
            del module.__dict__["forward"]
            if own is not None:
                module.__dict__["forward"] = own


def run(model: Any, inputs: dict[str, Tensor], whole: bool = False, **kwargs: Any) -> tuple[Tensor, list[int]]:
    """Logits, and the widths in which the linear layers of the last layer were run.

    Args:
        model: attached.
        inputs: without labels.
        whole: asks for hidden states, with which all of the last layer is needed.
        **kwargs: for the model.
    """
    linear = [module for module in state_of(model).last_layer.layer.modules() if isinstance(module, nn.Linear)]
    with watched(linear) as widths:
        logits = model(**inputs, **({"output_hidden_states": True} if whole else {}), **kwargs).logits
    return logits, widths


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    sum(model.penalties.values(), loss).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def unlabelled(family: str, **kwargs: Any) -> dict[str, Tensor]:
    inputs = tiny.batch(family, **kwargs)
    del inputs["labels"]
    return inputs


@pytest.mark.parametrize(("family", "method"), ALL)
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients_are_those_of_the_whole_layer(family: str, method: str, side: str) -> None:
    model = tiny.attached(family, method).train()
    inputs = unlabelled(family) if side == "right" else tiny.pad_left(unlabelled(family))
    weights = torch.randn(3, 3, dtype=torch.float64)
    whole, wide = run(model, inputs, whole=True)
    expected = gradients(model, (whole * weights).sum())
    narrow, widths = run(model, inputs)
    found = gradients(model, (narrow * weights).sum())
    assert min(wide) == max(wide) >= 7
    # Keys and values are needed everywhere; ModernBERT makes queries along with them.
    assert sorted(set(widths)) == [1, max(wide)]
    assert widths.count(max(wide)) == (1 if family == "modernbert" else 2)
    torch.testing.assert_close(narrow, whole, **CLOSE)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **CLOSE)


@pytest.mark.parametrize("family", tiny.ENCODERS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_mixed_batches(family: str, side: str) -> None:
    names = [*tiny.METHODS, None]
    model = tiny.attached(family, *tiny.METHODS)
    inputs = unlabelled(family, rows=len(names), columns=12)
    inputs = inputs if side == "right" else tiny.pad_left(inputs)
    whole, _ = run(model, inputs, whole=True, prompt_names=names)
    narrow, widths = run(model, inputs, prompt_names=names)
    assert min(widths) == 1
    torch.testing.assert_close(narrow, whole, **CLOSE)


@pytest.mark.parametrize("family", tiny.ENCODERS)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("masked", [True, False])
def test_kernels_with_and_without_a_mask(family: str, kernel: str, masked: bool) -> None:
    made = tiny.model(family)
    made.set_attn_implementation(kernel)
    model = sp.attach(made, sp.PrefixTuningConfig(num_virtual_tokens=2), seed=0).eval()
    model.prompts.double()
    inputs = unlabelled(family)
    if not masked:
        del inputs["attention_mask"]
    whole, _ = run(model, inputs, whole=True)
    narrow, widths = run(model, inputs)
    assert min(widths) == 1
    torch.testing.assert_close(narrow, whole, rtol=1e-6, atol=1e-6)  # eager kernels take the softmax in float32


@pytest.mark.parametrize("family", tiny.ENCODERS)
def test_the_loss_of_a_training_step_is_read_from_one_position(family: str) -> None:
    model = tiny.attached(family, "prefix-tuning").train()
    inputs = tiny.batch(family)
    logits, widths = run(model, inputs)
    assert min(widths) == 1
    wide, widths = run(model, inputs, whole=True)
    assert min(widths) > 1
    torch.testing.assert_close(logits, wide, **CLOSE)


@pytest.mark.parametrize("family", tiny.ENCODERS)
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_checkpointed_layers_are_computed_again_just_so(family: str, method: str) -> None:
    model = tiny.attached(family, method).train()
    inputs = unlabelled(family)
    expected = gradients(model, run(model, inputs, whole=True)[0].square().sum())
    model.gradient_checkpointing_enable()
    layer = state_of(model).last_layer.layer
    first_of_feed_forward = [m for m in layer.modules() if isinstance(m, nn.Linear) and m.in_features == 16][-1]
    with watched([first_of_feed_forward]) as widths:
        found = gradients(model, model(**inputs).logits.square().sum())
    assert widths == [1, 1]
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **CLOSE)


@pytest.mark.parametrize("family", tiny.ENCODERS)
def test_hidden_states_and_attentions_are_whole_when_asked_for(family: str) -> None:
    made = tiny.model(family)
    made.set_attn_implementation("eager")
    model = sp.attach(made, sp.PrefixTuningConfig(num_virtual_tokens=2)).eval()
    model.prompts.double()
    inputs = unlabelled(family)
    model(**inputs)
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert {tuple(states.shape) for states in output.hidden_states} == {(3, 7, 16)}
    assert {tuple(weights.shape) for weights in output.attentions} == {(3, 4, 7, 9)}
    model.config.output_hidden_states = True
    assert model(**inputs).hidden_states[-1].shape == (3, 7, 16)
    base = model.base_model(**inputs).last_hidden_state
    torch.testing.assert_close(base, output.hidden_states[-1], **CLOSE)


@pytest.mark.parametrize("family", tiny.ENCODERS)
def test_a_hook_of_ones_own_sees_all_positions(family: str) -> None:
    model = tiny.attached(family, "prefix-tuning")
    inputs, last_layer = unlabelled(family), state_of(model).last_layer
    model(**inputs, output_hidden_states=True)  # transformers leaves hooks behind, which are no reason
    assert min(run(model, inputs)[1]) == 1
    shapes: list[torch.Size] = []
    for module in (last_layer.layer, last_layer.parts[0], model.base_model):
        shapes.clear()
        handle = module.register_forward_hook(
            lambda _, args, output: shapes.append((output if isinstance(output, Tensor) else output[0]).shape)
        )
        model(**inputs)
        handle.remove()
        assert shapes[0][:2] == (3, 7)
    assert min(run(model, inputs)[1]) == 1


def test_models_that_read_more_run_as_ever() -> None:
    bert = tiny.FAMILIES["bert"][1]
    albert = tf.AlbertConfig(
        vocab_size=60, embedding_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=40, num_labels=3,
    )  # fmt: skip
    mean = tiny.FAMILIES["modernbert"][1]()
    mean.classifier_pooling, mean.num_labels = "mean", 3
    for made in (
        tf.AutoModelForTokenClassification.from_config(bert()),
        tf.AutoModelForQuestionAnswering.from_config(bert()),
        tf.AutoModelForMaskedLM.from_config(bert()),
        tf.AutoModel.from_config(bert()),
        tf.AutoModelForSequenceClassification.from_config(mean),
        tf.AutoModelForSequenceClassification.from_config(albert),  # its layers are all the same one
        tf.AutoModelForSequenceClassification.from_config(tiny.FAMILIES["llama"][1]()),
    ):
        model = sp.attach(made, sp.PrefixTuningConfig())
        assert state_of(model).last_layer is None, type(model)
        # The trial leaves nothing behind either.
        hooks = {id(hook) for handle in state_of(model).handles for hook in handle.hooks_dict_ref().values()}
        there = [h for m in model.modules() for h in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]]
        assert all(id(hook) in hooks for hook in there)
        assert not any("_softprompt_read_column" in vars(module) for module in model.modules())


class MeanBert(tf.BertPreTrainedModel):
    """Reads all positions, with a head that as yet makes nothing of them."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.bert = tf.BertModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None) -> Any:
        states = self.bert(input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds)[0]
        return tf.modeling_outputs.SequenceClassifierOutput(logits=self.classifier(states.mean(1)))


def test_a_head_of_zeros_is_not_taken_for_one_that_reads_nothing() -> None:
    made = MeanBert(tiny.FAMILIES["bert"][1]())
    nn.init.zeros_(made.classifier.weight)
    assert state_of(sp.attach(made, sp.PrefixTuningConfig())).last_layer is None


@pytest.mark.parametrize("family", tiny.ENCODERS)
def test_a_copy_has_its_own(family: str) -> None:
    model = tiny.attached(family, "prefix-tuning")
    inputs = unlabelled(family)
    expected, _ = run(model, inputs, whole=True)
    twin = copy.deepcopy(model)
    assert state_of(twin).last_layer.layer is not state_of(model).last_layer.layer
    sp.detach(model)
    assert not any("_softprompt_read_column" in vars(module) for module in model.modules())
    logits, widths = run(twin, inputs)
    assert min(widths) == 1
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_masks_prepared_by_the_caller() -> None:
    model = tiny.attached("bert", "prefix-tuning")
    inputs = unlabelled("bert")
    expected, _ = run(model, inputs)
    mask = inputs["attention_mask"].bool()[:, None, None, :].expand(-1, 1, 7, -1)
    logits, widths = run(model, inputs | {"attention_mask": mask})
    assert min(widths) > 1
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize(("family", "method"), [("bert", "prompt-tuning"), ("roberta", "prefix-tuning")])
def test_compiled(family: str, method: str) -> None:
    model = tiny.attached(family, method)
    inputs = unlabelled(family)
    expected, _ = run(model, inputs, whole=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager")(**inputs).logits, expected, **CLOSE)


@pytest.mark.parametrize("training", [True, False])
def test_the_trial_leaves_modes_and_random_state_alone(training: bool) -> None:
    model = tiny.model("bert").train(training)
    model.bert.encoder.layer[0].train(not training)
    before = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    sp.attach(model)
    assert torch.equal(torch.get_rng_state(), state)
    sp.detach(model)
    assert {name: module.training for name, module in model.named_modules()} == before
