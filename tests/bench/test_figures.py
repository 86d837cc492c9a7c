"""What a bench's figures are drawn from, against the findings themselves."""

from __future__ import annotations

import csv
import io
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from softprompts.bench import figures
from softprompts.bench.figures import ReportFigure, figures_of
from softprompts.bench.results import Findings
from softprompts.errors import SoftPromptError
from softprompts.plotting import NO_MATPLOTLIB, style_of
from softprompts.storage.run_folder import load_metrics
from tests.bench.findings_on_disk import METHODS, QUICK, findings_of, recipe_of

pytest.importorskip("matplotlib")
GRID: dict[str, Any] = {
    **QUICK,
    "tasks": {"CB": "super_glue/cb", "RTE": "super_glue/rte"},
    "rows": [
        {
            "name": "Multi-mask",
            "method": "multi-mask",
            "label": "Multi-mask (l={num_virtual_tokens}, k={num_masks})",
            "grid": {"num_virtual_tokens": [5, 10, 20], "num_masks": [1, 4]},
        },
        {"name": "Prefix tuning", "method": "prefix-tuning", "grid": {"num_virtual_tokens": [5, 50]},
         "label": "Prefix tuning (l={num_virtual_tokens})"},
        {"name": "LoRA", "method": "lora"},
    ],
}  # fmt: skip


def grid(folder: Path, figure: dict[str, Any], **more: Any) -> Findings:
    return findings_of(folder, recipe_of({**GRID, "figures": [figure], **more}))


def lines(drawn: ReportFigure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(drawn.csv)))


def panels(drawn: ReportFigure) -> list[Any]:
    assert drawn.figure is not None
    return [axes for axes in drawn.figure.axes if axes.get_visible()]


def names_in_legend(drawn: ReportFigure) -> list[str]:
    assert drawn.figure is not None
    return [text.get_text() for legend in drawn.figure.legends for text in legend.get_texts()]


def test_each_figure_of_the_recipe_is_drawn(tmp_path: Path) -> None:
    found = figures_of(findings_of(tmp_path, recipe_of()))
    assert [one.name for one in found] == ["curves", "parameters", "cost"]
    assert all(one.figure is not None and one.csv and one.caption for one in found)


def test_curves_are_means_over_seeds_of_the_steps_all_have(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, recipe_of(), stops=lambda cell: 150 - 40 * (cell.seed == 2))
    drawn = figures_of(findings)[0]
    row = findings.recipe.rows[2]
    histories = [load_metrics(run.folder) for run in findings.runs(row, "Products", "MiniLM")]
    there = [line for line in lines(drawn) if (line["task"], line["line"]) == ("Products", row.label)]
    scores = [line for line in there if line["what"] == "accuracy"]
    assert [int(line["step"]) for line in scores] == list(range(10, 120, 10))  # to where the first seed stopped
    at_50 = [next(100 * r["accuracy"] for r in history if r["step"] == 50) for history in histories]
    (line,) = (line for line in scores if line["step"] == "50")
    assert float(line["mean"]) == pytest.approx(statistics.fmean(at_50), rel=1e-4)
    assert float(line["std"]) == pytest.approx(statistics.stdev(at_50), rel=1e-4)
    assert [axes.get_title() for axes in panels(drawn)] == ["Films", "Products", "Tweets", "", "", ""]
    # A line and a band for each method, in scores above and losses below.
    assert all(len(axes.lines) == len(METHODS) == len(axes.collections) for axes in panels(drawn))
    assert names_in_legend(drawn) == [row.label for row in findings.recipe.rows]


def test_curves_of_a_large_grid_show_each_methods_best_setting(tmp_path: Path) -> None:
    many = [{**GRID["rows"][0], "grid": {"num_virtual_tokens": [1, 2, 5, 10, 20], "num_masks": [1, 2, 4]}}]
    findings = grid(tmp_path, {"kind": "curves"}, rows=[*many, GRID["rows"][2]])
    (drawn,) = figures_of(findings)
    best = "Multi-mask (l=20, k=4)"  # scores of made-up runs rise with the row
    assert {line["line"] for line in lines(drawn)} == {best, "LoRA"} and "best mean score" in drawn.caption


def test_curves_skip_what_is_no_number(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, recipe_of(seeds=[0]))
    run = findings.outcomes[0].folder
    text = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(['{"step": 5, "loss": NaN, "accuracy": null}', *text]) + "\n")
    first = [line for line in lines(figures_of(findings)[0]) if line["line"] == "Head only" and line["task"] == "Films"]
    assert min(int(line["step"]) for line in first) == 10 and all(line["std"] == "" for line in first)


def test_parameters_have_the_mean_over_tasks_of_each_seed(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, recipe_of())
    drawn = figures_of(findings)[1]
    row = findings.recipe.rows[1]
    by_seed = [
        statistics.fmean(findings.scores(row, column, "MiniLM")[seed] for column in findings.recipe.columns)
        for seed in (0, 1, 2)
    ]
    line = lines(drawn)[1]
    assert line["line"] == row.label and int(line["trained"]) == 38_400
    assert float(line["mean"]) == pytest.approx(statistics.fmean(by_seed), rel=1e-4)
    assert float(line["std"]) == pytest.approx(statistics.stdev(by_seed), rel=1e-4)
    (axes,) = panels(drawn)
    assert axes.get_xscale() == "log"
    assert {row.label for row in findings.recipe.rows} <= {text.get_text() for text in axes.texts}


def test_a_row_without_all_of_its_tasks_is_left_out_and_named(tmp_path: Path) -> None:
    recipe = recipe_of()
    findings = findings_of(
        tmp_path, recipe, ended=lambda cell: not (cell.row.method == "superpos" and cell.task == "Tweets")
    )
    drawn = figures_of(findings)[1]
    assert recipe.rows[2].label not in {line["line"] for line in lines(drawn)}
    assert f"Left out, for want of results: {recipe.rows[2].label}." in drawn.caption


def test_sweep(tmp_path: Path) -> None:
    findings = grid(tmp_path, {"kind": "sweep", "x": "num_virtual_tokens"})
    (drawn,) = figures_of(findings)
    assert drawn.name == "sweep-num-virtual-tokens" and drawn.title == "By num virtual tokens"
    there = [line for line in lines(drawn) if line["panel"] == "RTE"]
    assert [(line["line"], line["num_virtual_tokens"]) for line in there] == [
        *(("Multi-mask (num masks 1)", value) for value in ("5", "10", "20")),
        *(("Multi-mask (num masks 4)", value) for value in ("5", "10", "20")),
        *(("Prefix tuning", value) for value in ("5", "50")),
        ("LoRA", ""),
    ]
    row, column = findings.recipe.rows[3], findings.recipe.columns[1]
    assert row.values == {"num_virtual_tokens": 10, "num_masks": 4}
    scores = list(findings.scores(row, column, "MiniLM").values())
    assert float(there[4]["mean"]) == pytest.approx(statistics.fmean(scores), rel=1e-4)
    assert [float(value) for value in there[4]["values"].split()] == pytest.approx(scores, rel=1e-4)
    left, right = panels(drawn)
    assert [left.get_title(), right.get_title()] == ["CB", "RTE"] and left.get_xscale() == "log"
    assert len(left.lines) == 4 and "without num virtual tokens" in drawn.caption


def test_sweep_of_some_rows_over_the_mean_of_tasks(tmp_path: Path) -> None:
    figure = {"kind": "sweep", "x": "num_masks", "rows": ["Multi-mask"], "facets": False, "title": "Masks"}
    findings = grid(tmp_path, figure)
    (drawn,) = figures_of(findings)
    assert drawn.title == "Masks" and len(panels(drawn)) == 1 and "the mean over CB, RTE" in drawn.caption
    row = findings.recipe.rows[0]
    means = [
        statistics.fmean(findings.scores(row, column, "MiniLM")[seed] for column in findings.recipe.columns)
        for seed in (0, 1, 2)
    ]
    assert float(lines(drawn)[0]["mean"]) == pytest.approx(statistics.fmean(means), rel=1e-4)
    assert {line["line"] for line in lines(drawn)} == {f"Multi-mask (num virtual tokens {n})" for n in (5, 10, 20)}


def test_sweeps_over_models_columns_and_cost(tmp_path: Path) -> None:
    specs = [
        {"kind": "sweep", "x": "model", "rows": ["LoRA"]},
        {"kind": "sweep", "x": "column", "rows": ["LoRA"]},
        {"kind": "sweep", "x": "num_virtual_tokens", "y": "seconds"},
        {"kind": "sweep", "x": "num_virtual_tokens", "y": "memory", "models": ["Big"]},
    ]
    models = {"Small": "all-minilm-l6-v2", "Big": "all-minilm-l6-v2"}
    found = figures_of(findings_of(tmp_path, recipe_of({**GRID, "figures": specs, "models": models, "seeds": [0]})))
    assert [one.name for one in found] == [
        "sweep-model",
        *(f"sweep-column-{model}" for model in ("small", "big")),
        *(f"sweep-num-virtual-tokens-seconds-{model}" for model in ("small", "big")),
        "sweep-num-virtual-tokens-memory",
    ]
    assert [line["model"] for line in lines(found[0])] == ["Small", "Big"] * 2
    assert [line["column"] for line in lines(found[1])] == ["CB", "RTE"]
    assert found[3].title.endswith(", Small") and "Seconds per 100 steps" in found[3].caption


def test_values_that_are_no_numbers_come_after_numbers(tmp_path: Path) -> None:
    row = {
        "name": "LoRA",
        "method": "lora",
        "label": "patience {patience}",
        "grid": {"training.patience": [5, None, 2]},
    }
    (drawn,) = figures_of(grid(tmp_path, {"kind": "sweep", "x": "training.patience"}, rows=[row]))
    assert [tick.get_text() for tick in panels(drawn)[0].get_xticklabels()] == ["2", "5", "none"]
    assert [line["patience"] for line in lines(drawn)[:3]] == ["5", "none", "2"]


def test_cost(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, recipe_of(measure="cost", columns=None, figures=[{"kind": "cost"}]))
    (drawn,) = figures_of(findings)
    row = findings.recipe.rows[4]
    (line,) = (line for line in lines(drawn) if (line["task"], line["line"]) == ("Films", row.label))
    assert float(line["seconds_per_100_steps"]) == 12.0
    assert float(line["peak_memory_gb"]) == pytest.approx(0.94)
    seconds, memory = panels(drawn)
    assert len(seconds.patches) == len(memory.patches) == 18
    assert "as they came" not in drawn.caption


@pytest.mark.parametrize("kind", ["curves", "parameters", "cost", "sweep", "analysis"])
def test_a_bench_without_results_has_captions(tmp_path: Path, kind: str) -> None:
    spec = {"kind": kind, **{"sweep": {"x": "num_masks"}, "analysis": {"what": "masks"}}.get(kind, {})}
    findings = findings_of(tmp_path, recipe_of({**GRID, "figures": [spec]}), ended=lambda cell: False)
    (drawn,) = figures_of(findings)
    assert drawn.figure is None and drawn.csv == "" and "no run has a result yet" in drawn.caption


def test_a_sweep_of_one_value_or_of_none_says_so(tmp_path: Path) -> None:
    findings = grid(tmp_path, {"kind": "sweep", "x": "num_masks"})
    some = replace(findings, outcomes=tuple(o for o in findings.outcomes if o.row.values.get("num_masks") in (1, None)))
    assert figures_of(some)[0].caption == "Nothing to draw: only one value (1) has a result."
    nothing = grid(tmp_path / "other", {"kind": "sweep", "x": "alpha"})
    assert figures_of(nothing)[0].caption == "Nothing to draw: no grid of these rows sets 'alpha'."


def test_pictures_of_prompts_are_of_each_first_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softprompts import analysis
    from softprompts.plotting import new_figure

    specs = [
        {"kind": "analysis", "what": "masks", "rows": ["Multi-mask"], "tasks": ["RTE"], "title": "Masks"},
        {"kind": "analysis", "what": "gates"},
    ]
    row = {**GRID["rows"][0], "grid": {"num_virtual_tokens": [5], "num_masks": [1, 4]}}
    findings = findings_of(tmp_path, recipe_of({**GRID, "rows": [row], "figures": specs}), ended=lambda c: c.seed > 0)
    loaded: list[list[Path]] = []

    def opened(folders: list[Path], names: list[str]) -> list[tuple[Path, str]]:
        loaded.append(folders)
        return list(zip(folders, names, strict=True))

    def pictures(what: str, prompts: list[tuple[Path, str]]) -> list[analysis.Picture]:
        if what == "gates":
            raise SoftPromptError("gates: no prompt here has any")
        return [analysis.Picture(f"masks {name}", f"Of {folder.name}.", new_figure(2, 2)[0], "a\n1\n")
                for folder, name in prompts]  # fmt: skip

    monkeypatch.setattr(analysis, "open_prompts", opened)
    monkeypatch.setattr(analysis, "figures", pictures)
    first, second, gates = figures_of(findings)
    folders = [findings.runs(row, "RTE", "MiniLM")[0].folder.name for row in findings.recipe.rows]
    assert [first.caption, second.caption] == [f"Of {name}." for name in folders] and first.title == "Masks"
    assert first.name == "masks-multi-mask-l-5-k-1-rte" and first.csv == "a\n1\n"
    assert gates.figure is None and gates.caption == "Nothing to draw: gates: no prompt here has any."
    assert len(loaded) == 1 and len(loaded[0]) == len(set(loaded[0])) == 4  # two rows on two tasks, read once


def test_a_method_has_the_same_colour_in_all_figures(tmp_path: Path) -> None:
    from matplotlib.colors import to_hex

    specs = [{"kind": "curves", "rows": ["LoRA"]}, {"kind": "parameters"}, {"kind": "cost", "rows": ["LoRA"]},
             {"kind": "sweep", "x": "column", "rows": ["LoRA"]}]  # fmt: skip
    found = figures_of(findings_of(tmp_path, recipe_of({**GRID, "figures": specs, "seeds": [0]})))
    expected = style_of(2)["color"]  # the third name of the recipe
    assert panels(found[0])[0].lines[0].get_color() == expected
    (point,) = (line for line in panels(found[1])[0].lines if line.get_marker() == style_of(2)["marker"])
    assert point.get_color() == expected
    assert to_hex(panels(found[2])[0].patches[0].get_facecolor()) == expected
    assert panels(found[3])[0].lines[0].get_color() == expected


def test_wrong_names_are_one_line(tmp_path: Path) -> None:
    for spec, told in (
        ({"kind": "curves", "rows": ["Lora"]}, "a figure of kind 'curves' is of the row 'Lora'; did you mean 'LoRA'"),
        ({"kind": "cost", "tasks": ["MNLI"]}, "is of the task 'MNLI'; known: CB, RTE"),
        (
            {"kind": "sweep", "x": "model", "y": "loss"},
            "figures[0].y must be one of score, seconds, memory, parameters, not 'loss'",
        ),
    ):
        with pytest.raises(SoftPromptError) as error:
            figures_of(findings_of(tmp_path / told[:9], recipe_of({**GRID, "figures": [spec]}), ended=lambda _: False))
        assert told in str(error.value) and "\n" not in str(error.value)


def test_names_of_figures_are_all_different(tmp_path: Path) -> None:
    specs = [{"kind": "curves", "tasks": ["CB"]}, {"kind": "curves", "tasks": ["RTE"]}, {"kind": "curves"}]
    found = figures_of(findings_of(tmp_path, recipe_of({**GRID, "figures": specs}), ended=lambda _: False))
    assert [one.name for one in found] == ["curves", "curves-2", "curves-3"]


def test_without_matplotlib_there_are_numbers_and_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "have_matplotlib", lambda: False)
    found = figures_of(findings_of(tmp_path, recipe_of()))
    assert all(one.figure is None and one.csv and NO_MATPLOTLIB in one.caption for one in found)
