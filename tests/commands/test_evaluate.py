"""`softprompts evaluate`: on a run's own rows and on files, as a table, as JSON, and as a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saved import Cli, model_folder, rows, write_csv, write_jsonl

import softprompts as sp


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "data.csv", rows())


@pytest.fixture
def run(cli: Cli, tmp_path: Path, data: Path) -> Path:
    folder = tmp_path / "run"
    cli.fine("train", "--data", data, "--model", model_folder("bert"), "--steps", 4, "--folder", folder)
    return folder


def test_own_rows_a_file_and_json_agree_with_predict(cli: Cli, run: Path, data: Path) -> None:
    own = cli.fine("evaluate", run).out
    page = (run / "report.html").read_text()
    assert "validation rows of data" in own and "precision" in own and "validation rows of data" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert f"{json.loads((run / 'result.json').read_text())['metrics']['accuracy']:.4f}" in own
    found = json.loads(cli.fine("evaluate", run, "--data", data, "--json").out)
    texts, labels = zip(*[(row["text"], row["label"]) for row in rows()], strict=True)
    said = [answer.label for answer in sp.Predictor(run)(list(texts))]
    right = sum(map(str.__eq__, said, map(str, labels)))
    assert found["rows"] == len(texts) and found["right"]["value"] == pytest.approx(right / len(texts))
    assert sum(map(sum, found["confusion"])) == len(texts)
    assert found["wrong"] == len(texts) - right


def test_train_ends_in_the_report_that_evaluate_makes(cli: Cli, data: Path, tmp_path: Path) -> None:
    folder, command = tmp_path / "new", ["train", "--data", data, "--model", model_folder("bert"), "--steps", 3]
    done = cli.fine(*command, "--folder", folder)
    assert (
        f"report: {folder}/report.html\n" in done.out
        and "recall" in done.out
        and "softprompts evaluate" not in done.out
    )
    page, numbers = (folder / "report.html").read_text(), json.loads((folder / "evaluation.json").read_text())
    assert "validation rows of data" in page and numbers["rows_of"] == "validation rows of data"
    found = json.loads(cli.fine("evaluate", folder, "--json").out)
    assert numbers["confusion"] == found["confusion"] and numbers["classes"] == found["classes"]
    assert json.loads((folder / "result.json").read_text())["metrics"] == numbers["metrics"]
    cli.fine("evaluate", folder, "--data", data)
    assert json.loads((folder / "evaluation.json").read_text())["rows_of"] == "data.csv"
    plain = tmp_path / "plain"
    done = cli.fine(*command, "--folder", plain, "--no-report")
    assert "recall" not in done.out and f"softprompts evaluate {plain}" in done.out
    assert not (plain / "report.html").exists() and not (plain / "evaluation.json").exists()
    cli.fine("compare", *command[1:], "--methods", "head-only", "--seeds", "0", "--out", tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*/report.html"))


def test_columns_by_other_names_and_labels_by_index(cli: Cli, run: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "new.jsonl", [{"body": "the film was good", "class": 1}] * 3)
    out = cli.fine("evaluate", run, "--data", file, "--text", "body", "--label", "class", "--json").out
    assert json.loads(out)["baseline"][0] == "positive"


def test_files_are_read_as_in_training(cli: Cli, tmp_path: Path) -> None:
    words = tmp_path / "words.csv"
    words.write_text("words,tags\nAnn,B-PER\nsings,O\n\nBob,B-PER\nin,O\nRome,B-LOC\n")
    scores = tmp_path / "scores.csv"
    scores.write_text("text;label\ngood film;2,5\nbad film;0,5\nfine plot;1,5\npoor plot;0,25\n")
    for file, kind, count in ((words, "tagging", 2), (scores, "regression", 4)):
        folder = tmp_path / kind
        options = ["--kind", kind, "--validation", file, "--steps", 1, "--folder", folder]
        cli.fine("train", "--data", file, "--model", model_folder("bert"), *options)
        found = json.loads(cli.fine("evaluate", folder, "--data", file, "--json").out)
        assert found["rows"] == count
    assert [label for label, _ in found["points"]] == [2.5, 0.5, 1.5, 0.25]


def test_wrong_input_is_one_line_and_leaves_nothing(cli: Cli, run: Path, tmp_path: Path) -> None:
    (run / "report.html").unlink(missing_ok=True)
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"text": "good", "label": "other"}])
    for arguments, said in (
        (["--data", bad], "line 1: label 'other' is not one of the prompt's"),
        (["--data", tmp_path / "no.csv"], "no.csv"),
        (["--label", "x"], "give --data too"),
    ):
        done = cli("evaluate", run, *arguments)
        assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 1
    assert not (run / "report.html").exists()
    done = cli("evaluate", run / "prompt")
    assert done.code == 0  # the run folder is around it
