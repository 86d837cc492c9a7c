"""The labels of users' files: their names, and what the values in files stand for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from softprompts.errors import SoftPromptError
from softprompts.tasks.tag_schemes import OUTSIDE

Names = Sequence[str] | Mapping[str, str]
_WHOLE = re.compile(r"\s*[+-]?\d+\s*")
_BETWEEN = ("|", ";", ",", "/", "+", "&", " ")  # what may stand between several labels of a row
_SHOWN = 80  # characters of a value that an error shows


@dataclass(frozen=True)
class Labels:
    """What the labels in files stand for.

    Attributes:
        names: of the classes or tags.
        values: the index of each value in the files.
    """

    names: tuple[str, ...]
    values: Mapping[str, int]

    @classmethod
    def of(cls, names: Names) -> Labels:
        """Labels that a user declares: names, which files may have in full or by index, or the name of each value.

        Raises:
            SoftPromptError: fewer than two, or one of them twice.
        """
        if isinstance(names, Mapping):
            distinct = tuple(dict.fromkeys(names.values()))
            values = {value: distinct.index(name) for value, name in names.items()}
        else:
            distinct = tuple(names)
            values = {name: index for index, name in enumerate(distinct)}
            if not any(map(_WHOLE.fullmatch, distinct)):  # else a number is the name that it is
                values.update({str(index): index for index in range(len(distinct))})
            if len(distinct) == 2 and not {"false", "true"} & set(distinct):
                values.update({"false": 0, "true": 1})  # as JSON says it
        if len(set(distinct)) < max(2, len(distinct)) or not all(distinct):
            raise SoftPromptError(f"labels are {', '.join(distinct) or 'none'}: at least two that differ are needed")
        return cls(distinct, values)

    @classmethod
    def learned(cls, labels: Iterable[str], tags: bool = False) -> Labels:
        """Labels as rows have them: sorted (numbers by value), "O" first among tags."""
        try:
            names = sorted(labels, key=lambda name: (int(name), name))
        except ValueError:
            names = sorted(labels, key=lambda name: (tags and name != OUTSIDE, name))
        return cls(tuple(names), {name: index for index, name in enumerate(names)})

    def index(self, value: str, place: str, where: str = "") -> int:
        """The index of a value.

        Raises:
            SoftPromptError: it is none of them; ``where`` says in words where they are from.
        """
        if value not in self.values:
            known = ", ".join(self.names) if len(self.names) <= 20 else f"{len(self.names)} labels"
            raise SoftPromptError(f"{place}: label '{value[:_SHOWN]}' is not {where or 'one of the labels'}: {known}")
        return self.values[value]


def several_labels(labels: Collection[str]) -> str | None:
    """A label that is plainly several labels in one, among all labels of a file; None: there is none.

    All its parts are labels themselves ("ham", "long" and "ham;long"). With a bar between, one part that another label
    has too is enough ("ham|long", "ham|short"); a bar in a label that shares nothing belongs to its name.
    """
    for between in _BETWEEN:
        parts = {label: [part.strip() for part in label.split(between)] for label in labels}
        often = Counter(part for names in parts.values() for part in set(names))
        for label in sorted(labels):
            shared = [often[part] > 1 if between == "|" else part in parts for part in parts[label]]
            if len(shared) > 1 and (any(shared) if between == "|" else all(shared)):
                return label
    return None
