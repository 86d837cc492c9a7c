import itertools
import statistics

import numpy as np
import pytest
from published_page import standardized_table

from softprompts.bench.published import published
from softprompts.bench.reprint import reprint
from softprompts.bench.result_tables import tables_of
from softprompts.bench.significance import LEAST_PAIRS, paired_difference, significance, standardized
from softprompts.bench.tables import Line, Table, TableEntry
from softprompts.errors import SoftPromptError
from tests.bench.findings_in_memory import findings, recipe
from tests.bench.markup import check_latex, read


def table(lines: dict[str, list[list[float]]], columns: tuple[str, ...] = ("A", "B"), **more: object) -> Table:
    made = []
    for name, entries in lines.items():
        cells = tuple(TableEntry(tuple(scores), tuple(range(len(scores)))) for scores in entries)
        made.append(Line(name, cells, baseline=name == "base"))
    return Table("t", columns, tuple(made), **more)  # type: ignore[arg-type]


def test_superpos_table_2_follows_from_table_1() -> None:
    printed = published("superpos/table-2")
    made = standardized_table()
    compared = 0
    for line in made.lines:
        for model, entry in zip(made.columns, line.entries, strict=True):
            mean, std = printed.value(line.name, model) or (None, None)
            assert mean is not None and std is not None and entry.mean is not None and entry.std is not None
            # The paper rounds, and so are the numbers that go in.
            assert entry.mean == pytest.approx(mean, abs=0.1)
            assert entry.std == pytest.approx(std, abs=0.1)
            compared += 1
    assert compared == 14


def test_standardized_against_a_naive_computation() -> None:
    whole = reprint(published("superpos/table-1"))
    found = standardized(whole)
    systems = [line for line in whole.lines if line.entries[0].scores]
    assert len(found) == len(systems) == 14
    tasks = [[0, 1], [2], [3], [4], [5, 6], [7, 8], [9], [10, 11], [12], [13, 14], [15], [16], [17]]
    matrix = np.array(
        [[np.mean([line.entries[i].scores[0] for i in places]) for places in tasks] for line in systems], dtype=float
    )
    scaled = 100 * (matrix - matrix.min(0)) / (matrix.max(0) - matrix.min(0))
    for line, row in zip(systems, scaled, strict=True):
        own = found[line.model, line.name]
        assert own.mean == pytest.approx(row.mean(), abs=1e-9) and own.std == pytest.approx(row.std(), abs=1e-9)
        assert own.tasks == 13


def test_standardized_leaves_out_what_tells_nothing() -> None:
    scores = table({"a": [[1.0], [5.0], [7.0]], "b": [[3.0], [5.0], [6.0]], "c": [[9.0], [], [0.0]]}, ("A", "B", "C"))
    found = standardized(scores)
    assert set(found) == {(None, "a"), (None, "b")}  # c lacks a task and does not stretch the scale
    assert found[None, "a"].tasks == 2  # all have 5 on B
    assert (found[None, "a"].mean, found[None, "b"].mean) == (50.0, 50.0) and found[None, "a"].std == 50.0
    costs = table({"a": [[1.0]], "b": [[3.0]]}, ("A",), higher_is_better=False)
    assert standardized(costs)[None, "a"].mean == 100.0
    with pytest.raises(SoftPromptError, match="no line has a score on every task"):
        standardized(table({"a": [[], [1.0]]}))


def test_standardized_recipe_is_a_column_per_model() -> None:
    models = {"T5v1.1-small": "google/t5-v1_1-small", "T5v1.1-base": "google/t5-v1_1-base"}
    rows = [
        {"name": "Simple PT, dropout", "method": "prompt-tuning", "published": "Simple PT, dropout"},
        {"name": "SuperPos PT, no dropout", "method": "superpos", "published": "SuperPos PT, no dropout"},
    ]
    made = recipe(models=models, rows=rows, table="standardized", published="superpos/table-2", same=False)

    def score(label: str, task: str, model: str, seed: int) -> dict[str, object]:
        value = 0.5 + 0.2 * label.startswith("SuperPos") + 0.1 * model.endswith("base")
        return {"test_metrics": {"accuracy": value}}

    (found,) = tables_of(findings(made, score))
    assert found.columns == ("T5v1.1-small", "T5v1.1-base")
    means = [[entry.mean for entry in line.entries] for line in found.lines]
    np.testing.assert_allclose(np.array(means, dtype=float), [[0, 100 / 3], [200 / 3, 100]], atol=1e-9)
    assert found.lines[1].entries[1].published == 93.6 and found.lines[1].entries[1].published_std == 4.7
    assert "†" in found.markdown()
    check_latex(found.latex())


def test_p_counts_all_ways_to_flip_signs() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.normal(1.0, 1.0, 8), rng.normal(0.0, 1.0, 8)
    keys = [("A", seed) for seed in range(8)]
    found = paired_difference(dict(zip(keys, ours, strict=True)), dict(zip(keys, theirs, strict=True)))
    difference = ours - theirs
    means = [np.mean(difference * np.array(signs)) for signs in itertools.product((1, -1), repeat=8)]
    exact = np.mean(np.abs(means) >= abs(difference.mean()) - 1e-12)
    assert found.p == pytest.approx(exact, abs=1e-9)
    assert found.mean == pytest.approx(difference.mean())
    assert (found.wins, found.losses) == ((difference > 0).sum(), (difference < 0).sum())


def test_interval_is_that_of_a_bootstrap_and_always_the_same() -> None:
    rng = np.random.default_rng(0)
    ours = {("A", seed): float(value) for seed, value in enumerate(rng.normal(2.0, 1.0, 40))}
    theirs = dict.fromkeys(ours, 0.0)
    found = paired_difference(ours, theirs)
    assert found == paired_difference(ours, theirs)
    values = np.array(list(ours.values()))
    naive = np.random.default_rng(9).choice(values, (20_000, 40)).mean(1)
    low, high = np.quantile(naive, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.05) and found.high == pytest.approx(high, abs=0.05)
    assert found.verdict == "better"
    assert paired_difference(theirs, ours).verdict == "worse"


def pairs(*differences: float) -> tuple[dict[tuple[str, int], float], dict[tuple[str, int], float]]:
    ours = {("A", seed): 50 + value for seed, value in enumerate(differences)}
    return ours, dict.fromkeys(ours, 50.0)


def test_few_pairs_make_nothing_certain() -> None:
    none = paired_difference({}, {})
    assert (none.pairs, none.mean, none.low, none.p, none.verdict) == (0, None, None, None, "too few pairs")
    two = paired_difference(*pairs(5.0, 6.0))
    assert two.pairs < LEAST_PAIRS and two.mean == 5.5 and two.low is None and two.verdict == "too few pairs"
    for count in (3, 4, 5):  # all on one side, and far from 0
        found = paired_difference(*pairs(*np.linspace(10, 11, count)))
        assert found.low is not None and found.low > 0 and found.p is not None and found.p > 0.05
        assert found.verdict == "not told apart"
    assert paired_difference(*pairs(*np.linspace(10, 11, 6))).verdict == "better"
    assert paired_difference(*pairs(5.0, 5.0, 5.0)).verdict == "not told apart"  # no spread is no proof


def test_equal_lines_are_ties() -> None:
    found = paired_difference(*pairs(*[0.0] * 8))
    assert (found.wins, found.ties, found.losses) == (0, 8, 0)
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert found.verdict == "not told apart"
    # 0.1 + 0.2 is not 0.3, and no win either.
    assert paired_difference({("A", 0): 0.1 + 0.2}, {("A", 0): 0.3}).ties == 1


def test_pure_chance_is_seldom_called_a_difference() -> None:
    rng = np.random.default_rng(11)
    called = 0
    for _ in range(120):
        differences = rng.normal(0.0, 1.0, 6)
        called += paired_difference(*pairs(*differences)).verdict != "not told apart"
    assert called <= 12  # at 5 % one expects 6; above 12 has a chance below 1 %


def test_significance_pairs_tasks_and_seeds() -> None:
    made = table(
        {
            "base": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
            "a": [[2.0, 3.0, 4.0], [5.0, 6.0]],
            "b": [[0.0], []],
        },
        notes=(),
    )
    found = significance(made)
    a, b = found.differences
    assert (a.line, a.against, a.pairs, a.tasks, a.mean) == ("a", "base", 5, 2, 1.0)
    assert (b.pairs, b.mean, b.verdict) == (1, -1.0, "too few pairs")
    against = significance(made, "a")
    assert [difference.line for difference in against.differences] == ["base", "b"]
    with pytest.raises(SoftPromptError, match="no line 'c'; there are base, a, b"):
        significance(made, "c")


def test_without_seeds_nothing_is_compared() -> None:
    lines = (Line("base", (TableEntry((1.0,)),), baseline=True), Line("a", (TableEntry((2.0,)),)))
    found = significance(Table("t", ("A",), lines))
    assert found.differences == () and found.markdown() == ""


def test_without_a_baseline_the_best_is_the_measure() -> None:
    lines = {"a": [[1.0, 2.0, 3.0]], "b": [[4.0, 5.0, 6.0]]}
    assert significance(table(lines, ("A",))).differences[0].against == "b"
    lower = significance(table(lines, ("A",), higher_is_better=False)).differences[0]
    assert lower.against == "a" and lower.mean == -3.0 and lower.losses == 3


def test_two_metrics_of_a_task_are_one_pair() -> None:
    made = table({"base": [[1.0], [3.0], [0.0]], "a": [[2.0], [6.0], [0.0]]}, ("QQP:F1", "QQP:Acc", "RTE"))
    found = significance(made).differences[0]
    assert found.pairs == 2 and found.mean == pytest.approx(statistics.fmean([2.0, 0.0]))
    assert (found.wins, found.ties) == (1, 1)


def test_significance_reads_well() -> None:
    made = table({"base": [[1.0] * 6, [2.0] * 6], "a|b": [[2.0 + 0.1 * i for i in range(6)], [3.0] * 6]})
    found = significance(made)
    lines = found.markdown().splitlines()
    assert lines[2].startswith(r"| a\|b | base | +1.1 | ") and lines[2].endswith("| 12/0/0 | 12 (2 tasks) | better |")
    reader = read(found.html())
    assert reader.rows[1][0] == "a|b" and reader.values[1][2] == "1.125"
    assert ("tr", {"class": "better"}) in reader.seen
