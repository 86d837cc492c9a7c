"""Verdicts of claims by made-up effects and results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from bench.kept_results import RECIPE, keep, scores, study

from softprompts.bench.effects import Effect
from softprompts.bench.results import kept_findings
from softprompts.bench.significance import paired_difference
from softprompts.bench.verdicts import (
    FAILS,
    HOLDS,
    MISSING,
    OPEN,
    Statement,
    TaskVerdict,
    claim_verdict,
    overall,
    seeds_needed,
    statements,
    task_verdict,
)
from softprompts.errors import SoftPromptError

BETTER = [1.0, 1.5, 0.8, 1.2, 0.9, 1.1, 1.3, 0.7, 1.4, 1.0, 1.1, 0.9]
NOTHING = [0.1, -0.1, 0.2, -0.2, 0.0, 0.1, -0.1, 0.1, -0.2, 0.0, 0.2, -0.1]
WIDE = [4.0, -3.0, 2.0, 5.0, -4.0, 1.0, 3.0, -2.0, 4.0, -1.0, 2.0, 1.0]


def effect(
    differences: Sequence[float],
    *,
    adjusted: float | None = None,
    stuck: tuple[int, int] = (0, 0),
    runs: int | None = None,
    idle: int = 0,
) -> Effect:
    ours = {("task", seed): value for seed, value in enumerate(differences)}
    d = paired_difference(ours, dict.fromkeys(ours, 0.0))
    count = len(differences) if runs is None else runs
    adjusted = d.p if adjusted is None else adjusted
    return Effect("Ours", "Theirs", "T", None, d, adjusted, stuck, (count, count), d.mean, idle)


@pytest.mark.parametrize(
    ("given", "verdict", "why"),
    [
        (effect(BETTER), HOLDS, "better"),
        (effect([-one for one in BETTER]), FAILS, "worse"),
        (effect(BETTER, adjusted=0.2), OPEN, "too few seeds"),  # Holm has the last word
        (effect([-one for one in BETTER], adjusted=0.2), FAILS, "less than 0.5 points"),
        (effect(NOTHING), FAILS, "less than 0.5 points"),
        (effect(WIDE), OPEN, "too few seeds"),
        (effect(NOTHING, idle=6), OPEN, "a part of the method did not act"),
        (effect(NOTHING, idle=5), FAILS, "less than 0.5 points"),
        (effect(BETTER, idle=12), HOLDS, "better"),
        (effect([0.0] * 12, stuck=(12, 6)), OPEN, "runs of both are stuck"),
        (effect(BETTER, stuck=(0, 12)), HOLDS, "better"),  # a row that is never stuck is better than one that is
        (effect(BETTER[:7]), MISSING, "7 of 12 seeds"),
        (effect(BETTER[:2], runs=12), OPEN, "too few runs have a score"),
        (None, MISSING, "3 of 12 seeds"),
    ],
)
def test_the_rule_on_a_task(given: Effect | None, verdict: str, why: str) -> None:
    told = task_verdict("T", given, 0.5, 12, done=3)
    assert (told.verdict, told.why) == (verdict, why)
    assert (told.seeds is None) == (why != "too few seeds")


def test_runs_that_all_diverged_are_not_missing() -> None:
    assert task_verdict("T", None, 0.5, 12, done=12).verdict == OPEN


@pytest.mark.parametrize(
    ("verdicts", "wanted"),
    [
        ([HOLDS, HOLDS, HOLDS, OPEN, FAILS], HOLDS),
        ([HOLDS, HOLDS, HOLDS, MISSING, MISSING], HOLDS),
        ([HOLDS, HOLDS, OPEN, OPEN], OPEN),
        ([HOLDS, HOLDS, FAILS, FAILS], FAILS),  # it cannot hold on more than half any more
        ([HOLDS, HOLDS, FAILS, FAILS, OPEN], OPEN),
        ([HOLDS, HOLDS, OPEN, FAILS, MISSING], MISSING),
        ([FAILS, FAILS, FAILS, MISSING, MISSING], FAILS),
        ([MISSING], MISSING),
        ([], MISSING),
    ],
)
def test_the_rule_over_tasks(verdicts: list[str], wanted: str) -> None:
    assert overall(verdicts) == wanted


def test_a_claim_is_all_of_its_statements() -> None:
    def claim(*verdicts: str) -> str:
        return claim_verdict([Statement("", "A", "B", None, (TaskVerdict("T", one, ""),), None) for one in verdicts])

    assert claim(HOLDS, HOLDS) == HOLDS and claim(HOLDS, OPEN) == OPEN
    assert claim(HOLDS, OPEN, MISSING) == MISSING and claim(HOLDS, MISSING, FAILS) == FAILS and claim() == MISSING


def test_so_many_seeds_decide_in_four_of_five_cases() -> None:
    draw = np.random.default_rng(0)
    few = effect(draw.normal(1.5, 4, 12).tolist()).difference
    assert few.mean is not None and few.low is not None and few.high is not None
    spread = (few.high - few.low) / 2 / 1.959964 * math.sqrt(12)
    z = NormalDist().inv_cdf
    assert few.mean > 0.5
    reach = few.mean / (z(1 - 0.025 / 5) + z(0.8))
    assert seeds_needed(few, 0.5, 5) == math.ceil((spread / reach) ** 2)
    # By trial: the share of samples of that size whose mean is told from zero at 0.05.
    mean, std = 1.0, 3.0
    known = effect((mean + std * (lambda x: (x - x.mean()) / x.std())(draw.normal(size=400))).tolist()).difference
    count = round((std / (mean / (z(0.975) + z(0.8)))) ** 2)
    assert seeds_needed(known, 0.5) == 401 and 60 < count < 80  # never fewer than there are
    samples = draw.normal(mean, std, (4000, count))
    told = samples.mean(1) > 1.96 * samples.std(1, ddof=1) / math.sqrt(count)
    assert 0.75 < told.mean() < 0.85
    assert seeds_needed(effect([1.0, 2.0]).difference, 0.5) is None


def test_kept_results_are_judged(tmp_path: Path) -> None:
    recipe = study(tmp_path)
    kept = keep(recipe, scores({"Base": 0, "Good": 3, "Same": 0}))
    found = kept_findings(recipe)
    assert (len(found.outcomes), len(found.searched), found.missing) == (48, 18, 0) and kept == 66
    judged, made = statements(found)
    assert [one.verdict for one in judged] == [HOLDS, FAILS, HOLDS] and made is not None and len(made.differences) == 6
    mean = judged[0].mean
    assert mean is not None and mean.pairs == 8
    by_seed = {
        seed: sum(
            (1 if one.row.name == "Good" else -1) * 100 * one.result["score"] / 2
            for one in found.outcomes
            if one.seed == seed and one.row.name in ("Good", "Base")
        )
        for seed in range(8)
    }
    assert mean.mean == pytest.approx(sum(by_seed.values()) / 8)


def test_what_is_there_is_judged_and_what_is_not_is_said(tmp_path: Path) -> None:
    recipe = study(tmp_path)
    assert [one.verdict for one in statements(kept_findings(recipe))[0]] == [MISSING] * 3
    keep(recipe, scores({"Base": 0, "Good": 3, "Same": 0}), ended=lambda c: c.task == "Films" or c.seed in (0, 1000))
    found = kept_findings(recipe)
    assert found.missing == 21 and len(found.searched) == 18
    judged, _ = statements(found)
    assert [one.verdict for one in judged[0].tasks] == [HOLDS, MISSING] and judged[0].verdict == MISSING


def test_kept_runs_of_other_rows_are_refused(tmp_path: Path) -> None:
    keep(study(tmp_path), scores({"Base": 0, "Good": 3, "Same": 0}))
    rows = [*RECIPE["rows"][:2], {"name": "Other", "method": "prompt-tuning"}]
    with pytest.raises(SoftPromptError, match=r"runs[.]jsonl is not of this recipe .* collect its results again"):
        kept_findings(study(tmp_path, rows=rows, claims=[]))


def test_a_claim_of_no_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="claims speak of row 'Prefix'"):
        study(tmp_path, claims=[{"says": "It helps", "better": "Prefix", "than": "Base"}])
