"""What a run is scored on, and the scoring of several runs in shared forward passes."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from softprompts.errors import SoftPromptError
from softprompts.processes import on_main
from softprompts.training.memory import out_of_memory, release
from softprompts.training.prediction import Feature, Prediction, predict

EVAL_ROWS = 32  # least rows per forward pass of an evaluation: it takes far less memory than training


@dataclass(frozen=True)
class Evaluation:
    """Rows to score a prompt on, and how.

    Attributes:
        features: rows as `collate` takes them.
        metrics: names of metrics, which compare the predicted labels with each row's "label"; the first is the main
            one; higher is better.
        score: another way to score, in place of ``metrics``: the metrics of a `Prediction` for all rows.
        batch_size: rows per forward pass; None: as the run's `TrainConfig` says.
        label_ids: for language models, the token ids of each allowed answer.
        new_tokens: for language models, in place of ``label_ids``: how many tokens are generated at most.
        losses: for language models: ``score`` looks at the losses of the rows' answers.
        ends: tokens that end what is generated, beside the model's own.
        predict: another way to predict, ``predict(model, features, name)``; None: `softprompts.training.predict`.

    Raises:
        SoftPromptError: there are no rows or no metrics, or rows have no label to compare with.
    """

    features: Sequence[Feature]
    metrics: Sequence[str] = ("accuracy",)
    score: Callable[[Prediction], dict[str, float]] | None = None
    batch_size: int | None = None
    label_ids: Sequence[Sequence[int]] | None = None
    new_tokens: int | None = None
    losses: bool = False
    ends: Sequence[int] = ()
    predict: Callable[[Any, Sequence[Feature], str], Prediction] | None = None

    def __post_init__(self) -> None:
        if not self.features:
            raise SoftPromptError("there is nothing to evaluate on; pass None for no evaluation")
        if self.score is None and not self.metrics:
            raise SoftPromptError("an evaluation needs at least one metric")
        if self.score is None and any("label" not in row for row in self.features):
            raise SoftPromptError("evaluation rows have no 'label'; pass score, which knows the truth")

    def scores(self, prediction: Prediction) -> dict[str, float] | None:
        """The metrics of a prediction; None where it holds numbers that are not finite."""
        # Among scores that are not numbers, the first answer would count as the likeliest and might score well.
        if not prediction.finite:
            return None
        if self.score is not None:
            return self.score(prediction)
        # Here and not on top: scikit-learn takes a while to import.
        from softprompts.tasks.metrics import compute

        return compute(tuple(self.metrics), list(prediction.labels), [row["label"] for row in self.features])


def evaluate(
    model: Any,
    evaluations: Sequence[tuple[str, Evaluation]],
    pad_id: int,
    padding_side: str = "right",
    accelerator: Accelerator | None = None,
    within: Callable[[str], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> list[dict[str, float] | None]:
    """Scores prompts, see `predictions_of`.

    Returns:
        The metrics of each prompt, in their order; None for one whose predictions are not finite.
    """
    predictions = predictions_of(model, evaluations, pad_id, padding_side, accelerator, within)
    return [evaluation.scores(one) for (_, evaluation), one in zip(evaluations, predictions, strict=True)]


def predictions_of(
    model: Any,
    evaluations: Sequence[tuple[str, Evaluation]],
    pad_id: int,
    padding_side: str = "right",
    accelerator: Accelerator | None = None,
    within: Callable[[str], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> list[Prediction]:
    """The prediction of each prompt for the rows that it is scored on.

    Those that are scored in the same way share forward passes, whatever their rows are. A prompt's own way to predict
    runs in the context ``within(name)``; for other arguments see `predict`.
    """
    options = {"pad_id": pad_id, "padding_side": padding_side, "accelerator": accelerator}
    groups: dict[Any, list[int]] = {}
    for index, (name, evaluation) in enumerate(evaluations):
        groups.setdefault(_way(model, name, evaluation) or index, []).append(index)
    made: dict[int, Prediction] = {}
    for group in groups.values():
        name, first = evaluations[group[0]]
        if first.predict is not None:
            with within(name):
                predictions = [on_main(functools.partial(first.predict, model, first.features, name))]
        else:
            predictions = _predictions(model, [evaluations[index] for index in group], **options)
        made |= zip(group, predictions, strict=True)
    return [made[index] for index in range(len(evaluations))]


def _way(model: Any, name: str, evaluation: Evaluation) -> tuple[str, Any] | None:
    """How a prompt's predictions come about; None: in a way of its own."""
    if evaluation.predict is not None:
        return None
    if evaluation.new_tokens is not None or evaluation.losses:
        return "written", (evaluation.new_tokens, evaluation.losses, tuple(evaluation.ends))
    if evaluation.label_ids is not None:
        return "ranked", tuple(map(tuple, evaluation.label_ids))
    form = next((form for form in ("places", "choices") if form in evaluation.features[0]), None)
    return "head", form or ("values" if model.prompts[name].num_labels == 1 else "classes")


def _predictions(model: Any, evaluations: Sequence[tuple[str, Evaluation]], **options: Any) -> list[Prediction]:
    """The predictions of prompts that predict in the same way, in smaller batches where memory runs out."""
    first = evaluations[0][1]
    rows = [row for _, evaluation in evaluations for row in evaluation.features]
    names = [name for name, evaluation in evaluations for _ in evaluation.features]
    size = max(evaluation.batch_size or EVAL_ROWS for _, evaluation in evaluations)
    options |= {name: getattr(first, name) for name in ("label_ids", "new_tokens", "losses", "ends")}
    while True:
        try:
            joint = predict(model, rows, names, batch_size=size, **options)
            break
        except Exception as error:
            accelerator = options["accelerator"]
            if not out_of_memory(error) or (accelerator is not None and accelerator.num_processes > 1):
                raise
            if size == 1:
                raise SoftPromptError("evaluation is out of memory with a single row; set max_length lower") from error
        release()
        size //= 2
    counts = [len(evaluation.features) for _, evaluation in evaluations]
    return [joint.part(end - count, end) for count, end in zip(counts, itertools.accumulate(counts), strict=True)]
