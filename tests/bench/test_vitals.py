"""Vitals in a bench's report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from softprompts.bench.report import write_report
from softprompts.bench.results import Findings
from softprompts.bench.vitals import idle_notes, vitals_tables
from tests.bench.findings_on_disk import findings_of, recipe_of

IDLE = "router: all rows get the <same> masks"


def findings(folder: Path) -> Findings:
    """Of multi-mask, the first seed of each task is idle; of superpos, one number is undefined."""

    def told(outcome: Any) -> Any:
        more: dict[str, Any] = {}
        if outcome.row.method == "multi-mask":
            more = {"vitals": {"routes.spread": outcome.seed / 10}, "idle": [] if outcome.seed else [IDLE]}
        if outcome.row.method == "superpos":
            more = {"vitals": {"moved.weights": 1.0 if outcome.seed else None}, "idle": []}
        return replace(outcome, result={**outcome.result, **more})

    made = findings_of(folder / "runs", recipe_of())
    return replace(made, outcomes=tuple(map(told, made.outcomes)))


def test_means_over_seeds_by_row_and_task(tmp_path: Path) -> None:
    made = findings(tmp_path)
    (table,) = vitals_tables(made)
    assert table.heads == ("row", "vital", "Films", "Products", "Tweets")
    assert table.lines == (
        ("Superpos", "moved.weights", (1.0, 1.0, 1.0)),
        ("Multi mask", "routes.spread", (pytest.approx(0.1),) * 3),
    )
    assert idle_notes(made) == [f"Multi mask: {IDLE} (3 of 9 runs)"]
    # Runs of earlier versions have none.
    old = findings_of(tmp_path / "old", recipe_of())
    assert vitals_tables(old) == [] and idle_notes(old) == []


def test_the_page_shows_them_and_names_idle_runs(tmp_path: Path) -> None:
    page = write_report(findings(tmp_path), tmp_path / "report", figures=[])[0].read_text(encoding="utf-8")
    escaped = IDLE.replace("<", "&lt;").replace(">", "&gt;")
    assert f'<li class="bad">Multi mask: {escaped} (3 of 9 runs)</li>' in page
    assert page.count(f"<td>{escaped}</td>") == 3  # in the list of runs
    assert '<th scope="row">Multi mask</th><td>routes.spread</td><td class="number" data-value="0.1' in page
    old = write_report(findings_of(tmp_path / "old", recipe_of()), tmp_path / "before", figures=[])[0]
    assert "vitals" not in old.read_text(encoding="utf-8").lower()
