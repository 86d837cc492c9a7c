"""docs/published.md: the papers' tables by our own table code, averages recomputed, slips listed."""

from __future__ import annotations

from dataclasses import replace

from softprompts.bench.published import (
    AVERAGE,
    KINDS,
    PublishedTable,
    Slip,
    published,
    published_tables,
    recomputed_average,
    slips,
)
from softprompts.bench.significance import standardized
from softprompts.bench.tables import Entry, Line, Table

_COMMAND = "python -m softprompts.bench.published_page > docs/published.md"
_INVALID = "‡"
_OFF = "!"


def rendered(table: PublishedTable) -> Table:
    """A published table in our form; the average is recomputed, and the printed one stands in brackets.

    An average that rounding does not explain has a "!".
    """
    scores = table.unit in ("", "GB", "s/100 steps")
    columns = list(table.columns)
    computes = scores and AVERAGE not in columns and len({column.partition(":")[0] for column in columns}) > 2
    if computes and all(recomputed_average(table, row) is not None for row in table.rows):
        columns.append(AVERAGE)
    lines, off = [], False
    for row in table.rows:
        entries = []
        for column in columns:
            entry = _entry(table, row, column)
            off = off or entry.mark == _OFF
            entries.append(entry)
        facts = tuple(table.fact(row, fact) for fact in table.facts)
        ranked = scores and row not in table.reference
        group = table.groups.get(row)
        lines.append(Line(_short(row, group), tuple(entries), model=group, facts=facts, ranked=ranked))
    drawn = Table(
        title=f"{table.paper}, {table.shows}: {table.title}",
        columns=tuple(columns),
        lines=tuple(lines),
        facts=table.facts,
        higher_is_better=table.higher_is_better,
        digits=table.digits,
        legend=False,
    )
    notes = [f"{table.setting[0].upper()}{table.setting[1:]}."]
    if drawn.ranks():
        unranked = "; rows for reference are not ranked" if table.reference else ""
        notes.append(f"Best of a column in bold, second underlined{unranked}.")
    if AVERAGE in columns:
        own = " In brackets: the average as printed." if AVERAGE in table.columns else " The paper prints no average."
        two = " Two metrics of a task are averaged first." if any(":" in column for column in columns) else ""
        notes.append(f"Average: recomputed from the row.{two}{own}")
    if off:
        notes.append(f"{_OFF} The printed average is not the mean of the row, whatever the rounding.")
    if any(there.printed_as == "invalid labels" for there in table.cells.values()):
        notes.append(f"{_INVALID} The model did not always write a label, and the paper counts the task as 0.")
    return replace(drawn, notes=(*notes, *table.notes))


def page() -> str:
    """All of docs/published.md."""
    found = slips()
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
        parts.append(_list([slip for slip in found if slip.kind == kind]))
    parts.append("## The tables")
    for name in published_tables():
        parts += [f"### {name}", rendered(published(name)).markdown().rstrip()]
        if name == "superpos/table-2":
            parts.append(_remade().markdown().rstrip())
    return "\n\n".join(parts) + "\n"


def standardized_table() -> Table:
    """SuperPos's Table 2 made from its Table 1, the printed numbers in brackets."""
    return _remade()


def _remade() -> Table:
    scores, printed = published("superpos/table-1"), published("superpos/table-2")
    whole = rendered(scores)
    overall = standardized(replace(whole, lines=tuple(line for line in whole.lines if line.entries[0].scores)))
    lines = []
    for row in printed.rows:
        entries = []
        for model in printed.columns:
            own, known = overall[model, row], printed.value(row, model)
            entries.append(
                Entry(
                    (own.mean,),
                    known_std=own.std,
                    published=None if known is None else known[0],
                    published_std=None if known is None else known[1],
                )
            )
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


def _entry(table: PublishedTable, row: str, column: str) -> Entry:
    if column == AVERAGE:
        mean = recomputed_average(table, row)
        if mean is None:
            return Entry()
        known = table.value(row, column) if column in table.columns else None
        off = known is not None and abs(known[0] - mean[0]) > mean[1] + 1e-9
        own = table.printed(row, column).value if column in table.columns else ""
        digits = max(table.digits, len(own.partition(".")[2]))
        return Entry(
            (mean[0],),
            printed=f"{mean[0]:.{digits}f}",
            published=None if known is None else known[0],
            published_std=None if known is None else known[1],
            mark=_OFF if off else "",
        )
    value = table.value(row, column)
    if value is None:
        return Entry()
    mark = _INVALID if table.printed(row, column).printed_as == "invalid labels" else ""
    there = table.printed(row, column)
    return Entry(
        (value[0],),
        known_std=value[1],
        mark=mark,
        printed=there.corrected or there.value,
        printed_std=there.corrected_std or there.std or None,
    )


def _short(row: str, group: str | None) -> str:
    """A row's name without the model that stands above it."""
    return row.removesuffix(f" ({group})") if group is not None else row


def _counts() -> str:
    checked = [
        (name, row)
        for name in published_tables()
        for row in published(name).rows
        if AVERAGE in published(name).columns and recomputed_average(published(name), row) is not None
    ]
    off = sum(entry.mark == _OFF for line in _lines_drawn() for entry in line.entries)
    return f"{len(checked)} printed averages were recomputed; {off} are off."


def _lines_drawn() -> list[Line]:
    return [line for name in published_tables() for line in rendered(published(name)).lines]


def _list(found: list[Slip]) -> str:
    return "\n".join(f"- {slip.paper}, {slip.where}: {slip.text}." for slip in found) or "None."


if __name__ == "__main__":
    print(page(), end="")
