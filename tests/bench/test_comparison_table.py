"""A comparison of methods as LaTeX, with the differences between its methods."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from softprompts.bench.comparison_table import (
    comparison_significance,
    comparison_table,
    differences_in_words,
    write_latex,
)
from softprompts.bench.significance import paired_difference
from softprompts.experiments.compare import Comparison, Row

SEEDS = tuple(range(8))
HIGH = Row("multi-mask", tuple(0.9 + seed / 1000 for seed in SEEDS), 1000, 100_000, 2.0, 3, seeds=SEEDS)
LOW = Row("head-only", tuple(0.7 + seed / 1000 * (-1) ** seed for seed in SEEDS), 500, 100_000, 1.0, 2, seeds=SEEDS)
FAILED = Row("superpos", (), 700, 100_000, math.nan, 1)
TABLE = Comparison("my_task", "a/model", "accuracy", 400, True, (LOW, HIGH, FAILED))


def test_the_table_has_the_scores_by_seed() -> None:
    low, high, failed = comparison_table(TABLE).lines
    assert high.entries[0].seeds == SEEDS and high.entries[0].scores[1] == 100 * HIGH.scores[1]
    assert low.facts == ("500", "0.500") and failed.entries[0].failed


def test_differences_are_those_of_a_bench() -> None:
    first, failed = comparison_significance(TABLE).differences
    ours, theirs = ({("t", s): 100 * score for s, score in zip(SEEDS, row.scores, strict=True)} for row in (LOW, HIGH))
    wanted = paired_difference(ours, theirs, "head-only", "multi-mask")
    assert replace(first, model=None) == wanted and first.verdict == "worse" and first.p == 2 / 2**8
    assert failed.verdict == "too few pairs"
    lines = differences_in_words(TABLE)
    assert lines[0].startswith("head-only against multi-mask: -2") and lines[0].endswith("p 0.008, 8 seeds): worse")
    assert lines[1] == "superpos against multi-mask: too few pairs (0) to tell them apart"


def test_pairs_are_of_the_same_seed() -> None:
    other = replace(LOW, scores=LOW.scores[1:], seeds=SEEDS[1:])
    (one, _) = comparison_significance(replace(TABLE, rows=(other, HIGH, FAILED))).differences
    assert one.pairs == 7


def test_latex_has_both_tables(tmp_path: Path) -> None:
    text = write_latex(TABLE, tmp_path / "table.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert r"my\_task (accuracy)" in text and r"$\mathbf{90.4}_{0.2}$" in text and "failed" in text
    assert r"accuracy x 100 on 400 held-out rows." in text and "significance" in text
    assert r"head-only & multi-mask & $-$20.4 & $-$20.9 to $-$20.1 & 0.008 &" in text and "worse" in text
    alone = write_latex(replace(TABLE, rows=(FAILED,)), tmp_path / "alone.tex").read_text()
    assert alone.count(r"\begin{table}") == 1
