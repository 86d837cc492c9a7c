"""Reads CSV, TSV, JSON and CoNLL files, plain or gzipped, and says in which file and line something is wrong."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.example import Row
from softprompts.tasks.tables import Numbered, read_table

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON = (".jsonl", ".json")
TAGGED = (".conll", ".bio", ".iob", ".iob2", ".txt")  # a token and its tag a line
_TABS = {"tab": "\t", "\\t": "\t"}  # as shells let one write it
ENDINGS = ".csv, .tsv, .jsonl, .json or .conll"
_DOCUMENT = "-DOCSTART-"
_COLUMNS = re.compile(r"[ \t\r]+")
_MARKS_OF_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BLANKS = " \t\r\n"  # of JSON
_SEPARATOR = re.compile(r"\s*([,\]]?)\s*")  # behind an object in a list
_SHOWN = 100  # characters of what is wrong that an error shows


def read_rows(path: Path, sep: str | None = None, quoting: bool = True, tagged: bool = False) -> Numbered:
    """All rows of a file with the line each is on (its last line, where a quoted text has several).

    A file in CoNLL's form has a line for each word, columns between white space, and an empty line between sentences. A
    sentence is a row with the ``words`` of the first column and the ``tags`` of the last; all columns are there by
    their number too ("2").

    Args:
        path: a .csv, .tsv, .jsonl, .json (one object a line, a list of them, or SQuAD's form) or .conll file, or one of
            these with .gz at the end.
        sep: column separator, or "tab"; None: by the file's ending or its rows, see `read_table`.
        quoting: whether double quotes enclose texts in CSV and TSV; False: they are ordinary characters.
        tagged: whether a file that ends in .txt has CoNLL's form, and a table has `EMPTY_LINE` between rows.

    Raises:
        SoftPromptError: the file is missing, empty, of an unknown form, broken or not UTF-8.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    ending = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]
    conll = sep is None and ending in TAGGED and (tagged or ending != ".txt")
    if sep is None and not conll and ending not in (*_SEPARATORS, *_JSON):
        raise SoftPromptError(f"{path}: cannot tell its form from its name: use {ENDINGS}, or give sep (--separator)")
    sep = _TABS.get(sep or "", sep)
    if sep is not None and len(sep) != 1:
        raise SoftPromptError(f"sep is {sep!r}: it must be a single character")
    text = read_text(path)
    if not text.strip():
        raise SoftPromptError(f"{path}: the file is empty")
    if conll:
        rows = _conll(path, text)
    elif sep is not None or ending in _SEPARATORS:
        rows = read_table(path, text, sep, _SEPARATORS.get(ending, ","), quoting, breaks=tagged)
    elif ending == ".json" and text.lstrip().startswith("["):
        rows = _json_list(path, text)
    elif ending == ".json" and (squad := _squad(text)) is not None:
        rows = squad
    else:
        rows = _jsonl(path, text)
    if not rows:
        raise SoftPromptError(f"{path}: no rows in it")
    return rows


class MissingColumnError(SoftPromptError):
    """A file lacks a column that is needed."""


def check_columns(path: Path, columns: Iterable[str], wanted: Iterable[str], line: int | None = None) -> None:
    """Makes sure that all wanted columns are there.

    Raises:
        SoftPromptError: one is missing; names those there and the nearest.
    """
    columns = [str(name) for name in columns]
    for name in wanted:
        if name not in columns:
            place = f"{path}: " if line is None else f"{path}: line {line}: "
            near = nearest(name, columns)
            hint = f"; {near}" if near.startswith("did") else ""
            raise MissingColumnError(f"{place}no column '{name}', there are: {', '.join(columns)}{hint}")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 if it begins with its mark; unpacked where its name ends in .gz.

    Raises:
        SoftPromptError: it is missing, cannot be read or is not such text; names the line.
    """
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise SoftPromptError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SoftPromptError(f"{path}: not a whole gzip file ({error})") from error
    except OSError as error:
        raise SoftPromptError(f"{path}: cannot read it ({error.strerror or error})") from error
    try:
        return data.decode("utf-16" if data.startswith(_MARKS_OF_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SoftPromptError(f"{path}: line {line}: not UTF-8 text, save the file as UTF-8") from error


def _jsonl(path: Path, text: str) -> Numbered:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also cut at U+2028 inside a text
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SoftPromptError(f"{path}: line {number}: broken JSON ({error})") from error
        rows.append((number, _object(path, number, row)))
    return rows


def _json_list(path: Path, text: str) -> Numbered:
    """The objects of a list, each with the line it begins on."""
    decoder = json.JSONDecoder()
    rows: Numbered = []
    start = len(text) - len(text[text.index("[") + 1 :].lstrip(_BLANKS))
    line = 1 + text.count("\n", 0, start)
    separator = "]" if text.startswith("]", start) else ","
    while separator != "]":
        try:
            row, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise SoftPromptError(f"{path}: line {line}: broken JSON ({error})") from error
        rows.append((line, _object(path, line, row)))
        after: Any = _SEPARATOR.match(text, end)  # it always matches
        line, separator = line + text.count("\n", start, after.end()), after[1]
        start = after.end()
        if not separator:
            raise SoftPromptError(f"{path}: line {line}: broken JSON (neither a comma nor the end of the list)")
    return rows


def _squad(text: str) -> Numbered | None:
    """The questions of a file in the form of SQuAD's own; None: it is not one."""
    try:
        whole = json.loads(text)
        articles = [article for article in whole["data"] if "paragraphs" in article]
        questions = [
            {**question, "title": article.get("title"), "context": paragraph["context"]}
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    rows: Numbered = []
    line, place = 1, 0
    for row in questions:
        start = max(text.find(json.dumps(row.get("id")), place), place)
        line, place = line + text.count("\n", place, start), start
        rows.append((line, row))
    return rows or None


def _object(path: Path, line: int, row: Any) -> Row:
    if not isinstance(row, dict):
        raise SoftPromptError(f'{path}: line {line}: not a JSON object such as {{"text": ..., "label": ...}}')
    return row


def _conll(path: Path, text: str) -> Numbered:
    rows: Numbered = []
    sentence: list[list[str]] = []
    # Not at any white space: words may hold no-break spaces and the like.
    lines = [[cell for cell in _COLUMNS.split(line) if cell] for line in text.split("\n")]
    width = next((len(cells) for cells in lines if cells and not cells[0].startswith(("#", _DOCUMENT))), 0)
    first = 0
    for number, cells in enumerate([*lines, []], start=1):
        if not cells or cells[0] == _DOCUMENT:
            if sentence:
                columns: list[list[str]] = list(map(list, zip(*sentence, strict=True)))
                numbered = {str(index): column for index, column in enumerate(columns, start=1)}
                rows.append((first, {"words": columns[0], "tags": columns[-1], **numbered}))
                sentence = []
            continue
        if cells[0].startswith("#") and len(cells) != width and not sentence:  # "# id 17"; "# O" is a word
            continue
        if width < 2:
            raise SoftPromptError(f"{path}: line {number}: '{cells[0][:_SHOWN]}' is not a word and its tag")
        if len(cells) != width:
            raise SoftPromptError(f"{path}: line {number}: {len(cells)} columns, the lines before have {width}")
        first = first if sentence else number
        sentence.append(cells)
    return rows
