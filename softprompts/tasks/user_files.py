"""Tasks of users' own CSV, TSV, JSON or CoNLL files."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.answers import finite_number
from softprompts.tasks.columns import (
    WORDS,
    Columns,
    default_metrics,
    find_columns,
    read_example,
    same_choices,
    with_choice_fields,
)
from softprompts.tasks.decimal_commas import with_points
from softprompts.tasks.example import Example
from softprompts.tasks.file_readers import read_rows
from softprompts.tasks.form import CHOICE, KINDS, Form
from softprompts.tasks.label_names import Labels, several_labels
from softprompts.tasks.spec import Spec
from softprompts.tasks.splits import OFFICIAL
from softprompts.tasks.tables import Numbered
from softprompts.tasks.task import Task
from softprompts.tasks.text_metrics import NEG_LOSS
from softprompts.tasks.word_lines import sentences
from softprompts.validation import translated

_SPLITS = ("train", "validation", "test")
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
    span the answer's text, or SQuAD's ``answers``; of a sentence's words a list of tags; of a text the text to write,
    or a list of texts that count as right, the first to learn. A chat is a list of messages with ``role`` and
    ``content``; each of the assistant's that answers another is learned, the last one is scored.

    Args:
        train: a .csv, .tsv, .jsonl, .json or (for tagging) .conll file in UTF-8, maybe with .gz at the end; the first
            line of CSV and TSV names the columns.
        validation: a file with the same columns; None: a tenth of the training rows is held out, drawn by the seed
            from each label alike (a label with a single row stays in training).
        test: a file with the same columns that nothing is chosen by.
        text: column of the text, of the words, of the question, of the input or of the messages; None: by its usual
            name ("text", "words", "input", "messages", ...).
        text_pair: column of the second text (the context), if texts come in pairs; None: by its usual name if
            ``text`` is None too.
        label: column of the label; None: by its usual name ("label", "tags", "answers", "target", ...).
        choices: for multiple choice, the column of a list, or the columns of the choices; empty: by their usual names
            ("choices", or "choice1", "choice2", ...).
        kind: of the task, see `softprompts.tasks.form.KINDS`.
        labels: names of the classes or tags, which the rows may have by index too; empty: those that the training
            rows have, sorted (numbers by value).
        sep: column separator; None: by the file's ending, or found in its rows (``,`` ``;`` ``|`` or tab).
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
    files = {"train": train, "validation": validation, "test": test}
    texts = {"choices": choices, "labels": labels, "words": label_words, "metrics": metrics}
    given = {
        **{key: None if file is None else str(file) for key, file in files.items()},
        **{key: [value] if isinstance(value, str) else list(value) for key, value in texts.items() if value},
        **{"kind": kind, "label": label, "sep": sep, "quoting": quoting},
        "fields": [column for column in (text, text_pair) if column is not None],
    }
    declaration = file_task("load_files", {key: value for key, value in given.items() if value not in (None, [])})
    task = declaration.load(name or Path(train).name.split(".")[0], seed=seed)
    return task.under(split).limited(max_train, max_validation, seed)


def _texts(value: Any, info: ValidationInfo) -> tuple[str, ...] | dict[str, str]:
    """Checks texts in a list, or by name; one text stands for a list of it."""
    named = isinstance(value, Mapping) and info.field_name in ("fields", "labels")
    texts = [value] if isinstance(value, str) else list(value.values()) if named else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"is {value!r:.80}, not a list of texts")
    return dict(value) if named else tuple(texts)


_Text = Annotated[str, Field(min_length=1)]
_Texts = Annotated[tuple[str, ...], PlainValidator(_texts)]
_TextsOrNames = Annotated[tuple[str, ...] | dict[str, str], PlainValidator(_texts)]


class Writing(BaseModel):
    """How rows are put to a model: settings of the `Form`, and what is scored. A template changes some of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reading: _Texts = ()
    source: _Text | None = None
    words: _Texts = ()
    cut: _Texts = ()
    answering: _Text | None = None
    invalid: _Text | None = None
    metrics: _Texts = ()

    def changes(self) -> dict[str, Any]:
        """What is given, as a template of a `Spec`."""
        return {name: value for name in Writing.model_fields if (value := getattr(self, name))}


class FileTask(Writing):
    """The declaration of a user's own task; its fields are the keys of a YAML file, see `softprompts.tasks.yaml_tasks`.

    Attributes:
        train: file to train on; ``validation`` and ``test`` likewise.
        kind: a key of `KINDS`.
        fields: columns of the fields, or the column of each field; empty: the usual names.
        label: column of the label; None: the usual name.
        choices: column, columns or format strings of the choices; empty: the usual names.
        labels: their names, or the name of each value; empty: learned from the training rows.
        templates: other ways to put rows to a model, by name.
        sep: column separator; None: by the file's ending, or found in its rows.
        quoting: whether double quotes enclose texts in CSV and TSV.
        name: of the task.
        about: one line for lists of tasks.
    """

    train: _Text
    validation: _Text | None = None
    test: _Text | None = None
    kind: _Text = "classification"
    fields: _TextsOrNames = ()
    label: _Text | None = None
    choices: _Texts = ()
    labels: _TextsOrNames = ()
    templates: dict[str, Writing] = Field(default_factory=dict)
    sep: _Text | None = None
    quoting: bool = True
    name: _Text | None = None
    about: str = ""

    def files(self, folder: Path) -> dict[str, Path]:
        """The file of each split that has one."""
        return {split: folder / file for split in _SPLITS if (file := getattr(self, split)) is not None}

    def load(self, name: str, folder: Path = Path(), template: str | None = None, seed: int = 0) -> Task:
        """Reads the files in a folder; the seed draws what is held out where there is no file to score on.

        Raises:
            SoftPromptError: anything wrong with the files or what was said of them.
        """
        if self.kind not in KINDS:
            raise SoftPromptError(f"kind is '{self.kind}': {nearest(self.kind, KINDS)}")
        files = self.files(folder)
        columns, rows = self._read(files)
        choices = same_choices([example for examples in rows.values() for example in examples])
        if self.kind == "choice" and isinstance(columns.choices, str) and choices:
            rows = {split: [with_choice_fields(example) for example in examples] for split, examples in rows.items()}
        labels = self._labels(files["train"], rows["train"])
        labelled = rows["train"]
        if labels is not None:
            rows = {split: self._indexed(files, split, examples, labels) for split, examples in rows.items()}
        if "validation" not in rows:
            held = _held_out(files["train"], labelled, seed)
            rows["validation"] = [row for index, row in enumerate(rows["train"]) if index in held]
            rows["train"] = [row for index, row in enumerate(rows["train"]) if index not in held]
        form = self._form(columns, rows["train"][0], choices, () if labels is None else labels.names)
        templates = {key: template.changes() for key, template in self.templates.items()}
        spec = Spec(self.about, form, templates, self.metrics or default_metrics(form))
        for key in templates:
            spec.under(name, key)  # what cannot be used is said now
        spec = spec.under(name, template)
        source = "files: " + ", ".join(path.name for path in files.values())
        task = Task(name, spec.form, rows["train"], rows["validation"], rows.get("test", []), spec.metrics, source)
        if self.metrics or template is not None:
            _check_metrics(task)
        return task

    def _read(self, files: Mapping[str, Path]) -> tuple[Columns, dict[str, list[Example]]]:
        """The columns, and the rows with labels as the files have them."""
        tagged = self.kind == "tagging"
        rows = {split: read_rows(path, self.sep, self.quoting, tagged) for split, path in files.items()}
        path, (line, first) = files["train"], rows["train"][0]
        place = line if path.name.lower().endswith(_JSON) else None
        columns = find_columns(path, first, self.kind, self.fields, self.label, self.choices, place)
        return columns, {split: read_examples(columns, files[split], numbered) for split, numbered in rows.items()}

    def _labels(self, path: Path, train: list[Example]) -> Labels | None:
        """The labels of the task, where its kind has labels."""
        if self.kind not in ("classification", "tagging"):
            if self.labels:
                raise SoftPromptError(f"labels are for classification and tagging: {self.kind} has no names of labels")
            return None
        tagged = self.kind == "tagging"
        labels = {name for row in train for name in (row.label if tagged else [row.label])}
        if len(labels) == 1:
            what = "words have the tag" if tagged else "rows have the label"
            raise SoftPromptError(f"{path}: all {what} '{labels.pop()}': there is nothing to learn")
        if self.labels:
            return Labels.of(self.labels)
        if not tagged and (several := several_labels(labels)) is not None:
            line = next(row.id for row in train if row.label == several)
            raise SoftPromptError(
                f"{path}: line {line}: the label '{several}' looks like several labels, and a row of this kind of task "
                "has one: if it is one, give the names of all labels (--labels)"
            )
        if tagged and all(name.isdecimal() for name in labels):
            raise SoftPromptError(f"{path}: the tags are numbers: give their names as labels (O, B-PER, ...) in order")
        return Labels.learned(labels, tagged)

    def _indexed(self, files: Mapping[str, Path], split: str, rows: list[Example], labels: Labels) -> list[Example]:
        """Replaces the labels of rows by indices."""
        where = "" if self.labels or split == "train" else f"in {files['train'].name}, which has"
        return with_indices(files[split], rows, labels, where)

    def _form(self, columns: Columns, first: Example, choices: int, labels: tuple[str, ...]) -> Form:
        settings = {name: value for name, value in self.changes().items() if name != "metrics"}
        texts = [f"{{{name}}}" for name in columns.fields]
        more: dict[str, Any] = {}
        if self.kind in ("choice", "ranking"):
            more["reading"] = (" ".join(texts), f"{{{CHOICE}}}")
        elif len(texts) > 2:
            more["reading"] = (texts[0], " ".join(texts[1:]))
        if self.kind == "choice" and (choices or not isinstance(columns.choices, str)):
            fields = [name for name in first.fields if name not in columns.fields]
            more["choices"] = columns.templates or tuple(f"{{{name}}}" for name in fields)
            more["words"] = tuple(fields) or tuple(f"choice{place + 1}" for place in range(len(columns.templates)))
        if self.kind == "span":
            more["cut"] = tuple(columns.fields)[1:]  # an encoder reads it in windows instead
        if self.kind == "regression":
            for word in self.words:
                if finite_number(word) is None:
                    raise SoftPromptError(f"label words: '{word}' is not a number, which the labels are")
        return Form(kind=self.kind, labels=labels, fields=tuple(first.fields), **{**more, **settings})


def read_examples(columns: Columns, path: Path, rows: Numbered) -> list[Example]:
    """Makes examples of the rows of a file, with labels as they stand there.

    Raises:
        SoftPromptError: a row that cannot be used; names the file and the line.
    """
    if columns.kind == "tagging":
        rows = sentences(path, rows, columns.fields[WORDS], columns.label)
    if columns.kind == "regression":
        rows = with_points(path, rows, columns.label)
    return [read_example(columns, path, line, row) for line, row in rows]


def with_indices(path: Path, rows: Iterable[Example], labels: Labels, where: str = "") -> list[Example]:
    """Replaces the labels of rows, or of their words, by indices; ``where`` says in words where these are from.

    Raises:
        SoftPromptError: a label that is none of them; names the file and the line.
    """
    indexed = []
    for row in rows:
        names = row.label if row.words else [row.label]
        indices = tuple(labels.index(name, f"{path}: line {row.id}", where) for name in names)
        indexed.append(replace(row, label=indices if row.words else indices[0]))
    return indexed


def file_task(owner: str, said: Mapping[str, Any]) -> FileTask:
    """Checks what is said of a task.

    Raises:
        SoftPromptError: an unknown key, or a value that is none for its key; begins with ``owner``.
    """
    try:
        return FileTask.model_validate(said)
    except ValidationError as error:
        within = error.errors()[0]["loc"][:1] == ("templates",)
        raise translated(error, owner, Writing.model_fields if within else FileTask.model_fields) from None


def _check_metrics(task: Task) -> None:
    """Scores the truth against itself, which fails with a metric for another kind of task."""
    from softprompts.tasks.kinds import KINDS as ENCODER_KINDS  # here: torch and scikit-learn take a while to import
    from softprompts.tasks.metrics import compares_strings, compute

    for metric in task.metrics:
        if (compares_strings(metric) and task.form.words) or (metric == NEG_LOSS and task.form.written):
            continue
        truth = ENCODER_KINDS[task.kind].references(task.validation, task.form)
        answered = task.kind in ("span", "ranking") or task.form.written
        try:
            compute([metric], [answers[0] for answers in truth] if answered else truth, truth)
        except SoftPromptError as error:
            raise SoftPromptError(f"metric '{metric}' does not suit this task of {task.kind} ({error})") from error


def _held_out(path: Path, rows: list[Example], seed: int) -> set[int]:
    """Which rows are held out, drawn from each label alike."""
    chance = random.Random(f"hold out {seed}")
    groups = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row.label if isinstance(row.label, str) else ""].append(index)
    held: set[int] = set()
    for _, group in sorted(groups.items()):
        count = max(round(_HELD_OUT * len(group)), 1) if len(group) > 1 else 0
        held.update(chance.sample(group, count))
    if not held:
        raise SoftPromptError(f"{path}: too few rows to hold some out: give a validation file")
    return held
