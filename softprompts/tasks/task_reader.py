"""Reads inputs by the task of a saved prompt: texts to token ids, and predictions to answers.

Many prompts may share a model and a tokenizer; each has a reader of its own.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.catalog import SPECS
from softprompts.tasks.cells import choices_of, holds_list, input_texts, text_of, words_of
from softprompts.tasks.columns import (
    CHOICE_COLUMNS,
    WORD_COLUMNS,
    WORDS,
    field_name,
    find_columns,
    with_choice_fields,
)
from softprompts.tasks.conversations import MESSAGES, asked
from softprompts.tasks.decision import Decided, Decision
from softprompts.tasks.encode import answer_reader, encode_examples, end_ids, label_ids, neg_losses, new_tokens
from softprompts.tasks.example import Example, Row
from softprompts.tasks.file_readers import MissingColumnError, check_columns, read_rows, read_text
from softprompts.tasks.form import LABELLED, Form, fields_of
from softprompts.tasks.kinds.encoded import Encoded
from softprompts.tasks.label_names import Labels
from softprompts.tasks.spec import BAD_ROW, Spec
from softprompts.tasks.tag_schemes import OUTSIDE, entities, tags_entities
from softprompts.tasks.task import Task
from softprompts.tasks.user_files import read_examples, with_indices
from softprompts.tasks.usual_metrics import default_metrics
from softprompts.tasks.word_lines import sentences

Text = tuple[str, str | None]


@dataclass(frozen=True)
class Answer:
    """The prediction for one text.

    Attributes:
        label: the label's name, or those of several; the value of a regression; the text of a choice or a span, or one
            that was written; or the tags of all words, with blanks between.
        probability: of that label or choice; None for what has none.
        tags: one for each word, where words are tagged.
        labels: the names of all labels of a row that may have several; ``label`` joins them.
        probabilities: that of every label or choice by name; empty for what has none.
        value: of a regression, as a number; of a text whose right answer is known, the mean loss of that answer's
            tokens with its sign changed, where a task is scored by it.
    """

    label: str
    probability: float | None
    tags: tuple[str, ...] = ()
    probabilities: Mapping[str, float] = field(default_factory=dict, compare=False)
    value: float | None = field(default=None, compare=False)
    labels: tuple[str, ...] = ()


class Entry(NamedTuple):
    """A row of a file as it stands there, and its fields for the model, or what keeps it from being used."""

    row: Row
    fields: Row | None = None
    fault: str | None = None


class ReadRows(NamedTuple):
    """Encoded rows, and the examples and the task that they were encoded from."""

    task: Task
    examples: list[Example]
    encoded: Encoded


# Heads whose outputs mean nothing to somebody who does not know the task.
_TOKEN_HEADS = ("ForTokenClassification", "ForQuestionAnswering")


class TaskReader:
    """Encodes inputs for a saved prompt, and reads predictions for them, by the prompt's task.

    Args:
        config: of the saved prompt, as `softprompts.storage.saved_prompt.read` gives it.
        labels: label names of the prompt's head; may be empty.
        tokenizer: of its backbone.
        kind: of its backbone: "encoder", "encoder-decoder" or "decoder".
        max_tokens: tokens that the backbone takes for an input beside the prompt; None for any number.
        name: names the prompt in errors, and its task where the prompt does not name it.

    Attributes:
        task: how texts are written out, and the labels' names.
        knows_task: whether the prompt says how its task is written out; else an encoder's reads one text or a pair.
        fields: those of the task's fields that the model reads.
        max_length: most tokens of an input.
        label_ids: token ids of each answer that a language model chooses from; None where it does not.
        new_tokens: how many tokens a language model generates for an answer at most; None where it does not.
        decision: the temperature and thresholds that were chosen with the prompt; None: nothing was.
        ends: tokens that end an answer, beside the model's own.

    Raises:
        SoftPromptError: what the prompt says of its task is damaged.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        labels: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        kind: str,
        max_tokens: int | None,
        name: str,
    ):
        meta = config.get("metadata") or {}
        form = meta.get("task_form")
        self.knows_task = form is not None
        if form is None:  # a text, and the labels of the head
            if str(config["backbone"].get("class")).endswith(_TOKEN_HEADS):
                raise SoftPromptError(f"{name} does not say what its labels of tokens are for: train it by 'train'")
            known = config["labels"] or []
            form = {"labels": known} if len(known) > 1 else {"kind": "regression"}
        read = Form.from_dict(form)
        metrics = tuple(meta.get("metrics") or default_metrics(read))
        self.task = Task(str(meta.get("task", name)), read, [], [], metrics=metrics)
        self.tokenizer, self.kind, self._head_labels = tokenizer, kind, tuple(labels)
        self.decision = Decision.of(meta.get("decision"), read)
        said = meta.get("data")
        self._data: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
        self._prepare = SPECS[self.task.name].prepare if self.task.name in SPECS else None
        templates = self.task.form.reading if kind == "encoder" else (self.task.form.source,)
        used = fields_of([*templates, *self.task.form.choices])
        # Some tasks have fields that only another kind of model reads.
        self.fields = tuple(name for name in self.task.form.fields if name in used)
        limits = (int(meta.get("max_length", 256)), max_tokens)
        self.max_length = min(limit for limit in limits if limit is not None)
        self.label_ids = label_ids(self.task, tokenizer, kind) if self.reads else None
        self.new_tokens = new_tokens(self.task, tokenizer, kind) if self.reads else None
        self.ends = end_ids(self.task, tokenizer, kind)
        self._room = max_tokens
        if read.written:
            self.writing(read.max_new_tokens or meta.get("new_tokens"))

    def writing(self, new_tokens: int | None) -> None:
        """Has at most so many tokens written for an answer; None: as before.

        Raises:
            SoftPromptError: the prompt's task chooses among answers, or the model has no room for so many.
        """
        if new_tokens is None:
            return
        if self.new_tokens is None:
            raise SoftPromptError(f"'{self.task.name}' is answered with a label: there is nothing to write at length")
        self.new_tokens = int(new_tokens)
        if self._room is not None and self.kind == "decoder":
            if self._room - self.new_tokens < 1:
                raise SoftPromptError(f"{new_tokens} new tokens leave no room for an input: at most {self._room - 1}")
            self.max_length = min(self.max_length, self._room - self.new_tokens)

    @property
    def reads(self) -> bool:
        """Whether rows of the task can be read at all: a language model must be told how."""
        return self.knows_task or self.kind == "encoder"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the possible answers, where these are the same for all rows."""
        form = self.task.form
        if form.kind in (*LABELLED, "tagging"):
            return form.labels or self._head_labels
        return form.words if self.label_ids is not None and form.kind == "regression" else ()

    def fitting(self, texts: Sequence[str | Text | Row]) -> TaskReader:
        """The reader for some rows: a task that is not known reads one text, or a pair."""
        if self.knows_task:
            return self
        paired = any(not isinstance(text, str) and len([v for v in text if v is not None]) > 1 for text in texts)
        fitted = copy.copy(self)
        fitted.fields = ("text", "text_pair")[: 1 + paired]
        fitted.task = self.task.with_form(fields=fitted.fields, reading=(), source="")
        return fitted

    def encode(self, texts: Sequence[str | Text | Row]) -> ReadRows:
        """Encodes rows, see `softprompts.Predictor`.

        Raises:
            SoftPromptError: an empty text, or not a text for each field.
        """
        fitted = self.fitting(texts)
        examples = [fitted._example(text) for text in texts]
        encoded = encode_examples(examples, fitted.task, self.tokenizer, self.kind, self.max_length, with_answer=False)
        return ReadRows(fitted.task, examples, encoded)

    def answers(self, rows: ReadRows, prediction: Any) -> list[Answer]:
        """The answers for rows of `encode`, from the `softprompts.training.prediction.Prediction` for all features."""
        if self.decision is not None or rows.task.kind == "multi-label":
            decided = (self.decision or Decision()).decide(rows.task.form, prediction.scores)
            return self.decided(rows, decided)
        values, _ = answer_reader(rows.task, rows.examples, rows.encoded, self.tokenizer, self.kind)(prediction)
        chances = prediction.probabilities or []
        if len(chances) != len(rows.examples):
            chances = [[]] * len(rows.examples)
        answers = [self._answer(*row) for row in zip(rows.examples, values, chances, strict=True)]
        if prediction.losses is None:
            return answers
        means = neg_losses(rows.encoded, prediction.losses)
        return [replace(answer, value=mean) for answer, mean in zip(answers, means, strict=True)]

    def decided(self, rows: ReadRows, decided: Decided) -> list[Answer]:
        """The answers that were decided for rows of `encode`."""
        columns = rows.examples, decided.answers, decided.chances
        return [self._answer(*row) for row in zip(*columns, strict=True)]

    def _answer(self, example: Example, value: Any, chances: Sequence[float]) -> Answer:
        names = example.choices if self.task.form.kind == "choice" else self.labels
        by_name: dict[str, float] = {}
        if len(names) == len(chances):
            for name, chance in zip(names, chances, strict=True):  # choices of the same text have theirs together
                by_name[name] = by_name.get(name, 0.0) + chance
        answer = Answer("", max(chances, default=None), probabilities=by_name)
        if self.task.kind == "multi-label":
            given = tuple(name for name, there in zip(names, value, strict=True) if there)
            between = str(self._data.get("label_separator") or ", ")
            return replace(answer, label=between.join(given), labels=given, probability=None)
        if self.decision is not None:
            answer = replace(answer, probability=chances[value])
        if self.task.kind == "regression":
            return replace(answer, label=f"{value:.4g}", value=float(value))
        if self.task.kind == "tagging":
            return replace(answer, label=" ".join(value), tags=tuple(value))
        if isinstance(value, str):
            return replace(answer, label=value)
        return replace(answer, label=names[int(value)] if value >= 0 else "")

    # --- rows ---------------------------------------------------------------------------------------------------------

    def read_file(
        self,
        file: str | Path,
        text: str | None = None,
        text_pair: str | None = None,
        fields: Mapping[str, str] | None = None,
        sep: str | None = None,
    ) -> list[Row]:
        """The rows of a file, see `softprompts.Predictor.read`; raises for the first that cannot be used."""
        rows = []
        for entry in self.read_entries(file, text, text_pair, fields, sep):
            if entry.fault is not None and entry.row:
                raise SoftPromptError(entry.fault)
            if entry.fields is not None:  # empty lines of a file of texts are between its texts
                rows.append(entry.fields)
        if not rows:
            raise SoftPromptError(f"{file} holds no texts")
        return rows

    def read_entries(
        self,
        file: str | Path,
        text: str | None = None,
        text_pair: str | None = None,
        fields: Mapping[str, str] | None = None,
        sep: str | None = None,
    ) -> list[Entry]:
        """All rows of a file in their order, those that cannot be used too; arguments as of `read_file`.

        A file of texts (.txt, or "-" for standard input) has an entry for each line.

        Raises:
            SoftPromptError: no such file or column.
        """
        path = Path(file)
        if (path.suffix.lower() == ".txt" or str(file) == "-") and sep is None:
            lines = (sys.stdin.read() if str(file) == "-" else read_text(path)).splitlines()
            first = self.fields[0]
            if lines:
                self._require_fields({first: ""}, path)
            return [
                Entry(row, row) if line.strip() else Entry({}, fault=f"{path}: line {number} is empty")
                for number, line in enumerate(lines, 1)
                for row in [{first: line}]
            ]
        columns = self._named(text, text_pair, fields)
        tagged = self.task.kind == "tagging"
        found = read_rows(path, sep, tagged=tagged)
        if tagged:
            found = sentences(path, found, self._columns(found[0][1], columns)[WORDS])
        entries = []
        for line, row in found:
            try:
                entries.append(Entry(row, self._read(path, line, row, columns)))
            except MissingColumnError:  # of all rows, not of this one
                raise
            except SoftPromptError as error:
                entries.append(Entry(row, fault=str(error)))
        return entries

    def labelled(
        self,
        file: str | Path,
        text: str | None = None,
        text_pair: str | None = None,
        fields: Mapping[str, str] | None = None,
        label: str | None = None,
        label_separator: str | None = None,
    ) -> list[Example]:
        """The rows of a file with their labels, which the file has by name or by index.

        Args:
            file: as for `read_file`, but with a label for each row.
            text: column of the first field, where it has another name there.
            text_pair: column of the second field.
            fields: columns of fields by name.
            label: column of the label; None: its usual name.
            label_separator: what stands between several labels; None: as in training.

        Raises:
            SoftPromptError: no such file or column, or a label that is none of the task; names file and line.
        """
        path, form = Path(file), self.task.form
        rows = read_rows(path, tagged=form.kind == "tagging")
        if self._prepare is not None:
            return SPECS[self.task.name].examples(path, rows)
        first = rows[0][1]
        brought = tuple(name for name in fixed_choices(form) if name in first)
        own = self._columns(first, self._named(text, text_pair, fields))
        own = {name: column for name, column in own.items() if name not in brought}
        between = label_separator or self._data.get("label_separator")
        several = between, self._label_columns(first, label)
        columns = find_columns(path, first, form.kind, own, label, brought, None, *several)
        examples = read_examples(columns, path, rows)
        if form.kind == "choice" and form.choices and isinstance(columns.choices, str):
            return [with_choice_fields(example) for example in examples]
        if form.kind in (*LABELLED, "tagging"):
            return with_indices(path, examples, Labels.of(form.labels), "one of the prompt's")
        return examples

    def _label_columns(self, row: Row, label: str | None) -> tuple[str, ...]:
        """The columns of a file with a 0 or 1 for each label, where no column of labels is named or known."""
        labels = self.task.form.labels
        if self.task.kind != "multi-label" or label is not None or not all(name in row for name in labels):
            return ()
        return labels

    def _named(self, text: str | None, text_pair: str | None, fields: Mapping[str, str] | None) -> dict[str, str]:
        """The columns that are named, by field; raises a `SoftPromptError` for a field that the task does not have."""
        named = dict(zip(self.fields, (text, text_pair), strict=False))
        columns = {name: column for name, column in {**named, **(fields or {})}.items() if column is not None}
        for name in columns:
            self._require_field(name)
        return columns

    def _read(self, path: Path, line: int, row: Row, named: Mapping[str, str]) -> Row:
        """The fields of a file's row as texts, with its words or choices where it has some."""
        row = self._prepared(row)
        form, place = self.task.form, f"{path}: line {line}"
        choices = next((name for name in CHOICE_COLUMNS if holds_list(row.get(name))), None)
        brought = fixed_choices(form)
        if choices is not None and form.chooses and (not form.choices or any(name not in row for name in brought)):
            texts, _ = choices_of(place, choices, row)
            if form.choices and len(texts) != len(form.choices):
                raise SoftPromptError(f"{place}: {len(texts)} choices; the task has {len(form.choices)}")
            row = {**row, "choices": list(texts), **dict(zip(brought, texts, strict=False))}
        columns = self._columns(row, named)
        check_columns(path, row, columns.values(), line)
        if self.task.kind == "tagging":
            return {WORDS: words_of(place, columns[WORDS], row), "id": line}
        if self.task.kind == "chat":
            return {MESSAGES: asked(place, columns[MESSAGES], row), "id": line}
        if self.task.kind == "text":
            return {**input_texts(place, columns, row), "id": line}
        more = {"choices": row["choices"]} if choices is not None and not form.choices else {}
        return {**{name: text_of(place, column, row) for name, column in columns.items()}, **more, "id": line}

    def _columns(self, row: Row, named: Mapping[str, str]) -> dict[str, str]:
        """The column of each field: the one that is named, else one with a usual name."""
        columns = {}
        for index, name in enumerate(self.fields):
            usual = [name, *(column for column in row if field_name(column) == name)]
            usual += [*WORD_COLUMNS, "text"] if self.task.kind == "tagging" else ["text"] if index == 0 else []
            columns[name] = named.get(name) or next((column for column in usual if column in row), name)
        return columns

    def row(
        self,
        text: str | None = None,
        text_pair: str | None = None,
        fields: Mapping[str, str] | None = None,
        choices: Sequence[str] = (),
    ) -> Row:
        """Makes a row with the task's fields of what a user gives.

        Args:
            text: the first field; a text whose words are tagged.
            text_pair: the second field.
            fields: fields by name, in place of these or beside them.
            choices: what there is to choose from, where the task has no fields for it.

        Raises:
            SoftPromptError: the task has more or fewer fields, or others.
        """
        names = self.fields
        if not self.knows_task:
            names = ("text", "text_pair")[: 1 + (text_pair is not None)]
        given = [one for one in (text, text_pair) if one is not None]
        if len(given) > len(names):
            self._require_fields({}, given=len(given))
        row: dict[str, Any] = dict(zip(names, given, strict=False))
        for name, value in (fields or {}).items():
            if name not in names and self._prepare is None:
                self._require_field(name)
            if name in row:
                raise SoftPromptError(f"the field '{name}' is given twice, as a text and by name")
            row[name] = value
        if choices:
            if len(choices) == len(self.task.form.choices):
                row.update(zip(fixed_choices(self.task.form), choices, strict=False))
            row["choices"] = list(choices)
        prepared = self._prepared(row)
        if self.knows_task:
            self._require_fields(prepared)
        return prepared

    def _example(self, text: str | Text | Row) -> Example:
        if not isinstance(text, Mapping):
            values = (text,) if isinstance(text, str) else tuple(value for value in text if value is not None)
            self._require_fields({}, given=len(values))
            text = dict(zip(self.fields, values, strict=True))
        if self.task.kind == "tagging":
            words = text.get(WORDS) or ""
            if not any(map(_is_text, words.split() if isinstance(words, str) else words)):
                raise SoftPromptError("an empty text cannot be labelled")
            return Spec("", self.task.form).example({**text, WORDS: words_of("row", WORDS, text)}, labelled=False)
        text = self._prepared(text)
        self._require_fields(text)
        if self.task.kind == "chat":
            return Example({MESSAGES: asked("row", MESSAGES, text)}, id=text.get("id", 0))
        if not any(_is_text(text[name]) for name in self.fields[:1]):
            raise SoftPromptError("an empty text cannot be labelled")
        if self.task.form.chooses and not self.task.form.choices and not text.get("choices"):
            raise SoftPromptError(f"'{self.task.name}' chooses: give the choices too (--choice)")
        unread = dict.fromkeys(self.task.form.fields, "")
        return Spec("", self.task.form).example({**unread, **text}, labelled=False)

    def _prepared(self, row: Row) -> Row:
        """Adds the fields that the task makes of columns of its data set."""
        if self._prepare is None or all(name in row for name in self.fields):
            return row
        try:
            (prepared,) = self._prepare(row)
        except BAD_ROW:  # as in training
            return row
        return {**row, **prepared}

    def _require_field(self, name: str) -> None:
        if name not in self.fields:
            raise SoftPromptError(f"'{self.task.name}' has no field '{name}': {nearest(name, self.fields)}")

    def _require_fields(self, row: Row, path: Path | None = None, given: int | None = None) -> None:
        fields = self.fields
        count = len([name for name in fields if name in row]) if given is None else given
        if count == len(fields):
            return
        place = "" if path is None else f"{path}: "
        reads = {1: "single texts", 2: "pairs"}.get(len(fields), f"{len(fields)} texts")
        how = {1: "", 2: ": give both (--text-pair)"}.get(len(fields), ": give each (--field NAME=TEXT)")
        raise SoftPromptError(f"{place}'{self.task.name}' reads {reads} ({', '.join(fields)}), not {count}{how}")


def fixed_choices(form: Form) -> tuple[str, ...]:
    """The names of the fields that are the choices, where each choice is just a field."""
    names = tuple(template.removeprefix("{").removesuffix("}") for template in form.choices)
    return names if set(names) <= set(form.fields) else ()


def marked(words: Sequence[str], tags: Sequence[str]) -> str:
    """Tagged words to be read by people: entities in brackets, or the tag behind each word."""
    if not tags_entities(tags) or not all(tag == OUTSIDE or tag[2:] for tag in tags):
        return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))
    pieces = list(words)
    for start, end, kind in entities(tags):
        pieces[start] = f"[{pieces[start]}"
        pieces[end - 1] = f"{pieces[end - 1]} {kind}]"
    return " ".join(pieces)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
