"""The papers' numbers: tables as they were printed, and the slips that arithmetic finds in them.

The numbers lie beside this module as CSV files, one line per row and column with what the paper prints. Where a print
is known to be garbled (a subscript that has swallowed a digit), the file has the number that was meant too, and `value`
gives that one; `printed` gives what is on the page.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import yaml

from softprompts.errors import SoftPromptError, nearest

AVERAGE = "Average"
_MISSING = ("", "-")
KINDS = {
    "average": "Averages that are not the mean of their row",
    "two tables": "The same row in two places",
    "garbled": "Garbled prints",
    "marks": "Marks of the best",
    "claim": "Sentences that the tables do not bear out",
    "cost": "Costs that are hard to believe",
    "two papers": "Sizes of datasets in two papers",
}


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


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper.

    Attributes:
        name: "multi-mask/table-1".
        paper: the method's name.
        shows: "Table 1".
        title: what it shows, in our words.
        setting: on which models and rows.
        columns: of numbers.
        rows: unique names.
        cells: what is printed, by row and column.
        texts: facts by row and name.
        facts: names of the facts.
        groups: heading above a row, where there is one.
        unit: of the numbers; "" for scores x 100.
        higher_is_better: False for costs.
        digits: decimals of most numbers.
        reference: rows that the paper does not rank.
        companion: the same rows' other costs.
        same: other tables that have rows of this one again.
        same_rows: names of rows there by names here, where they differ.
        same_columns: names of columns there by names here, where they differ.
        notes: what a reader ought to know.
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
        there = self.printed(row, column)
        value, std = there.corrected or there.value, there.corrected_std or there.std
        return None if value in _MISSING else (float(value), None if std in _MISSING else float(std))

    def fact(self, row: str, name: str) -> str:
        """A text beside a row's name.

        Raises:
            SoftPromptError: no such row or fact.
        """
        self._require("row", row, self.rows)
        self._require("fact", name, self.facts)
        return self.texts.get((row, name), "-")

    def row_of(self, name: str, model: str | None = None) -> str | None:
        """The row that is meant by a name, given the model: "FT" on BERT-base is "FT (BERT-base)".

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
    header = headers[name]
    facts = tuple(header.get("facts", ()))
    cells: dict[tuple[str, str], Printed] = {}
    texts: dict[tuple[str, str], str] = {}
    groups: dict[str, str] = {}
    names: dict[str, None] = {}
    columns: dict[str, None] = {}
    for line in _lines(f"{name.replace('/', '_')}.csv"):
        row, column = line["row"], line["column"]
        names[row] = None
        if line["group"]:
            groups[row] = line["group"]
        if column in facts:
            texts[row, column] = line["value"]
            continue
        columns[column] = None
        cells[row, column] = Printed(
            line["value"], line["std"], line["corrected"], line["corrected_std"], line["printed_as"]
        )
    return PublishedTable(
        name=name,
        paper=header["paper"],
        shows=header["shows"],
        title=header["title"],
        setting=header["setting"],
        columns=tuple(columns),
        rows=tuple(names),
        cells=cells,
        texts=texts,
        facts=facts,
        groups=groups,
        unit=header.get("unit", ""),
        higher_is_better=header.get("better", "higher") == "higher",
        digits=_digits(cells.values()),
        reference=tuple(header.get("reference", ())),
        companion=header.get("companion"),
        same=tuple(header.get("same", ())),
        same_rows=header.get("rows", {}),
        same_columns=header.get("columns", {}),
        notes=tuple(header.get("notes", ())),
    )


def recomputed_average(table: PublishedTable, row: str) -> tuple[float, float] | None:
    """The mean over tasks of a row, and how far off rounding alone can put a printed one.

    Two metrics of a task count once, by their mean, as SuperPos does it. Each printed number is off by up to half a
    unit of its last digit, so the mean is by up to the mean of those halves; the printed average by half of its own.

    Returns:
        None where a task is missing.
    """
    tasks: dict[str, list[str]] = {}
    for column in table.columns:
        task, _, metric = column.partition(":")
        if column != AVERAGE and metric != "mean":
            tasks.setdefault(task, []).append(column)
    means, slacks = [], []
    for columns in tasks.values():
        numbers = [table.printed(row, column) for column in columns]
        texts = [there.corrected or there.value for there in numbers]
        if any(text in _MISSING for text in texts):
            return None
        means.append(statistics.fmean(map(float, texts)))
        slacks.append(statistics.fmean(map(_half_unit, texts)))
    own = table.cells.get((row, AVERAGE))
    slack = statistics.fmean(slacks) + (_half_unit(own.value) if own is not None and own.value not in _MISSING else 0)
    return statistics.fmean(means), slack


@dataclass(frozen=True)
class Slip:
    """Something in a paper that does not agree with itself.

    Attributes:
        paper: the method's name.
        where: table and row.
        kind: one of `KINDS`.
        text: what is printed and what follows from the rest.
    """

    paper: str
    where: str
    kind: str
    text: str


def slips() -> tuple[Slip, ...]:
    """All that arithmetic finds: averages, the same row in two tables, marks, and claims of the text."""
    tables = [published(name) for name in published_tables()]
    found: list[Slip] = []
    for table in tables:
        found += _averages(table)
        found += _printed_marks(table)
        for name in table.same:
            found += _two_tables(table, published(name))
    found += _garbled(tables)
    found += _claims()
    found += _sizes()
    found += _costs()
    return tuple(found)


def _averages(table: PublishedTable) -> list[Slip]:
    """Printed averages that no rounding explains."""
    found: list[Slip] = []
    if AVERAGE not in table.columns:
        return found
    for row in table.rows:
        there, mean = table.printed(row, AVERAGE), recomputed_average(table, row)
        if there.value in _MISSING or mean is None:
            continue
        if abs(float(there.value) - mean[0]) > mean[1] + 1e-9:
            text = f"average printed as {there.value}, the mean of the row is {mean[0]:.2f}"
            found.append(Slip(table.paper, f"{table.shows}, {row}", "average", text))
    if found:
        found += _order(table)
    return found


def _order(table: PublishedTable) -> list[Slip]:
    """Whether other rows are the best two by the recomputed averages, rows for reference aside."""
    both = {
        row: (there[0], mean[0])
        for row in table.rows
        if row not in table.reference
        and (there := table.value(row, AVERAGE)) is not None
        and (mean := recomputed_average(table, row)) is not None
    }
    sign = -1 if table.higher_is_better else 1
    printed, again = (sorted(both, key=lambda row: sign * both[row][kind])[:2] for kind in (0, 1))
    if printed == again:
        return []
    first, second = " and ".join(printed), " and ".join(again)
    text = f"by the printed averages {first} are the best two, by the recomputed ones {second}"
    return [Slip(table.paper, table.shows, "average", text)]


def _two_tables(table: PublishedTable, other: PublishedTable) -> list[Slip]:
    """Rows that stand in two tables with different numbers, more than the fewer decimals explain."""
    found = []
    for row in table.rows:
        there = table.same_rows.get(row, row)
        if there not in other.rows:
            continue
        differ = []
        for column in table.columns:
            name = table.same_columns.get(column, column)
            if name not in other.columns:
                continue
            here, again = _meant(table.printed(row, column)), _meant(other.printed(there, name))
            for what, one, two in (("", here[0], again[0]), ("standard deviation of ", here[1], again[1])):
                if one in _MISSING or two in _MISSING or _agree(one, two):
                    continue
                how = " (cut off, not rounded)" if _cut(one, two) else ""
                differ.append(f"{what}{column} {one} and {two}{how}")
        if differ:
            where = f"{table.shows} and {other.shows}, {row}"
            found.append(Slip(table.paper, where, "two tables", "; ".join(differ)))
    return found


def _printed_marks(table: PublishedTable) -> list[Slip]:
    """Numbers in bold that are not the best of their column, rows for reference aside."""
    found = []
    for column in table.columns:
        values = {
            row: there[0]
            for row in table.rows
            if row not in table.reference and (there := table.value(row, column)) is not None
        }
        bold = [row for row in values if table.printed(row, column).printed_as == "best"]
        if not bold:
            continue
        top = (max if table.higher_is_better else min)(values.values())
        best = [row for row, value in values.items() if value == top]
        wrong = [row for row in bold if row not in best]
        if wrong:
            better = (
                sum(value > values[wrong[0]] for value in values.values())
                if table.higher_is_better
                else sum(value < values[wrong[0]] for value in values.values())
            )
            text = f"{values[wrong[0]]:g} is in bold, {better} rows are better, the best {best[0]} with {top:g}"
            found.append(Slip(table.paper, f"{table.shows}, {column}, {wrong[0]}", "marks", text))
        elif len(bold) < len(best):
            others = ", ".join(row for row in best if row not in bold)
            text = f"{top:g} is in bold, {others} has the same number and is not"
            found.append(Slip(table.paper, f"{table.shows}, {column}, {bold[0]}", "marks", text))
    return found


def _garbled(tables: Iterable[PublishedTable]) -> list[Slip]:
    """Prints that were corrected."""
    found = []
    for table in tables:
        for (row, column), there in table.cells.items():
            if there.corrected:
                text = (
                    f"printed as {there.value} ({there.std}), read here as {there.corrected} ({there.corrected_std}): "
                    "a digit has gone into the subscript"
                )
                found.append(Slip(table.paper, f"{table.shows}, {row}, {column}", "garbled", text))
    return found


def _claims() -> list[Slip]:
    """Sentences about two numbers of a table that these do not bear out."""
    found = []
    claims = _lines("claims.csv")
    for claim in claims:
        table = published(claim["table"])
        there = [_meant(table.printed(claim[row], claim["column"]))[0] for row in ("row", "against")]
        ours, theirs = map(float, there)
        halves = [_half_unit(text) for text in there]
        where = f"{table.shows}, {claim['column']}"
        pair = f"{claim['row']} has {there[0]}, {claim['against']} {there[1]}"
        if claim["operation"] == "above":
            if ours <= theirs:
                found.append(Slip(claim["paper"], where, "claim", f"{claim['text']}: {pair}"))
            continue
        printed = float(claim["printed"])
        ways = {
            "difference": (ours - theirs, sum(halves)),
            "percent": (100 * (ours / theirs - 1), 100 * sum(halves) / theirs),
            "times": (ours / theirs, ours / theirs * (halves[0] / ours + halves[1] / theirs)),
        }
        value, slack = ways[claim["operation"]]
        if abs(value - printed) <= slack + _half_unit(claim["printed"]) + 1e-9:
            continue
        unit = {"percent": " %", "times": " times", "difference": ""}[claim["operation"]]
        text = f"{claim['text']}: {pair}, which is {value:.2f}{unit}"
        points, slack = ways["difference"]
        if claim["operation"] == "percent" and abs(points - printed) <= slack + _half_unit(claim["printed"]) + 1e-9:
            text += f" and {points:.2f} points"
        if claim["operation"] == "percent" and claim["column"] == AVERAGE:
            own = [float(other["printed"]) for other in claims if _of_a_task(other, claim)]
            if own and abs(statistics.fmean(own) - printed) <= _half_unit(claim["printed"]) + 1e-9:
                text += f"; {printed} is the mean of the {len(own)} tasks' own percentages"
        found.append(Slip(claim["paper"], where, "claim", text))
    return found


def _of_a_task(claim: Mapping[str, str], of_average: Mapping[str, str]) -> bool:
    """Whether a claim says of one task what another says of the average."""
    shared = ("table", "row", "against", "operation")
    return claim["column"] != AVERAGE and all(claim[key] == of_average[key] for key in shared)


def _sizes() -> list[Slip]:
    """Datasets that two papers give different sizes for; what one calls validation rows, the other has split in two."""
    found = []
    one, two = published("multi-mask/datasets"), published("ept/datasets")
    for row in one.rows:
        if row not in two.rows:
            continue
        mine = [_count(one, row, "train"), _count(one, row, "valid")]
        theirs = [_count(two, row, "train"), _count(two, row, "valid") + _count(two, row, "test")]
        differ = [
            f"{what} {a:,} and {b:,}"
            for what, a, b in zip(("training rows", "official validation rows"), mine, theirs, strict=True)
            if a != b
        ]
        if differ:
            where = f"{one.shows}; {two.paper}, {two.shows}, {row}"
            found.append(Slip(one.paper, where, "two papers", "; ".join(differ)))
    return found


def _costs() -> list[Slip]:
    """Multi-mask does all that prefix tuning of the same length does, and more."""
    found = []
    for name in ("multi-mask/table-3", "multi-mask/table-4"):
        table = published(name)
        pairs = {
            column: (
                table.printed("Multi-mask (l=5)", column).value,
                table.printed("Prefix Tuning (l=5)", column).value,
            )
            for column in table.columns
        }
        less = [f"{column} {a} and {b}" for column, (a, b) in pairs.items() if float(a) < float(b)]
        if less:
            text = (
                f"Multi-mask costs less than prefix tuning of the same length, of which it does all: {'; '.join(less)}"
            )
            found.append(Slip(table.paper, table.shows, "cost", text))
        lengths = [table.fact("SMoP (l=5)", fact) for fact in ("total prompt length", "used prompt length")]
        if lengths[0] == lengths[1]:
            text = f"total and used prompt length are both {lengths[0]}: a mixture of one prompt"
            found.append(Slip(table.paper, f"{table.shows}, SMoP", "cost", text))
    return found


def _count(table: PublishedTable, row: str, column: str) -> int:
    there = table.value(row, column)
    return 0 if there is None else int(there[0])


def _meant(there: Printed) -> tuple[str, str]:
    return there.corrected or there.value, there.corrected_std or there.std


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


def _half_unit(text: str) -> float:
    """By how much rounding can have changed a printed number."""
    return 0.5 * 10.0 ** -_decimals(text)


def _agree(one: str, two: str) -> bool:
    """Whether two prints can be of one number: equal, or the shorter the longer one rounded."""
    if _decimals(one) == _decimals(two):
        return float(one) == float(two)
    short, long = sorted((one, two), key=_decimals)
    # Rounding a half up or down, or a number that was rounded before, is no slip.
    return abs(float(one) - float(two)) <= _half_unit(short) + _half_unit(long) + 1e-9


def _cut(one: str, two: str) -> bool:
    """Whether the shorter of two prints is the longer one without its last digits."""
    short, long = sorted((one, two), key=len)
    return len(short) < len(long) and long.startswith(short)


def _digits(cells: Iterable[Printed]) -> int:
    """Decimals of most numbers."""
    counts = [_decimals(there.value) for there in cells if there.value not in _MISSING]
    return statistics.mode(counts) if counts else 1


@cache
def _headers() -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(_text("tables.yaml"))
    return found


def _lines(file: str) -> list[dict[str, str]]:
    return list(csv.DictReader(_text(file).splitlines()))


def _text(file: str) -> str:
    return resources.files("softprompts.bench").joinpath("published", file).read_text(encoding="utf-8")
