"""Slips in the papers' tables: numbers that do not agree with each other, found by arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from softprompts.bench.column_names import AVERAGE
from softprompts.bench.published import (
    MISSING,
    PublishedTable,
    decimals,
    half_unit,
    published,
    published_tables,
    read_csv,
    recomputed_average,
)

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
    listed: list[Slip] = []
    for table in tables:
        listed += _averages(table)
        listed += _printed_marks(table)
        for name in table.same:
            listed += _two_tables(table, published(name))
    listed += _garbled(tables)
    listed += _claims()
    listed += _sizes()
    listed += _costs()
    return tuple(listed)


def _averages(table: PublishedTable) -> list[Slip]:
    """Printed averages that no rounding explains."""
    listed: list[Slip] = []
    if AVERAGE not in table.columns:
        return listed
    for row in table.rows:
        cell, mean = table.printed(row, AVERAGE), recomputed_average(table, row)
        if cell.value in MISSING or mean is None:
            continue
        if abs(float(cell.value) - mean[0]) > mean[1] + 1e-9:
            text = f"average printed as {cell.value}, the mean of the row is {mean[0]:.2f}"
            listed.append(Slip(table.paper, f"{table.shows}, {row}", "average", text))
    if listed:
        listed += _order(table)
    return listed


def _order(table: PublishedTable) -> list[Slip]:
    """Whether other rows are the best two by the recomputed averages, rows for reference aside."""
    both = {
        row: (value[0], mean[0])
        for row in table.rows
        if row not in table.reference
        and (value := table.value(row, AVERAGE)) is not None
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
    listed = []
    for row in table.rows:
        other_row = table.same_rows.get(row, row)
        if other_row not in other.rows:
            continue
        differ = []
        for column in table.columns:
            name = table.same_columns.get(column, column)
            if name not in other.columns:
                continue
            here, again = table.printed(row, column), other.printed(other_row, name)
            for what, one, two in (
                ("", here.meant, again.meant),
                ("standard deviation of ", here.meant_std, again.meant_std),
            ):
                if one in MISSING or two in MISSING or _agree(one, two):
                    continue
                how = " (cut off, not rounded)" if _cut(one, two) else ""
                differ.append(f"{what}{column} {one} and {two}{how}")
        if differ:
            where = f"{table.shows} and {other.shows}, {row}"
            listed.append(Slip(table.paper, where, "two tables", "; ".join(differ)))
    return listed


def _printed_marks(table: PublishedTable) -> list[Slip]:
    """Numbers in bold that are not the best of their column, rows for reference aside."""
    listed = []
    for column in table.columns:
        values = {
            row: value[0]
            for row in table.rows
            if row not in table.reference and (value := table.value(row, column)) is not None
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
            listed.append(Slip(table.paper, f"{table.shows}, {column}, {wrong[0]}", "marks", text))
        elif len(bold) < len(best):
            others = ", ".join(row for row in best if row not in bold)
            text = f"{top:g} is in bold, {others} has the same number and is not"
            listed.append(Slip(table.paper, f"{table.shows}, {column}, {bold[0]}", "marks", text))
    return listed


def _garbled(tables: Iterable[PublishedTable]) -> list[Slip]:
    """Prints that were corrected."""
    listed = []
    for table in tables:
        for (row, column), cell in table.cells.items():
            if cell.corrected:
                text = (
                    f"printed as {cell.value} ({cell.std}), read here as {cell.corrected} ({cell.corrected_std}): "
                    "a digit has gone into the subscript"
                )
                listed.append(Slip(table.paper, f"{table.shows}, {row}, {column}", "garbled", text))
    return listed


def _claims() -> list[Slip]:
    """Sentences about two numbers of a table that these do not bear out."""
    listed = []
    claims = read_csv(Path(__file__).with_name("claims.csv"))
    for claim in claims:
        table = published(claim["table"])
        numbers = [table.printed(claim[row], claim["column"]).meant for row in ("row", "against")]
        ours, theirs = map(float, numbers)
        halves = [half_unit(text) for text in numbers]
        where = f"{table.shows}, {claim['column']}"
        pair = f"{claim['row']} has {numbers[0]}, {claim['against']} {numbers[1]}"
        if claim["operation"] == "above":
            if ours <= theirs:
                listed.append(Slip(claim["paper"], where, "claim", f"{claim['text']}: {pair}"))
            continue
        printed = float(claim["printed"])
        ways = {
            "difference": (ours - theirs, sum(halves)),
            "percent": (100 * (ours / theirs - 1), 100 * sum(halves) / theirs),
            "times": (ours / theirs, ours / theirs * (halves[0] / ours + halves[1] / theirs)),
        }
        value, slack = ways[claim["operation"]]
        if abs(value - printed) <= slack + half_unit(claim["printed"]) + 1e-9:
            continue
        unit = {"percent": " %", "times": " times", "difference": ""}[claim["operation"]]
        text = f"{claim['text']}: {pair}, which is {value:.2f}{unit}"
        points, slack = ways["difference"]
        if claim["operation"] == "percent" and abs(points - printed) <= slack + half_unit(claim["printed"]) + 1e-9:
            text += f" and {points:.2f} points"
        if claim["operation"] == "percent" and claim["column"] == AVERAGE:
            percentages = [float(other["printed"]) for other in claims if _of_a_task(other, claim)]
            if percentages and abs(statistics.fmean(percentages) - printed) <= half_unit(claim["printed"]) + 1e-9:
                text += f"; {printed} is the mean of the {len(percentages)} tasks' own percentages"
        listed.append(Slip(claim["paper"], where, "claim", text))
    return listed


def _of_a_task(claim: Mapping[str, str], of_average: Mapping[str, str]) -> bool:
    """Whether a claim says of one task what another says of the average."""
    shared = ("table", "row", "against", "operation")
    return claim["column"] != AVERAGE and all(claim[key] == of_average[key] for key in shared)


def _sizes() -> list[Slip]:
    """Datasets that two papers give different sizes for; what one calls validation rows, the other has split in two."""
    listed = []
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
            listed.append(Slip(one.paper, where, "two papers", "; ".join(differ)))
    return listed


def _costs() -> list[Slip]:
    """Multi-mask does all that prefix tuning of the same length does, and more."""
    listed = []
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
            listed.append(Slip(table.paper, table.shows, "cost", text))
        lengths = [table.fact("SMoP (l=5)", fact) for fact in ("total prompt length", "used prompt length")]
        if lengths[0] == lengths[1]:
            text = f"total and used prompt length are both {lengths[0]}: a mixture of one prompt"
            listed.append(Slip(table.paper, f"{table.shows}, SMoP", "cost", text))
    return listed


def _count(table: PublishedTable, row: str, column: str) -> int:
    value = table.value(row, column)
    return 0 if value is None else int(value[0])


def _agree(one: str, two: str) -> bool:
    """Whether two prints can be of one number: equal, or the shorter the longer one rounded."""
    if decimals(one) == decimals(two):
        return float(one) == float(two)
    short, long = sorted((one, two), key=decimals)
    # Rounding a half up or down, or a number that was rounded before, is no slip.
    return abs(float(one) - float(two)) <= half_unit(short) + half_unit(long) + 1e-9


def _cut(one: str, two: str) -> bool:
    """Whether the shorter of two prints is the longer one without its last digits."""
    short, long = sorted((one, two), key=len)
    return len(short) < len(long) and long.startswith(short)
