"""Reads tables in CSV and its kin as spreadsheets and pandas write them."""

from __future__ import annotations

import csv
import io
import re
import warnings
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError, shown
from softprompts.tasks.example import Row

Numbered = list[tuple[int, Row]]  # rows, each with the line it is on
EMPTY_LINE: Row = {}  # stands for empty lines between rows, known by being this object
_SEPARATORS = ",;\t|"
_SAID = re.compile(r"\"?sep=(.)\"?\r?\n?", re.IGNORECASE)  # the first line of Excel's files may say it


def read_table(path: Path, text: str, sep: str | None, usual: str, quoting: bool, breaks: bool = False) -> Numbered:
    """The rows of a table by the names in its first line.

    Columns that have neither a name nor content are left out with a warning, and so is a first column without a name
    that counts the rows, as pandas writes it. Rows of empty cells are left out.

    Args:
        path: names the file in errors.
        text: of the file.
        sep: column separator; None: that of a first line ``sep=;``, else the usual one, else the one of ``,;|`` and tab
            that parts all rows alike.
        usual: the separator by the file's ending.
        quoting: whether double quotes enclose texts; False: they are ordinary characters.
        breaks: whether `EMPTY_LINE` stands between rows that have empty lines between them.

    Raises:
        SoftPromptError: columns that differ, are named twice or not at all, or several separators that would do.
    """
    lines = 0
    if said := _SAID.fullmatch(text[: text.find("\n") + 1]):
        if sep is not None and sep != said[1]:
            raise SoftPromptError(f"{path}: its first line says that '{said[1]}' separates columns, not {sep!r}")
        text, sep, lines = text[said.end() :], said[1], 1
    if sep is not None:
        return _Table(path, text, sep, quoting, lines).rows(breaks)
    others = [other for other in _SEPARATORS if other != usual]
    try:
        table = _Table(path, text, usual, quoting)
        if len(table.header) > 1 or not any(other in "".join(table.header) for other in others):
            return table.rows(breaks)
        failure = None
    except SoftPromptError as error:
        failure = error
    tables = [found for other in others if (found := _alike(path, text, other, quoting)) is not None]
    if len(tables) > 1:
        both = " and ".join(repr(found.separator) for found in tables)
        raise SoftPromptError(f"{path}: {both} part its rows alike; say which separates columns (--separator)")
    if not tables and failure is not None:
        raise failure
    return (tables or [table])[0].rows(breaks)


def _alike(path: Path, text: str, separator: str, quoting: bool) -> _Table | None:
    """The table by another separator, if it parts all rows into as many columns, more than one."""
    if separator not in text:
        return None
    try:
        table = _Table(path, text, separator, quoting)
    except SoftPromptError:
        return None
    return table if len(table.header) > 1 else None


class _Table:
    """A table that was parted by a separator, with empty lines in it."""

    def __init__(self, path: Path, text: str, separator: str, quoting: bool, lines: int = 0):
        self.path, self.separator = path, separator
        self.header: list[str] = []
        self.cells: list[tuple[int, list[str]]] = []  # no cells: an empty line
        self.extra = 0  # empty cells behind the last name
        quotes: Any = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, quoting=quotes)
        limit = csv.field_size_limit(2**31 - 1)  # a text may have any length
        try:
            for cells in reader:
                self._add(reader.line_num + lines, cells)
        except csv.Error as error:
            hint = " (if quotes are ordinary characters there, give quoting=False)" if quoting else ""
            raise SoftPromptError(f"{path}: line {reader.line_num + lines}: {error}{hint}") from error
        finally:
            csv.field_size_limit(limit)

    def _add(self, line: int, cells: list[str]) -> None:
        empty = not any(map(str.strip, cells))
        if not self.header:
            self.header = [] if empty else [cell.strip() for cell in cells]
        elif empty and not (cells and len(self.header) == 1):  # the only column may lack its text
            self.cells.append((line, []))
        else:
            width = len(self.header)
            if any(map(str.strip, cells[width:])) or any(self.header[len(cells) :]):
                raise SoftPromptError(f"{self.path}: line {line}: {len(cells)} columns, the first line has {width}")
            self.extra = max(self.extra, len(cells) - width)
            self.cells.append((line, cells[:width] + [""] * (width - len(cells))))

    def rows(self, breaks: bool) -> Numbered:
        """The rows; with ``breaks`` an `EMPTY_LINE` for the empty lines between two."""
        self._leave_out()
        names = [(index, name) for index, name in enumerate(self.header) if name]
        if twice := next((name for _, name in names if self.header.count(name) > 1), None):
            raise SoftPromptError(f"{self.path}: the first line names the column '{twice}' twice")
        rows: Numbered = []
        for line, cells in self.cells:
            if cells:
                rows.append((line, {name: cells[index] for index, name in names}))
            elif breaks and rows and rows[-1][1] is not EMPTY_LINE:
                rows.append((line, EMPTY_LINE))
        return rows[:-1] if rows and rows[-1][1] is EMPTY_LINE else rows

    def _leave_out(self) -> None:
        """Says which columns without a name are left out; raises where one of them holds something."""
        empty = self.extra
        for index in [index for index, name in enumerate(self.header) if not name]:
            held = [(line, cells[index]) for line, cells in self.cells if cells and cells[index].strip()]
            if index == 0 and all(cell.isdecimal() for _, cell in held) and held:
                continue
            if held:
                line, cell = held[0]
                raise SoftPromptError(
                    f"{self.path}: line {line}: column {index + 1} holds {shown(cell)} and has no name in the first "
                    "line: name it, or delete it"
                )
            empty += 1
        if empty:
            columns = "column without name and content is" if empty == 1 else "columns without name and content are"
            warnings.warn(f"{self.path}: {empty} {columns} left out", stacklevel=2)
