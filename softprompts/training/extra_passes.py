"""Losses that need another pass over the same rows: under the same prompt once more, or under a teacher's.

A method says in `Method.compares` which passes it needs, and computes its loss from them in `Method.compare`. Lanes
that need the same pass share it; a lane that needs none takes no part in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from softprompts.errors import SoftPromptError
from softprompts.methods.contract import Answers
from softprompts.tasks.batches import ABOUT_ROWS, LABELS
from softprompts.training.losses import PassOutput, run_pass
from softprompts.training.prediction import evaluating

ITSELF, TEACHER = "itself", "teacher"


@dataclass(frozen=True)
class TrainingLosses:
    """All losses of a batch; by prompt only of prompts whose method has such a loss."""

    rows: Tensor  # (R,), the summed loss of each row
    penalties: Mapping[str, Tensor]  # by prompt, the auxiliary loss of its method
    extra: Mapping[str, Tensor]  # by prompt, the sum that further passes add


def training_losses(
    model: Any, batch: Mapping[str, Any], names: Sequence[str], teachers: Mapping[str, str | None]
) -> TrainingLosses:
    """Runs a batch's pass and the further passes that its prompts' methods need; arguments as for `comparisons`."""
    first = run_pass(model, batch, names, wants_states(model, names))
    penalties = model.penalties  # of the last pass
    return TrainingLosses(first.losses, penalties, comparisons(model, batch, names, first, teachers))


def wants_states(model: Any, names: Sequence[str]) -> bool:
    """Whether a prompt among these compares hidden states."""
    return any(model.prompts[name].method.compares_states for name in set(names))


def comparisons(
    model: Any, batch: Mapping[str, Any], names: Sequence[str], first: PassOutput, teachers: Mapping[str, str | None]
) -> dict[str, Tensor]:
    """The losses of prompts that compare passes: by prompt, the sum over its lines; nothing of other prompts.

    ``batch`` is of `collate`, ``names`` has the prompt of each of its rows, ``first`` is the output of its pass, with
    states where a prompt compares them, and ``teachers`` has the teacher of each prompt.
    """
    wanted = {name: model.prompts[name].method.compares for name in dict.fromkeys(names)}
    others: dict[str, dict[str, Answers]] = {name: {} for name, kinds in wanted.items() if kinds}
    for kind in (ITSELF, TEACHER) if others else ():
        rows = [row for row, name in enumerate(names) if kind in wanted[name]]
        if not rows:
            continue
        owners = [names[row] for row in rows]
        under = owners if kind == ITSELF else [str(teachers[name]) for name in owners]
        # Teachers are frozen, and nothing of them is drawn at random.
        with evaluating(model) if kind == TEACHER else contextlib.nullcontext():
            again = run_pass(model, _part(batch, rows), under, wants_states(model, owners))
        for name in dict.fromkeys(owners):
            others[name][kind] = _answers_of(again, owners, name)
    sums: dict[str, Tensor] = {}
    for name, answers in others.items():
        method, student = model.prompts[name].method, _answers_of(first, names, name)
        # Beside prompts with more labels, a row has columns that are not its own.
        width = min(each.logits.shape[-1] for each in (student, *answers.values()))
        student, *rest = (replace(each, logits=each.logits[:, :width]) for each in (student, *answers.values()))
        sums[name] = method.compare(student, dict(zip(answers, rest, strict=True))).sum()
    return sums


def check_teachers(model: Any, name: str, teacher: str | None) -> None:
    """Raises a `SoftPromptError` if a prompt that learns from a teacher has none, or one with other labels."""
    prompt = model.prompts[name]
    if TEACHER not in prompt.method.compares:
        return
    if teacher is None or teacher not in model.prompts:
        raise SoftPromptError(
            f"run '{name}': {prompt.config.method} learns from a teacher: put its prompt on the model and name it in "
            "the lane's teacher"
        )
    source = model.prompts[teacher]
    if source.num_labels != prompt.num_labels or source.labels != prompt.labels:
        raise SoftPromptError(
            f"run '{name}': its teacher answers with other labels ({', '.join(source.labels) or source.num_labels}) "
            f"than it does ({', '.join(prompt.labels) or prompt.num_labels})"
        )


def check_several_labels(prompt: Any) -> None:
    """Raises a `SoftPromptError` if a prompt's method compares passes, which it cannot for rows of several labels."""
    if prompt.method.compares:
        raise SoftPromptError(
            f"{prompt.config.method} compares probabilities that exclude each other, which several labels of a row do "
            "not: use another method, or other settings"
        )


def _part(batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Some rows of a batch, padded as they are: lines over tokens stay as long."""
    sizes = batch.get("choices")
    if len(rows) == len(next(batch[name] for name in LABELS if name in batch)):
        return dict(batch)
    index, inputs = torch.tensor(rows), torch.tensor(rows)
    if sizes is not None:
        ends = sizes.cumsum(0).tolist()
        inputs = torch.tensor([at for row in rows for at in range(ends[row] - int(sizes[row]), ends[row])])
    return {
        name: value.index_select(0, (index if name in ABOUT_ROWS else inputs).to(value.device))
        for name, value in batch.items()
    }


def _answers_of(output: PassOutput, names: Sequence[str], name: str) -> Answers:
    """The lines of one prompt's rows."""
    if len(set(names)) == 1:
        return Answers(output.logits, output.states, output.real)
    lines = torch.tensor([owner == name for owner in names])[output.rows.cpu()].nonzero()[:, 0].to(output.logits.device)
    states = None if output.states is None else output.states.index_select(0, lines)
    real = None if output.real is None else output.real.index_select(0, lines)
    return Answers(output.logits.index_select(0, lines), states, real)
