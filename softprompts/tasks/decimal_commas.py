"""Numbers with a comma where others have a point, as spreadsheets of many countries write them."""

from __future__ import annotations

import re
from pathlib import Path

from softprompts.errors import SoftPromptError, shown
from softprompts.tasks.tables import Numbered

_COMMA = re.compile(r"\s*[+-]?\d*,\d+\s*")
_THOUSANDS = re.compile(r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*")  # 1,234 may be 1.234 or 1234


def with_points(path: Path, rows: Numbered, column: str) -> Numbered:
    """Writes the numbers of a column with points, where some have commas.

    Raises:
        SoftPromptError: it cannot be told what a comma or a point is; names the line.
    """
    texts = [(line, row[column]) for line, row in rows if isinstance(row.get(column), str)]
    commas = [(line, text) for line, text in texts if _COMMA.fullmatch(text)]
    if not commas:
        return rows
    line, text = commas[0]
    if all(_THOUSANDS.fullmatch(text) for _, text in commas):
        raise SoftPromptError(
            f"{path}: line {line}: {shown(text)} may be a fraction or thousands: write it with a point"
        )
    if pointed := next(((line, text) for line, text in texts if "." in text), None):
        raise SoftPromptError(
            f"{path}: line {pointed[0]}: {shown(pointed[1])} has a point, and {shown(text)} in line {line} a comma: "
            "write all numbers alike"
        )
    return [
        (line, {**row, column: row[column].replace(",", ".")} if isinstance(row.get(column), str) else row)
        for line, row in rows
    ]
