"""Where the verbs print, and how their tables look."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

# No markup and no colours guessed from the text: labels, texts and paths are the user's, brackets and all.
out = Console(markup=False, highlight=False, emoji=False)
err = Console(markup=False, highlight=False, emoji=False, stderr=True)


def plain_table(title: str | None = None) -> Table:
    """A table with a line under its headers and no others, for many numbers."""
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
