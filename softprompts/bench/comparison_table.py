"""A comparison of methods on one task in the forms of a bench: as LaTeX, with the differences between methods."""

from __future__ import annotations

from pathlib import Path

from softprompts.bench.significance import Significance, p_text, significance
from softprompts.bench.tables import Line, Table, TableEntry
from softprompts.experiments.compare import Comparison
from softprompts.storage.files import write_text_atomic


def comparison_table(comparison: Comparison) -> Table:
    """The comparison as a table: a line for each method, a column for the score."""
    lines = [
        Line(
            row.method,
            (TableEntry(tuple(100 * score for score in row.scores), row.seeds, failed=not row.scores),),
            facts=(f"{row.trained:,}", f"{100 * row.trained / row.total:.3f}"),
        )
        for row in comparison.rows
    ]
    return Table(
        f"{comparison.model} on {comparison.task}",
        (f"{comparison.task.replace(':', ' ')}:{comparison.metric}",),
        tuple(lines),
        facts=("trained", "% of model"),
        notes=(f"{comparison.score_in_words()}.",),
    )


def comparison_significance(comparison: Comparison) -> Significance:
    """The difference of each method to the one with the best mean, over seeds that both have."""
    return significance(comparison_table(comparison))


def differences_in_words(comparison: Comparison) -> list[str]:
    """A line for each method: how far it is from the best, and whether they are told apart."""
    lines = []
    for one in comparison_significance(comparison).differences:
        what = f"{one.line} against {one.against}"
        if one.mean is None or one.low is None or one.high is None:
            lines.append(f"{what}: {one.verdict} ({one.pairs}) to tell them apart")
            continue
        interval = f"95 % interval {one.low:+.1f} to {one.high:+.1f}, p {p_text(one.p)}, {one.pairs} seeds"
        lines.append(f"{what}: {one.mean:+.1f} ({interval}): {one.verdict}")
    return lines


def write_latex(comparison: Comparison, path: Path) -> Path:
    """Writes both tables, to be used with the package booktabs."""
    parts = comparison_table(comparison).latex(), comparison_significance(comparison).latex()
    write_text_atomic(path, "\n".join(filter(None, parts)))
    return path
