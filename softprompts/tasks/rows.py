"""Reads CSV, TSV and JSON Lines files, plain or gzipped, and says in which file and line something is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError, nearest

Row = dict[str, Any]
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".jsonl": None}


def read_rows(path: Path, sep: str | None = None, quoting: bool = True) -> list[tuple[int, Row]]:
    """All rows of a file with the line each is on (its last line, where a quoted text has several).

    Args:
        path: a .csv, .tsv or .jsonl file, or one of these with .gz at the end.
        sep: column separator; None: by the file's ending.
        quoting: whether double quotes enclose texts in CSV and TSV; False: they are ordinary characters.

    Raises:
        SoftPromptError: the file is missing, empty, of an unknown form, broken or not UTF-8.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    ending = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]
    if sep is None and ending not in _SEPARATORS:
        raise SoftPromptError(f"{path}: cannot tell its form from its name: use .csv, .tsv or .jsonl, or give sep")
    if sep is not None and len(sep) != 1:
        raise SoftPromptError(f"sep is {sep!r}: it must be a single character")
    text = _read_text(path, gzipped=suffixes[-1:] == [".gz"])
    separator = sep or _SEPARATORS[ending]
    rows = _jsonl(path, text) if separator is None else _csv(path, text, separator, quoting)
    if not rows:
        raise SoftPromptError(f"{path}: no rows in it")
    return rows


def check_columns(path: Path, there: Iterable[str], wanted: Iterable[str], line: int | None = None) -> None:
    """Makes sure that all wanted columns are there.

    Raises:
        SoftPromptError: one is missing; names those there and the nearest.
    """
    there = [str(name) for name in there]
    for name in wanted:
        if name not in there:
            place = f"{path}: " if line is None else f"{path}: line {line}: "
            columns = ", ".join(there)
            near = nearest(name, there)
            hint = f"; {near}" if near.startswith("did") else ""
            raise SoftPromptError(f"{place}no column '{name}', there are: {columns}{hint}")


def _read_text(path: Path, gzipped: bool) -> str:
    try:
        data = path.read_bytes()
        if gzipped:
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise SoftPromptError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SoftPromptError(f"{path}: not a whole gzip file ({error})") from error
    except OSError as error:
        raise SoftPromptError(f"{path}: cannot read it ({error.strerror or error})") from error
    if not data.strip():
        raise SoftPromptError(f"{path}: the file is empty")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SoftPromptError(f"{path}: line {line}: not UTF-8 text, save the file as UTF-8") from error


def _jsonl(path: Path, text: str) -> list[tuple[int, Row]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also cut at U+2028 inside a text
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise SoftPromptError(f"{path}: line {number}: broken JSON ({error})") from error
        if not isinstance(row, dict):
            raise SoftPromptError(f'{path}: line {number}: not a JSON object such as {{"text": ..., "label": ...}}')
        rows.append((number, row))
    return rows


def _csv(path: Path, text: str, separator: str, quoting: bool) -> list[tuple[int, Row]]:
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
    )
    rows: list[tuple[int, Row]] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if not header:
                header = _header(path, cells)
                continue
            if len(cells) != len(header):
                there = f"{len(cells)} columns, the first line has {len(header)}"
                raise SoftPromptError(f"{path}: line {reader.line_num}: {there}")
            rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        hint = " (if quotes are ordinary characters there, give quoting=False)" if quoting else ""
        raise SoftPromptError(f"{path}: line {reader.line_num}: {error}{hint}") from error
    return rows


def _header(path: Path, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise SoftPromptError(f"{path}: the first line names the column '{twice[0]}' twice")
    return header
