"""Prints docs/published.md: the papers' tables by our own table code, averages recomputed, slips listed."""

from __future__ import annotations

from dataclasses import replace

from slips import KINDS, Slip, slips

from softprompts.bench.column_names import AVERAGE
from softprompts.bench.published import published, published_tables, recomputed_average
from softprompts.bench.reprint import OFF, reprint
from softprompts.bench.significance import standardized
from softprompts.bench.tables import Line, Table, TableEntry

_COMMAND = "python docs/tools/published_page.py > docs/published.md"


def page() -> str:
    """All of docs/published.md."""
    listed = slips()
    parts = [
        "# The papers' tables, recomputed",
        f"Made by `{_COMMAND}` from the numbers in `softprompts/bench/published/`; a test keeps it up to date. "
        "Tables are drawn by the same code as those of our own benches (`softprompts.bench.tables`); numbers stand as "
        "they are printed, standard deviations as subscripts.",
        "## What does not agree",
        "Found by arithmetic from the tables. An average is listed where it is further from the mean of its row than "
        "all rounding can put it: half a unit of the last digit of the average, and of each number in the row.",
        _counts(),
    ]
    for kind, heading in KINDS.items():
        parts.append(f"### {heading}")
        parts.append(_list([slip for slip in listed if slip.kind == kind]))
    parts.append("## The tables")
    for name in published_tables():
        parts += [f"### {name}", reprint(published(name)).markdown().rstrip()]
        if name == "superpos/table-2":
            parts.append(standardized_table().markdown().rstrip())
    return "\n\n".join(parts) + "\n"


def standardized_table() -> Table:
    """SuperPos's Table 2 made from its Table 1, the printed numbers in brackets."""
    scores, printed = published("superpos/table-1"), published("superpos/table-2")
    whole = reprint(scores)
    overall = standardized(replace(whole, lines=tuple(line for line in whole.lines if line.entries[0].scores)))
    lines = []
    for row in printed.rows:
        entries = []
        for model in printed.columns:
            score = overall[model, row]
            entries.append(TableEntry((score.mean,), known_std=score.std).beside(printed, row, model))
        lines.append(Line(row, tuple(entries), ranked=row not in printed.reference))
    return Table(
        title="SuperPos, Table 2, made from the numbers of Table 1",
        columns=printed.columns,
        lines=tuple(lines),
        notes=(
            "In brackets: as printed. A task's scores are put on a scale from 0 (the worst of all rows of Table 1, "
            "both sizes together and without ATTEMPT) to 100 (the best); mean over thirteen tasks and their "
            "population standard deviation as a subscript.",
        ),
        legend=False,
    )


def _counts() -> str:
    checked = [
        (name, row)
        for name in published_tables()
        for row in published(name).rows
        if AVERAGE in published(name).columns and recomputed_average(published(name), row) is not None
    ]
    off = sum(entry.mark == OFF for line in _lines() for entry in line.entries)
    return f"{len(checked)} printed averages were recomputed; {off} are off."


def _lines() -> list[Line]:
    return [line for name in published_tables() for line in reprint(published(name)).lines]


def _list(listed: list[Slip]) -> str:
    return "\n".join(f"- {slip.paper}, {slip.where}: {slip.text}." for slip in listed) or "None."


if __name__ == "__main__":
    print(page(), end="")
