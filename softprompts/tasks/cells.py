"""What single cells of a user's rows hold: texts, words, lists, choices, names of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.tasks.example import Row
from softprompts.tasks.written_lists import looks_like_list, written_value

SHOWN = 80  # characters of a value that an error shows


def text_of(place: str, column: str, row: Row) -> str:
    """The text in a column.

    Raises:
        SoftPromptError: it holds none.
    """
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise SoftPromptError(f"{place}: '{column}' is {shown_value(value)}, not a text")
    if value is None or not value.strip():
        raise SoftPromptError(f"{place}: '{column}' is empty")
    return value


def input_texts(place: str, columns: Mapping[str, str], row: Row) -> dict[str, str]:
    """The texts that another is written for, of which all but the first may be empty.

    Raises:
        SoftPromptError: one is no text, or the first is empty.
    """
    first, *more = columns
    rest = {name: "" if row[columns[name]] in (None, "") else text_of(place, columns[name], row) for name in more}
    return {first: text_of(place, columns[first], row), **rest}


def shown_value(value: Any) -> str:
    """A value as errors show it."""
    return f"{value!r:.{SHOWN}}"


def are_texts(value: Any) -> bool:
    """Whether a value is a list of texts, none of them empty."""
    return isinstance(value, list | tuple) and all(isinstance(each, str) and each.strip() for each in value)


def words_of(place: str, column: str, row: Row) -> tuple[str, ...]:
    """The words in a column: a list, the text of one, or a text that is split at white space.

    Raises:
        SoftPromptError: it holds none.
    """
    value = row[column]
    words = value
    if isinstance(value, str):
        words = list_in(place, column, value) if looks_like_list(value) else value.split()
    if not are_texts(words):
        raise SoftPromptError(f"{place}: '{column}' is {shown_value(value)}, not a list of words")
    if not words:
        raise SoftPromptError(f"{place}: '{column}' is empty")
    return tuple(words)


def list_in(place: str, column: str, text: str) -> Any:
    """The list that a text is; raises a `SoftPromptError` where it cannot be read for sure."""
    value = written_value(text)
    if not isinstance(value, list):
        raise SoftPromptError(
            f"{place}: '{column}' is {shown_value(text)}, a list that cannot be read for sure: "
            'write ["a", "b"] as JSON does, or blanks between'
        )
    return value


def holds_list(value: Any) -> bool:
    """Whether a value is a list or a mapping, or the text of one."""
    return isinstance(value if not isinstance(value, str) else written_value(value), list | Mapping)


def choices_of(place: str, column: str, row: Row) -> tuple[tuple[str, ...], Sequence[str]]:
    """The texts to choose from in a column, and the names of the choices where they have some.

    Raises:
        SoftPromptError: it holds none.
    """
    keys: Sequence[str] = ()
    value = row[column]
    if isinstance(value, str):
        value = written_value(value) or value
    if isinstance(value, Mapping):
        keys, value = [str(key) for key in value.get("label") or ()], value.get("text")
    if not are_texts(value) or len(value) < 2:
        raise SoftPromptError(f"{place}: '{column}' is {shown_value(value)}, not a list of at least two texts")
    return tuple(value), keys


def scalar_of(place: str, column: str, row: Row) -> str:
    """The name of the one label in a column; raises a `SoftPromptError` where there is none, or a list."""
    value = row[column]
    if isinstance(value, list | dict):
        raise SoftPromptError(f"{place}: the label '{column}' is {shown_value(value)}, not a text or a number")
    if value is None or not str(value).strip():
        raise SoftPromptError(f"{place}: the label '{column}' is missing")
    return name_of(value)


def name_of(value: Any) -> str:
    """A label as a name: 1.0 is "1", True is "true"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value).strip()
