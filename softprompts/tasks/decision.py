"""How scores become answers: probabilities of labels at a temperature, and the thresholds that they have to reach."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from softprompts.errors import SoftPromptError
from softprompts.tasks.example import Example
from softprompts.tasks.form import Form

if TYPE_CHECKING:
    from torch import Tensor

Goal = Literal["f1", "accuracy", "balanced_accuracy", "matthews"]  # what thresholds are chosen by
GOALS: tuple[str, ...] = get_args(Goal)
HALF = 0.5  # the threshold of labels that have no other
_DAMAGED = "what the prompt says of its temperature and thresholds is damaged"


class Decided(NamedTuple):
    """What was decided for some rows.

    Attributes:
        chances: the probability of each label or choice, row by row.
        answers: the index of the label or choice; of several labels 1 for each that is given and 0 for the others.
    """

    chances: list[list[float]]
    answers: list[Any]


@dataclass(frozen=True)
class Decision:
    """How scores become answers; saved with a prompt where something of it was chosen.

    Attributes:
        temperature: divides scores before they become probabilities.
        thresholds: of two labels the probability from which on the second is given; of a multi-label task that of each
            label; empty: the likeliest label, and of several labels those that are likelier than not.
        threshold: what the thresholds were chosen by, one of `GOALS`, or the number that they are; None: no such.
        calibrate: whether the temperature was fitted.
        rows: `rows_digest` of the rows that all this was fitted on; empty: of none.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    threshold: Goal | float | None = None
    calibrate: bool = False
    rows: str = ""

    @classmethod
    def of(cls, saved: Any, form: Form) -> Decision | None:
        """The decision that a saved prompt brings; None where it brings none.

        Raises:
            SoftPromptError: it is damaged, or not for the prompt's task.
        """
        if not saved:
            return None
        if not isinstance(saved, Mapping) or not form.decided:
            raise SoftPromptError(_DAMAGED)
        temperature: Any = saved.get("temperature")
        thresholds = saved.get("thresholds")
        if not _number(temperature) or temperature <= 0 or not isinstance(thresholds, list | tuple):
            raise SoftPromptError(_DAMAGED)
        if not all(map(_number, thresholds)) or len(thresholds) not in (0, threshold_count(form)):
            raise SoftPromptError(_DAMAGED)
        said: Any = saved.get("threshold"), bool(saved.get("calibrate")), str(saved.get("rows") or "")
        return cls(float(temperature), tuple(map(float, thresholds)), *said)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as saved with a prompt."""
        return {**vars(self), "thresholds": list(self.thresholds)}

    def decide(self, form: Form, scores: Sequence[Tensor]) -> Decided:
        """The probabilities and answers that scores of rows make, see `softprompts.training.Prediction`."""
        lines = [logits_of(form, row) for row in scores]
        if form.kind == "multi-label":
            chances = [(line / self.temperature).sigmoid().tolist() for line in lines]
            limits = self.thresholds or (HALF,) * len(form.labels)
            return Decided(chances, [tuple(int(p >= t) for p, t in zip(row, limits, strict=True)) for row in chances])
        chances = [(line / self.temperature).softmax(0).tolist() for line in lines]
        if self.thresholds:
            return Decided(chances, [int(row[1] >= self.thresholds[0]) for row in chances])
        return Decided(chances, [int(line.argmax()) for line in lines])


def logits_of(form: Form, scores: Tensor) -> Tensor:
    """The logit of each label or choice of a row, ``(L,)``, from its scores.

    Of several labels that a language model scores, the logit is the log-likelihood of the label's word less that of the
    last word, which stands for no label.
    """
    if form.kind == "choice" and scores.shape[1] == 1:  # a line for each choice
        return scores[:, 0]
    line = scores[0]
    if form.kind == "multi-label" and len(line) > len(form.labels):
        return line[:-1] - line[-1]
    return line


def threshold_count(form: Form) -> int:
    """How many thresholds a task can have: one for two labels, one a label where a row has several; else none."""
    if form.kind == "multi-label":
        return len(form.labels)
    return int(form.kind == "classification" and len(form.labels) == 2)


def rows_digest(examples: Sequence[Example]) -> str:
    """sha256 over the texts and labels of rows, in any order."""
    rows = sorted(json.dumps([*map(str, row.fields.values()), row.choices, row.label]) for row in examples)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
