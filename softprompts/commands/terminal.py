"""Where the verbs print, how their tables look, and what was typed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

# No markup and no colours guessed from the text: labels, texts and paths are the user's, brackets and all.
out = Console(markup=False, highlight=False, emoji=False)
err = Console(markup=False, highlight=False, emoji=False, stderr=True)


def plain_table(title: str | None = None) -> Table:
    """A table with a line under its headers and no others, for many numbers."""
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def number_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Collection[str],
    title: str | None = None,
    bold: int | None = None,
) -> Table:
    """A table of numbers, to the right, and of columns of ``words``, to the left; the row at ``bold`` stands out.

    In a narrow terminal headers and words may wrap, numbers may not.
    """
    table = plain_table(title)
    for index, name in enumerate(columns):
        cells = [row[index] for row in rows]
        width = max((len(part) for cell in cells for part in (cell.split() if name in words else [cell])), default=0)
        table.add_column(name, justify="left" if name in words else "right", min_width=width)
    for place, row in enumerate(rows):
        table.add_row(*row, style="bold" if place == bold else None)
    return table


def typed_command() -> str:
    """The command line as it was typed, quoted for a shell, for the record of a run.

    Of absolute paths only the last part is kept: records are published, and where files lie is nobody else's business.
    """
    return shlex.join(["softprompts", *map(_without_folder, sys.argv[1:])])


def _without_folder(word: str) -> str:
    name, equals, path = word.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if Path(path).expanduser().is_absolute() else word
