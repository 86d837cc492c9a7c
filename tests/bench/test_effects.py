"""Effects task by task: paired by seed, adjusted by Holm, stuck runs apart."""

from __future__ import annotations

import csv
import io
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
from bench.findings_on_disk import findings_of, recipe_of

from softprompts.bench.effects import EffectTable, effects, holm
from softprompts.bench.recipe import Cell
from softprompts.bench.recipe_schema import ClaimSpec
from softprompts.bench.report import write_report
from softprompts.bench.result_tables import table_of
from softprompts.bench.results import Findings
from softprompts.bench.significance import paired_difference
from softprompts.tasks import Example, Form, Task

ROWS = [
    {"name": "Base", "method": "head-only", "baseline": True},
    {"name": "Good", "method": "prefix-tuning"},
    {"name": "Same", "method": "prompt-tuning"},
]
GAINS = {"Base": [0] * 6, "Good": [3, 4, 2, 5, 3, 4], "Same": [1, -1, 0.5, -0.5, 0, 0.2]}


def found(folder: Path, **changes: object) -> Findings:
    recipe = recipe_of(rows=ROWS, seeds=[0, 1, 2, 3, 4, 5], tasks={"Films": "reviews", "Tweets": "reviews/tweets"})

    def score(cell: Cell) -> float:
        return 0.6 + cell.seed / 100 + GAINS[cell.row.name][cell.seed] / 100 * (cell.task == "Films")

    return replace(findings_of(folder, recipe, score=score), **changes)


def table(findings: Findings) -> EffectTable:
    made = effects(findings, table_of(findings))
    assert made is not None
    return made


@pytest.mark.parametrize("count", [3, 6, 11])
def test_sign_flips_are_counted_in_all_ways(count: int) -> None:
    differences = [((7 * place) % 5 - 1.3) for place in range(count)]
    ways = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in
            itertools.product((1, -1), repeat=count)]  # fmt: skip
    wanted = sum(abs(way) >= abs(sum(differences)) - 1e-9 for way in ways) / len(ways)
    ours = {("task", seed): value for seed, value in enumerate(differences)}
    assert paired_difference(ours, dict.fromkeys(ours, 0.0)).p == pytest.approx(wanted, abs=1e-12)


def test_twenty_seeds_have_an_exact_p() -> None:
    ours = {("task", seed): 1.0 for seed in range(20)}
    assert paired_difference(ours, dict.fromkeys(ours, 0.0)).p == 2 / 2**20


def test_holm_counts_all_tests_and_keeps_their_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == []


def test_effects_are_paired_by_seed_on_each_task(tmp_path: Path) -> None:
    made = table(found(tmp_path))
    assert [(one.row, one.task) for one in made.differences] == [
        ("Good", "Films"), ("Good", "Tweets"), ("Same", "Films"), ("Same", "Tweets")
    ] and {one.against for one in made.differences} == {"Base"}  # fmt: skip
    good = made.differences[0]
    assert good.difference.mean == pytest.approx(sum(GAINS["Good"]) / 6) and good.difference.pairs == 6
    assert good.difference.p == 2 / 64 and good.adjusted == pytest.approx(4 * 2 / 64)
    assert good.difference.low is not None and 2 < good.difference.low < 3.5
    assert good.verdict == "not told apart"  # of four tests, six seeds are too few
    assert made.differences[1].difference.mean == 0 and made.differences[1].adjusted == 1


def test_claims_say_what_is_compared_and_what_has_no_result_counts_for_holm(tmp_path: Path) -> None:
    findings = found(tmp_path)
    claim = ClaimSpec(says="Good is better", better="Good", than="Same")
    claimed = replace(findings, recipe=findings.recipe.model_copy(update={"claims": (claim, claim)}))
    made = table(claimed)
    assert [(one.row, one.against, one.task) for one in made.differences] == [
        ("Good", "Same", "Films"), ("Good", "Same", "Tweets")
    ]  # fmt: skip
    wanted = [good - same for good, same in zip(GAINS["Good"], GAINS["Same"], strict=True)]
    assert made.differences[0].difference.mean == pytest.approx(sum(wanted) / 6)
    assert made.differences[0].adjusted == pytest.approx(2 * 2 / 64)
    half = replace(claimed, outcomes=tuple(one for one in claimed.outcomes if one.task == "Films"))
    assert [one.adjusted for one in table(half).differences] == pytest.approx([2 * 2 / 64])


def test_stuck_and_idle_runs_are_counted_and_stand_apart(tmp_path: Path) -> None:
    findings = found(tmp_path)
    outcomes = []
    for one in findings.outcomes:
        stuck = one.task == "Films" and (one.row.name, one.seed) in (("Good", 2), ("Base", 5))
        constant = one.result["metrics"]["accuracy"] if stuck else 0.5
        more = {"constant_scores": {"accuracy": constant}, "idle": ["mask: is flat"] if one.seed < 2 else []}
        outcomes.append(replace(one, result={**one.result, **more}))
    made = table(replace(findings, outcomes=tuple(outcomes)))
    good = made.differences[0]
    assert good.stuck == (1, 1) and good.runs == (6, 6) and good.idle == 2
    assert good.difference.mean == pytest.approx(sum(GAINS["Good"]) / 6)
    assert good.free == pytest.approx((3 + 4 + 5 + 3) / 4)
    assert "| 1/1 | +3.8 | 2 of 6 |" in made.markdown() and made.html().count("<tr") == 5
    line = next(csv.DictReader(io.StringIO(made.csv())))
    assert (line["row"], line["against"], line["stuck"], line["without_stuck"]) == ("Good", "Base", "1", "3.75")
    assert math.isclose(float(line["effect"]), 3.5)


def test_the_report_has_them(tmp_path: Path) -> None:
    page = write_report(found(tmp_path), tmp_path / "report", figures=[])[0].read_text()
    assert "p (Holm)" in page
    assert page.count("Stuck: runs (of the row/of the other)") == 1


def test_without_baseline_or_seeds_there_are_none(tmp_path: Path) -> None:
    findings = found(tmp_path)
    few = replace(findings, recipe=findings.recipe.model_copy(update={"seeds": (0, 1, 2)}))
    assert effects(few, table_of(few)) is None
    rows = tuple(row.model_copy(update={"baseline": False}) for row in findings.recipe.rows)
    assert effects(replace(findings, recipe=findings.recipe.model_copy(update={"rows": rows})), table_of(few)) is None


def rows(*labels: object) -> list[Example]:
    return [Example({"text": str(index)}, label, index) for index, label in enumerate(labels)]


def test_constant_scores_of_each_kind() -> None:
    form = Form(labels=("a", "b"))
    task = Task("x", form, rows(0), rows(0, 1), rows(1, 0, 1, 1), metrics=("accuracy", "f1"))
    assert task.constant_scores("test") == pytest.approx({"accuracy": 3 / 4, "f1": 6 / 7})
    scored = Task("x", Form(kind="regression"), rows(0), rows(1.5), metrics=("pearson", "spearman"))
    assert scored.constant_scores("validation") == {"pearson": 0.0, "spearman": 0.0}
    tagged = replace(task, form=Form(kind="tagging", labels=("O", "B-X")), metrics=("seqeval_f1", "tag_accuracy"))
    assert tagged.constant_scores("test") == {"seqeval_f1": 0.0}
    assert replace(task, metrics=("string_macro_f1",)).constant_scores("test") == {}  # of what a model writes
