"""Several labels a row, weights, thresholds and temperatures from a file to answers, on tiny models."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from saved import Cli, model_folder, write_csv, write_jsonl

import softprompts as sp
from softprompts.serving.engine import Engine
from softprompts.serving.jobs import RequestRow
from softprompts.serving.requests import predict_jobs
from softprompts.tasks.data import Data
from softprompts.tasks.task import Task
from softprompts.tasks.user_files import load_files
from tests.commands.running import config, refuse, result

WORDS = {"good": "w10 w11", "bad": "w20 w21", "long": "w30 w31"}


def made(count: int, seed: int) -> list[tuple[str, list[str]]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        labels = [label for label in WORDS if draw.random() < 0.4]
        words = [word for label in labels for word in WORDS[label].split()] + draw.choices(["w40", "w41", "w42"], k=2)
        draw.shuffle(words)
        rows.append((" ".join(words), labels))
    return rows


def joined(path: Path, rows: list[tuple[str, list[str]]]) -> Path:
    return write_csv(path, [{"text": text, "labels": "|".join(labels)} for text, labels in rows])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, seed in (("train", 0), ("valid", 1), ("test", 2)):
        joined(tmp_path / f"{name}.csv", made(24, seed))
    return tmp_path


def several(files: Path, family: str, *more: str) -> list[str]:
    names = ["--data", f"{files}/train.csv", "--validation", f"{files}/valid.csv", "--test", f"{files}/test.csv"]
    flags = ["--kind", "multi-label", "--label-separator", "|", "--steps", "6", "--lr", "0.05", "--folder", "run"]
    return ["train", "-m", model_folder(family), *names, *flags, *more]


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_from_a_file_to_answers(cli: Cli, files: Path, family: str) -> None:
    fitted = ["--class-weights", "balanced", "--threshold", "f1", "--calibrate"]
    words = [] if family == "bert" else ["--label-words", "plot,film,text,0"]
    done = cli.fine(*several(files, family, *fitted, *words))
    assert "micro_f1" in done.out and "subset_accuracy" in done.out and "temperature " in done.out
    assert "validation, each row by what the others chose: micro_f1 " in done.out
    ended, training = result("run"), config("run")["training"]
    assert training["class_weights"] == "balanced" and training["threshold"] == "f1" and training["calibrate"] is True
    decision = ended["decision"]
    assert len(decision["thresholds"]) == 3 and decision["temperature"] > 0
    assert ended["test_metrics"] == decision["test"]["metrics"]
    predictor = sp.Predictor("run")
    assert predictor.reader.decision is not None and predictor.reader.decision.thresholds == tuple(
        decision["thresholds"]
    )
    labels = predictor.task.form.labels
    assert labels == ("bad", "good", "long")
    answers = predictor([text for text, _ in made(5, 7)])
    for answer in answers:
        chosen = zip(labels, decision["thresholds"], strict=True)
        assert answer.labels == tuple(name for name, limit in chosen if answer.probabilities[name] >= limit)
        assert answer.label == "|".join(answer.labels) and answer.probability is None
    # The test's scores are those of the prompt that was saved, thresholds and temperature included.
    shown = json.loads(cli.fine("evaluate", "run", "--json").out)
    assert shown["metrics"] == pytest.approx(ended["test_metrics"]) and shown["rows_of"] == "test rows of train"
    assert shown["calibration"]["error"] == pytest.approx(decision["test"]["calibration_error"]["after"])
    assert len(shown["by_label"]) == 3 and all(sum(row) == 24 for row in shown["by_label"])
    # On the rows that chose them, each is decided by the others.
    again = json.loads(cli.fine("evaluate", "run", "--data", f"{files}/valid.csv", "--json").out)
    assert again["rows_of"] == "valid.csv (each decided by what was chosen on the others)"
    assert again["metrics"] == pytest.approx(decision["validation"]["metrics"])
    assert again["uncalibrated"]["error"] == pytest.approx(decision["validation"]["calibration_error"]["before"])
    cli.fine("evaluate", "run")
    assert "given only" in Path("run/report.html").read_text()


def test_predicted_tables_keep_all_columns(cli: Cli, files: Path) -> None:
    cli.fine(*several(files, "bert"))
    assert "decision" not in result("run") and "class_weights" not in config("run")["training"]
    write_csv(Path("new.csv"), [{"id": "7", "text": "w10 w11", "labels": "x"}, {"id": "8", "text": " ", "labels": ""}])
    cli.fine("predict", "run", "-f", "new.csv", "--output", "out.csv", "--all")
    lines = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    chances = [f"probability of {name}" for name in ("bad", "good", "long")]
    assert list(lines[0]) == ["id", "text", "labels", "label", *chances]
    answer = sp.Predictor("run")("w10 w11")
    assert lines[0]["label"] == answer.label and lines[1]["label"] == ""
    assert [lines[0][name] for name in chances] == [f"{value:.4f}" for value in answer.probabilities.values()]
    cli.fine("predict", "run", "-f", "new.csv", "--output", "out.jsonl")
    first, second = map(json.loads, Path("out.jsonl").read_text().splitlines())
    assert first["label"] == list(answer.labels) and second["label"] is None and "probability" not in first


def labels_of(task: Task) -> list[tuple[str, list[str]]]:
    return [(row.text, [task.form.labels[index] for index in row.label]) for row in task.train]


def test_three_ways_to_write_several_labels(files: Path) -> None:
    rows = made(24, 0)
    wanted = [(text, sorted(labels)) for text, labels in rows]
    listed = write_jsonl(files / "list.jsonl", [{"text": text, "labels": labels} for text, labels in rows])
    written = write_csv(files / "list.csv", [{"text": t, "labels": json.dumps(labels)} for t, labels in rows])
    columns = write_csv(
        files / "columns.csv",
        [{"text": t, **{name: str(int(name in labels)) for name in sorted(WORDS)}} for t, labels in rows],
    )
    valid = {"kind": "multi-label", "validation": files / "valid.csv", "label_separator": "|"}
    assert labels_of(load_files(files / "train.csv", **valid)) == wanted
    for path in (listed, written):
        assert labels_of(load_files(path, path, kind="multi-label")) == wanted
    assert labels_of(load_files(columns, columns, kind="multi-label", label_columns=sorted(WORDS))) == wanted


def test_rare_labels_are_held_out_too(files: Path) -> None:
    rows = [("w10", ["good"])] * 90 + [("w10 w20", ["good", "bad"])] * 10
    task = load_files(joined(files / "rare.csv", rows), kind="multi-label", label_separator="|")
    assert sorted(len(row.label) for row in task.validation) == [1] * 9 + [2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--label-separator", ";"], "looks like several labels: give what stands between them"),
        (["--label-columns", "good,bad"], "label_separator and label_columns do not go together"),
        (["--class-weights", "godd=2"], "class weights name the label 'godd': did you mean 'good'"),
        (["--class-weights", "balance"], "class_weights must be 'balanced' or a number for a label"),
        (["--class-weights", "good=-1"], "class_weights must be numbers above 0: that of good is -1"),
        (["--threshold", "2"], "threshold must be one of f1, accuracy, balanced_accuracy, matthews or a number"),
        (["--threshold", "f1", "--max-validation", "3"], "fitted on at least 5 validation rows, not on 3"),
        (["--answer", "generate"], "several labels are scored apart, not written"),
        (["--method", "adamix", "--set", "consistency=1"], "compares probabilities that exclude each other"),
    ],
)
def test_what_is_refused(cli: Cli, files: Path, more: list[str], message: str) -> None:
    refuse(cli, message, *several(files, "bert", *more))
    assert not Path("run/result.json").exists()


def test_a_threshold_of_two_labels(cli: Cli, files: Path) -> None:
    rows = [{"text": text, "label": "yes" if "good" in labels else "no"} for text, labels in made(60, 3)]
    data = write_csv(files / "two.csv", rows)
    common = ["train", "-m", model_folder("bert"), "--data", str(data), "--steps", "3"]
    cli.fine(*common, "--folder", "low", "--threshold", "0.0001", "--class-weights", "no=1,yes=4")
    assert config("low")["training"]["class_weights"] == {"no": 1, "yes": 4}
    low = sp.Predictor("low")("w10 w11")
    assert low.label == "yes" and low.probability == low.probabilities["yes"]
    cli.fine(*common, "--folder", "high", "--threshold", "0.9999", "--calibrate")
    high = sp.Predictor("high")("w10 w11")
    assert high.label == "no" and high.probability == high.probabilities["no"]


def test_data_settings_say_what_they_are(files: Path) -> None:
    data = Data(train=f"{files}/train.csv", kind="multi-label", label_separator="|")
    plain: dict[str, Any] = data.to_dict()
    assert plain["label_separator"] == "|" and "label_columns" not in plain
    assert "label_separator" not in Data(train="x.csv").to_dict()


def test_served_answers_have_all_labels(cli: Cli, files: Path) -> None:
    command = several(files, "bert", "--threshold", "f1", "--calibrate")
    cli.fine(*command)
    engine = Engine(command[2])
    model, prompt, saved = engine.read(Path("run/prompt"))
    loaded = engine.with_reader("run", None, model, prompt, saved)
    model.place_prompt(loaded.key, loaded.module)
    texts = [text for text, _ in made(4, 5)]
    (job,) = predict_jobs(engine, [RequestRow(loaded, text) for text in texts])
    for served, answer in zip(
        job.read(list(engine.score(job.scoring, 8, 400))), sp.Predictor("run")(texts), strict=True
    ):
        assert served["labels"] == list(answer.labels) and served["label"] == answer.label
        assert served["probabilities"] == pytest.approx(dict(answer.probabilities), abs=1e-5)
