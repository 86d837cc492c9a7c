"""Makes examples of rows of users' files: finds the columns, and the meaning of the labels."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.tasks.answers import finite_number
from softprompts.tasks.cells import (
    SHOWN,
    are_texts,
    choices_of,
    holds_list,
    input_texts,
    list_in,
    name_of,
    scalar_of,
    shown_value,
    text_of,
    words_of,
)
from softprompts.tasks.conversations import MESSAGES, messages_in, packed
from softprompts.tasks.example import Example, Row
from softprompts.tasks.file_readers import check_columns
from softprompts.tasks.form import check_template
from softprompts.tasks.label_names import Names
from softprompts.tasks.written_lists import looks_like_list, written_value

WORDS = "words"  # the field of a tagged row
WORD_COLUMNS = ("words", "tokens")
_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "passage"),
    ("question", "sentence"),
)
_TEXTS = (("text",), ("sentence",), *_PAIRS)
# Usual names of columns, used where the user names none: the first names that a row has.
_FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "classification": _TEXTS,
    "multi-label": _TEXTS,
    "regression": _TEXTS,
    "choice": (
        *(("premise", "question"), ("context", "question"), ("article", "question")),
        *(("premise",), ("question",), ("text",), ("sentence",)),
    ),
    "ranking": (("passage", "query"), ("context", "question"), ("text",), ("question",)),
    "span": (("question", "context"),),
    "tagging": tuple((name,) for name in WORD_COLUMNS),
    "text": (
        ("instruction", "input"),
        *((name,) for name in ("input", "prompt", "instruction", "source", "question", "text", "article", "document")),
        *((name,) for name in ("dialogue", "query", "sentence")),
    ),
    "chat": ((MESSAGES,), ("conversation",), ("conversations",)),
}
_LABELS: dict[str, tuple[str, ...]] = {
    "classification": ("label", "labels"),
    "multi-label": ("labels", "label"),
    "regression": ("label", "score"),
    "choice": ("label", "answer", "answerKey"),
    "ranking": ("answers", "answer"),
    "span": ("answers", "answer"),
    "tagging": ("tags", "ner_tags", "labels"),
    "text": ("target", "completion", "output", "response", "answer", "answers", "summary", "label"),
}
_ANSWER = dict.fromkeys(_LABELS, "label") | {"span": "answers", "ranking": "answers", "tagging": "tags"}
CHOICE_COLUMNS = ("choices", "options", "endings", "candidates", "entities")
_NUMBERED = re.compile(r"(choice|option|ending|answer)[ _]?(\d+)")
_START = "answer_start"  # column of where an answer that is a text begins
_BRACKET = re.compile(r"\s*(array)?\s*[\[({]")
_NO_TAG = re.compile(r"""^['",]|['",]$|[\[\](){}]""")  # a piece of a list that was not written with blanks
_ZERO_OR_ONE = {"0": False, "1": True, "0.0": False, "1.0": True}
_ZERO_OR_ONE |= {"false": False, "true": True, "False": False, "True": True}


@dataclass(frozen=True)
class Columns:
    """The columns of a file that a task reads.

    Attributes:
        kind: a key of `KINDS`.
        fields: the column of each field.
        label: column of the label, the tags or the answers; of a chat the messages, in which they are.
        choices: column of each row's choices, or the columns of the choices; empty: there are none.
        templates: the choices as format strings over the fields, in place of columns.
        separator: what stands between several labels in the label's column; None: it holds one, or a list.
        label_columns: the columns of several labels, a 0 or 1 in each, in place of ``label``.
    """

    kind: str
    fields: Mapping[str, str]
    label: str
    choices: str | tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    separator: str | None = None
    label_columns: tuple[str, ...] = ()

    @property
    def wanted(self) -> list[str]:
        """The names of all columns."""
        choices = [self.choices] if isinstance(self.choices, str) else self.choices
        return [*self.fields.values(), *choices, *(self.label_columns or [self.label])]


def find_columns(
    place: Path,
    row: Row,
    kind: str,
    fields: Names,
    label: str | None,
    choices: tuple[str, ...],
    line: int | None,
    separator: str | None = None,
    label_columns: tuple[str, ...] = (),
) -> Columns:
    """Finds the columns of a file: those that are named, else those with usual names.

    Args:
        place: names the file in errors.
        row: the first one.
        kind: of the task.
        fields: columns of the fields, or the column of each field; empty: the usual names.
        label: column of the label; None: the usual name.
        choices: column of each row's choices, the columns of the choices, or format strings over the fields.
        line: which line the row is on; None: that of the columns' names.
        separator: what stands between several labels in the label's column.
        label_columns: the columns of several labels, a 0 or 1 in each, in place of ``label``.

    Raises:
        SoftPromptError: no such column, or none of the usual names.
    """
    if not fields:
        usual = _FIELDS[kind]
        fields = next((names for names in usual if all(name in row for name in names)), ())
        if not fields:
            raise SoftPromptError(_missing(place, "text", row, [" and ".join(names) for names in usual]))
    named = dict(fields) if isinstance(fields, Mapping) else {field_name(column): column for column in fields}
    if kind == "tagging":
        if len(named) != 1:
            raise SoftPromptError(f"{place}: tagging reads one column of words, not {', '.join(named.values())}")
        named = {WORDS: next(iter(named.values()))}
    if kind == "span" and len(named) != 2:
        raise SoftPromptError(
            f"{place}: a span is found in the second of two columns, the question and the context: "
            f"name both, not {', '.join(named.values())}"
        )
    if label is None and label_columns:
        label = label_columns[0]
    if kind == "chat":
        if len(named) != 1:
            raise SoftPromptError(f"{place}: a chat is in one column of messages, not {', '.join(named.values())}")
        named = {MESSAGES: next(iter(named.values()))}
        label = named[MESSAGES]
    if label is None:
        label = next((name for name in _LABELS[kind] if name in row), None)
        if label is None:
            raise SoftPromptError(_missing(place, "label", row, _LABELS[kind]))
    if kind not in ("choice", "ranking"):
        choices = ()
    elif not choices:
        listed = [name for name in CHOICE_COLUMNS if name in row and name != label]
        choices = tuple(listed[:1]) or numbered(name for name in row if name != label)
        if not choices:
            raise SoftPromptError(_missing(place, "choices", row, [*CHOICE_COLUMNS, "choice1 and choice2"]))
    if kind != "chat":  # whose messages are both
        _require_different(
            place, kind, list(fields.values() if isinstance(fields, Mapping) else fields), label, choices
        )
    several: dict[str, Any] = {"separator": separator, "label_columns": label_columns}
    columns = Columns(kind, named, label, choices[0] if len(choices) == 1 else choices, **several)
    if any("{" in text for text in choices):
        for template in choices:
            check_template(template, named)
        columns = Columns(kind, named, label, templates=choices)
    check_columns(place, row, columns.wanted, line)
    return columns


def _require_different(place: Path, kind: str, texts: list[str], label: str, choices: Sequence[str]) -> None:
    """Refuses a column that is two things, where that cannot be meant."""
    if label in texts:
        raise SoftPromptError(f"{place}: '{label}' is the column of the text and of the {_ANSWER[kind]}: name two")
    if label in choices:
        raise SoftPromptError(f"{place}: '{label}' is a column of choices and of the {_ANSWER[kind]}: name two")
    for column in (*texts, *choices):
        if [*texts, *choices].count(column) > 1:
            raise SoftPromptError(f"{place}: the column '{column}' is named twice: each text needs its own")


def numbered(names: Iterable[str]) -> tuple[str, ...]:
    """The columns that are called choice1, choice2 and so on, in order; empty where there are not two."""
    matches = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    alike = sorted((int(match[2]), match[0]) for match in matches if match[1] == matches[0][1])
    return tuple(name for _, name in alike) if len(alike) > 1 else ()


def field_name(column: str) -> str:
    """A column's name as templates can name it."""
    name = re.sub(r"[{}\[\].:!]", "_", column)
    return f"column_{name}" if name.isdecimal() or not name else name


def _missing(place: Path, what: str, row: Row, usual: Iterable[str]) -> str:
    columns = ", ".join(map(str, row))
    return f"{place}: which column holds the {what}? There are: {columns}; looked for {', '.join(usual)}"


def read_example(columns: Columns, path: Path, line: int, row: Row) -> Example:
    """Makes an example of a row; its label is a name, an index of a choice, names of tags, or a score.

    Raises:
        SoftPromptError: a column is missing, or what is in it cannot be used; names the file and the line.
    """
    place = f"{path}: line {line}"
    check_columns(path, row, columns.wanted, line)
    if columns.kind == "tagging":
        words = words_of(place, columns.fields[WORDS], row)
        example = Example({WORDS: " ".join(words)}, id=line, words=words)
    elif columns.kind == "chat":
        messages = messages_in(place, columns.label, row, answered=True)
        example = Example({MESSAGES: packed(messages)}, id=line, answers=(messages[-1]["content"],))
    elif columns.kind == "text":
        example = Example(input_texts(place, columns.fields, row), id=line)
    else:
        example = Example({name: text_of(place, column, row) for name, column in columns.fields.items()}, id=line)
    keys: Sequence[str] = ()
    if isinstance(columns.choices, str):
        choices, keys = choices_of(place, columns.choices, row)
        example = replace(example, choices=choices)
    elif columns.choices:
        more = {field_name(column): text_of(place, column, row) for column in columns.choices}
        example = replace(example, fields={**example.fields, **more}, choices=tuple(more.values()))
    elif columns.templates:
        example = replace(example, choices=tuple(text.format_map(example.fields) for text in columns.templates))
    if columns.kind == "multi-label":
        return replace(example, label=_label_set(place, columns, row))
    return replace(example, **_READERS[columns.kind](place, columns.label, row, example, keys))


# The readers of labels: each returns what changes in an example without a label.


def _class(place: str, column: str, row: Row, example: Example, keys: Sequence[str]) -> dict[str, Any]:
    value = row[column]
    if isinstance(value, list) or (isinstance(value, str) and (looks_like_list(value) or holds_list(value))):
        raise SoftPromptError(
            f"{place}: the label '{column}' is {shown_value(value)}, a list: a row of this kind of task has one label"
        )
    return {"label": scalar_of(place, column, row)}


def _label_set(place: str, columns: Columns, row: Row) -> tuple[str, ...]:
    """The names of a row's labels; none where its cell is empty."""
    if columns.label_columns:
        return tuple(column for column in columns.label_columns if _yes(place, column, row[column]))
    value, column = row[columns.label], columns.label
    if isinstance(value, str) and (looks_like_list(value) or holds_list(value)):
        value = list_in(place, column, value)
    elif isinstance(value, str) and columns.separator is not None:
        value = [part for part in value.split(columns.separator) if part.strip()]
    names = value if isinstance(value, list | tuple) else [] if value is None or value == "" else [value]
    if not all(isinstance(name, str | int | float) for name in names):
        raise SoftPromptError(f"{place}: '{column}' is {shown_value(value)}, not a list of labels")
    found = tuple(dict.fromkeys(map(name_of, names)))
    return found if any(found) else ()


def _yes(place: str, column: str, value: Any) -> bool:
    """Whether a cell of a label's column says that the row has it."""
    if value is not None and (text := name_of(value)) in _ZERO_OR_ONE:
        return _ZERO_OR_ONE[text]
    raise SoftPromptError(f"{place}: '{column}' is {shown_value(value)}: a label with a column of its own is 0 or 1")


def _scored(place: str, column: str, row: Row, example: Example, keys: Sequence[str]) -> dict[str, Any]:
    value = scalar_of(place, column, row)
    score = finite_number(value)
    if score is None:
        raise SoftPromptError(f"{place}: the label '{column}' is '{value[:SHOWN]}', not a number")
    return {"label": score}


def _chosen(place: str, column: str, row: Row, example: Example, keys: Sequence[str]) -> dict[str, Any]:
    value, count = scalar_of(place, column, row), len(example.choices)
    for known in (keys, example.choices, string.ascii_uppercase[:count]):  # its name, its text or its letter
        if list(known).count(value) == 1:
            return {"label": known.index(value)}
    if not value.isdecimal() or int(value) >= count:
        raise SoftPromptError(
            f"{place}: label '{value[:SHOWN]}' is not one of the {count} choices: give its text, its letter or its "
            f"index, 0 to {count - 1}"
        )
    return {"label": int(value)}


def _tagged(place: str, column: str, row: Row, example: Example, keys: Sequence[str]) -> dict[str, Any]:
    value = row[column]
    tags = value
    if isinstance(value, str):
        tags = list_in(place, column, value) if _BRACKET.match(value) else value.split()
        if wrong := next((tag for tag in tags if isinstance(tag, str) and _NO_TAG.search(tag)), None):
            raise SoftPromptError(
                f"{place}: '{column}' has the tag {shown_value(wrong)}: write tags with blanks between"
            )
    if not isinstance(tags, list | tuple) or not all(isinstance(tag, str | int) for tag in tags):
        raise SoftPromptError(f"{place}: '{column}' is {shown_value(value)}, not a list of tags")
    if len(tags) != len(example.words):
        raise SoftPromptError(f"{place}: {len(tags)} tags for {len(example.words)} words")
    names = tuple(map(name_of, tags))
    if not all(names):
        raise SoftPromptError(f"{place}: '{column}' has an empty tag")
    return {"label": names}


def _found(place: str, column: str, row: Row, example: Example, keys: Sequence[str]) -> dict[str, Any]:
    """The answers of a span and where they begin."""
    context_name, context = list(example.fields.items())[-1]
    given = row[column]
    if isinstance(given, str) and given not in context:
        given = written_value(given) or given
    if isinstance(given, Mapping):  # SQuAD's columns
        pairs = _pairs(given.get("text"), given.get(_START))
    elif isinstance(given, list) and given and all(isinstance(each, Mapping) for each in given):  # SQuAD's own file
        pairs = [(each.get("text"), each.get(_START)) for each in given]
    else:
        pairs = _pairs(given, row.get(_START))
    if not pairs or not all(isinstance(text, str) and text.strip() for text, _ in pairs):
        raise SoftPromptError(
            f'{place}: \'{column}\' is {shown_value(given)}, not answers: give {{"text": ["..."], "{_START}": [17]}}, '
            f"or a text of '{context_name}' (rows without an answer are not for this kind of task)"
        )
    starts = []
    for text, start in pairs:
        if isinstance(start, str) and start.strip().isdecimal():
            start = int(start)
        if start is None or start == "":
            count = context.count(text)
            if count != 1:
                often = "is not there" if not count else f"is there {count} times: say where, in '{_START}'"
                raise SoftPromptError(f"{place}: the answer '{text[:SHOWN]}' in '{context_name}' {often}")
            start = context.index(text)
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise SoftPromptError(f"{place}: '{_START}' is {shown_value(start)}, not a number of characters")
        if (at := context[start : start + len(text)]) != text:
            raise SoftPromptError(
                f"{place}: the answer '{text[:SHOWN]}' is not at character {start} of '{context_name}', "
                f"where it says '{at[:SHOWN]}'"
            )
        starts.append(start)
    return {"answers": tuple(text for text, _ in pairs), "starts": tuple(starts)}


def _pairs(texts: Any, starts: Any) -> list[tuple[Any, Any]]:
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list):
        return []
    starts = starts if isinstance(starts, list) else [starts]
    if starts == [None]:
        starts = starts * len(texts)
    return list(zip(texts, starts, strict=True)) if len(texts) == len(starts) else []


def _ranked(place: str, column: str, row: Row, example: Example, keys: Sequence[str]) -> dict[str, Any]:
    value = row[column]
    if isinstance(value, str) and value not in example.choices:
        value = written_value(value) or value
    answers = [value] if isinstance(value, str) else value
    if not are_texts(answers) or not answers:
        raise SoftPromptError(f"{place}: '{column}' is {shown_value(value)}, not a list of texts")
    right = tuple(index for index, choice in enumerate(example.choices) if choice in answers)
    return {"label": right, "answers": tuple(answers)}


def _written(place: str, column: str, row: Row, example: Example, keys: Sequence[str]) -> dict[str, Any]:
    """The texts that count as right, of which the first is the one to learn."""
    value = row[column]
    answers = [text_of(place, column, row)] if isinstance(value, str) else value
    if not are_texts(answers) or not answers:
        raise SoftPromptError(f"{place}: '{column}' is {shown_value(value)}, neither a text nor a list of texts")
    return {"answers": tuple(answers)}


def _spoken(place: str, column: str, row: Row, example: Example, keys: Sequence[str]) -> dict[str, Any]:
    return {}  # the messages hold it


_READERS: dict[str, Callable[[str, str, Row, Example, Sequence[str]], dict[str, Any]]] = {
    "classification": _class,
    "regression": _scored,
    "choice": _chosen,
    "ranking": _ranked,
    "span": _found,
    "tagging": _tagged,
    "text": _written,
    "chat": _spoken,
}


def same_choices(examples: Sequence[Example]) -> int:
    """How many choices each row has; 0 where rows differ."""
    counts = {len(example.choices) for example in examples}
    return counts.pop() if len(counts) == 1 else 0


def with_choice_fields(example: Example) -> Example:
    """Adds the choices to the fields as choice1, choice2 and so on, so that templates can name them."""
    more = {f"choice{index}": text for index, text in enumerate(example.choices, start=1)}
    return replace(example, fields={**example.fields, **more})
