"""Tasks of users' own CSV, TSV, JSON or CoNLL files."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
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
    find_columns,
    read_example,
    same_choices,
    with_choice_fields,
)
from softprompts.tasks.decimal_commas import with_points
from softprompts.tasks.example import Example
from softprompts.tasks.file_readers import read_rows
from softprompts.tasks.form import CHOICE, KINDS, LABELLED, Form
from softprompts.tasks.label_names import Labels, several_labels
from softprompts.tasks.spec import Spec
from softprompts.tasks.splits import OFFICIAL
from softprompts.tasks.tables import Numbered
from softprompts.tasks.task import Task
from softprompts.tasks.text_metrics import NEG_LOSS
from softprompts.tasks.usual_metrics import default_metrics, metrics_for
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
    label_separator: str | None = None,
    label_columns: Sequence[str] = (),
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
    span the answer's text, or SQuAD's ``answers``; of a sentence's words a list of tags. A multi-label row has a list,
    or names with a separator between, or a 0 or 1 in a column for each label; an empty cell is a row without a label.
    Of a text it is the text to write, or a list of texts that count as right, the first to learn. A chat is a list of
    messages with ``role`` and ``content``; each of the assistant's that answers another is learned, the last one is
    scored.

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
        label_separator: what stands between several labels in their column; None: nothing, it holds a list.
        label_columns: the columns of several labels, a 0 or 1 in each, which are named after their columns.
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
    texts["label_columns"] = label_columns
    given = {
        **{key: None if file is None else str(file) for key, file in files.items()},
        **{key: [value] if isinstance(value, str) else list(value) for key, value in texts.items() if value},
        **{"kind": kind, "label": label, "label_separator": label_separator, "sep": sep, "quoting": quoting},
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
        label_separator: what stands between several labels.
        label_columns: a column for each of several labels, with a 0 or 1.
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
    label_separator: _Text | None = None
    label_columns: _Texts = ()
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

    def expected_metrics(self) -> tuple[str, ...]:
        """Its metrics, as far as they can be told without its files; empty where it takes their tags to tell."""
        if self.metrics or self.kind not in KINDS:
            return self.metrics
        labels = tuple(self.labels.values()) if isinstance(self.labels, Mapping) else self.labels
        return () if self.kind == "tagging" and not labels else metrics_for(self.kind, labels)

    def load(self, name: str, folder: Path = Path(), template: str | None = None, seed: int = 0) -> Task:
        """Reads the files in a folder; the seed draws what is held out where there is no file to score on.

        Raises:
            SoftPromptError: anything wrong with the files or what was said of them.
        """
        if self.kind not in KINDS:
            raise SoftPromptError(f"kind is '{self.kind}': {nearest(self.kind, KINDS)}")
        self._check_labels()
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

    def _check_labels(self) -> None:
        """Raises a `SoftPromptError` where what is said of several labels is not for the kind, or says it twice."""
        for name in ("label_separator", "label_columns"):
            if getattr(self, name) and self.kind != "multi-label":
                raise SoftPromptError(f"{name} is for rows with several labels: give kind multi-label")
        for name in ("label", "label_separator", "labels"):
            if getattr(self, name) and self.label_columns:
                raise SoftPromptError(f"{name} and label_columns do not go together: labels are named by their columns")
        if len(set(self.label_columns)) < max(2, len(self.label_columns)) and self.label_columns:
            raise SoftPromptError("label_columns names fewer than two columns, or one twice")

    def _read(self, files: Mapping[str, Path]) -> tuple[Columns, dict[str, list[Example]]]:
        """The columns, and the rows with labels as the files have them."""
        tagged = self.kind == "tagging"
        rows = {split: read_rows(path, self.sep, self.quoting, tagged) for split, path in files.items()}
        path, (line, first) = files["train"], rows["train"][0]
        place = line if path.name.lower().endswith(_JSON) else None
        several = self.label_separator, self.label_columns
        columns = find_columns(path, first, self.kind, self.fields, self.label, self.choices, place, *several)
        return columns, {split: read_examples(columns, files[split], numbered) for split, numbered in rows.items()}

    def _labels(self, path: Path, train: list[Example]) -> Labels | None:
        """The labels of the task, where its kind has labels."""
        if self.kind not in (*LABELLED, "tagging"):
            if self.labels:
                raise SoftPromptError(f"labels are for classification and tagging: {self.kind} has no names of labels")
            return None
        tagged, several = self.kind == "tagging", self.kind == "multi-label"
        labels = {name for row in train for name in (row.label if tagged or several else [row.label])}
        if several and len(self.labels or self.label_columns or labels) < 2:
            only = f"only the label '{labels.pop()}'" if labels else "no label"
            raise SoftPromptError(f"{path}: its rows have {only}: a multi-label task has at least two")
        if self.label_columns:
            return Labels(self.label_columns, {name: index for index, name in enumerate(self.label_columns)})
        if len(labels) == 1 and not several:
            what = "words have the tag" if tagged else "rows have the label"
            raise SoftPromptError(f"{path}: all {what} '{labels.pop()}': there is nothing to learn")
        if self.labels:
            return Labels.of(self.labels)
        parted = several and any(len(row.label) > 1 for row in train)
        if not tagged and not parted and (joined := several_labels(labels)) is not None:
            line = next(row.id for row in train if joined in (row.label if several else [row.label]))
            advice = "give what stands between them (--label-separator)"
            if not several:
                advice = f"make it --kind multi-label and {advice}"
            raise SoftPromptError(
                f"{path}: line {line}: the label '{joined}' looks like several labels: {advice}; if it is one, give "
                "the names of all labels (--labels)"
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
        several = isinstance(row.label, tuple)
        names = row.label if several else [row.label]
        indices = tuple(labels.index(name, f"{path}: line {row.id}", where) for name in names)
        # The labels of a row are in the order of the task, the tags in that of the words.
        indices = indices if row.words else tuple(sorted(set(indices)))
        indexed.append(replace(row, label=indices if several else indices[0]))
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
    """Which rows are held out, drawn from each label alike; rows with several labels, from the rarest of each."""
    chance = random.Random(f"hold out {seed}")
    groups = defaultdict(list)
    sets = [row.label if isinstance(row.label, tuple) and not row.words and not row.choices else () for row in rows]
    often = Counter(name for names in sets for name in names)
    for index, (row, names) in enumerate(zip(rows, sets, strict=True)):
        rarest = min(names, key=lambda name: (often[name], name), default="")
        groups[row.label if isinstance(row.label, str) else rarest].append(index)
    held: set[int] = set()
    for _, group in sorted(groups.items()):
        count = max(round(_HELD_OUT * len(group)), 1) if len(group) > 1 else 0
        held.update(chance.sample(group, count))
    if not held:
        raise SoftPromptError(f"{path}: too few rows to hold some out: give a validation file")
    return held
