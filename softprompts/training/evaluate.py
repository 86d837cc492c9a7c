"""Predictions of a prompt: those of its head, or the likelihood of each answer under the language model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from softprompts.errors import SoftPromptError
from softprompts.injection import state_of
from softprompts.prompt import require
from softprompts.tasks.collate import IGNORED, collate
from softprompts.training.losses import pass_losses

Feature = Mapping[str, Any]


@dataclass(frozen=True)
class Prediction:
    """What was predicted for some rows, in their order.

    Attributes:
        labels: the class of each row, or its value where the head has a single output.
        probabilities: the probability of each class, row by row; None for values.
    """

    labels: list[int] | list[float]
    probabilities: list[list[float]] | None


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode and back; no gradients in between."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def model_inputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The forward arguments of a collated batch, without its labels and on the model's device.

    Labels are not passed on, since the losses are ours; what the model would have made of them goes in instead: the
    decoder's input of an encoder-decoder, and for a causal model the tokens a prompt may depend on.
    """
    inputs: dict[str, Any] = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
    labels = batch.get("labels")
    if labels is not None and labels.dim() == 2:
        # On the CPU, where the labels are.
        if model.backbone_kind == "encoder-decoder":
            decoder_ids = model.prepare_decoder_input_ids_from_labels(labels)
            inputs["decoder_input_ids"] = decoder_ids.to(model.device)
        elif model.backbone_kind == "decoder":
            inputs["context_mask"] = (batch["attention_mask"].bool() & (labels == IGNORED)).to(model.device)
        inputs["use_cache"] = False
    return inputs


def predict(
    model: Any,
    features: Sequence[Feature],
    prompt_name: str | Sequence[str],
    *,
    pad_id: int,
    batch_size: int = 32,
    label_ids: Sequence[Sequence[int]] | None = None,
    padding_side: str = "right",
    accelerator: Accelerator | None = None,
) -> Prediction:
    """Predicts, in eval mode and without gradients. Rows of many prompts share forward passes.

    Args:
        model: a model with the prompts attached.
        features: rows as `collate` takes them; their labels are not looked at.
        prompt_name: which prompt; or one for each row.
        pad_id: fills shorter rows.
        batch_size: rows of ``features`` per forward pass.
        label_ids: for language models, the token ids of each allowed answer.
        padding_side: "right" or "left".
        accelerator: where there are several processes, each predicts every so manieth batch, and all get the whole.

    Raises:
        SoftPromptError: a language model without ``label_ids``, an empty label, an unknown prompt, not one name a row,
            or prompts of which some predict classes and some values.
    """
    names = [prompt_name] * len(features) if isinstance(prompt_name, str) else list(prompt_name)
    if len(names) != len(features):
        raise SoftPromptError(f"there are {len(names)} prompt names for {len(features)} rows: give one for each row")
    if not features:
        return Prediction([], [])
    if label_ids is not None and (not label_ids or not all(label_ids)):
        raise SoftPromptError("label_ids must hold at least one label, and each at least one token")
    prompts = {name: require(model.prompts, name) for name in dict.fromkeys(names)}
    outputs = [len(label_ids)] if label_ids is not None else [prompt.num_labels for prompt in prompts.values()]
    if None in outputs:
        raise SoftPromptError("a language model predicts among answers: pass label_ids")
    if label_ids is None and len({count == 1 for count in outputs}) > 1:
        raise SoftPromptError("some of the prompts predict classes and some values; predict with them one by one")
    # A prompt of input tokens makes its rows longer.
    added = {name: prompt.config.input_tokens for name, prompt in prompts.items()}
    order = sorted(range(len(features)), key=lambda index: len(features[index]["input_ids"]) + added[names[index]])
    world, rank = (1, 0) if accelerator is None else (accelerator.num_processes, accelerator.process_index)
    # In double precision, which holds every other exactly: a process without a batch need not know the model's.
    scores = torch.zeros(len(features), max(count or 0 for count in outputs), dtype=torch.float64)
    with evaluating(model):
        for start in range(rank * batch_size, len(order), world * batch_size):
            own = order[start : start + batch_size]
            rows = [_context(model.backbone_kind, features[i]) for i in own]
            owners = [names[i] for i in own]
            if label_ids is None:
                part = _head_scores(model, rows, owners, pad_id, padding_side)
            else:
                part = _label_scores(model, rows, owners, pad_id, padding_side, label_ids)
            scores[own, : part.shape[1]] = part.to("cpu", torch.float64)
    if accelerator is not None and world > 1:
        scores = accelerator.reduce(scores.to(accelerator.device), "sum").cpu()
    if label_ids is None and scores.shape[1] == 1:
        return Prediction(scores[:, 0].tolist(), None)
    # The columns that other prompts' heads have more are not a row's.
    widths = [prompts[name].num_labels if label_ids is None else len(label_ids) for name in names]
    own_scores = [row[:width] for row, width in zip(scores, widths, strict=True)]
    return Prediction([int(row.argmax()) for row in own_scores], [row.softmax(0).tolist() for row in own_scores])


def _context(kind: str, feature: Feature) -> dict[str, Any]:
    """A row's input alone: no label of any kind, and without the answer that a causal row may end in."""
    row = {name: list(feature[name]) for name in ("input_ids", "token_type_ids") if name in feature}
    labels = feature.get("labels")
    if kind == "decoder" and isinstance(labels, list | tuple):
        # Only the answer's tokens at the end: a context may not be cut in the middle.
        length = max((i + 1 for i, label in enumerate(labels) if label == IGNORED), default=0)
        row = {name: values[:length] for name, values in row.items()}
    return row


def _head_scores(model: Any, rows: list[dict[str, Any]], names: list[str], pad_id: int, side: str) -> Tensor:
    batch = collate(rows, pad_id, side)
    return cast(Tensor, model(**model_inputs(model, batch), prompt_names=names).logits)


def _label_scores(
    model: Any, rows: list[dict[str, Any]], names: list[str], pad_id: int, side: str, label_ids: Sequence[Sequence[int]]
) -> Tensor:
    """Log-probability of each answer for each row, ``(R, L)``, from one pass of the decoder over ``R*L`` rows."""
    kind = model.backbone_kind
    answered: list[dict[str, Any]] = []
    for row in rows:
        for label in label_ids:
            if kind == "decoder":
                labels = [IGNORED] * len(row["input_ids"]) + list(label)
                answered.append({"input_ids": row["input_ids"] + list(label), "labels": labels})
            else:
                answered.append({**row, "labels": list(label)})
    batch = collate(answered, pad_id, side)
    inputs = model_inputs(model, batch)
    if kind == "encoder-decoder":
        del inputs["input_ids"]
        # It brings its prompts along.
        inputs["encoder_outputs"] = _encoded(model, collate(rows, pad_id, side), names, len(label_ids))
        owners = None
    else:
        owners = [name for name in names for _ in label_ids]
    return -pass_losses(model, inputs, batch["labels"], owners).view(len(rows), len(label_ids))


def _encoded(model: Any, batch: Mapping[str, Tensor], names: list[str], times: int) -> Any:
    """The encoder's output for a batch, each row repeated: the answers of a row share one run of the encoder."""
    with state_of(model).under(names):
        output = model.get_encoder()(**{key: tensor.to(model.device) for key, tensor in batch.items()})
    # Changed in place, since the output carries the pass it was made under: the decoder goes on with it.
    output["last_hidden_state"] = output["last_hidden_state"].repeat_interleave(times, 0)
    return output
