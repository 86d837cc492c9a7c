"""Differences from the paper: where they are printed, and which published numbers have a dagger."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from softprompts.bench.differences import setting_notes
from softprompts.bench.recipe import Recipe
from softprompts.bench.recipe_file import load_recipe, read_recipe
from softprompts.bench.result_tables import table_of, tables_of
from softprompts.bench.tables import Table
from softprompts.errors import SoftPromptError
from tests.bench.findings_in_memory import PLAIN, findings, recipe

TESTED = {"test_metrics": {"accuracy": 0.8}}


def rows(**changes: Any) -> list[dict[str, Any]]:
    """The rows of `PLAIN` with what is changed in the second."""
    return [PLAIN["rows"][0], {**PLAIN["rows"][1], **changes}]


def table(made: Recipe, **result: Any) -> Table:
    return table_of(findings(made, lambda *_: {**TESTED, **result}))


def daggers(shown: Table) -> dict[tuple[str, str], bool]:
    """By line and column, whether a published number is marked as one of another setting."""
    lines = csv.DictReader(io.StringIO(shown.csv()))
    return {(line["line"], line["column"]): line["same_setting"] == "false" for line in lines if line["published"]}


def test_a_difference_of_the_recipe_marks_every_published_number() -> None:
    made = recipe(published="multi-mask/table-1", differences=["plain batches, no buckets"])
    shown = table(made)
    assert set(daggers(shown).values()) == {True}
    (note,) = [note for note in shown.all_notes() if note.startswith("Differs")]
    assert note == "Differs from what was published: plain batches, no buckets."
    for form in (shown.markdown(), shown.latex(), shown.html()):
        assert "plain batches, no buckets." in form
    assert "Published in another setting: see the lines below." in shown.markdown()
    assert not any(daggers(table(recipe(published="multi-mask/table-1"))).values())


def test_a_difference_of_a_row_marks_its_numbers_and_their_average_only() -> None:
    made = recipe(published="multi-mask/table-1", rows=rows(differences=["positions are kept."]))
    shown = daggers(table(made))
    assert {line for (line, _), marked in shown.items() if marked} == {"Prefix Tuning (l=20)"}
    assert not any(marked for (line, _), marked in shown.items() if line == "Fine-tuning")
    assert setting_notes(made) == ("Differs from what was published, Prefix Tuning (l=20): positions are kept.",)
    text = table(made).markdown()
    assert "(78.8<sub>0.1</sub>†)" in text and "(81.9<sub>0.1</sub>)" in text


def test_a_difference_on_one_task_marks_that_column_and_the_average() -> None:
    whole = {name: f"super_glue/{name.lower()}" for name in ("BoolQ", "COPA", "MultiRC", "RTE", "WiC")}
    tasks = {**whole, "CB": {"task": "super_glue/cb", "differences": ["its rows are others"]}}
    made = recipe(published="multi-mask/table-1", tasks=tasks, rows=rows())
    score = {"test_metrics": dict.fromkeys(("accuracy", "string_macro_f1"), 0.5)}
    shown = daggers(table(made, **score))
    assert {column for (_, column), marked in shown.items() if marked} == {"CB", "Average"}
    assert setting_notes(made) == ("Differs from what was published, all rows (CB): its rows are others.",)
    # Of one row on one task: the average of that row alone.
    made = recipe(published="multi-mask/table-1", tasks=whole | {"CB": "super_glue/cb"}, rows=rows(
        tasks={"RTE": {"differences": ["x"]}}
    ))  # fmt: skip
    marked = {place for place, one in daggers(table(made, **score)).items() if one}
    assert marked == {("Prefix Tuning (l=20)", "RTE"), ("Prefix Tuning (l=20)", "Average")}


def test_places_are_told_in_words() -> None:
    dense = {"differences": ["the dense layer trains"]}
    row = {"method": "prefix-tuning", "models": {"A": {}, "B": {"tasks": {"BoolQ": dense}}}}
    grid = {"name": "Grid", "method": "prefix-tuning", "grid": {"num_virtual_tokens": [1, 2]}}
    plain = {
        **PLAIN,
        "models": {"A": "a", "B": "b"},
        "rows": [
            {"name": "One", **row},
            {"name": "Two", **row, "differences": ["start"]},
            {**grid, "differences": ["start", "only here"]},
            {"name": "Other", "method": "head-only", "models": ["A"], "only_tasks": ["CB"]},
        ],
    }
    assert set(setting_notes(read_recipe(plain, name="r", same_setting=True))) == {
        "Differs from what was published, One, Two on B (BoolQ): the dense layer trains.",
        "Differs from what was published, Two, Grid: start.",
        "Differs from what was published, Grid: only here.",
    }


def test_what_is_not_stated_is_printed_and_marks_nothing() -> None:
    made = recipe(published="multi-mask/table-1", unstated=["seeds: three", "batch: 32"])
    shown = table(made)
    assert "Not stated in the paper, taken here: seeds: three; batch: 32." in shown.all_notes()
    assert not any(daggers(shown).values())


def test_scales_on_other_models_say_that_instead(tmp_path: Path) -> None:
    base = {**PLAIN, "differences": ["one"], "unstated": ["u"], "rows": rows(differences=["of a row"])}
    scales = {"small": {"differences": ["two"]}}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**base, "scales": scales}))
    assert setting_notes(load_recipe(path, "small")) == ()
    assert len(setting_notes(load_recipe(path, "paper"))) == 3
    # What is changed for once adds lines.
    assert load_recipe(path, "paper", {"differences": ["three"]}).differences == ("one", "three")
    assert len(setting_notes(load_recipe(path, "paper", {"rows": {"*": {"differences": ["four"]}}}))) == 4


def test_scores_on_other_rows_than_the_published_ones_are_marked() -> None:
    made = recipe(published="multi-mask/table-1")
    outcome = findings(made, lambda label, task, *_: {
        "test_rows": 0 if task == "CB" else 50, "metrics": {"accuracy": 0.7}, **TESTED,
    })  # fmt: skip
    shown = table_of(outcome)
    assert {column for (_, column), marked in daggers(shown).items() if marked} == {"CB"}
    assert "Scores of CB are on validation rows here, published on test rows." in shown.all_notes()
    plain = {**PLAIN, "models": {"BERT-base": "b"}, "rows": [{**rows()[1], "published": "PT-2"}]}
    encoder = read_recipe({**plain, "published": "selective-prefix/table-3"}, name="r", same_setting=True)
    notes = table_of(findings(encoder, lambda *_: TESTED)).all_notes()
    assert "Scores of BoolQ are on test rows here, published on validation rows." in notes  # CB is not in that table


def test_costs_and_standardized_scores_have_the_lines_too() -> None:
    made = recipe(
        measure="cost", rows=rows(published="Prefix Tuning (l=5)"), published="multi-mask/table-4", differences=["d"]
    )
    cost = {"cost": {"seconds_per_100_steps": 1.0, "peak_memory": 1e9}}
    for shown in tables_of(findings(made, lambda *_: cost)):
        assert "Differs from what was published: d." in shown.all_notes()
        assert any("another machine; ratios carry over" in note for note in shown.all_notes())
    first, second = rows(differences=["e"])
    changed = [{**first, "published": "Full fine-tuning"}, {**second, "published": "Simple PT, dropout"}]
    plain = {**PLAIN, "models": {"T5v1.1-small": "s", "T5v1.1-base": "b"}, "rows": changed}
    made = read_recipe({**plain, "table": "standardized", "published": "superpos/table-2"}, name="r", same_setting=True)
    scores = {"test_rows": 0, "test_metrics": {}}
    (shown,) = tables_of(
        findings(made, lambda label, *_: {**scores, "metrics": {"accuracy": 0.5 if "F" in label else 0.6}})
    )
    assert "Differs from what was published, Prefix Tuning (l=20): e." in shown.all_notes()
    assert {line for (line, _), marked in daggers(shown).items() if marked} == {"Prefix Tuning (l=20)"}


def test_wrong_ones_are_refused() -> None:
    for where in ({"differences": [1]}, {"unstated": [""]}, {"rows": rows(differences="text")}):
        with pytest.raises(SoftPromptError, match="differences|unstated"):
            recipe(**where)
