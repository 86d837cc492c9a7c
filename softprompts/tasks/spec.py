"""The declaration of a built-in task: its columns, and how rows become examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.example import Example, Row
from softprompts.tasks.file_readers import check_columns
from softprompts.tasks.form import Form

_HIDDEN = -1  # the label of rows whose label is kept secret
BAD_ROW = (KeyError, TypeError, IndexError, ValueError, AttributeError)  # raised by ``prepare`` for another shape
DEFAULT = "default"


@dataclass(frozen=True)
class Spec:
    """How the columns of a data set become a task.

    Attributes:
        about: one line for lists of tasks.
        form: how rows are put to a model, its fields being columns (or what ``prepare`` makes).
        templates: other ways by name: what they change in the form, and maybe ``metrics`` and ``prepare``.
        metrics: names for `compute`; the first is the main one.
        more: names of splits that there are beside train and validation.
        label: column of the label: an index into the form's labels, a score, or a list of indices.
        prepare: turns a row of the data set into rows with the form's fields and, where these are not columns,
            ``label``, ``id``, ``choices``, ``names``, ``answers``, ``starts``, ``words`` and ``group`` (see `Example`).
            Of a ranking, ``label`` may say which choices are right, where that is not those that ``answers`` names.
    """

    about: str
    form: Form
    templates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("accuracy",)
    more: tuple[str, ...] = ()
    label: str = "label"
    prepare: Callable[[Row], Iterable[Row]] | None = None

    def under(self, name: str, template: str | None) -> Spec:
        """The declaration with another template.

        Args:
            name: of the task.
            template: a key of ``templates``; None or "default": as it is.

        Raises:
            SoftPromptError: unknown template.
        """
        if template is None or template == DEFAULT:
            return self
        if template not in self.templates:
            known = [DEFAULT, *self.templates]
            raise SoftPromptError(f"task '{name}' has no template '{template}': {nearest(template, known)}")
        changes = dict(self.templates[template])
        metrics, prepare = changes.pop("metrics", self.metrics), changes.pop("prepare", self.prepare)
        return replace(self, form=replace(self.form, **changes), metrics=tuple(metrics), prepare=prepare)

    def examples(self, place: str | Path, rows: Iterable[tuple[int, Row]], labelled: bool = True) -> list[Example]:
        """The rows of a split.

        Args:
            place: names the file in errors.
            rows: with the line each is on.
            labelled: whether rows have labels; those whose label is hidden (-1) are left out.

        Raises:
            SoftPromptError: a column is missing, a label is none of the task's, or no row is left; names the row.
        """
        examples = []
        for number, row in rows:
            try:
                prepared = [row] if self.prepare is None else list(self.prepare(row))
            except BAD_ROW as error:
                what = f"no column '{error.args[0]}'" if isinstance(error, KeyError) else str(error)
                raise SoftPromptError(f"{place}: line {number}: not a row of this task ({what})") from error
            labels_known = [each for each in prepared if not labelled or each.get(self.label) != _HIDDEN]
            examples += [self.example(each, place, number, labelled) for each in labels_known]
        if not examples:
            raise SoftPromptError(f"{place}: no row has a label")
        return examples

    def example(self, row: Row, place: str | Path = "row", number: int = 0, labelled: bool = True) -> Example:
        """One example, of a row with the form's fields.

        Raises:
            SoftPromptError: a column is missing, or the label is none of the task's.
        """
        form, where = self.form, f"{place}: line {number}"
        answered, tagged = form.kind in ("span", "ranking"), form.kind == "tagging"
        label_there = labelled and not answered
        columns = [*(["words"] if tagged else form.fields), *([self.label] if label_there else [])]
        check_columns(Path(place), row, columns, number)
        words = _texts(where, "words", row["words"]) if tagged else ()
        fields = {"words": " ".join(words)} if tagged else {name: _text(where, name, row[name]) for name in form.fields}
        choices = tuple(template.format_map(fields) for template in form.choices)
        if form.chooses and not choices:
            choices = _texts(where, "choices", row.get("choices"))
        answers = _texts(where, "answers", row.get("answers")) if labelled and answered else ()
        label = self._label(where, row[self.label], choices, words) if label_there else None
        names, starts = (tuple(row.get(column) or ()) for column in ("names", "starts"))
        if form.kind == "ranking" and labelled:
            right = (index for index, name in enumerate(names or choices) if name in answers)
            label = tuple(row.get(self.label, right))
        id_ = row.get("id", row.get("idx", number))
        return Example(fields, label, id_, choices, names, answers, starts, words, row.get("group"))

    def _label(self, where: str, label: Any, choices: tuple[str, ...], words: tuple[str, ...]) -> Any:
        form = self.form
        if form.kind == "tagging":
            count = len(label) if isinstance(label, list | tuple) else "no list of"
            if count != len(words):
                raise SoftPromptError(f"{where}: {count} tags for {len(words)} words")
            return tuple(_index(where, each, len(form.labels)) for each in label)
        if form.kind == "multi-label":
            if not isinstance(label, list | tuple):
                raise SoftPromptError(f"{where}: label {label!r:.80} is not a list of labels")
            return tuple(sorted({_index(where, each, len(form.labels)) for each in label}))
        if form.kind == "regression":
            if isinstance(label, bool) or not isinstance(label, int | float) or not math.isfinite(label):
                raise SoftPromptError(f"{where}: label {label!r} is not a number")
            return float(label)
        return _index(where, label, len(choices) if form.kind == "choice" else len(form.labels))


def _index(where: str, label: Any, count: int) -> int:
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < count:
        raise SoftPromptError(f"{where}: label {label!r} is not 0 to {count - 1}")
    return label


def _text(where: str, column: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SoftPromptError(f"{where}: '{column}' is {value!r:.80}, not a text")
    return str(value)


def _texts(where: str, column: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(text, str) for text in value):
        raise SoftPromptError(f"{where}: '{column}' is {value!r:.80}, not a list of texts")
    return tuple(value)
