"""Losses row by row, and language models whose logits are computed only where a label counts."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from torch import Tensor
from torch.nn.functional import cross_entropy

import softprompts as sp
from softprompts.training.evaluate import model_inputs
from softprompts.training.losses import pass_losses, row_losses

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
LANGUAGE = tiny.DECODERS + tiny.SEQ2SEQ


def naive(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The summed loss of each row, token by token."""
    shift = 1 if kind == "decoder" else 0
    losses = []
    for scores, tokens in zip(logits, labels, strict=True):
        total = scores.new_zeros(())
        for column in range(shift, len(tokens)):
            if tokens[column] != -100:
                total = total + cross_entropy(scores[column - shift], tokens[column])
        losses.append(total)
    return torch.stack(losses)


def batch_of(family: str) -> dict[str, Tensor]:
    """Rows with labels of different lengths, one row without any."""
    batch = tiny.batch(family, rows=4)
    batch["labels"][1, -1] = -100
    batch["labels"][3] = -100
    return batch


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", LANGUAGE)
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_are_computed_where_a_label_counts(family: str, method: str, side: str) -> None:
    model = tiny.attached(family, method).train()
    batch = batch_of(family) if side == "right" else tiny.pad_left(batch_of(family))
    inputs, labels = model_inputs(model, batch), batch["labels"]
    shapes: list[torch.Size] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, args, made: shapes.append(made.shape))
    losses = pass_losses(model, inputs, labels, method)
    logits = model(**inputs, prompt_names=method).logits
    handle.remove()
    counted = int((labels[:, model.backbone_kind == "decoder" :] != -100).sum())
    assert shapes == [(1, counted, 60), (4, labels.shape[1], 60)]
    assert logits.shape == (4, labels.shape[1], 60)
    assert not model.get_output_embeddings()._forward_pre_hooks
    expected = naive(model.backbone_kind, logits, labels)
    torch.testing.assert_close(losses, expected, **CLOSE)
    torch.testing.assert_close(row_losses(model.backbone_kind, logits, labels), expected, **CLOSE)
    wanted, found = gradients(model, expected.sum()), gradients(model, losses.sum())
    assert wanted.keys() == found.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], **CLOSE)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_checkpointed(family: str) -> None:
    model = tiny.attached(family, "prefix-tuning").train()
    batch = batch_of(family)
    inputs = model_inputs(model, batch)
    plain = gradients(model, pass_losses(model, inputs, batch["labels"], None).sum())
    model.gradient_checkpointing_enable()
    checkpointed = gradients(model, pass_losses(model, inputs, batch["labels"], None).sum())
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], **CLOSE)


def test_a_failing_pass_leaves_no_hook_behind() -> None:
    model = tiny.attached("llama", "prompt-tuning")
    with pytest.raises(sp.SoftPromptError):
        pass_losses(model, {}, torch.zeros(2, 3, dtype=torch.long), "prompt-tunin")
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_no_label_at_all() -> None:
    model = tiny.attached("llama", "prompt-tuning")
    batch = tiny.batch("llama")
    labels = torch.full_like(batch["labels"], -100)
    assert pass_losses(model, model_inputs(model, batch), labels, None).tolist() == [0, 0, 0]


class Blocks(tf.LlamaForCausalLM):
    """Makes its logits one position at a time, as some memory-saving heads do."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits = torch.cat([self.lm_head(part) for part in states.split(1, dim=1)], 1)
        return tf.modeling_outputs.CausalLMOutput(logits=logits)


def test_a_head_that_is_called_otherwise_runs_as_ever() -> None:
    model = sp.attach(Blocks(tiny.FAMILIES["llama"][1]()).double(), sp.PrefixTuningConfig()).eval()
    model.prompts.double()
    batch = tiny.batch("llama")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = naive("decoder", model(**inputs).logits, batch["labels"])
    torch.testing.assert_close(pass_losses(model, inputs, batch["labels"], None), expected, **CLOSE)


def test_classes_and_values() -> None:
    model = tiny.attached("bert", "prefix-tuning")
    batch = tiny.batch("bert")
    inputs, labels = model_inputs(model, batch), batch["labels"]
    logits = model(**inputs).logits
    expected = torch.stack([cross_entropy(row, label) for row, label in zip(logits, labels, strict=True)])
    torch.testing.assert_close(pass_losses(model, inputs, labels, None), expected, **CLOSE)
    values = torch.tensor([0.5, -1.0, 2.0])
    expected = (logits[:, 0] - values) ** 2
    torch.testing.assert_close(row_losses("encoder", logits[:, :1], values), expected, **CLOSE)


def test_half_precision_is_summed_in_single() -> None:
    logits = torch.randn(2, 4, 9, dtype=torch.bfloat16)
    labels = torch.tensor([[-100, 1, 2, -100], [3, 4, 5, 6]])
    losses = row_losses("encoder-decoder", logits, labels)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, naive("encoder-decoder", logits.float(), labels))
