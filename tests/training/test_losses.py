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
from softprompts.tasks import collate
from softprompts.training.losses import label_count, model_inputs, output_of, run_pass

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
    losses = run_pass(model, batch, method).losses
    logits = model(**inputs, prompt_names=method).logits
    handle.remove()
    counted = int((labels[:, model.backbone_kind == "decoder" :] != -100).sum())
    assert shapes == [(1, counted, 60), (4, labels.shape[1], 60)]
    assert logits.shape == (4, labels.shape[1], 60)
    assert not model.get_output_embeddings()._forward_pre_hooks
    expected = naive(model.backbone_kind, logits, labels)
    torch.testing.assert_close(losses, expected, **CLOSE)
    torch.testing.assert_close(output_of(model.backbone_kind, logits, batch).losses, expected, **CLOSE)
    wanted, found = gradients(model, expected.sum()), gradients(model, losses.sum())
    assert wanted.keys() == found.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], **CLOSE)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_checkpointed(family: str) -> None:
    model = tiny.attached(family, "prefix-tuning").train()
    batch = batch_of(family)
    plain = gradients(model, run_pass(model, batch, None).losses.sum())
    model.gradient_checkpointing_enable()
    checkpointed = gradients(model, run_pass(model, batch, None).losses.sum())
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], **CLOSE)


def test_a_failing_pass_leaves_no_hook_behind() -> None:
    model = tiny.attached("llama", "prompt-tuning")
    with pytest.raises(sp.SoftPromptError):
        run_pass(model, tiny.batch("llama"), "prompt-tunin")
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_no_label_at_all() -> None:
    model = tiny.attached("llama", "prompt-tuning")
    batch = tiny.batch("llama")
    batch["labels"] = torch.full_like(batch["labels"], -100)
    assert run_pass(model, batch, None).losses.tolist() == [0, 0, 0]


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
    torch.testing.assert_close(run_pass(model, batch, None).losses, expected, **CLOSE)


def test_classes_and_values() -> None:
    model = tiny.attached("bert", "prefix-tuning")
    batch = tiny.batch("bert")
    inputs, labels = model_inputs(model, batch), batch["labels"]
    logits = model(**inputs).logits
    expected = torch.stack([cross_entropy(row, label) for row, label in zip(logits, labels, strict=True)])
    torch.testing.assert_close(run_pass(model, batch, None).losses, expected, **CLOSE)
    values = torch.tensor([0.5, -1.0, 2.0])
    expected = (logits[:, 0] - values) ** 2
    torch.testing.assert_close(output_of("encoder", logits[:, :1], {"labels": values}).losses, expected, **CLOSE)


def test_half_precision_is_summed_in_single() -> None:
    logits = torch.randn(2, 4, 9, dtype=torch.bfloat16)
    labels = torch.tensor([[-100, 1, 2, -100], [3, 4, 5, 6]])
    losses = output_of("encoder-decoder", logits, {"labels": labels}).losses
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, naive("encoder-decoder", logits.float(), labels))


def spans(logits: torch.Tensor, mask: torch.Tensor, wanted: list[tuple[int, int]]) -> torch.Tensor:
    """Cross-entropy of both ends over real tokens, in explicit loops."""
    losses = []
    for row, real, ends in zip(logits, mask, wanted, strict=True):
        loss = 0.0
        for end, place in enumerate(ends):
            total = sum(row[t, end].exp() for t in range(len(row)) if real[t])
            loss = loss - (row[place, end] - torch.log(total))
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.parametrize("side", ["right", "left"])
def test_spans(side: str) -> None:
    model = tiny.attached("bert", "prefix-tuning", tokens=True, num_labels=2)
    rows = [{"input_ids": [5, 6, 7, 8], "span": (1, 3)}, {"input_ids": [9, 4], "span": (0, 0)}]
    batch = collate(rows, 0, side)
    logits = model(**model_inputs(model, batch)).logits
    moved = 2 if side == "left" else 0
    expected = spans(logits, batch["attention_mask"], [(1, 3), (moved, moved)])
    torch.testing.assert_close(run_pass(model, batch, None).losses, expected, **CLOSE)
    assert label_count("encoder", rows) == 4


def test_choices() -> None:
    model = tiny.attached("bert", "prefix-tuning", num_labels=1)
    rows = [
        {"choices": [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}, {"input_ids": [4]}], "label": 2},
        {"choices": [{"input_ids": [3, 3]}, {"input_ids": [8, 9, 9, 1]}], "label": 0},
    ]
    batch = collate(rows, 0)
    found = run_pass(model, batch, ["prefix-tuning", "prefix-tuning"])
    expected = []
    for row in rows:
        one = [model(input_ids=torch.tensor([choice["input_ids"]])).logits[0, 0] for choice in row["choices"]]
        expected.append(torch.stack(one).exp().sum().log() - one[row["label"]])
    torch.testing.assert_close(found.losses, torch.stack(expected), **CLOSE)
    assert found.logits.shape == (2, 3) and found.logits[1, 2] == -torch.inf
    assert label_count("encoder", rows) == 2
