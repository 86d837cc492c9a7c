"""Tables as Markdown and as CSV, and texts in which nothing is markup."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

_RULES = {"l": "---", "r": "---:"}


def escape(text: str) -> str:
    """A text on one line, without meaning to Markdown."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " "))


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], sides: str = "l") -> str:
    """A table.

    Args:
        heads: of the columns; Markdown, as are the cells. Bars are escaped where they are not yet.
        rows: each with a cell per column.
        sides: "l" or "r" for each column; the last letter holds for all that follow: "lr" is a name and numbers.
    """
    ruler = "|".join(_RULES[side] for side in sides.ljust(len(heads), sides[-1]))
    lines = ["| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |" for cells in (heads, *rows)]
    return "\n".join([lines[0], f"|{ruler}|", *lines[1:]])


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]], end: str = "\r\n") -> str:
    """A table in CSV, for programs; ``end`` ends its lines."""
    out = io.StringIO()
    csv.writer(out, lineterminator=end).writerows([head, *rows])
    return out.getvalue()
