"""The user's own labelled texts in CSV, TSV or JSON Lines files."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.form import Form
from softprompts.tasks.rows import check_columns, read_rows
from softprompts.tasks.task import OFFICIAL, Example, Task

_HELD_OUT = 0.1
_METRICS = {"classification": ("accuracy", "macro_f1"), "regression": ("pearson", "spearman")}


@dataclass(frozen=True)
class _Reader:
    """Which columns to read, and how."""

    text: str
    text_pair: str | None
    label: str
    kind: str
    sep: str | None
    quoting: bool

    def read(self, path: Path) -> list[tuple[Example, str]]:
        """The rows of a file, each with the name of its label ("" for regression)."""
        columns = [name for name in (self.text, self.text_pair, self.label) if name is not None]
        rows = []
        for line, row in read_rows(path, self.sep, self.quoting):
            check_columns(path, row, columns, line if path.name.endswith((".jsonl", ".jsonl.gz")) else None)
            place = f"{path}: line {line}"
            text = _text(place, self.text, row)
            pair = None if self.text_pair is None else _text(place, self.text_pair, row)
            score, name = (0.0, _label(place, self.label, row))
            if self.kind == "regression":
                score, name = _score(place, self.label, name), ""
            fields = (
                {self.text: text} if self.text_pair is None or pair is None else {self.text: text, self.text_pair: pair}
            )
            rows.append((Example(fields, score, line), name))
        return rows


def load_files(
    train: str | PathLike[str],
    validation: str | PathLike[str] | None = None,
    *,
    text: str = "text",
    text_pair: str | None = None,
    label: str = "label",
    kind: str = "classification",
    sep: str | None = None,
    quoting: bool = True,
    name: str | None = None,
    label_words: Sequence[str] = (),
    metrics: Sequence[str] = (),
    split: str = OFFICIAL,
    max_train: int | None = None,
    max_validation: int | None = None,
    seed: int = 0,
) -> Task:
    """Makes a task of one file, or of two.

    Args:
        train: a .csv, .tsv or .jsonl file in UTF-8, maybe with .gz at the end; the first line of CSV and TSV names
            the columns.
        validation: a file of the same form; None: a tenth of the training rows is held out, drawn by the seed from
            each label alike (a label with a single row stays in training).
        text: column of the text.
        text_pair: column of the second text, if texts come in pairs.
        label: column of the label. Labels are texts or integers; their names are sorted (numbers by value).
        kind: "classification", or "regression" where labels are scores.
        sep: column separator; None: by the file's ending.
        quoting: False: double quotes are ordinary characters in CSV and TSV.
        name: of the task; None: the training file's name without its ending.
        label_words: what a language model answers for each label, in the order of the label names; empty: the names.
        metrics: names for `compute`; empty: accuracy and macro F1, or Pearson and Spearman correlation.
        split: how the rows of both are parted, a key of `softprompts.tasks.splits.PROTOCOLS`.
        max_train: use at most so many training rows.
        max_validation: use at most so many validation rows.
        seed: draws held-out rows and subsamples.

    Raises:
        SoftPromptError: anything wrong with the files; names the file and the line.
    """
    if kind not in _METRICS:
        raise SoftPromptError(f"kind is '{kind}': {nearest(kind, _METRICS)}")
    reader = _Reader(text, text_pair, label, kind, sep, quoting)
    train_path = Path(train)
    train_rows = reader.read(train_path)
    names = _sorted_names({label_name for _, label_name in train_rows}) if kind == "classification" else []
    if len(names) == 1:
        raise SoftPromptError(f"{train_path}: all rows have the label '{names[0]}': there is nothing to learn")
    if validation is None:
        source = train_path.name
        train_rows, validation_rows = _hold_out(train_path, train_rows, seed)
    else:
        source = f"{train_path.name}, {Path(validation).name}"
        validation_rows = reader.read(Path(validation))
        for example, label_name in validation_rows:
            if names and label_name not in names:
                place = f"{validation}: line {example.id}"
                known = ", ".join(names)
                raise SoftPromptError(f"{place}: label '{label_name}' is not in {train_path.name}, which has: {known}")
    task = Task(
        name=name or train_path.name.split(".")[0],
        form=Form(
            kind=kind,
            labels=tuple(names),
            fields=(text,) if text_pair is None else (text, text_pair),
            words=tuple(label_words),
        ),
        train=_indexed(train_rows, names),
        validation=_indexed(validation_rows, names),
        metrics=tuple(metrics) or _METRICS[kind],
        source=f"files: {source}",
    )
    return task.under(split).limited(max_train, max_validation, seed)


def _text(place: str, column: str, row: dict[str, Any]) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise SoftPromptError(f"{place}: '{column}' is {value!r}, not a text")
    if not value.strip():
        raise SoftPromptError(f"{place}: '{column}' is empty")
    return value


def _label(place: str, column: str, row: dict[str, Any]) -> str:
    value = row[column]
    if value is None or str(value).strip() == "":
        raise SoftPromptError(f"{place}: the label '{column}' is missing")
    if isinstance(value, list | dict):
        raise SoftPromptError(f"{place}: the label '{column}' is {value!r}, not a text or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _score(place: str, column: str, value: str) -> float:
    try:
        score = float(value)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise SoftPromptError(f"{place}: the label '{column}' is '{value}', not a number")
    return score


def _sorted_names(names: set[str]) -> list[str]:
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)


def _hold_out(
    path: Path, rows: list[tuple[Example, str]], seed: int
) -> tuple[list[tuple[Example, str]], list[tuple[Example, str]]]:
    chance = random.Random(f"hold out {seed}")
    groups = defaultdict(list)
    for index, (_, name) in enumerate(rows):
        groups[name].append(index)
    held: set[int] = set()
    for name in sorted(groups):
        group = groups[name]
        count = max(round(_HELD_OUT * len(group)), 1) if len(group) > 1 else 0
        held.update(chance.sample(group, count))
    if not held:
        raise SoftPromptError(f"{path}: too few rows to hold some out: give a validation file")
    return [row for at, row in enumerate(rows) if at not in held], [row for at, row in enumerate(rows) if at in held]


def _indexed(rows: list[tuple[Example, str]], names: list[str]) -> list[Example]:
    index = {name: at for at, name in enumerate(names)}
    return [replace(example, label=index[name]) if names else example for example, name in rows]
