"""Sentences of tables that have a word a line, with an empty line between sentences."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from softprompts.errors import SoftPromptError
from softprompts.tasks.tables import EMPTY_LINE, Numbered


def sentences(path: Path, rows: Numbered, words: str, tags: str | None = None) -> Numbered:
    """Joins rows of a word each to rows of a sentence each, whose columns are lists; other rows are left as they are.

    Args:
        path: names the file in errors.
        rows: of a file, with an `EMPTY_LINE` where a table has one.
        words: column of the words.
        tags: column of the tags; None: there is none, and rows without an empty line between are texts of one word.

    Raises:
        SoftPromptError: every row has one word and one tag, and nothing says where sentences end.
    """
    found = [(line, row) for line, row in rows if row is not EMPTY_LINE]
    broken = len(found) < len(rows)
    columns = [words] if tags is None else [words, tags]
    if not all(_is_one(row.get(column)) for _, row in found for column in columns) or len(found) < 2:
        return found
    if not broken:
        if tags is None:
            return found
        raise SoftPromptError(
            f"{path}: every row has one word: leave a line empty between sentences, or give each sentence a row"
        )
    for line, row in found:
        if any("\n" in row[column] or "\t" in row[column] for column in columns):
            raise SoftPromptError(f"{path}: line {line}: a word with the end of a line in it; give quoting=False")
    groups = [list(group) for full, group in groupby(rows, lambda numbered: numbered[1] is not EMPTY_LINE) if full]
    return [
        (group[0][0], {column: [row[column].strip() for _, row in group] for column in group[0][1]}) for group in groups
    ]


def _is_one(value: object) -> bool:
    """Whether a cell holds one word at most."""
    return isinstance(value, str) and len(value.split()) < 2
