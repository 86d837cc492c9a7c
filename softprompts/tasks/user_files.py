"""The user's own labelled texts in CSV, TSV, JSON or CoNLL files, as a task of any kind."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.columns import (
    Columns,
    Labels,
    default_metrics,
    find_columns,
    read_example,
    same_choices,
    with_choice_fields,
)
from softprompts.tasks.file_readers import read_rows
from softprompts.tasks.form import CHOICE, KINDS, Form
from softprompts.tasks.spec import Spec
from softprompts.tasks.task import OFFICIAL, Example, Task

_HELD_OUT = 0.1
_JSON = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


def load_files(
    train: str | PathLike[str],
    validation: str | PathLike[str] | None = None,
    *,
    test: str | PathLike[str] | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    choices: str | Sequence[str] = (),
    kind: str = "classification",
    labels: Sequence[str] = (),
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
    """Makes a task of one file, or of several.

    What a label is depends on the kind: a name or a number; a score; of a choice its index, letter, name or text; of a
    span the answer's text, or SQuAD's ``answers``; of a sentence's words a list of tags.

    Args:
        train: a .csv, .tsv, .jsonl, .json or (for tagging) .conll file in UTF-8, maybe with .gz at the end; the first
            line of CSV and TSV names the columns.
        validation: a file with the same columns; None: a tenth of the training rows is held out, drawn by the seed
            from each label alike (a label with a single row stays in training).
        test: a file with the same columns that nothing is chosen by.
        text: column of the text, of the words or of the question; None: by its usual name ("text", "words", ...).
        text_pair: column of the second text (the context), if texts come in pairs; None: by its usual name if
            ``text`` is None too.
        label: column of the label; None: by its usual name ("label", "tags", "answers", ...).
        choices: for multiple choice, the column of a list, or the columns of the choices; empty: by their usual names
            ("choices", or "choice1", "choice2", ...).
        kind: of the task, see `softprompts.tasks.form.KINDS`.
        labels: names of the classes or tags, which the rows may have by index too; empty: those that the training
            rows have, sorted (numbers by value).
        sep: column separator; None: by the file's ending.
        quoting: False: double quotes are ordinary characters in CSV and TSV.
        name: of the task; None: the training file's name without its ending.
        label_words: what a language model answers for each label, in the order of the label names; empty: the names.
        metrics: names for `compute`; empty: those that suit the kind.
        split: how the rows of all files are parted, a key of `softprompts.tasks.splits.PROTOCOLS`.
        max_train: use at most so many training rows.
        max_validation: use at most so many validation rows.
        seed: draws held-out rows and subsamples.

    Raises:
        SoftPromptError: anything wrong with the files; names the file and the line.
    """
    if text is None and text_pair is not None:
        raise SoftPromptError(f"text_pair names the column '{text_pair}': name that of the first text too")
    own = OwnTask(
        name=name or Path(train).name.split(".")[0],
        files={"train": Path(train), **_paths(validation=validation, test=test)},
        kind=kind,
        fields=[column for column in (text, text_pair) if column is not None],
        label=label,
        choices=choices,
        labels=labels,
        settings={"words": tuple(label_words)},
        metrics=tuple(metrics),
        sep=sep,
        quoting=quoting,
    )
    return own.load(seed=seed).under(split).limited(max_train, max_validation, seed)


def _paths(**given: str | PathLike[str] | None) -> dict[str, Path]:
    return {split: Path(path) for split, path in given.items() if path is not None}


@dataclass(frozen=True)
class OwnTask:
    """What a user says of a task of his own.

    Attributes:
        name: of the task.
        files: "train", maybe "validation" and "test".
        kind: a key of `KINDS`.
        fields: columns of the fields, or the column of each field; empty: the usual names.
        label: column of the label; None: the usual name.
        choices: column, columns or format strings of the choices; empty: the usual names.
        labels: their names, or the name of each value; empty: learned from the training rows.
        settings: of the `Form`.
        metrics: names for `compute`; empty: those that suit the kind.
        templates: see `Spec`.
        sep: column separator; None: by the file's ending.
        quoting: whether double quotes enclose texts in CSV and TSV.
        about: one line for lists of tasks.
        origin: the file that says all this, named in errors; None: it was said on the command line or in Python.
    """

    name: str
    files: Mapping[str, Path]
    kind: str = "classification"
    fields: Sequence[str] | Mapping[str, str] = ()
    label: str | None = None
    choices: str | Sequence[str] = ()
    labels: Sequence[str] | Mapping[str, str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    templates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sep: str | None = None
    quoting: bool = True
    about: str = ""
    origin: Path | None = None

    def load(self, template: str | None = None, seed: int = 0) -> Task:
        """Reads the files.

        Args:
            template: a key of ``templates``; None: as it is.
            seed: draws what is held out where there is no file to score on.

        Raises:
            SoftPromptError: anything wrong with the files or what was said of them.
        """
        try:
            return self._load(template, seed)
        except SoftPromptError as error:
            if self.origin is None or str(error).startswith(tuple(str(path) for path in self.files.values())):
                raise
            raise SoftPromptError(f"{self.origin}: {error}") from error

    def _load(self, template: str | None, seed: int) -> Task:
        if self.kind not in KINDS:
            raise SoftPromptError(f"kind is '{self.kind}': {nearest(self.kind, KINDS)}")
        columns, rows = self._read()
        train = self.files["train"]
        chosen = same_choices([example for examples in rows.values() for example in examples])
        if self.kind == "choice" and isinstance(columns.choices, str) and chosen:
            rows = {split: [with_choice_fields(example) for example in examples] for split, examples in rows.items()}
        names = self._labels(rows["train"])
        found = rows["train"]
        if names is not None:
            rows = {split: self._indexed(split, examples, names) for split, examples in rows.items()}
        if "validation" not in rows:
            held = _hold_out(train, found, seed)
            rows["validation"] = [row for index, row in enumerate(rows["train"]) if index in held]
            rows["train"] = [row for index, row in enumerate(rows["train"]) if index not in held]
        form = self._form(columns, rows["train"][0], chosen, () if names is None else names.names)
        spec = Spec(self.about, form, self.templates, self.metrics or default_metrics(form))
        for known in self.templates:
            spec.under(self.name, known)  # what cannot be used is said now
        spec = spec.under(self.name, template)
        task = Task(
            name=self.name,
            form=spec.form,
            train=rows["train"],
            validation=rows["validation"],
            test=rows.get("test", []),
            metrics=spec.metrics,
            source="files: " + ", ".join(path.name for path in self.files.values()),
        )
        if self.metrics or template is not None:
            _check_metrics(task)
        return task

    def _read(self) -> tuple[Columns, dict[str, list[Example]]]:
        """Rows with labels as the files have them."""
        columns: Columns | None = None
        found = {}
        for split, path in self.files.items():
            lines = read_rows(path, self.sep, self.quoting, tagged=self.kind == "tagging")
            number, first = lines[0]
            if columns is None:
                line = number if path.name.lower().endswith(_JSON) else None
                columns = find_columns(path, first, self.kind, self.fields, self.label, self.choices, line)
            found[split] = [read_example(columns, path, line, row) for line, row in lines]
        assert columns is not None
        return columns, found

    def _labels(self, train: list[Example]) -> Labels | None:
        """What the labels are, where they have names."""
        if self.kind not in ("classification", "tagging"):
            if self.labels:
                raise SoftPromptError(f"labels are for classification and tagging: {self.kind} has no names of labels")
            return None
        tagged = self.kind == "tagging"
        there = {name for one in train for name in (one.label if tagged else [one.label])}
        path = self.files["train"]
        if len(there) == 1:
            label = next(iter(there))
            what = "words have the tag" if tagged else "rows have the label"
            raise SoftPromptError(f"{path}: all {what} '{label}': there is nothing to learn")
        if self.labels:
            return Labels.of(self.labels)
        if tagged and all(name.isdecimal() for name in there):
            raise SoftPromptError(f"{path}: the tags are numbers: give their names as labels (O, B-PER, ...) in order")
        return Labels.learned(there, tagged)

    def _indexed(self, split: str, examples: list[Example], names: Labels) -> list[Example]:
        """The rows with indices in place of labels."""
        path, train = self.files[split], self.files["train"]
        where = "" if self.labels or split == "train" else f"in {train.name}, which has"
        indexed = []
        for one in examples:
            place = f"{path}: line {one.id}"
            if self.kind == "tagging":
                label: Any = tuple(names.index(name, place, where) for name in one.label)
            else:
                label = names.index(one.label, place, where)
            indexed.append(replace(one, label=label))
        return indexed

    def _form(self, columns: Columns, first: Example, chosen: int, names: tuple[str, ...]) -> Form:
        settings = {name: value for name, value in self.settings.items() if value}
        texts = [f"{{{name}}}" for name in columns.fields]
        more: dict[str, Any] = {}
        if self.kind in ("choice", "ranking"):
            more["reading"] = (" ".join(texts), f"{{{CHOICE}}}")
        elif len(texts) > 2:
            more["reading"] = (texts[0], " ".join(texts[1:]))
        if self.kind == "choice" and (chosen or not isinstance(columns.choices, str)):
            fields = [name for name in first.fields if name not in columns.fields]
            more["choices"] = columns.templates or tuple(f"{{{name}}}" for name in fields)
            more["words"] = tuple(fields) or tuple(f"choice{place + 1}" for place in range(len(columns.templates)))
        if self.kind == "span":
            more["cut"] = tuple(columns.fields)[1:]  # an encoder reads it in windows instead
        if self.kind == "regression":
            for word in settings.get("words", ()):
                if not _is_number(word):
                    raise SoftPromptError(f"label words: '{word}' is not a number, which the labels are")
        return Form(kind=self.kind, labels=names, fields=tuple(first.fields), **{**more, **settings})


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_metrics(task: Task) -> None:
    """Scores the truth, which a metric for another kind of task cannot."""
    from softprompts.tasks.kinds import (
        KINDS as HOW,  # here: with scikit-learn, which takes a while to import
    )
    from softprompts.tasks.metrics import compares_strings, compute

    for metric in task.metrics:
        if compares_strings(metric) and task.form.words:
            continue
        truth = HOW[task.kind].references(task.validation, task.form)
        answered = task.kind in ("span", "ranking")
        try:
            compute([metric], [answers[0] for answers in truth] if answered else truth, truth)
        except SoftPromptError as error:
            raise SoftPromptError(f"metric '{metric}' does not suit this task of {task.kind} ({error})") from error


def _hold_out(path: Path, rows: list[Example], seed: int) -> set[int]:
    """Which rows are held out, drawn from each label alike."""
    chance = random.Random(f"hold out {seed}")
    groups = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row.label if isinstance(row.label, str) else ""].append(index)
    held: set[int] = set()
    for name in sorted(groups):
        group = groups[name]
        count = max(round(_HELD_OUT * len(group)), 1) if len(group) > 1 else 0
        held.update(chance.sample(group, count))
    if not held:
        raise SoftPromptError(f"{path}: too few rows to hold some out: give a validation file")
    return held
