"""What a bench ends in: its tables in four forms, and the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from softprompts.bench.report import compared_of, write_report
from softprompts.bench.results import load_findings
from softprompts.bench.tables import Table
from softprompts.bench.tabulate import tables_of
from softprompts.errors import SoftPromptError
from softprompts.files import require_folder, write_text_atomic


@dataclass(frozen=True)
class Outputs:
    """What was written.

    Attributes:
        tables: the tables.
        files: what was written.
    """

    tables: tuple[Table, ...]
    files: tuple[Path, ...]


def write_outputs(folder: str | Path, root: str | Path) -> Outputs:
    """Writes tables (Markdown, CSV, LaTeX, HTML) and report of what a bench has so far.

    Args:
        folder: the bench's folder.
        root: where run folders live.

    Raises:
        SoftPromptError: there is no bench, or no run of it has ended.
    """
    folder = Path(folder)
    require_folder(folder, "the report")
    findings = load_findings(folder, root)
    if not findings.outcomes:
        raise SoftPromptError(f"{folder}: no run of this bench has ended yet, so there is nothing to show")
    tables = tables_of(findings)
    compared = compared_of(findings, tables)
    forms = {
        "md": "\n\n".join([*(table.markdown() for table in tables), *(one.markdown() for one in compared)]),
        "tex": "\n\n".join(table.latex() for table in tables),
        "html": "\n".join(table.html() for table in tables),
    }
    texts = {f"tables.{ending}": text for ending, text in forms.items()}
    for number, table in enumerate(tables, start=1):
        texts["tables.csv" if number == 1 else f"tables-{number}.csv"] = table.csv()
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    files = [folder / name for name in texts]
    return Outputs(tables, (*files, *write_report(findings, folder, tables=tables, compared=compared)))
