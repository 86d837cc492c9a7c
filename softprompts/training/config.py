"""The settings of a training run. This is the only place of their types, bounds and defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from softprompts.errors import SoftPromptError, shown
from softprompts.tasks.decision import GOALS, Goal
from softprompts.validation import settings


def _head_rate(value: Any) -> Any:
    if value in (None, "main") or (isinstance(value, int | float) and value is not True and 0 < value < math.inf):
        return value
    raise ValueError(f"must be a number above 0 or 'main', not {shown(value)}")


def _class_weights(value: Any) -> Any:
    if not isinstance(value, Mapping):
        if value in (None, "balanced"):
            return value
        raise ValueError(f"must be 'balanced' or a number for a label by its name, not {shown(value)}")
    for name, weight in value.items():
        if not isinstance(weight, int | float) or weight is True or not 0 < weight < math.inf:
            raise ValueError(f"must be numbers above 0: that of {name} is {shown(weight)}")
    return value or None


def _threshold(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value in GOALS):
        return value
    if isinstance(value, int | float) and 0 < value < 1:
        return value
    raise ValueError(f"must be one of {', '.join(GOALS)} or a number between 0 and 1, not {shown(value)}")


@settings
class TrainConfig:
    """How one run trains. A step is one update of the parameters."""

    owner: ClassVar[str] = "training"

    max_steps: Annotated[
        int | None, Field(ge=1, description="Number of updates; default: as many as the epochs take.")
    ] = None
    epochs: Annotated[int, Field(ge=1, description="Passes over the training rows, unless updates are given.")] = 10
    batch_size: Annotated[int, Field(ge=1, description="Rows per forward pass.")] = 32
    eval_batch_size: Annotated[
        int | None,
        Field(ge=1, description="Rows per forward pass of an evaluation; default: the batch size, but at least 32."),
    ] = None
    gradient_accumulation_steps: Annotated[
        int, Field(ge=1, description="Forward passes per update, which equal one with a batch of all their rows.")
    ] = 1
    optimizer: Annotated[
        Literal["adamw", "adafactor"],
        Field(description="adamw or adafactor (the latter with a fixed rate and no parameter scaling)."),
    ] = "adamw"
    learning_rate: Annotated[
        float | None,
        Field(
            gt=0,
            description="Learning rate of the method's main component; its others and a task head keep their ratio to "
            "it. Default: the method's.",
        ),
    ] = None
    head_learning_rate: Annotated[
        float | Literal["main"] | None,
        BeforeValidator(_head_rate),
        Field(
            description="Learning rate of a task head: a number, or 'main' for that of the method's main component. "
            "Default: the method's, in its ratio to the main component's."
        ),
    ] = None
    learning_rates: Annotated[
        Mapping[str, Annotated[float, Field(gt=0)]],
        Field(description="Learning rate of one component by its name: router=0.001."),
    ] = field(default_factory=dict)
    learning_rate_factor: Annotated[
        float, Field(gt=0, description="Multiplies all learning rates, which keep their ratios.")
    ] = 1.0
    weight_decay: Annotated[
        float | None,
        Field(ge=0, description="Weight decay of all components but those that have their own; default: none."),
    ] = None
    schedule: Annotated[
        Literal["linear", "cosine", "constant"],
        Field(description="linear or cosine (both to zero at the end) or constant, after the warm-up."),
    ] = "linear"
    warmup_steps: Annotated[int, Field(ge=0, description="Updates over which the rates rise linearly.")] = 0
    warmup_ratio: Annotated[float, Field(ge=0, le=1, description="The same as a share of all updates.")] = 0.0
    max_grad_norm: Annotated[
        float | None, Field(gt=0, description="Gradients of a run are scaled down to this norm; None: never.")
    ] = 1.0
    group_by_length: Annotated[
        bool,
        Field(description="Batches of rows of similar length, which need little padding; off: of rows at random."),
    ] = True
    eval_every: Annotated[
        int | None, Field(ge=1, description="Updates between evaluations; default: an epoch. The end is always scored.")
    ] = None
    patience: Annotated[
        int | None, Field(ge=1, description="Stop after so many evaluations without a better score; default: never.")
    ] = None
    class_weights: Annotated[
        Literal["balanced"] | Mapping[str, float] | None,
        BeforeValidator(_class_weights),
        Field(
            description="Weights of labels in the loss: 'balanced' (rare ones count more, as scikit-learn has it), or "
            "a number for a label by its name: spam=5."
        ),
    ] = None
    threshold: Annotated[
        float | Goal | None,
        BeforeValidator(_threshold),
        Field(
            description="From which probability on the second of two labels is given, or each of several: what it is "
            "chosen by on validation rows (f1, accuracy, balanced_accuracy, matthews), or a number."
        ),
    ] = None
    calibrate: Annotated[
        bool, Field(description="Fit a temperature on validation rows, so that probabilities are what they say.")
    ] = False
    seed: Annotated[int, Field(ge=0, description="Of initialisation, data order and what a method draws.")] = 0
    bf16: Annotated[bool, Field(description="Forward passes in bfloat16; parameters stay in float32.")] = False
    backbone_dropout: Annotated[
        bool | None, Field(description="Keep the frozen model's dropout on; default: as the model was attached.")
    ] = None

    def __post_init__(self) -> None:
        if self.warmup_steps and self.warmup_ratio:
            raise SoftPromptError("training: give warmup_steps or warmup_ratio, not both")

    def warmup(self, total_steps: int) -> int:
        """Number of warm-up steps of a run of ``total_steps``."""
        return self.warmup_steps or math.ceil(self.warmup_ratio * total_steps)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, of which a run's id is made.

        Ids are older than ``head_learning_rate``, ``learning_rate_factor``, ``group_by_length``, ``class_weights``,
        ``threshold`` and ``calibrate``, which are left out where they do what was always done.
        """
        values = {**vars(self), "learning_rates": dict(self.learning_rates)}
        if isinstance(self.class_weights, Mapping):
            values["class_weights"] = dict(self.class_weights)
        for name in ("class_weights", "threshold", "calibrate"):
            if not values[name]:
                del values[name]
        if self.head_learning_rate is None and (self.learning_rate is None or "head" in self.learning_rates):
            del values["head_learning_rate"]
        if self.group_by_length:
            del values["group_by_length"]
        if self.learning_rate_factor == 1:
            del values["learning_rate_factor"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The reverse of `to_dict`; what is left out keeps its default. Ignores ``compile``, a setting of old runs."""
        return cls(**{name: value for name, value in values.items() if name != "compile"})
