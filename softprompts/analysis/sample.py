"""Rows of the task that a prompt was trained on, for analyses that need inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from softprompts.analysis.saved import Saved
from softprompts.errors import SoftPromptError
from softprompts.storage import run_folder
from softprompts.tasks import Example, Form, Task, collate, encode_examples, padding_id
from softprompts.tasks.batches import inputs_of
from softprompts.tasks.data import Data, recorded_data
from softprompts.tasks.task import subsample

ALL = "all rows"


@dataclass(frozen=True)
class Sample:
    """Some validation rows as a model reads them.

    Attributes:
        features: token ids of each input; a row of choices has several.
        labels: which group each input is of: its label, "right" or "wrong" for a choice, or `ALL`.
        names: the groups, in order.
        pad_id: fills shorter inputs.
        note: what to know of them, in a sentence; empty: nothing.
    """

    features: list[dict[str, Any]]
    labels: list[str]
    names: tuple[str, ...]
    pad_id: int
    note: str = ""

    def batch(self) -> dict[str, Tensor]:
        """All inputs, padded: ``input_ids``, ``attention_mask`` and maybe ``token_type_ids``, each ``(R, n)``."""
        return collate(self.features, self.pad_id)


def sample_of(saved: Saved, count: int = 64, data_dir: str | None = None) -> Sample:
    """Draws rows of the task that a saved prompt names, in the form that they had in training.

    Args:
        saved: the prompt.
        count: at most so many rows, drawn by chance (always the same) and kept in their order.
        data_dir: folder with a local copy of the task's data; None: where the run says that it lay, else the hub.

    Raises:
        SoftPromptError: the prompt names no task, or its data cannot be had.
    """
    task = _task(saved, data_dir)
    rows = subsample(task.validation or task.train, count, 0, "rows")
    tokenizer, kind = saved.loaded.tokenizer, saved.loaded.model.backbone_kind
    encoded = encode_examples(rows, task, tokenizer, kind, saved.max_length, with_answer=False)
    owners = encoded.owners if encoded.owners is not None else range(len(encoded.features))
    features: list[dict[str, Any]] = []
    labels: list[str] = []
    for owner, feature in zip(owners, encoded.features, strict=True):
        inputs = inputs_of(feature)
        features += [{k: v for k, v in one.items() if k in ("input_ids", "token_type_ids")} for one in inputs]
        labels += _groups(task, rows[owner], len(inputs))
    known = (*task.form.labels, *task.form.words, "right", "wrong", ALL)
    names = tuple(dict.fromkeys(name for name in known if name in labels))
    same = saved.meta.get("rows") in (None, task.fingerprint)
    note = "" if same else "The rows are not those that it was trained with."
    return Sample(features, labels, names, padding_id(tokenizer), note)


def _groups(task: Task, row: Example, inputs: int) -> Sequence[str]:
    if task.kind == "classification" and row.label is not None:
        return [task.form.labels[row.label]] * inputs
    if task.kind == "choice" and row.label is not None:
        if inputs > 1:
            return ["right" if place == row.label else "wrong" for place in range(inputs)]
        if row.label < len(task.form.words):
            return [task.form.words[row.label]]
    return [ALL] * inputs


def _task(saved: Saved, data_dir: str | None) -> Task:
    run = saved.place.parent
    if saved.place.name == run_folder.PROMPT and (run / run_folder.CONFIG).is_file():
        data = recorded_data(run, data_dir)
    else:
        name = saved.meta.get("task")
        if not isinstance(name, str):
            raise SoftPromptError(f"{saved.name}: it does not say what task it was trained on, so there are no rows")
        protocol = (saved.meta.get("splits") or {}).get("protocol")
        data = Data(task=name, data_dir=data_dir, **({"split": protocol} if protocol else {}))
    try:
        task = data.load()
    except SoftPromptError as error:
        raise SoftPromptError(f"{saved.name}: no rows of its task ({error})") from error
    form = saved.meta.get("task_form")
    return task if form is None else replace(task, form=Form.from_dict(form))
