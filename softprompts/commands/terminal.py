"""Where the verbs print, how their tables look, and what was typed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
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


def add_number_columns(table: Table, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Adds columns of numbers behind a first one of words; in a narrow terminal headers may wrap, numbers may not."""
    for index, name in enumerate(names):
        width = max(len(cells[index]) for cells in rows)
        table.add_column(name, justify="right" if index else "left", min_width=width)


def typed_command() -> str:
    """The command line as it was typed, quoted for a shell, for the record of a run.

    Of absolute paths only the last part is kept: records are published, and where files lie is nobody else's business.
    """
    return shlex.join(["softprompts", *map(_without_folder, sys.argv[1:])])


def _without_folder(word: str) -> str:
    name, equals, path = word.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if Path(path).expanduser().is_absolute() else word
