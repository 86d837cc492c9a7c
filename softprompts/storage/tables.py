"""Tables as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "---:") -> str:
    """A table in Markdown, a line for each row.

    Args:
        head: names of the columns.
        rows: the cells.
        rule: alignment of all columns but the first: "---:" for numbers, "---" for text.
    """
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (head, *rows)]
    lines = ["| " + " | ".join(cells) + " |" for cells in escaped]
    lines.insert(1, "|" + "|".join(["---", *[rule] * (len(head) - 1)]) + "|")
    return "\n".join(lines) + "\n"


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in CSV, for programs."""
    out = io.StringIO()
    csv.writer(out).writerows([head, *rows])
    return out.getvalue()
