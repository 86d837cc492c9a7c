"""Predictions of a prompt: those of its head, or the likelihood of each answer under the language model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from softprompts.errors import SoftPromptError
from softprompts.injection.prompt import require, seeded
from softprompts.injection.state import state_of
from softprompts.tasks.batches import IGNORED, collate, inputs_of, length_of
from softprompts.training.generation import Sampling, generated, question_of
from softprompts.training.losses import label_count, model_inputs, run_pass

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
        losses: of each row, the summed loss of its answer's tokens and their number; None where it was not asked for.
    """

    labels: list[Any]
    probabilities: list[list[float]] | None
    scores: list[Tensor] = field(default_factory=list)
    tokens: list[list[int]] | None = None
    losses: list[tuple[float, int]] | None = None

    def part(self, start: int, end: int) -> Prediction:
        """The prediction for some of the rows."""
        return replace(self, **{name: rows[start:end] for name, rows in vars(self).items() if rows is not None})

    @property
    def finite(self) -> bool:
        """Whether all scores are numbers."""
        losses = torch.tensor([loss for loss, _ in self.losses or ()])
        return all(bool(scores.isfinite().all()) for scores in [*self.scores, losses])


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
    losses: bool = False,
    ends: Sequence[int] = (),
    sampling: Sampling | None = None,
    padding_side: str = "right",
    accelerator: Accelerator | None = None,
) -> Prediction:
    """Predicts, in eval mode and without gradients. Rows of many prompts share forward passes.

    Args:
        model: a model with the prompts attached.
        features: rows as `collate` takes them; only ``losses`` looks at their labels. Rows with ``places`` are
            predicted at these positions of their input, by a head that scores every token.
        prompt_name: which prompt; or one for each row.
        pad_id: fills shorter rows.
        batch_size: rows of ``features`` per forward pass.
        label_ids: for language models, the token ids of each allowed answer: the likeliest is predicted.
        new_tokens: for language models, in place of ``label_ids``: at most so many tokens are generated.
        losses: for language models: give the losses of the rows' answers, beside what is generated or alone.
        ends: tokens that end what is generated, beside the model's own.
        sampling: how tokens are chosen; None: greedily.
        padding_side: "right" or "left".
        accelerator: where there are several processes, each predicts a share of the batches, and all get the whole.

    Raises:
        SoftPromptError: a language model without ``label_ids`` or ``new_tokens``, an empty label, an unknown prompt,
            not one name a row, or prompts of which some predict classes and some values.
    """
    names = [prompt_name] * len(features) if isinstance(prompt_name, str) else list(prompt_name)
    if len(names) != len(features):
        raise SoftPromptError(f"there are {len(names)} prompt names for {len(features)} rows: give one for each row")
    written = new_tokens is not None or losses
    if not features:
        none: Any = [] if losses else None
        return Prediction([], None if written else [], tokens=[] if new_tokens else None, losses=none)
    if label_ids is not None and (not label_ids or not all(label_ids)):
        raise SoftPromptError("label_ids must hold at least one label, and each at least one token")
    prompts = {name: require(model.prompts, name) for name in dict.fromkeys(names)}
    answered = label_ids is not None or written
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
    sampling = sampling or Sampling()
    with evaluating(model), seeded(sampling.seed if sampling.temperature else None):
        for start in range(rank * batch_size, len(order), world * batch_size):
            batch = order[start : start + batch_size]
            rows, owners = [features[i] for i in batch], [names[i] for i in batch]
            if written:
                nothing: list[Any] = [None] * len(rows)
                tokens = nothing
                if new_tokens is not None:
                    tokens = generated(model, rows, owners, pad_id, new_tokens, sampling, ends)
                sums = _answer_losses(model, rows, owners, pad_id, padding_side) if losses else nothing
                results |= zip(batch, zip(tokens, sums, strict=True), strict=True)
            else:
                answers = None if label_ids is None else [label_ids] * len(rows)
                scores = score_rows(model, rows, owners, pad_id=pad_id, label_ids=answers, padding_side=padding_side)
                results |= zip(batch, scores, strict=True)
    if world > 1:
        results = {index: result for share in gather_object([results]) for index, result in share.items()}
    in_order = [results[index] for index in range(len(features))]
    if written:
        texts = None if new_tokens is None else [tokens for tokens, _ in in_order]
        return Prediction([], None, tokens=texts, losses=[loss for _, loss in in_order] if losses else None)
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
    rows = [question_of(model.backbone_kind, feature) for feature in features]
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


def _answer_losses(
    model: Any, rows: Sequence[Feature], names: list[str], pad_id: int, side: str
) -> list[tuple[float, int]]:
    """The summed loss of each row's answer, and the number of its tokens."""
    summed = run_pass(model, collate(rows, pad_id, side), names).losses.tolist()
    return [(loss, label_count(model.backbone_kind, [row])) for loss, row in zip(summed, rows, strict=True)]


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
