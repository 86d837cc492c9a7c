"""Everything that decides how a run trains, as plain JSON values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from softprompts.errors import SoftPromptError, nearest, require_whole

OPTIMIZERS = ("adamw", "adafactor")
SCHEDULES = ("linear", "constant")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How one run trains. A step is one update of the parameters.

    Attributes:
        max_steps: number of steps; None: as many as ``epochs`` take.
        epochs: passes over the training data, when ``max_steps`` is None.
        batch_size: rows per forward pass.
        eval_batch_size: rows per forward pass of an evaluation; None: ``batch_size``, but at least 32.
        gradient_accumulation_steps: forward passes per step. A step sees ``batch_size`` times this many rows and
            equals a step with one batch of that size.
        optimizer: "adamw", or "adafactor" (fixed learning rate, no parameter scaling: the usual recipe for prompts).
        learning_rate: that of the method's main component; its other components keep their ratio to it. None: the
            method's own defaults. A task head keeps its own rate either way.
        learning_rates: rates of single components by name; they win over ``learning_rate``.
        weight_decay: that of every component; None: the method's own defaults.
        schedule: "linear" (to zero at the end) or "constant", both after the warm-up.
        warmup_steps: steps over which the rates rise linearly.
        warmup_ratio: the same as a share of all steps; give one of the two.
        max_grad_norm: gradients of a run are scaled down to this norm; None: never.
        eval_every: steps between evaluations; None: an evaluation after each epoch. The last step is always
            followed by one.
        patience: evaluations without a better score after which the run stops; None: never.
        seed: of the data order and of what a method draws while it trains.
        bf16: forward passes under bfloat16 autocast; parameters stay in float32.
        backbone_dropout: dropout inside the frozen backbone while training; None: as `attach` was told.
        compile: run the backbone's layers under torch.compile. The numbers are the same up to rounding, so a run keeps
            its id, and may be resumed with or without it.
    """

    max_steps: int | None = None
    epochs: int = 10
    batch_size: int = 32
    eval_batch_size: int | None = None
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw"
    learning_rate: float | None = None
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float | None = None
    schedule: str = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    max_grad_norm: float | None = 1.0
    eval_every: int | None = None
    patience: int | None = None
    seed: int = 0
    bf16: bool = False
    backbone_dropout: bool | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("max_steps", "eval_batch_size", "eval_every", "patience"):
            if getattr(self, name) is not None:
                require_whole("training", name, getattr(self, name), 1)
        for name in ("epochs", "batch_size", "gradient_accumulation_steps"):
            require_whole("training", name, getattr(self, name), 1)
        require_whole("training", "warmup_steps", self.warmup_steps, 0)
        require_whole("training", "seed", self.seed, 0)
        for name in ("bf16", "backbone_dropout", "compile"):
            optional = name == "backbone_dropout" and self.backbone_dropout is None
            if not isinstance(getattr(self, name), bool) and not optional:
                raise SoftPromptError(f"training: {name} must be true or false, not {getattr(self, name)!r}")
        for name, options in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in options:
                raise SoftPromptError(
                    f"training: {name} must be one of {', '.join(options)}, not {getattr(self, name)!r}"
                )
        if self.learning_rate is not None:
            _number("learning_rate", self.learning_rate, above=True)
        if not isinstance(self.learning_rates, Mapping):
            raise SoftPromptError(f"training: learning_rates must map components to rates, not {self.learning_rates!r}")
        for component, rate in self.learning_rates.items():
            _number(f"learning_rates.{component}", rate, above=True)
        if self.weight_decay is not None:
            _number("weight_decay", self.weight_decay)
        if self.max_grad_norm is not None:
            _number("max_grad_norm", self.max_grad_norm, above=True)
        _number("warmup_ratio", self.warmup_ratio)
        if self.warmup_ratio > 1:
            raise SoftPromptError(f"training: warmup_ratio must be at most 1, not {self.warmup_ratio!r}")
        if self.warmup_steps and self.warmup_ratio:
            raise SoftPromptError("training: give warmup_steps or warmup_ratio, not both")

    def warmup(self, total_steps: int) -> int:
        """Number of warm-up steps of a run of ``total_steps``."""
        return self.warmup_steps or math.ceil(self.warmup_ratio * total_steps)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        values = {**self.identity(), "compile": self.compile}
        return values if self.compile else {name: value for name, value in values.items() if name != "compile"}

    def identity(self) -> dict[str, Any]:
        """The fields that decide a run's numbers, as plain JSON values; ``compile`` moves them by rounding only."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "compile"}
        return {**values, "learning_rates": dict(self.learning_rates)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The reverse of `to_dict`; fields that are left out keep their defaults.

        Raises:
            SoftPromptError: a field is unknown (named with the nearest known one) or a value makes no sense.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise SoftPromptError(f"training has no setting '{name}'; {nearest(name, known)}")
        return cls(**values)


def _number(name: str, value: Any, above: bool = False) -> None:
    """Checks for a finite number that is not negative (``above``: and not zero)."""
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or value < 0 or (above and value == 0):
        wanted = "a positive number" if above else "a number of at least 0"
        hint = " (YAML takes 1e-3 for text: write 1.0e-3)" if isinstance(value, str) else ""
        raise SoftPromptError(f"training: {name} must be {wanted}, not {value!r}{hint}")
