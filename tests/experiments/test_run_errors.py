"""The errors of a run right after it: of the predictions that its score is of, as `Predictor.evaluate` has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saved import model_folder, rows, write_csv, write_jsonl

import softprompts as sp
from softprompts.experiments import run_errors as module
from softprompts.experiments.run_errors import run_errors
from softprompts.experiments.workbench import Workbench
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig
from softprompts.training.evaluation import predictions_of

TAGGED = [{"words": ["good", "film"], "tags": ["B-X", "O"]}, {"words": ["the", "plot"], "tags": ["O", "B-Y"]}] * 4
ASKED = [
    {"question": "good ?", "context": "the film was good", "answers": ["the film"]},
    {"question": "bad ?", "context": "a plot was bad", "answers": ["bad"]},
] * 4


def same(ours: Any, theirs: Any) -> None:
    """The same but for rounding: batches are others."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert ours == (pytest.approx(theirs, abs=1e-5) if isinstance(ours, float) else theirs)


def bench_of(tmp_path: Path, kind: str, model: str = "bert", test: bool = False) -> Workbench:
    scores = [{"text": row["text"], "label": float(index % 3)} for index, row in enumerate(rows(12))]
    made = {"classification": rows(12), "regression": scores, "tagging": TAGGED, "span": ASKED}[kind]
    file = (
        write_csv(tmp_path / "rows.csv", made) if kind == "classification" else write_jsonl(tmp_path / "r.jsonl", made)
    )
    return Workbench(
        model_folder(model), Data(train=str(file), kind=kind, validation=str(file), test=str(file) if test else None)
    )


def refuse_another_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def pass_(*_: Any) -> Any:
        raise AssertionError("the rows went through the model again")

    monkeypatch.setattr(module, "predictions_of", pass_)


@pytest.mark.parametrize(
    ("kind", "model", "test"),
    [
        ("classification", "bert", False),
        ("classification", "bert", True),
        ("classification", "llama", False),
        ("regression", "bert", False),
        ("tagging", "bert", False),
        ("span", "bert", True),
    ],
)
def test_they_are_those_of_evaluate_without_another_pass(
    kind: str, model: str, test: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(tmp_path, kind, model, test)
    refuse_another_pass(monkeypatch)
    training = TrainConfig(max_steps=6, eval_every=2, batch_size=4, learning_rate=0.1)
    path, result = bench.run(sp.PrefixTuningConfig(num_virtual_tokens=2), training, root=tmp_path / "runs", name="mine")
    errors = run_errors(bench, path)
    assert errors is not None and errors.metrics == result["test_metrics" if test else "metrics"]
    assert bench.task.scored_rows()[0] == ("test" if test else "validation")
    same(errors.to_dict(), sp.Predictor(path).evaluate().errors.to_dict())


def test_the_kept_prompt_counts_and_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(tmp_path, "classification")
    refuse_another_pass(monkeypatch)
    # After some steps the rate is so high that the last prompt is worse than the one that is kept.
    training = TrainConfig(
        max_steps=40, eval_every=5, batch_size=4, learning_rate=5.0, warmup_steps=20, schedule="constant"
    )
    path, result = bench.run(sp.PrefixTuningConfig(num_virtual_tokens=2), training, root=tmp_path / "runs")
    errors = run_errors(bench, path)
    assert result["best_step"] < 40
    assert errors is not None and errors.right is not None and errors.right.value == result["metrics"]["accuracy"]


def test_a_run_that_was_resumed_after_its_best_evaluation_is_predicted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, passes = bench_of(tmp_path, "classification"), []
    monkeypatch.setattr(module, "predictions_of", lambda *given: passes.append(1) or predictions_of(*given))
    path, _ = bench.run(sp.HeadOnlyConfig(), TrainConfig(max_steps=3, batch_size=4), root=tmp_path / "runs")
    first = run_errors(bench, path)
    assert not passes and first is not None
    (path / "result.json").unlink()  # the checkpoint is that of the end
    again = bench_of(tmp_path, "classification")
    again.run(sp.HeadOnlyConfig(), TrainConfig(max_steps=3, batch_size=4), root=tmp_path / "runs", resume=True)
    second = run_errors(again, path)
    assert passes == [1] and second is not None
    same(first.to_dict(), second.to_dict())


def test_a_run_without_a_score_has_none(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, "classification")
    training = TrainConfig(max_steps=9, batch_size=4, learning_rate=1e30, max_grad_norm=None)
    path, result = bench.run(sp.PrefixTuningConfig(num_virtual_tokens=2), training, root=tmp_path / "runs")
    assert result["stop_reason"] == "non-finite loss" and not result["metrics"] and run_errors(bench, path) is None
