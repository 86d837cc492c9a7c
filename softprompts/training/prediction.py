"""Predictions of a prompt: those of its head, or the likelihood of each answer under the language model."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from softprompts.errors import SoftPromptError
from softprompts.injection.prompt import require
from softprompts.injection.state import state_of
from softprompts.tasks.batches import IGNORED, collate, inputs_of, length_of
from softprompts.training.losses import model_inputs, run_pass

Feature = Mapping[str, Any]
Answers = Sequence[Sequence[int]]  # the token ids of each allowed answer


@dataclass(frozen=True)
class Prediction:
    """What was predicted for some rows, in their order.

    Attributes:
        labels: the class of each row (of rows of choices, the choice), or its value where the head has a single
            output. Of rows with ``places``, the class at each. Empty where text was generated. Of a task with several
            labels a row they say nothing: its answers are read from ``scores``.
        probabilities: the probability of each class or choice, row by row; None for values, places and text.
        scores: what ``labels`` were chosen by, ``(P, C)`` of each row: one line, or one for each of its places or
            choices. Float64, on the CPU. Empty where text was generated.
        tokens: the ids that were generated for each row, without special tokens at their end; None for labels.
    """

    labels: list[Any]
    probabilities: list[list[float]] | None
    scores: list[Tensor] = field(default_factory=list)
    tokens: list[list[int]] | None = None

    def part(self, start: int, end: int) -> Prediction:
        """The prediction for some of the rows."""
        return replace(self, **{name: rows[start:end] for name, rows in vars(self).items() if rows is not None})

    @property
    def finite(self) -> bool:
        """Whether all scores are numbers."""
        return all(bool(scores.isfinite().all()) for scores in self.scores)


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


def predict(
    model: Any,
    features: Sequence[Feature],
    prompt_name: str | Sequence[str],
    *,
    pad_id: int,
    batch_size: int = 32,
    label_ids: Answers | None = None,
    new_tokens: int | None = None,
    padding_side: str = "right",
    accelerator: Accelerator | None = None,
) -> Prediction:
    """Predicts, in eval mode and without gradients. Rows of many prompts share forward passes.

    Args:
        model: a model with the prompts attached.
        features: rows as `collate` takes them; their labels are not looked at. Rows with ``places`` are predicted at
            these positions of their input, by a head that scores every token.
        prompt_name: which prompt; or one for each row.
        pad_id: fills shorter rows.
        batch_size: rows of ``features`` per forward pass.
        label_ids: for language models, the token ids of each allowed answer: the likeliest is predicted.
        new_tokens: for language models, in place of ``label_ids``: at most so many tokens are generated, greedily.
        padding_side: "right" or "left".
        accelerator: where there are several processes, each predicts a share of the batches, and all get the whole.

    Raises:
        SoftPromptError: a language model without ``label_ids`` or ``new_tokens``, an empty label, an unknown prompt,
            not one name a row, or prompts of which some predict classes and some values.
    """
    names = [prompt_name] * len(features) if isinstance(prompt_name, str) else list(prompt_name)
    if len(names) != len(features):
        raise SoftPromptError(f"there are {len(names)} prompt names for {len(features)} rows: give one for each row")
    if not features:
        return Prediction([], None if new_tokens else [], tokens=[] if new_tokens else None)
    if label_ids is not None and (not label_ids or not all(label_ids)):
        raise SoftPromptError("label_ids must hold at least one label, and each at least one token")
    prompts = {name: require(model.prompts, name) for name in dict.fromkeys(names)}
    answered = label_ids is not None or new_tokens is not None
    heads = set() if answered else {prompt.num_labels for prompt in prompts.values()}
    if None in heads:
        raise SoftPromptError("a language model predicts among answers: pass label_ids, or new_tokens to generate them")
    valued = 1 in heads
    if valued and len(heads) > 1:
        raise SoftPromptError("some of the prompts predict classes and some values; predict with them one by one")
    # A prompt of input tokens makes its rows longer.
    added = {name: prompt.config.input_tokens for name, prompt in prompts.items()}
    order = sorted(range(len(features)), key=lambda index: length_of(features[index]) + added[names[index]])
    world, rank = (1, 0) if accelerator is None else (accelerator.num_processes, accelerator.process_index)
    results: dict[int, Any] = {}
    with evaluating(model):
        for start in range(rank * batch_size, len(order), world * batch_size):
            batch = order[start : start + batch_size]
            rows, owners = [features[i] for i in batch], [names[i] for i in batch]
            if new_tokens is not None:
                results |= zip(batch, _generated(model, rows, owners, pad_id, new_tokens), strict=True)
            else:
                answers = None if label_ids is None else [label_ids] * len(rows)
                scores = score_rows(model, rows, owners, pad_id=pad_id, label_ids=answers, padding_side=padding_side)
                results |= zip(batch, scores, strict=True)
    if world > 1:
        results = {index: result for share in gather_object([results]) for index, result in share.items()}
    in_order = [results[index] for index in range(len(features))]
    if new_tokens is not None:
        return Prediction([], None, tokens=in_order)
    return prediction_of(features, in_order, valued)


def prediction_of(features: Sequence[Feature], scores: list[Tensor], valued: bool = False) -> Prediction:
    """The prediction that ``scores`` make, see `Prediction`; with ``valued`` one is a value, not that of a class."""
    if "places" in features[0]:
        return Prediction([row.argmax(1).tolist() for row in scores], None, scores)
    if "choices" in features[0] and "targets" not in features[0]:
        by_choice = [row[:, 0] for row in scores]
    elif valued:
        return Prediction([float(row[0, 0]) for row in scores], None, scores)
    else:
        by_choice = [row[0] for row in scores]
    chances = [row.softmax(0).tolist() for row in by_choice]
    return Prediction([int(row.argmax()) for row in by_choice], chances, scores)


def score_rows(
    model: Any,
    features: Sequence[Feature],
    names: Sequence[str],
    *,
    pad_id: int,
    label_ids: Sequence[Answers] | None = None,
    padding_side: str = "right",
) -> list[Tensor]:
    """One pass over rows of many prompts, whose heads may be of different kinds: classes, values, choices, places.

    The model is to be in eval mode, and gradients to be off. ``names`` has the prompt of each row, ``label_ids`` the
    token ids of each answer that each row may have; for the rest see `predict`. Returns the scores of each row, as in
    `Prediction`; with ``label_ids`` the log-likelihood of each answer, ``(1, L)``.
    """
    rows = [_context(model.backbone_kind, feature) for feature in features]
    if label_ids is None:
        lines = _head_scores(model, rows, list(names), pad_id, padding_side).to("cpu", torch.float64)
        counts = [len(row["places"] if "places" in row else inputs_of(row)) for row in rows]
        widths = [model.prompts[name].num_labels for name in names]
        # The columns that other prompts' heads have more are not a row's.
        return [scores[:, :width] for scores, width in zip(lines.split(counts), widths, strict=True)]
    results: list[Tensor] = [torch.empty(0)] * len(rows)
    # The decoder of an encoder-decoder sees each row of its encoder equally often.
    counts = [len(answers) if model.backbone_kind == "encoder-decoder" else 0 for answers in label_ids]
    for count in dict.fromkeys(counts):
        members = [index for index, other in enumerate(counts) if other == count]
        answers = [label_ids[index] for index in members]
        owners = [names[index] for index in members]
        lines = _label_scores(model, [rows[index] for index in members], owners, pad_id, padding_side, answers)
        parts = lines.to("cpu", torch.float64).split([len(each) for each in answers])
        for index, part in zip(members, parts, strict=True):
            results[index] = part[None]
    return results


def _context(kind: str, feature: Feature) -> dict[str, Any]:
    """A row's input alone: no label of any kind, and without the answer that a causal row may end in."""
    if "choices" in feature:
        if "targets" in feature:  # answers of a language model to one input
            return _context(kind, feature["choices"][0])
        return {"choices": [_context(kind, choice) for choice in feature["choices"]]}
    row = {name: list(feature[name]) for name in ("input_ids", "token_type_ids", "places") if name in feature}
    labels = feature.get("labels")
    if kind == "decoder" and isinstance(labels, list | tuple):
        # Only the answer's tokens at the end: a context may not be cut in the middle.
        length = max((i + 1 for i, label in enumerate(labels) if label == IGNORED), default=0)
        row = {name: values[:length] for name, values in row.items()}
    return row


def _head_scores(model: Any, rows: list[dict[str, Any]], names: list[str], pad_id: int, side: str) -> Tensor:
    """A line for each row, or for each of its places or choices; some rows may have choices and others not."""
    batch = collate([each for row in rows for each in inputs_of(row)], pad_id, side)
    owners = [name for name, row in zip(names, rows, strict=True) for _ in inputs_of(row)]
    logits = cast(Tensor, model(**model_inputs(model, batch), prompt_names=owners).logits)
    if "places" not in rows[0]:
        return logits
    first = batch["attention_mask"].argmax(1).tolist()  # padding on the left shifts places
    index = [(i, first[i] + place) for i, row in enumerate(rows) for place in row["places"]]
    return logits[[i for i, _ in index], [place for _, place in index]]


def _generated(model: Any, features: list[Feature], names: list[str], pad_id: int, count: int) -> list[list[int]]:
    """The ids that are generated for each row, up to its end of text."""
    decoder = model.backbone_kind == "decoder"
    rows = [_context(model.backbone_kind, feature) for feature in features]
    batch = collate(rows, pad_id, "left" if decoder else "right")
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    sequences = model.generate(
        **inputs, prompt_names=names, max_new_tokens=count, do_sample=False, num_beams=1, pad_token_id=pad_id
    )
    end = model.generation_config.eos_token_id
    ends = {end} if isinstance(end, int) else set(end or ())
    generated = sequences[:, inputs["input_ids"].shape[1] if decoder else 1 :].tolist()
    return [list(itertools.takewhile(lambda token: token not in ends, row)) for row in generated]


def _label_scores(
    model: Any, rows: list[dict[str, Any]], names: list[str], pad_id: int, side: str, label_ids: Sequence[Answers]
) -> Tensor:
    """Log-probability of each answer of each row, one after the other, from one pass of the decoder over all of them.

    Under an encoder-decoder all rows have equally many answers.
    """
    kind = model.backbone_kind
    answered: list[dict[str, Any]] = []
    for row, answers in zip(rows, label_ids, strict=True):
        for label in answers:
            if kind == "decoder":
                labels = [IGNORED] * len(row["input_ids"]) + list(label)
                answered.append({"input_ids": row["input_ids"] + list(label), "labels": labels})
            else:
                answered.append({**row, "labels": list(label)})
    batch: dict[str, Any] = collate(answered, pad_id, side)
    if kind == "encoder-decoder":
        del batch["input_ids"]
        # It brings its prompts along.
        batch["encoder_outputs"] = _encoded(model, collate(rows, pad_id, side), names, len(label_ids[0]))
        owners = None
    else:
        owners = [name for name, answers in zip(names, label_ids, strict=True) for _ in answers]
    return -run_pass(model, batch, owners).losses


def _encoded(model: Any, batch: Mapping[str, Tensor], names: list[str], times: int) -> Any:
    """The encoder's output for a batch, each row repeated: the answers of a row share one run of the encoder."""
    with state_of(model).under(names):
        output = model.get_encoder()(**{key: tensor.to(model.device) for key, tensor in batch.items()})
    # Changed in place, since the output carries the pass it was made under: the decoder goes on with it.
    output["last_hidden_state"] = output["last_hidden_state"].repeat_interleave(times, 0)
    return output
