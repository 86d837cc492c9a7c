"""What a run is scored on, and the scoring of several runs in shared forward passes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from softprompts.errors import SoftPromptError
from softprompts.processes import of_main
from softprompts.training.memory import out_of_memory, release
from softprompts.training.prediction import Feature, Prediction, predict

Predict = Callable[[Any, Sequence[Feature], str], Prediction]
Mark = Callable[[Prediction], dict[str, float]]
Score = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """Rows, and what becomes of predictions for them.

    Attributes:
        features: rows as `collate` takes them.
        mark: the metrics of a prediction for all of them; the first is the main one.
        batch_size: rows per forward pass.
        label_ids: for language models, the token ids of each allowed answer.
        new_tokens: for language models, in place of these: how many tokens are generated at most.
        predict: another way to predict.
    """

    features: Sequence[Feature]
    mark: Mark
    batch_size: int
    label_ids: Sequence[Sequence[int]] | None = None
    new_tokens: int | None = None
    predict: Predict | None = None

    def scores(self, prediction: Prediction) -> dict[str, float] | None:
        """The metrics of a prediction; None where it holds numbers that are not finite."""
        # The most likely of answers that are not a number would be the first, and might score well.
        return self.mark(prediction) if prediction.finite else None


@dataclass(frozen=True)
class Marker:
    """Compares predicted labels, one a row, with the truth.

    Attributes:
        references: the truth, one for each row.
        metrics: names of metrics, the first is the main one.
        label_values: what the metrics compare in place of the label's number.
        score: another way to score.
    """

    references: Sequence[Any]
    metrics: tuple[str, ...] = ("accuracy",)
    label_values: Sequence[int | float] | None = None
    score: Score | None = None

    def __call__(self, prediction: Prediction) -> dict[str, float]:
        """The metrics."""
        predictions: list[Any] = list(prediction.labels)
        if self.label_values is not None:
            predictions = [self.label_values[label] for label in predictions]
        if self.score is not None:
            return self.score(predictions, self.references)
        # Here and not on top: scikit-learn takes a while to import.
        from softprompts.tasks.metrics import compute

        return compute(self.metrics, predictions, self.references)


def measure(
    model: Any,
    asked: Sequence[tuple[str, Evaluation]],
    pad_id: int,
    padding_side: str = "right",
    accelerator: Accelerator | None = None,
    within: Callable[[str], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> list[dict[str, float] | None]:
    """The metrics of some prompts, in their order; None for one whose predictions are not finite.

    Prompts that are scored in the same way share forward passes, whatever their rows are.

    Args:
        model: a model with the prompts attached.
        asked: prompts and what each is scored on.
        pad_id: fills shorter rows.
        padding_side: "right" or "left".
        accelerator: see `predict`.
        within: the context in which a prompt's own way to predict runs.

    Raises:
        SoftPromptError: not even a single row fits into the memory.
    """
    groups: dict[Any, list[int]] = {}
    for place, (name, evaluation) in enumerate(asked):
        answers = evaluation.label_ids
        if evaluation.predict is not None:
            key: Any = place
        elif evaluation.new_tokens is not None:
            key = evaluation.new_tokens
        elif answers is not None:
            key = tuple(tuple(answer) for answer in answers)
        else:
            form = next((form for form in ("places", "choices") if form in evaluation.features[0]), None)
            key = form or ("values" if model.prompts[name].num_labels == 1 else "classes")
        groups.setdefault(key, []).append(place)
    found: list[dict[str, float] | None] = [None] * len(asked)
    for group in groups.values():
        name, first = asked[group[0]]
        if first.predict is not None:
            with within(name):
                predictions = [of_main(functools.partial(first.predict, model, first.features, name))]
        else:
            mine = [asked[place] for place in group]
            predictions = _predictions(model, mine, pad_id, padding_side, accelerator)
        for place, prediction in zip(group, predictions, strict=True):
            found[place] = asked[place][1].scores(prediction)
    return found


def _predictions(
    model: Any,
    asked: Sequence[tuple[str, Evaluation]],
    pad_id: int,
    padding_side: str,
    accelerator: Accelerator | None,
) -> list[Prediction]:
    first = asked[0][1]
    rows = [feature for _, evaluation in asked for feature in evaluation.features]
    names = [name for name, evaluation in asked for _ in evaluation.features]
    size = max(evaluation.batch_size for _, evaluation in asked)
    while True:
        try:
            joint = predict(
                model,
                rows,
                names,
                pad_id=pad_id,
                batch_size=size,
                label_ids=first.label_ids,
                new_tokens=first.new_tokens,
                padding_side=padding_side,
                accelerator=accelerator,
            )
            break
        except Exception as error:
            several = accelerator is not None and accelerator.num_processes > 1
            if not out_of_memory(error) or several:
                raise
            if size == 1:
                raise SoftPromptError("evaluation is out of memory with a single row; set max_length lower") from error
        release()
        size //= 2
    predictions, start = [], 0
    for _, evaluation in asked:
        end = start + len(evaluation.features)
        predictions.append(joint.part(start, end))
        start = end
    return predictions
