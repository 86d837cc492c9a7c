"""What saved prompts are worth on other tasks, in numbers that separate runs give too."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from saved import Cli, model_folder, rows, write_csv

import softprompts as sp
from softprompts.experiments.transfer import NONE, Target, Transfer, transfer, write_report
from softprompts.experiments.workbench import Workbench
from softprompts.predictor import Predictor
from softprompts.tasks import load_files
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

SHORT = TrainConfig(max_steps=4, batch_size=4)
FOUND = Transfer(
    "some/model",
    (NONE, "a", "b"),
    (Target("x", "accuracy", 10, True), Target("y", "f1", 20, False)),
    (0, 4),
    (0, 1),
    7,
    {
        ("a", "x", 0): (0.5,),
        (NONE, "x", 4): (0.5, 0.7),
        ("a", "x", 4): (0.8, 0.9),
        ("b", "x", 4): (0.25,),
        ("b", "y", 4): (0.4, 0.4),
    },
)


def test_matrices() -> None:
    assert FOUND.lines(4) == [[NONE, "60.0 ± 14.1", "-"], ["a", "85.0 ± 7.1", "-"], ["b", "25.0", "40.0 ± 0.0"]]
    assert FOUND.lines(0) == [[NONE, "-", "-"], ["a", "50.0", "-"], ["b", "-", "-"]]
    assert FOUND.best(FOUND.targets[0], 4) == "a" and FOUND.best(FOUND.targets[1], 0) is None
    note = FOUND.note()
    assert "accuracy on 10 test rows of x, f1 on 20 validation rows of y" in note and "7 steps" in note
    assert "over 2 seeds" in note and "same labels" in note
    assert "same labels" not in dataclasses.replace(FOUND, shots=(4,)).note()


def test_report(tmp_path: Path) -> None:
    markdown, table = write_report(FOUND, tmp_path / "report")
    text = markdown.read_text()
    assert "| a | **85.0 ± 7.1** | - |" in text and "| b | 25.0 | **40.0 ± 0.0** |" in text and FOUND.note() in text
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert len(lines) == 2 * 2 * 3
    (line,) = [line for line in lines if (line["source"], line["target"], line["shots"]) == ("a", "x", "4")]
    assert float(line["mean"]) == pytest.approx(0.85) and line["scores"] == "0.800000 0.900000"
    assert {line["mean"] for line in lines if line["target"] == "y" and line["source"] == "a"} == {""}


@pytest.fixture
def targets(tmp_path: Path) -> list[Data]:
    """Two tasks of one form, and one with other labels."""
    other = [{**row, "label": {"negative": "first", "positive": "second"}[row["label"]]} for row in rows(60, 3)]
    return [
        Data(train=str(write_csv(tmp_path / f"{name}.csv", lines)))
        for name, lines in (("films", rows(60)), ("plots", rows(60, 2)), ("answers", other))
    ]


def sources(folder: Path, targets: list[Data], family: str) -> list[str]:
    """A prompt of the first target, and one of another method and length of the last."""
    made = []
    for data, config in (
        (targets[0], sp.PromptTuningConfig(num_virtual_tokens=3)),
        (targets[-1], sp.SuperPosConfig(num_virtual_tokens=2, num_sampled_tokens=3)),
    ):
        path, _ = Workbench(model_folder(family), data).run(config, TrainConfig(max_steps=6), root=folder)
        made.append(str(path))
    return made


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_the_matrix_is_that_of_separate_runs(tmp_path: Path, targets: list[Data], family: str) -> None:
    paths = sources(tmp_path / "sources", targets, family)
    bench = Workbench(model_folder(family), targets[0])
    told: list[tuple[str, str, int]] = []
    found = transfer(
        bench,
        paths,
        targets[1:],
        SHORT,
        shots=(0, 4),
        seeds=(0, 1),
        root=tmp_path / "runs",
        on_result=lambda source, target, count, _: told.append((source, target, count)),
    )
    assert found.sources == (NONE, "films", "answers") and not bench.model.prompts
    assert sorted(told) == sorted((s, t, 4) for s in found.sources for t in ("plots", "answers") for _ in range(2))
    for target, data in zip(found.targets, targets[1:], strict=True):
        for source, path in zip(found.sources, ["", *paths], strict=True):
            config: sp.MethodConfig = sp.PromptTuningConfig(num_virtual_tokens=3)
            if path:
                config = sp.SPoTConfig(num_virtual_tokens=3, sources=(path,))
            for place, seed in enumerate((0, 1)):
                few = dataclasses.replace(data, few_shot=4, few_shot_seed=seed)
                alone = Workbench(model_folder(family), few)
                assert len(alone.task.train) == 4 and alone.task.balance() == dict.fromkeys(alone.task.label_names, 2)
                training = dataclasses.replace(SHORT, seed=seed, eval_every=4)
                _, result = alone.run(config, training, root=tmp_path / "alone", reuse=True)
                score = found.scores[source, target.name, 4][place]
                assert score == pytest.approx(result["metrics"]["accuracy"], abs=1 / target.rows)

    # As they are: a head answers with the labels that it knows; a language model with the words of the target.
    for name, path in zip(found.sources[1:], paths, strict=True):
        for target, data in zip(found.targets, targets[1:], strict=True):
            scores, task = found.scores[name, target.name, 0], data.load()
            if (name == "answers") != (target.name == "answers"):
                assert len(scores) == (0 if family == "bert" else 1)
                continue
            answers = Predictor(path)([row.text for row in task.validation])
            truth = [task.label_names[int(row.label)] for row in task.validation]
            right = sum(answer.label == label for answer, label in zip(answers, truth, strict=True))
            assert scores == (pytest.approx(right / len(truth)),)


def test_what_is_done_is_not_done_again(tmp_path: Path, targets: list[Data], monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sources(tmp_path / "sources", targets, "bert")
    bench = Workbench(model_folder("bert"), targets[0])
    fields: dict[str, Any] = {"shots": (4,), "seeds": (0,), "root": tmp_path / "runs"}
    first = transfer(bench, paths, targets[1:2], SHORT, **fields)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("softprompts.experiments.workbench.train", never)
    assert transfer(bench, paths, targets[1:2], SHORT, **fields) == first
    with pytest.raises(AssertionError, match="trained again"):
        transfer(bench, paths, targets[1:2], SHORT, **fields, length=5)


def test_nothing_is_trained_when_something_cannot_be(tmp_path: Path, targets: list[Data]) -> None:
    bench = Workbench(model_folder("bert"), targets[0])
    prefix, _ = bench.run(sp.PrefixTuningConfig(num_virtual_tokens=2), TrainConfig(max_steps=1), root=tmp_path / "a")
    (fine, _) = sources(tmp_path / "sources", targets, "bert")
    same = [targets[1], targets[1]]
    cases: list[tuple[list[str], list[Data], dict[str, Any], str]] = [
        ([], targets, {}, "at least one source"),
        ([fine], targets, {"shots": (-1,)}, "shots must be a whole number of at least 0"),
        ([fine], targets, {"seeds": ()}, "at least one seed"),
        ([fine, fine], targets, {}, "a source is named twice"),
        ([fine], same, {}, "a target is named twice"),
        ([str(prefix)], targets, {}, "does not consist of input tokens"),
        ([fine], targets, {"shots": (400,)}, "few_shot=400 wants 200 training rows of each of 2 labels"),
        ([fine], targets, {"length": 39}, "leave no room"),
    ]
    for paths, wanted, fields, message in cases:
        with pytest.raises(sp.SoftPromptError, match=message):
            transfer(bench, paths, wanted, SHORT, root=tmp_path / "runs", **fields)
    with pytest.raises(sp.SoftPromptError, match="max_steps"):
        transfer(bench, [fine], targets, TrainConfig(), root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_sources_of_one_task_are_told_apart(tmp_path: Path, targets: list[Data]) -> None:
    bench = Workbench(model_folder("bert"), targets[0])
    config = sp.PromptTuningConfig(num_virtual_tokens=2)
    paths = [str(bench.run(config, TrainConfig(max_steps=1, seed=i), root=tmp_path / "a")[0]) for i in range(2)]
    found = transfer(bench, paths, targets[:1], SHORT, shots=(0,), root=tmp_path / "runs")
    assert found.sources == (NONE, *(f"films ({Path(path).name})" for path in paths))


def test_the_command(
    tmp_path: Path, targets: list[Data], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = sources(tmp_path / "sources", targets, "bert")
    known = {str(data.train).split("/")[-1].removesuffix(".csv"): str(data.train) for data in targets}
    monkeypatch.setattr(
        "softprompts.tasks.data.load_task", lambda name, _, template, **more: load_files(known[name], **more)
    )
    cli = Cli(monkeypatch, capsys)
    flags = ["--tasks", "plots,answers", "--shots", "0,4", "--seeds", "0,1", "--steps", "2", "-o", "r"]
    done = cli.fine("transfer", *paths, *flags)
    assert "no training rows" in done.out and "4 training rows" in done.out and "plots" in done.out
    assert "[12/12]" in done.err and "films to plots with 4 rows, seed 0" in done.err
    lines = list(csv.DictReader((tmp_path / "r" / "transfer" / "transfer.csv").read_text().splitlines()))
    assert len(lines) == 2 * 2 * 3
    assert max(map(len, done.out.split("prompts of one task")[0].splitlines())) <= 80
    before = (tmp_path / "r" / "transfer" / "transfer.md").read_text()
    assert cli.fine("transfer", *paths, *flags).out == done.out
    assert (tmp_path / "r" / "transfer" / "transfer.md").read_text() == before

    for wrong, message in (
        (["transfer", "none", *flags], "no such folder"),
        (["transfer", *paths, "--shots", "x"], "--shots: 'x' is not a whole number"),
        (["transfer", *paths, "--tasks", ","], "--tasks names nothing"),
    ):
        failed = cli(*wrong)
        assert failed.code == 2 and message in failed.err
