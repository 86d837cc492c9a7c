"""The weight of each row in the loss, from the weights of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.utils.class_weight import compute_class_weight  # type: ignore[import-untyped]

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.example import Example
from softprompts.tasks.form import LABELLED, Form

BALANCED = "balanced"
ClassWeights = str | Mapping[str, float]


def check_class_weights(form: Form, given: ClassWeights | None) -> None:
    """Raises a `SoftPromptError` where a task has no classes to weigh, or none of such a name."""
    if given is None:
        return
    if form.kind not in LABELLED:
        raise SoftPromptError(f"class weights are for classification and multi-label tasks; this is {form.kind}")
    for name in given if isinstance(given, Mapping) else ():
        if name not in form.labels:
            raise SoftPromptError(f"class weights name the label '{name}': {nearest(name, form.labels)}")


def row_weights(form: Form, examples: Sequence[Example], given: ClassWeights) -> list[Any]:
    """What multiplies the loss of each training row; of several labels, what multiplies that of each label.

    "balanced" is scikit-learn's: the number of rows, over the number of classes times the rows of the class; of several
    labels, each label's yes and no are such classes. Numbers by name weigh the rows of a class, or of several labels
    the rows that have the label (``pos_weight`` of torch); a label without a number has 1.

    Args:
        form: of the task.
        examples: the training rows.
        given: the weights.
    """
    if form.kind == "classification":
        labels = np.array([row.label for row in examples])
        weights = _weights(labels, form.labels, given)
        return [float(weights[label]) for label in labels]
    there = np.array([[int(index in row.label) for index in range(len(form.labels))] for row in examples])
    columns = []
    for name, column in zip(form.labels, there.T, strict=True):
        weights = _weights(column, ("", name), given)
        columns.append([float(weights[label]) for label in column])
    return [list(row) for row in zip(*columns, strict=True)]


def _weights(labels: np.ndarray, names: Sequence[str], given: ClassWeights) -> dict[int, float]:
    """The weight of each class that occurs."""
    classes = np.unique(labels)
    if isinstance(given, Mapping):
        return {int(index): float(given.get(names[index], 1.0)) for index in classes}
    return dict(zip(map(int, classes), compute_class_weight(BALANCED, classes=classes, y=labels), strict=True))
