"""A row of a data set, and the example that is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]  # a row as its source has it: values by column


@dataclass(frozen=True)
class Example:
    """A row as a task reads it.

    Attributes:
        fields: its texts by name.
        label: index of its class or choice, its score, or the indices of its words' tags; for a ranking, which choices
            are right, as indices. None where it is not known.
        id: names the row in its source.
        choices: what there is to choose from.
        names: what each choice is called in a ranking, where that is not its text.
        answers: the texts that count as right, of a ranking or a span.
        starts: where in the context each answer begins, in characters (spans).
        words: of a row that is tagged.
        group: rows that are scored together have the same, such as the answers to one question.
    """

    fields: Mapping[str, str]
    label: Any = None
    id: str | int = 0
    choices: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    group: str | None = None

    def __hash__(self) -> int:
        return hash((tuple(self.fields.items()), self.id))

    @property
    def text(self) -> str:
        """The first field."""
        return next(iter(self.fields.values()))
