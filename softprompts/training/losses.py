"""Losses row by row, so that one forward pass serves lanes that each take the mean over their own rows.

The fields of a row decide its loss (see `collate`):

- ``label``: cross-entropy over classes, or the squared error of a score;
- ``labels``: cross-entropy at every token with a label: a language model's answer, or tags;
- ``span``: cross-entropy over the row's tokens, once for the first and once for the last of the span;
- ``choices``: several inputs, of which a head with one output scores each; cross-entropy over the choices;
- ``targets``: several labels, each with a logit of its own: the mean of the labels' binary cross-entropies. With
  ``choices``, a language model's answers, a label's logit is the log-likelihood of its answer less that of the last.

``weight`` multiplies a row's loss, and of several labels each label's. A row's loss hangs on no other row's weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.nn.utils.rnn import pad_sequence

from softprompts.backbones.task_head import wide
from softprompts.errors import SoftPromptError
from softprompts.injection.speedups.logits_at import at_places
from softprompts.injection.state import state_of
from softprompts.tasks.batches import ABOUT_ROWS, IGNORED, LABELS, NO_TARGET

NEG_INF = float("-inf")


@dataclass(frozen=True)
class PassOutput:
    """The logits and losses of a pass at the positions that have a label.

    Attributes:
        logits: ``(P, C)``, one line for each decision: a row's class, a token of its answer, an end of its span, a
            choice, or all of a row's labels. Scores: ``(R, 1)``.
        rows: ``(P,)``, the row that each line is about.
        losses: ``(R,)``, the summed loss of each row.
        states: ``(P, k, d)``, the last hidden states behind each line; None unless they were asked for.
        real: ``(P, k)`` bool, False for padding; None likewise.
    """

    logits: Tensor
    rows: Tensor
    losses: Tensor
    states: Tensor | None = None
    real: Tensor | None = None


def run_pass(model: Any, batch: Mapping[str, Any], prompt_names: Any, states: bool = False) -> PassOutput:
    """Runs one forward pass; returns its output at the positions that have a label.

    Most positions of a language model's input are context or padding, and a vocabulary is wide: its logits are
    computed only where there is a label.

    Args:
        model: an attached model.
        batch: of `collate`, with labels. They may be on the CPU, where collating leaves them.
        prompt_names: as for ``forward``, one for each row of ``batch["labels"]`` (a row of choices has one name).
        states: also return the last hidden states behind each line: that of the token that it is predicted from, for
            classes, scores and spans those of all tokens of the row.
    """
    if not states:
        output = _run_pass(model, batch, prompt_names)
        if (pass_ := state_of(model).last_pass) is not None:
            pass_.penalties_taken = True  # the caller adds them, or leaves them out of a second pass
        return output
    if "choices" in batch:
        raise SoftPromptError("hidden states are not compared of rows of choices; turn their part of the loss off")
    backbone = state_of(model).backbone
    seen: list[Tensor] = []
    handle = (backbone.decoder or backbone.entry).register_forward_hook(lambda *args: seen.append(args[-1][0]))
    try:
        output = run_pass(model, batch, prompt_names)
    finally:
        handle.remove()
    last, rows = wide(seen[-1]), output.rows.to(seen[-1].device)
    if batch.get("labels") is not None and batch["labels"].dim() == 2:
        places = _Places(model.backbone_kind, batch["labels"]).flat.to(last.device)
        last = last.flatten(0, 1).index_select(0, places)[:, None]
        return replace(output, states=last, real=last.new_ones(last.shape[:2], dtype=torch.bool))
    real = batch["attention_mask"].bool().to(last.device)
    return replace(output, states=last.index_select(0, rows), real=real.index_select(0, rows))


def _run_pass(model: Any, batch: Mapping[str, Any], prompt_names: Any) -> PassOutput:
    output = _unweighted(model, batch, prompt_names)
    if "targets" in batch and "choices" in batch:
        # Every input is an answer: its loss is the negative of its log-likelihood.
        answers = [losses[-1] - losses[:-1] for losses in output.losses.split(batch["choices"].tolist())]
        return _targets_output(pad_sequence(answers, True), batch)
    if "weights" in batch and "targets" not in batch:
        return replace(output, losses=output.losses * batch["weights"].to(output.losses))
    return output


def _unweighted(model: Any, batch: Mapping[str, Any], prompt_names: Any) -> PassOutput:
    name = next((name for name in LABELS if name in batch), None)
    if name is None:
        raise SoftPromptError("there is no loss for rows without labels")
    labels, inputs = batch[name], model_inputs(model, batch)
    sizes = batch.get("choices")
    if sizes is not None and isinstance(prompt_names, list | tuple):
        prompt_names = [name for name, size in zip(prompt_names, sizes.tolist(), strict=True) for _ in range(size)]
    head = model.get_output_embeddings() if name == "labels" and labels.dim() == 2 else None
    if head is None:
        return output_of(model.backbone_kind, model(**inputs, prompt_names=prompt_names).logits, batch)
    places = _Places(model.backbone_kind, labels)
    with at_places(head, labels.shape, places.flat) as narrowed:
        logits = model(**inputs, prompt_names=prompt_names).logits
    if not narrowed:  # a head that is called with something else than hidden states (R, T, d), or not at all
        return output_of(model.backbone_kind, logits, batch)
    return places.output(logits.flatten(0, 1))


def model_inputs(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The forward arguments of a collated batch, on the model's device.

    Labels are left out, since losses are computed here; what the model would have computed from them goes in instead:
    the decoder's input of an encoder-decoder, and for a causal model the tokens that a prompt may depend on.
    """
    inputs: dict[str, Any] = {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
        if name not in ABOUT_ROWS
    }
    labels = batch.get("labels")
    if labels is not None and labels.dim() == 2:
        # On the CPU, where the labels are.
        if model.backbone_kind == "encoder-decoder" and "decoder_input_ids" not in batch:
            decoder_ids = model.prepare_decoder_input_ids_from_labels(labels)
            inputs["decoder_input_ids"] = decoder_ids.to(model.device)
        elif model.backbone_kind == "decoder":
            inputs["context_mask"] = (batch["attention_mask"].bool() & (labels == IGNORED)).to(model.device)
        if model.backbone_kind != "encoder":
            inputs["use_cache"] = False
    return inputs


def output_of(kind: str, logits: Tensor, batch: Mapping[str, Tensor]) -> PassOutput:
    """The output of a pass at the positions that have a label, from the logits of all positions.

    Logits are ``(R, C)``, ``(R, T, V)``, or ``(choices, 1)``; columns that a row's head does not
    have are -inf. A backbone of kind "decoder" predicts the next token.
    """
    logits = wide(logits)
    if "spans" in batch:
        return _span_output(logits, batch["spans"], batch["attention_mask"])
    if "targets" in batch and "labels" not in batch:
        return _targets_output(logits, batch)
    labels = batch["labels"]
    if labels.dim() == 2:
        places = _Places(kind, labels)
        return places.output(logits.flatten(0, 1).index_select(0, places.flat.to(logits.device)))
    rows = torch.arange(len(labels))
    if "choices" in batch:  # of a head
        # A line a row, -inf behind its last choice.
        scores = logits[:, 0].split(batch["choices"].tolist())
        logits = pad_sequence(list(scores), True, NEG_INF)
    elif labels.is_floating_point() or logits.shape[-1] == 1:
        return PassOutput(logits, rows, mse_loss(logits[:, 0], labels.to(logits), reduction="none"))
    return PassOutput(logits, rows, cross_entropy(logits, labels.to(logits.device), reduction="none"))


def _span_output(logits: Tensor, spans: Tensor, mask: Tensor) -> PassOutput:
    """Two lines a row, over its tokens: where the span begins, and where it ends."""
    by_end = logits[..., :2].transpose(1, 2)  # (R, 2, T)
    by_end = by_end.masked_fill(~mask.bool().to(logits.device)[:, None], NEG_INF)
    lines = by_end.flatten(0, 1)
    losses = cross_entropy(lines, spans.to(logits.device).flatten(), reduction="none")
    return PassOutput(lines, torch.arange(len(spans)).repeat_interleave(2), losses.view(-1, 2).sum(1))


def _targets_output(logits: Tensor, batch: Mapping[str, Tensor]) -> PassOutput:
    """A line a row, over its labels; columns behind a row's last label do not count."""
    targets = batch["targets"].to(logits.device)
    width, real = targets.shape[1], targets != NO_TARGET
    own = torch.where(real, logits[:, :width], torch.zeros_like(logits[:, :width]))
    losses = binary_cross_entropy_with_logits(own, targets.clamp_min(0).to(own), reduction="none")
    if "weights" in batch:
        losses = losses * batch["weights"].to(losses)
    return PassOutput(logits, torch.arange(len(targets)), (losses * real).sum(1) / real.sum(1))


class _Places:
    """The positions whose logits enter a loss; ``flat`` are their indices ``(P,)`` into the ``R*T`` positions.

    They are computed on the labels' device: with labels on the CPU, this does not wait for a GPU.
    """

    def __init__(self, kind: str, labels: Tensor):
        shift = 1 if kind == "decoder" else 0  # the position before a token predicts it
        self.rows, columns = (labels[:, shift:] != IGNORED).nonzero(as_tuple=True)
        self.targets = labels[self.rows, columns + shift]
        self.flat = self.rows * labels.shape[1] + columns
        self.shape = labels.shape

    def output(self, logits: Tensor) -> PassOutput:
        """The output of a pass, from the logits ``(P, V)`` at the places."""
        logits = wide(logits)
        losses = cross_entropy(logits, self.targets.to(logits.device), reduction="none")
        places = self.flat.to(logits.device)
        per_row = losses.new_zeros(self.shape.numel()).index_put((places,), losses).view(self.shape).sum(1)
        return PassOutput(logits, self.rows, per_row)


def label_count(kind: str, rows: Sequence[Mapping[str, Any]]) -> int:
    """The number of labels in a mean loss: one a row, two per span, of language models' answers the tokens."""
    first = 1 if kind == "decoder" else 0

    def count(row: Mapping[str, Any]) -> int:
        if "labels" in row:
            return sum(label != IGNORED for label in row["labels"][first:])
        return 2 if "span" in row else 1

    return sum(map(count, rows))
