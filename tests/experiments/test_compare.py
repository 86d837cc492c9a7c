"""The table that some results make."""

from __future__ import annotations

import csv
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from saved import model_folder, rows, write_csv

import softprompts as sp
from softprompts.experiments.compare import COLUMNS, Comparison, Row, compare, score_of, write_report
from softprompts.experiments.encoded_rows import EncodedRows
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

FIRST = Row("prefix-tuning", (0.8, 0.9, 0.85), 1000, 100_000, 2.0, 3_000_000_000)
SECOND = Row("prompt-tuning", (0.7,), 500, 100_000, 1.0, 2_000_000_000)
FAILED = Row("superpos", (), 700, 100_000, math.nan, 1_000_000_000)
TABLE = Comparison("reviews", "some/model", "accuracy", 400, True, (SECOND, FIRST, FAILED))


def test_cells() -> None:
    assert TABLE.cells(FIRST) == ["prefix-tuning", "85.0 ± 5.0", "3", "1,000", "1.000", "2.0", "3.00", "-"]
    assert TABLE.cells(SECOND)[1:3] == ["70.0", "1"]
    assert TABLE.cells(FAILED) == ["superpos", "failed", "0", "700", "0.700", "-", "1.00", "-"]
    assert all(len(TABLE.cells(row)) == len(COLUMNS) for row in TABLE.rows) and TABLE.columns == list(COLUMNS)
    assert TABLE.best is FIRST and FIRST.std == pytest.approx(statistics.stdev(FIRST.scores)) and SECOND.std is None


def test_the_note_says_how_many_rows_and_how_sure() -> None:
    note = TABLE.note()
    assert "accuracy x 100 on 400 held-out rows" in note and "over 3 seeds" in note
    p = (0.85 * 400 + 1) / 402
    assert f"less than {196 * math.sqrt(2 * p * (1 - p) / 402):.1f} points" in note
    one = replace(TABLE, rows=(SECOND,), held_out=False)
    assert "validation rows, the best of all evaluations" in one.note() and "one seed" in one.note()
    # All right on a few rows is not certain.
    assert "less than" in replace(TABLE, rows_scored=4, rows=(replace(SECOND, scores=(1.0,)),)).note()
    assert "points" not in replace(TABLE, metric="pearson").note()


def test_what_runs_shared_is_one_number_and_no_column() -> None:
    shared = replace(TABLE, lanes=4)
    assert shared.columns == ["method", "score", "seeds", "trained", "% of model", "best run"]
    assert shared.cells(FIRST) == ["prefix-tuning", "85.0 ± 5.0", "3", "1,000", "1.000", "-"]
    assert "1.5 s/100 steps is a run's even share, 3.00 GB the peak memory of all" in shared.note()
    assert "even share" not in TABLE.note()


def test_one_answer_for_all_rows_stands_below_the_methods() -> None:
    table = replace(TABLE, constant=0.5)
    assert table.lines[-1][:3] == ["one answer", "50.0", "-"] and len(table.lines) == len(TABLE.lines) + 1
    assert "| one answer | 50.0 |" in table.markdown()


def test_idle_parts_are_named_below_the_table() -> None:
    idle = replace(FIRST, idle={"router: all rows get the same masks": 2}, runs=3)
    table = replace(TABLE, rows=(SECOND, idle))
    assert table.idle() == ["idle: prefix-tuning: router: all rows get the same masks (2 of 3 runs)"]
    assert table.markdown().endswith(f"\n\n{table.idle()[0]}\n")
    assert TABLE.idle() == []


def test_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = write_report(TABLE, tmp_path / "report")
    assert [path.name for path in written] == ["table.md", "table.csv", "accuracy.png"]
    text = written[0].read_text()
    assert "| prefix-tuning | **85.0 ± 5.0** |" in text and "some/model on reviews" in text
    lines = list(csv.DictReader(written[1].read_text().splitlines()))
    assert lines[1]["method"] == "prefix-tuning" and lines[1]["scores"] == "0.800000 0.900000 0.850000"
    assert lines[0]["std"] == "" and float(lines[1]["std"]) == pytest.approx(0.05)
    assert written[2].read_bytes().startswith(b"\x89PNG")


def test_a_comparison_in_which_all_fail_still_has_a_table(tmp_path: Path) -> None:
    written = write_report(replace(TABLE, rows=(FAILED,)), tmp_path)
    assert [path.name for path in written] == ["table.md", "table.csv"] and "failed" in written[0].read_text()


def test_scores_come_from_test_rows_where_there_are_some() -> None:
    result = {"test_rows": 3, "test_metrics": {"accuracy": 0.5}, "metrics": {"accuracy": 0.9}}
    assert score_of(result, "accuracy") == 0.5
    assert score_of({**result, "test_rows": 0}, "accuracy") == 0.9
    assert score_of({**result, "test_metrics": {}}, "accuracy") is None


def test_compare_checks_each_run_once_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Workbench(model_folder("bert"), Data(train=str(write_csv(tmp_path / "data.csv", rows()))))
    fits, too_long = sp.PrefixTuningConfig(num_virtual_tokens=2), sp.PromptTuningConfig(num_virtual_tokens=39)
    happened: list[str] = []
    check, encode = Workbench.check, EncodedRows.split

    def checked(self: Workbench, method: sp.MethodConfig, *rest: Any, **more: Any) -> None:
        happened.append(f"check {method.num_virtual_tokens}")
        check(self, method, *rest, **more)

    def encoded(self: EncodedRows, split: str, length: int) -> Any:
        happened.append("encode")
        return encode(self, split, length)

    monkeypatch.setattr(Workbench, "check", checked)
    monkeypatch.setattr(EncodedRows, "split", encoded)
    with pytest.raises(sp.SoftPromptError, match="leave no room"):
        compare(
            bench,
            [(method, TrainConfig(max_steps=1)) for method in (fits, too_long)],
            [0],
            root=tmp_path / "runs",
            on_start=lambda: happened.append("start"),
        )
    assert happened == ["check 2", "check 39"] and not (tmp_path / "runs").exists()

    happened.clear()
    training = TrainConfig(max_steps=1)
    compare(bench, [(fits, training)], [0, 1], root=tmp_path / "runs", on_start=lambda: happened.append("start"))
    assert happened[:4] == ["check 2", "check 2", "start", "encode"] and "check 2" not in happened[3:]


def test_compare_trains_once_and_sums_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Workbench(model_folder("bert"), Data(train=str(write_csv(tmp_path / "data.csv", rows()))))
    methods: list[tuple[sp.MethodConfig, TrainConfig]] = [
        (sp.HeadOnlyConfig(), TrainConfig(max_steps=3)),
        (sp.PrefixTuningConfig(num_virtual_tokens=2), TrainConfig(max_steps=3)),
    ]
    told: list[Run] = []
    first = compare(bench, methods, [0, 1], root=tmp_path / "runs", on_result=lambda run, _: told.append(run))
    ended = [(run.method.method, run.training.seed) for run in told]
    assert ended == [("head-only", 0), ("prefix-tuning", 0), ("head-only", 1), ("prefix-tuning", 1)]
    assert [row.method for row in first.rows] == ["head-only", "prefix-tuning"]
    assert first.rows[0].trained == 2 * 16 + 2 and first.rows_scored == 4 and not first.held_out
    assert all(len(row.scores) == 2 for row in first.rows)
    assert not list(bench.model.prompts)  # many seeds would fill the memory

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("softprompts.experiments.workbench.train", never)
    assert compare(bench, methods, [0, 1], root=tmp_path / "runs") == first
