import csv
import io
import re
import statistics
from pathlib import Path

import numpy as np
import pytest

from softprompts.bench.column_names import AVERAGE, tasks_of
from softprompts.bench.recipe import Cell
from softprompts.bench.result_tables import table_of, tables_of
from softprompts.bench.tables import Line, Table, TableEntry, average_of, with_average
from softprompts.errors import SoftPromptError
from tests.bench.findings_in_memory import BACKBONE, findings, recipe
from tests.bench.findings_on_disk import findings_of, recipe_of
from tests.bench.markup import check_latex, read


def entry(*scores: float, **more: object) -> TableEntry:
    return TableEntry(scores, tuple(range(len(scores))), **more)  # type: ignore[arg-type]


def small(**changes: object) -> Table:
    values: dict[str, object] = {
        "title": "Two tasks",
        "columns": ("BoolQ", "CB"),
        "lines": (
            Line("base", (entry(70.0, 72.0), entry(80.0, 80.0)), baseline=True),
            Line("better", (entry(73.0, 75.0), entry(79.0, 80.0))),
            Line("none", (entry(), entry(failed=True))),
        ),
    }
    return Table(**{**values, **changes})  # type: ignore[arg-type]


def test_markdown_is_the_papers_form() -> None:
    lines = small(deltas="difference").markdown().splitlines()
    assert lines[2:7] == [
        "|  | BoolQ | CB |",
        "|---|---:|---:|",
        "| base | <ins>71.0</ins><sub>1.4</sub> | **80.0**<sub>0.0</sub> |",
        "| better | **74.0**<sub>1.4</sub><sup>+3.0</sup> | <ins>79.5</ins><sub>0.7</sub><sup>-0.5</sup> |",
        "| none | - | failed |",
    ]
    assert "Superscript: difference to base." in "\n".join(lines)


def test_a_column_says_below_its_head_what_it_is() -> None:
    table = with_average(small(under=("accuracy, 400 test rows", "F1 & more, 56 test rows")))
    head = table.markdown().splitlines()[2]
    assert head.startswith("|  | BoolQ<br><sub>accuracy, 400 test rows</sub> | CB<br><sub>F1 &amp; more,")
    assert table.text()[0] == ["", "BoolQ\naccuracy, 400 test rows", "CB\nF1 & more, 56 test rows", AVERAGE]
    assert "<small>F1 &amp; more, 56 test rows</small></th>" in table.html()
    check_latex(table.latex())
    assert r"F1 \& more, 56 test rows" in table.latex()
    merged = small(columns=("QQP:F1", "QQP:Acc"), under=("400 test rows", "400 test rows")).markdown()
    assert "QQP (F1/Acc)<br><sub>400 test rows</sub> |" in merged
    with pytest.raises(SoftPromptError, match="2 columns have 1 lines below"):
        small(under=("x",))


def test_seeds_that_all_agree_are_flagged(tmp_path: Path) -> None:
    def score(cell: Cell) -> float:
        return 0.5 if cell.row.method == "superpos" and cell.task == "Tweets" else 0.6 + cell.seed / 100

    table = table_of(findings_of(tmp_path, recipe_of(), score=score))
    shown = {line.name: [one.mark for one in line.entries] for line in table.lines}
    assert shown.pop("Superpos") == ["", "", "=", ""] and not any(map(any, shown.values()))
    assert "= All seeds have the very same score: Superpos, Tweets." in table.notes
    assert "50.0</ins>=<sub>0.0</sub>" in table.markdown()
    assert table.under == ("accuracy, 400 test rows",) * 3 + ("",)
    one_seed = table_of(findings_of(tmp_path / "one", recipe_of(seeds=[0]), score=score))
    assert not any(entry.mark for line in one_seed.lines for entry in line.entries)


def test_equal_as_printed_is_equal_in_rank() -> None:
    lines = tuple(
        Line(name, (entry(score),)) for name, score in (("a", 70.04), ("b", 69.96), ("c", 69.94), ("d", 60.0))
    )
    assert Table("t", ("x",), lines).ranks() == {(0, 0): 1, (1, 0): 1, (2, 0): 2}
    lower = Table("t", ("x",), lines, higher_is_better=False)
    assert lower.ranks() == {(3, 0): 1, (2, 0): 2}
    finer = Table("t", ("x",), lines, digits=2)
    assert finer.ranks() == {(0, 0): 1, (1, 0): 2}


def test_nothing_is_marked_where_nothing_differs() -> None:
    same = tuple(Line(name, (entry(63.5),)) for name in "abc")
    assert Table("t", ("x",), same).ranks() == {}
    assert Table("t", ("x",), same[:1]).ranks() == {}
    assert "bold" not in Table("t", ("x",), same).markdown()


def test_lines_are_ranked_by_model_and_references_are_not() -> None:
    lines = (
        Line("full", (entry(99.0),), model="small", ranked=False),
        Line("a", (entry(50.0),), model="small"),
        Line("b", (entry(60.0),), model="small"),
        Line("a", (entry(90.0),), model="large"),
        Line("b", (entry(80.0),), model="large"),
    )
    assert Table("t", ("x",), lines).ranks() == {(2, 0): 1, (1, 0): 2, (3, 0): 1, (4, 0): 2}
    shown = Table("t", ("x",), lines).markdown()
    assert shown.index("*small*") < shown.index("*large*")


def test_a_models_lines_are_held_against_its_own_baseline() -> None:
    lines = (
        Line("base", (entry(50.0),), model="small", baseline=True),
        Line("a", (entry(60.0),), model="small"),
        Line("base", (entry(80.0),), model="large", baseline=True),
        Line("a", (entry(75.0),), model="large"),
    )
    table = Table("t", ("x",), lines, deltas="difference")
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["delta"] for row in rows] == ["", "10", "", "-5"]
    ratios = Table("t", ("x",), lines, deltas="ratio", higher_is_better=False)
    assert [row["delta"] for row in csv.DictReader(io.StringIO(ratios.csv()))] == ["", "1.2", "", "0.9375"]
    assert "<sup>×1.20</sup>" in ratios.markdown()


def test_text_for_a_terminal() -> None:
    lines = (Line("base", (entry(50.0, 52.0),), baseline=True), Line("a", (entry(60.0, published=59.5),), group="g"))
    heads, shown = Table("t", ("x",), lines, deltas="difference", comparable=False).text()
    assert heads == ["", "x"]
    assert shown == [["base", "51.0 ±1.4"], ["g"], ["  a", "*60.0* (59.5†)"]]


def test_no_minus_zero() -> None:
    lines = (Line("base", (entry(50.0),), baseline=True), Line("a", (entry(49.999),)))
    assert "<sup>0.0</sup>" in Table("t", ("x",), lines, deltas="difference").markdown()


def test_csv_has_the_numbers_in_full() -> None:
    table = small(
        facts=("trained",),
        lines=(
            Line('a "b", c', (entry(1 / 3, 2 / 3), entry(5.0, published=4.5, published_std=0.1)), facts=("1,000",)),
        ),
        comparable=False,
    )
    first, second = csv.DictReader(io.StringIO(table.csv()))
    assert first["line"] == 'a "b", c' and first["trained"] == "1,000" and first["column"] == "BoolQ"
    np.testing.assert_allclose([float(text) for text in first["scores"].split()], [1 / 3, 2 / 3], rtol=1e-9)
    assert float(first["mean"]) == pytest.approx(0.5) and int(first["n"]) == 2
    assert float(first["std"]) == pytest.approx(statistics.stdev([1 / 3, 2 / 3]))
    assert (second["published"], second["published_std"], second["same_setting"]) == ("4.5", "0.1", "false")
    assert second["std"] == "" and first["same_setting"] == ""


def test_published_numbers_of_another_setting_have_a_dagger() -> None:
    lines = (Line("a", (entry(70.0, published=78.75, published_std=0.1),)), Line("b", (entry(71.0),)))
    same = Table("t", ("x",), lines).markdown()
    assert "(78.75<sub>0.1</sub>)" in same and "†" not in same
    other = Table("t", ("x",), lines, comparable=False, otherwise="T5-base there, BERT here")
    assert "(78.75<sub>0.1</sub>†)" in other.markdown()
    assert "† Published in another setting: T5-base there, BERT here." in other.markdown()
    assert "†" in other.html() and r"\textdagger{}" in other.latex()


def test_metrics_of_a_task_share_a_column() -> None:
    columns = ("QQP:F1", "QQP:Acc", "RTE", "CB:mean")
    lines = (
        Line("a", (entry(87.0, published=87.8), entry(90.0, published=90.8), entry(70.0), entry(1.0))),
        Line("b", (entry(88.0), entry(89.0), entry(), entry())),
    )
    table = Table("t", columns, lines)
    text = table.markdown().splitlines()
    assert text[2] == "|  | QQP (F1/Acc) | RTE | CB (mean) |"
    assert text[4] == "| a | <ins>87.0</ins>/**90.0** (87.8/90.8) | 70.0 | 1.0 |"
    assert text[5] == "| b | **88.0**/<ins>89.0</ins> | - | - |"
    assert [len(row) for row in check_latex(table.latex())] == [4, 4, 4]
    reader = read(table.html())
    assert reader.values[1][1] == "88.5"  # the mean of both


def test_average_counts_a_task_once_and_is_made_for_every_seed() -> None:
    f1, accuracy, rte = (80.0, 84.0), (90.0, 92.0), (60.0, 70.0)
    table = Table("t", ("QQP:F1", "QQP:Acc", "RTE"), (Line("a", (entry(*f1), entry(*accuracy), entry(*rte))),))
    average = average_of(table, table.lines[0])
    np.testing.assert_allclose(average.scores, (np.array([f1, accuracy]).mean(0) + np.array(rte)) / 2)
    assert average.seeds == (0, 1)
    assert with_average(table).columns == ("QQP:F1", "QQP:Acc", "RTE", AVERAGE)


def test_average_without_all_seeds_is_that_of_the_means() -> None:
    table = Table("t", ("A", "B"), (Line("a", (entry(80.0, 90.0), TableEntry((60.0,), (1,)))),))
    average = average_of(table, table.lines[0])
    assert average.scores == (pytest.approx((85 + 60) / 2),) and average.std is None
    lacking = Table("t", ("A", "B"), (Line("a", (entry(80.0), entry())),))
    assert average_of(lacking, lacking.lines[0]) == TableEntry()


def test_averages_of_groups_of_tasks_stand_apart() -> None:
    scores = {"MNLI": (80.0, 84.0), "RTE:F1": (60.0, 62.0), "RTE:Acc": (70.0, 72.0), "CB": (90.0, 50.0)}
    line = Line("a", tuple(entry(*values) for values in scores.values()))
    table = with_average(Table("t", tuple(scores), (line,)), groups={"GLUE": ["MNLI", "RTE"], "Rest": ["CB"]})
    assert table.columns[-2:] == ("Average:GLUE", "Average:Rest")
    glue, rest = table.lines[0].entries[-2:]
    np.testing.assert_allclose(glue.scores, np.add(scores["MNLI"], (65.0, 67.0)) / 2)
    assert rest.scores == scores["CB"] and glue.seeds == (0, 1)
    assert "| Average (GLUE/Rest) |" in table.markdown()
    assert list(tasks_of(table.columns)) == ["MNLI", "RTE", "CB"]


def test_a_recipe_names_the_tasks_of_its_averages() -> None:
    made = recipe(averages={"Both": ["BoolQ", "CB"], "One left": ["CB"]})
    outcome = findings(
        made, lambda label, task, model, seed: {"test_metrics": {"accuracy": 0.5 + 0.1 * (task == "CB")}}
    )
    assert table_of(outcome).columns == ("BoolQ", "CB", "Average:Both")
    assert table_of(outcome).lines[0].entries[-1].mean == pytest.approx(55.0)


NASTY = r"a_b & 50 % <script>alert(1)</script> $x$ #{y}~^\ | *z* `q` λ"


def test_texts_have_no_meaning_to_latex_and_html() -> None:
    table = Table(
        NASTY,
        (NASTY, "plain"),
        (
            Line(NASTY, (entry(1.0), entry(2.0)), group=NASTY, model=NASTY, facts=(NASTY,)),
            Line("b", (entry(), entry()), facts=("1",)),
        ),
        facts=(NASTY,),
        notes=(NASTY,),
    )
    rows = check_latex(table.latex())
    assert [len(row) for row in rows] == [4, 4, 4]
    for plain in (r"a\_b \& 50 \%", r"\$x\$ \#\{y\}\textasciitilde{}\textasciicircum{}\textbackslash{}", r"$\lambda$"):
        assert plain in table.latex()
    reader = read(table.html())
    assert "script" not in [tag for tag, _ in reader.seen]
    assert reader.rows[0][1] == NASTY
    assert any(NASTY in cell for row in reader.rows for cell in row)
    rows_md = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows_md} == {5}
    assert "<script" not in table.markdown()


def test_html_has_values_to_sort_by() -> None:
    reader = read(
        small(
            facts=("trained",),
            lines=tuple(
                Line(line.name, line.entries, facts=(fact,), baseline=line.baseline)
                for line, fact in zip(small().lines, ("76,800", "1,000 (900)", "-"), strict=True)
            ),
        ).html()
    )
    assert reader.values[1] == ["base", "76800", "71", "80"]
    assert reader.values[2] == ["better", "1000", "74", "79.5"]
    assert reader.values[3] == ["none", "-", "", ""]
    assert [tag for tag, _ in reader.seen].count("script") == 0
    assert ("tr", {"class": "baseline"}) in reader.seen


def test_shapes_are_checked() -> None:
    with pytest.raises(SoftPromptError, match="line 'a' has 1 entries, not 2"):
        Table("t", ("x", "y"), (Line("a", (entry(),)),))
    with pytest.raises(SoftPromptError, match="deltas is one of none, difference, ratio, not 'percent'"):
        Table("t", (), (), deltas="percent")
    with pytest.raises(SoftPromptError, match="2 scores have 1 seeds"):
        TableEntry((1.0, 2.0), (0,))


def accuracy(table: dict[tuple[str, str], float]):
    def score(label: str, task: str, model: str, seed: int) -> dict[str, object]:
        return {"test_metrics": {"accuracy": table[label, task] + 0.01 * seed}}

    return score


SCORES = {
    ("Fine-tuning", "BoolQ"): 0.8,
    ("Fine-tuning", "CB"): 0.9,
    ("Prefix Tuning (l=20)", "BoolQ"): 0.6,
    ("Prefix Tuning (l=20)", "CB"): 0.7,
    ("Multi-mask (l=5, k=4)", "BoolQ"): 0.65,
    ("Multi-mask (l=5, k=4)", "CB"): 0.65,
    ("Multi-mask (l=10, k=4)", "BoolQ"): 0.7,
    ("Multi-mask (l=10, k=4)", "CB"): 0.7,
}


def test_table_of_findings() -> None:
    made = findings(recipe(), accuracy(SCORES), trained={"Fine-tuning": BACKBONE - 768})
    table = table_of(made)
    assert table.columns == ("BoolQ", "CB", AVERAGE) and table.deltas == "difference"
    full, base, five, ten = table.lines
    assert full.facts == ("222,902,784", "100") and not full.ranked
    assert base.facts == ("368,640", "0.1651") and base.baseline and base.ranked
    np.testing.assert_allclose(five.entries[0].scores, [65, 66, 67])
    assert five.entries[0].seeds == (0, 1, 2) and five.group == "ours" and five.model is None
    np.testing.assert_allclose(ten.entries[2].scores, [70, 71, 72])
    assert table.ranks()[3, 0] == 1 and table.ranks()[2, 0] == 2 and (0, 0) not in table.ranks()
    assert "<sup>+10.0</sup>" in table.markdown()


def test_counts_that_differ_between_tasks_are_a_range() -> None:
    def score(label: str, task: str, model: str, seed: int) -> dict[str, object]:
        return {"test_metrics": {"accuracy": 0.5}, "trained_parameters": 76_800 if task == "CB" else 1_000_000}

    assert table_of(findings(recipe(), score)).lines[1].facts == ("76,800 to 1,000,000", "0.0344 to 0.4466")


def test_table_of_findings_with_published_numbers() -> None:
    made = findings(recipe(published="multi-mask/table-1"), accuracy(SCORES))
    table = table_of(made)
    assert table.lines[1].entries[0].published == 78.8 and table.lines[1].entries[0].published_std == 0.1
    assert table.lines[1].facts[1] == "0.1651 (0.1651)"
    assert table.lines[2].entries[0].published is None
    # The paper's average is over six tasks, this one over two.
    assert table.lines[1].entries[2].published is None
    assert "†" not in table.markdown()
    tiny = table_of(findings(recipe("tiny", same=False, published="multi-mask/table-1"), accuracy(SCORES)))
    assert "here scale 'tiny', T5-base, 3 seeds" in tiny.markdown()


def test_the_published_average_is_over_the_same_tasks() -> None:
    names = ("BoolQ", "CB", "COPA", "MultiRC", "RTE", "WiC")
    made = recipe(published="multi-mask/table-1", tasks={name: f"super_glue/{name.lower()}" for name in names})
    metrics = {"accuracy": 0.7, "f1": 0.7, "macro_f1": 0.7, "f1_answers": 0.7}

    table = table_of(findings(made, lambda *_: {"test_metrics": metrics}))
    assert table.lines[1].entries[-1].published == 75.4


def test_a_wrong_published_row_is_said() -> None:
    rows = [{"name": "a", "method": "prompt-tuning", "published": "Prefix Tuning (l=2)"}]
    with pytest.raises(
        SoftPromptError, match=r"'multi-mask/table-1' has no row .* did you mean 'Prefix Tuning \(l=20\)'"
    ):
        recipe(published="multi-mask/table-1", rows=rows)


def test_failed_missing_and_fewer_seeds() -> None:
    def score(label: str, task: str, model: str, seed: int) -> dict[str, object] | None:
        if label.startswith("Multi-mask (l=5"):
            return {"stop_reason": "non-finite loss", "test_metrics": {"accuracy": 0.1}}
        if label.startswith("Multi-mask (l=10"):
            return None
        return {"test_metrics": {"accuracy": 0.5}} if seed else None

    table = table_of(findings(recipe(), score, missing=10))
    text = table.markdown()
    assert "| Multi-mask (l=5, k=4) | 368,640 | 0.1651 | failed | failed | - |" in text
    assert "| Multi-mask (l=10, k=4) | - | - | - | - | - |" in text
    assert "Prefix Tuning (l=20), BoolQ: 2 of 3" in text
    assert "Not complete: 10 runs have no result." in text


def test_several_models_have_groups_of_lines() -> None:
    models = {"T5-base": "google-t5/t5-base", "T5-small": "google-t5/t5-small"}
    made = findings(
        recipe(models=models),
        lambda label, task, model, seed: {
            "test_metrics": {"accuracy": 0.5 + 0.1 * (model == "T5-base") + 0.01 * len(label) / 10}
        },
    )
    table = table_of(made)
    assert table.models() == ("T5-base", "T5-small") and len(table.lines) == 8
    only = table_of(findings(recipe(models={"T5-small": "google-t5/t5-small"}), accuracy(SCORES)))
    assert only.models() == (None,) and len(only.lines) == 4 and only.title.endswith("(T5-small)")


def test_costs_are_two_tables_with_ratios() -> None:
    rows = [
        {"name": "Prefix", "method": "prefix-tuning", "published": "Prefix Tuning (l=5)", "baseline": True},
        {"name": "Multi-mask", "method": "multi-mask", "published": "Multi-mask (l=5)"},
    ]
    made = recipe(measure="cost", rows=rows, published="multi-mask/table-4", seeds=[0])
    found = findings(
        made,
        lambda label, *_: {
            "cost": {
                "seconds_per_100_steps": 10.0 if label == "Prefix" else 12.0,
                "peak_memory": 2e9 if label == "Prefix" else 3e9,
            }
        },
    )
    seconds, memory = tables_of(found)
    assert seconds.columns == memory.columns == ("BoolQ", "CB", AVERAGE)
    assert not seconds.higher_is_better and seconds.ranks()[0, 0] == 1
    assert seconds.lines[1].entries[0].published == 47.95 and memory.lines[1].entries[0].published == 6.64
    # The paper's ratio stands beside ours: 47.95 / 44.06.
    assert "12.00</ins><sup>×1.20</sup> (47.95†, ×1.09)" in seconds.markdown()
    assert "3.00</ins><sup>×1.50</sup> (6.64†, ×1.52)" in memory.markdown()
    check_latex(seconds.latex())
    with pytest.raises(SoftPromptError, match="two tables: use tables_of"):
        table_of(found)
