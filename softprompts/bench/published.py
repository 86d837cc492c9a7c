"""The papers' numbers: tables as they were printed.

The numbers are CSV files in ``published/``, one line per row and column with what the paper prints. Where a print is
garbled (a subscript that has swallowed a digit), the file also has the number that was meant; `PublishedTable.value`
gives that one, `PublishedTable.printed` the print.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from softprompts.bench.column_names import AVERAGE, tasks_of
from softprompts.errors import SoftPromptError, nearest

MISSING = ("", "-")


@dataclass(frozen=True)
class Printed:
    """One place of a published table, as text.

    Attributes:
        value: the number; "-" where there is none.
        std: its standard deviation; "" where there is none.
        corrected: the number that was meant, where the print is garbled; else "".
        corrected_std: and its standard deviation.
        printed_as: "best" or "second" where the paper marks it so, "invalid labels" for SuperPos's daggers.
    """

    value: str
    std: str = ""
    corrected: str = ""
    corrected_std: str = ""
    printed_as: str = ""

    @property
    def meant(self) -> str:
        """The number that was meant."""
        return self.corrected or self.value

    @property
    def meant_std(self) -> str:
        """The standard deviation that was meant."""
        return self.corrected_std or self.std


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper.

    Attributes:
        name: "multi-mask/table-1".
        paper: the method's name.
        shows: "Table 1".
        title: its title, in our words.
        setting: its models and rows.
        columns: of numbers.
        rows: unique names.
        cells: what is printed, by row and column.
        texts: facts by row and name.
        facts: names of the facts.
        groups: heading above a row, where there is one.
        scored_on: "test" or "validation" rows; "" where it is not said.
        unit: of the numbers; "" for scores x 100.
        higher_is_better: False for costs.
        digits: decimals of most numbers.
        reference: rows that the paper does not rank.
        companion: the table of the other costs of the same rows.
        same: other tables that have rows of this one again.
        same_rows: names of rows there by names here, where they differ.
        same_columns: names of columns there by names here, where they differ.
        notes: lines below it.
    """

    name: str
    paper: str
    shows: str
    title: str
    setting: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: Mapping[tuple[str, str], Printed]
    texts: Mapping[tuple[str, str], str]
    facts: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    scored_on: str = ""
    unit: str = ""
    higher_is_better: bool = True
    digits: int = 1
    reference: tuple[str, ...] = ()
    companion: str | None = None
    same: tuple[str, ...] = ()
    same_rows: Mapping[str, str] = field(default_factory=dict)
    same_columns: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def printed(self, row: str, column: str) -> Printed:
        """What the paper prints in a place.

        Raises:
            SoftPromptError: no such row or column.
        """
        self._require("row", row, self.rows)
        self._require("column", column, self.columns)
        return self.cells.get((row, column), Printed("-"))

    def value(self, row: str, column: str) -> tuple[float, float | None] | None:
        """A number and its standard deviation, where there is one; None where nothing is printed.

        Raises:
            SoftPromptError: no such row or column.
        """
        cell = self.printed(row, column)
        if cell.meant in MISSING:
            return None
        return float(cell.meant), None if cell.meant_std in MISSING else float(cell.meant_std)

    def fact(self, row: str, name: str) -> str:
        """A text beside a row's name.

        Raises:
            SoftPromptError: no such row or fact.
        """
        self._require("row", row, self.rows)
        self._require("fact", name, self.facts)
        return self.texts.get((row, name), "-")

    def row_of(self, name: str, model: str | None = None) -> str | None:
        """The row of a name and a model: "FT" on BERT-base is "FT (BERT-base)".

        Args:
            name: of a row, with or without the model in brackets; "{model}" in it stands for the model.
            model: its short name.

        Returns:
            None where the paper has such a row for other models only.

        Raises:
            SoftPromptError: no such row.
        """
        method = name.replace(" ({model})", "")
        name = name.replace("{model}", model or "")
        with_model = f"{name} ({model})"
        for row in (with_model, name):
            if row in self.rows:
                return row
        if any(row.rpartition(" (")[0] == method for row in self.rows if row in self.groups):
            return None
        self._require("row", name, self.rows)
        return name

    def _require(self, kind: str, name: str, known: Sequence[str]) -> None:
        if name not in known:
            raise SoftPromptError(f"published table '{self.name}' has no {kind} '{name}'; {nearest(name, known)}")


@cache
def published_tables() -> tuple[str, ...]:
    """Names of all published tables, by paper."""
    return tuple(_headers())


@cache
def published(name: str) -> PublishedTable:
    """A published table by its name, "superpos/table-1".

    Raises:
        SoftPromptError: no table has this name.
    """
    headers = _headers()
    if name not in headers:
        raise SoftPromptError(f"no published table '{name}'; {nearest(name, headers)}")
    header: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in headers[name].items()
    }
    cells: dict[tuple[str, str], Printed] = {}
    texts: dict[tuple[str, str], str] = {}
    groups: dict[str, str] = {}
    for line in read_csv(_file(f"{name.replace('/', '_')}.csv")):
        group, row, column = (line.pop(key) for key in ("group", "row", "column"))
        if group:
            groups[row] = group
        if column in header.get("facts", ()):
            texts[row, column] = line["value"]
        else:
            cells[row, column] = Printed(**line)
    digits = [decimals(cell.value) for cell in cells.values() if cell.value not in MISSING]
    return PublishedTable(
        name=name,
        rows=tuple(dict.fromkeys(row for row, _ in (*texts, *cells))),
        columns=tuple(dict.fromkeys(column for _, column in cells)),
        cells=cells,
        texts=texts,
        groups=groups,
        digits=statistics.mode(digits or [1]),
        **header,
    )


def recomputed_average(table: PublishedTable, row: str) -> tuple[float, float] | None:
    """The mean over tasks of a row, and by how much rounding alone can make a printed one differ from it.

    Two metrics of a task count once, by their mean, as in SuperPos. Each printed number is off by up to half a unit of
    its last digit, so that the mean is off by up to the mean of those halves; the printed average by half of its own.

    Returns:
        None where a task is missing.
    """
    means, slacks = [], []
    for places in tasks_of(table.columns).values():
        numbers = [table.printed(row, table.columns[place]).meant for place in places]
        if any(number in MISSING for number in numbers):
            return None
        means.append(statistics.fmean(map(float, numbers)))
        slacks.append(statistics.fmean(map(half_unit, numbers)))
    average = table.cells.get((row, AVERAGE), Printed("-")).value
    slack = statistics.fmean(slacks) + (0 if average in MISSING else half_unit(average))
    return statistics.fmean(means), slack


def decimals(text: str) -> int:
    """How many digits a printed number has after its point."""
    return len(text.partition(".")[2])


def half_unit(text: str) -> float:
    """By how much rounding can have changed a printed number."""
    return 0.5 * 10.0 ** -decimals(text)


@cache
def _headers() -> Mapping[str, Mapping[str, Any]]:
    headers: dict[str, dict[str, Any]] = yaml.safe_load(_file("tables.yaml").read_text(encoding="utf-8"))
    return headers


def read_csv(file: Traversable) -> list[dict[str, str]]:
    """The lines of a CSV file by its headings."""
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def _file(name: str) -> Traversable:
    return resources.files("softprompts.bench").joinpath("published", name)
