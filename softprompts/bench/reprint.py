"""Published tables in the form of our own: numbers as they are printed, averages recomputed."""

from __future__ import annotations

from dataclasses import replace

from softprompts.bench.column_names import AVERAGE
from softprompts.bench.published import PublishedTable, decimals, recomputed_average
from softprompts.bench.tables import Line, Table, TableEntry

_INVALID = "‡"
OFF = "!"  # behind a printed average that rounding does not explain


def reprint(table: PublishedTable) -> Table:
    """A published table in our form; the average is recomputed, and the printed one stands in brackets."""
    scores = table.unit in ("", "GB", "s/100 steps")
    columns = list(table.columns)
    has_tasks = scores and AVERAGE not in columns and len({column.partition(":")[0] for column in columns}) > 2
    if has_tasks and all(recomputed_average(table, row) is not None for row in table.rows):
        columns.append(AVERAGE)
    lines = []
    for row in table.rows:
        group = table.groups.get(row)
        name = row if group is None else row.removesuffix(f" ({group})")  # the model stands above it
        entries = tuple((_average if column == AVERAGE else _entry)(table, row, column) for column in columns)
        facts = tuple(table.fact(row, fact) for fact in table.facts)
        lines.append(Line(name, entries, model=group, facts=facts, ranked=scores and row not in table.reference))
    reprinted = Table(
        title=f"{table.paper}, {table.shows}: {table.title}",
        columns=tuple(columns),
        lines=tuple(lines),
        facts=table.facts,
        higher_is_better=table.higher_is_better,
        digits=table.digits,
        legend=False,
    )
    notes = [f"{table.setting[0].upper()}{table.setting[1:]}."]
    if reprinted.ranks():
        unranked = "; rows for reference are not ranked" if table.reference else ""
        notes.append(f"Best of a column in bold, second underlined{unranked}.")
    if AVERAGE in columns:
        printed = (
            " In brackets: the average as printed." if AVERAGE in table.columns else " The paper prints no average."
        )
        two = " Two metrics of a task are averaged first." if any(":" in column for column in columns) else ""
        notes.append(f"Average: recomputed from the row.{two}{printed}")
    if any(entry.mark == OFF for line in lines for entry in line.entries):
        notes.append(f"{OFF} The printed average is not the mean of the row, whatever the rounding.")
    if any(cell.printed_as == "invalid labels" for cell in table.cells.values()):
        notes.append(f"{_INVALID} The model did not always write a label, and the paper counts the task as 0.")
    return replace(reprinted, notes=(*notes, *table.notes))


def _average(table: PublishedTable, row: str, column: str) -> TableEntry:
    mean = recomputed_average(table, row)
    if mean is None:
        return TableEntry()
    has_column = column in table.columns
    value = table.value(row, column) if has_column else None
    digits = max(table.digits, decimals(table.printed(row, column).value) if has_column else 0)
    mark = OFF if value is not None and abs(value[0] - mean[0]) > mean[1] + 1e-9 else ""
    return TableEntry((mean[0],), printed=f"{mean[0]:.{digits}f}", mark=mark).beside(table, row, column)


def _entry(table: PublishedTable, row: str, column: str) -> TableEntry:
    value, cell = table.value(row, column), table.printed(row, column)
    if value is None:
        return TableEntry()
    return TableEntry(
        (value[0],),
        known_std=value[1],
        mark=_INVALID if cell.printed_as == "invalid labels" else "",
        printed=cell.meant,
        printed_std=cell.meant_std or None,
    )
