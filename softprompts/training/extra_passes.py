"""Losses that need another pass over the same rows: under the same prompt once more, or under a teacher's.

What a method wants it says in `Method.compares`, and what it makes of it in `Method.compare`. Lanes that want the same
share the pass; a lane that wants none takes no part in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompts.errors import SoftPromptError
from softprompts.methods.contract import Answers
from softprompts.tasks.batches import LABELS
from softprompts.training.losses import Read, read_pass
from softprompts.training.prediction import evaluating

ITSELF, TEACHER = "itself", "teacher"
KINDS = (ITSELF, TEACHER)


def wants_states(model: Any, names: Sequence[str]) -> bool:
    """Whether a prompt among these compares hidden states."""
    return any(model.prompts[name].method.compares_states for name in names)


def comparisons(
    model: Any, batch: Mapping[str, Any], names: Sequence[str], first: Read, teachers: Mapping[str, str | None]
) -> dict[str, Tensor]:
    """What joins the losses of prompts that compare passes.

    Args:
        model: an attached model.
        batch: of `collate`, with labels.
        names: the prompt of each row.
        first: what the batch's pass said, with states where one of the prompts compares them.
        teachers: by prompt, the prompt that teaches it.

    Returns:
        By prompt, the sum over its lines; nothing of prompts that compare nothing.
    """
    wanted = {name: model.prompts[name].method.compares for name in dict.fromkeys(names)}
    others: dict[str, dict[str, Answers]] = {name: {} for name, kinds in wanted.items() if kinds}
    for kind in KINDS if others else ():
        those = [row for row, name in enumerate(names) if kind in wanted[name]]
        if not those:
            continue
        owners = [names[row] for row in those]
        under = owners if kind == ITSELF else [str(teachers[name]) for name in owners]
        # Teachers are frozen, and nothing of them is drawn at random.
        with evaluating(model) if kind == TEACHER else contextlib.nullcontext():
            again = read_pass(model, _part(batch, those), under, wants_states(model, owners))
        for name in dict.fromkeys(owners):
            others[name][kind] = _of(again, owners, name)
    sums: dict[str, Tensor] = {}
    for name, there in others.items():
        method, own = model.prompts[name].method, _of(first, names, name)
        # Beside prompts with more labels, a row has columns that are not its own.
        width = min(len(answers.logits.T) for answers in (own, *there.values()))
        sums[name] = method.compare(_cut(own, width), {k: _cut(v, width) for k, v in there.items()}).sum()
    return sums


def check_teachers(model: Any, name: str, teacher: str | None) -> None:
    """Makes sure that a prompt that learns from a teacher has one which answers as it does.

    Raises:
        SoftPromptError: it has none, or one with other labels.
    """
    prompt = model.prompts[name]
    if TEACHER not in prompt.method.compares:
        return
    if teacher is None or teacher not in model.prompts:
        raise SoftPromptError(
            f"run '{name}': {prompt.config.method} learns from a teacher: put its prompt on the model and name it in "
            "the lane's teacher"
        )
    theirs = model.prompts[teacher]
    if theirs.num_labels != prompt.num_labels or theirs.labels != prompt.labels:
        raise SoftPromptError(
            f"run '{name}': its teacher answers with other labels ({', '.join(theirs.labels) or theirs.num_labels}) "
            f"than it does ({', '.join(prompt.labels) or prompt.num_labels})"
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
        name: value.index_select(0, (index if name in (*LABELS, "choices") else inputs).to(value.device))
        for name, value in batch.items()
    }


def _of(read: Read, names: Sequence[str], name: str) -> Answers:
    """The lines of one prompt's rows."""
    if len(set(names)) == 1:
        return Answers(read.logits, read.states, read.real)
    own = torch.tensor([owner == name for owner in names])[read.rows.cpu()].nonzero()[:, 0].to(read.logits.device)
    states = None if read.states is None else read.states.index_select(0, own)
    real = None if read.real is None else read.real.index_select(0, own)
    return Answers(read.logits.index_select(0, own), states, real)


def _cut(answers: Answers, width: int) -> Answers:
    return Answers(answers.logits[:, :width], answers.states, answers.real)
