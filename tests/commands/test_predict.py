"""`softprompts predict`, end to end: what it answers and what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from saved import LENGTH, Cli, rows, write_csv, write_jsonl

from tests.commands.running import refuse, result, train


@pytest.mark.parametrize("family", ["t5", "llama", "bert"])
def test_predict_gives_a_label_of_the_task_and_its_probability(cli: Cli, data: Path, family: str) -> None:
    method = "prefix-tuning" if family == "bert" else "prompt-tuning"
    done = cli.fine(*train(data, family), "--method", method, "--folder", "run")
    assert "run folder" in done.out
    for source in ("run", "run/prompt"):
        lines = cli.fine("predict", source, "the film was good", "a [/] bad [red]plot").out.splitlines()
        assert len(lines) == 2 and lines[1].endswith("a [/] bad [red]plot")
        for line in lines:
            label, probability, _ = line.split("\t")
            assert label in ("negative", "positive") and 0.5 <= float(probability) <= 1


def test_predict_reads_files_and_writes_csv(cli: Cli, tmp_path: Path, data: Path) -> None:
    renamed = [{"review": row["text"], "label": row["label"]} for row in rows()]
    path = write_csv(tmp_path / "renamed.csv", renamed)
    cli.fine(*train(path), "--text", "review", "--folder", "run")
    texts = [row["review"] for row in renamed]
    (tmp_path / "lines.txt").write_text("\n".join(texts) + "\n")
    inputs = [path, write_jsonl(tmp_path / "renamed.jsonl", renamed), tmp_path / "lines.txt"]
    answers = []
    for given in inputs:
        done = cli.fine("predict", "run", "--file", given, "--output", tmp_path / "out.csv")
        assert "40 rows written to" in done.out
        answers.append(list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines())))
    assert answers[0] == answers[1] and [row["review"] for row in answers[0]] == texts
    assert list(answers[0][0]) == ["review", "label", "predicted_label", "probability"]
    assert [row["label"] for row in answers[0]] == [row["label"] for row in renamed]
    assert list(answers[2][0]) == ["review", "label", "probability"]
    assert [row["label"] for row in answers[2]] == [row["predicted_label"] for row in answers[0]]
    lines = cli.fine("predict", "run", "--file", data).out.splitlines()  # it has no "review" column, but "text"
    assert [line.split("\t")[2] for line in lines] == [row["text"] for row in rows()]


def test_predict_keeps_rows_columns_and_the_users_file(
    cli: Cli, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.fine(*train(data), "--folder", "run")
    rows_given = [{"id": "1", "text": "the film was good", "n": 0.25}, {"id": "2", "text": " ", "n": 1}]
    file = write_jsonl(tmp_path / "new.jsonl", rows_given)
    before = file.read_text()
    done = cli("predict", "run", "--file", file, "--output", file)
    assert done.code == 2 and "is the file that is read" in done.err and file.read_text() == before
    done = cli.fine("predict", "run", "--file", file, "--output", tmp_path / "out.jsonl", "--all")
    assert "1 of 2 rows have no answer, the first: " in done.err and "line 2" in done.err
    one, two = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert one["n"] == 0.25 and one["label"] in ("negative", "positive") and (two["id"], two["label"]) == ("2", "")
    chances = [one[f"probability of {name}"] for name in ("negative", "positive")]
    assert sum(chances) == pytest.approx(1, abs=1e-5) and max(chances) == one["probability"]
    assert cli("predict", "run", "--file", file, "--on-error", "stop").code == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("the film was good\n\na very bad plot\n"))
    done = cli.fine("predict", "run", "--file", "-", "--output", tmp_path / "out.csv")
    assert [row["label"] == "" for row in csv.DictReader((tmp_path / "out.csv").read_text().splitlines())] == [
        False,
        True,
        False,
    ]


def test_pairs(cli: Cli, tmp_path: Path, data: Path) -> None:
    pairs = [{"first": row["text"], "second": "a plot .", "label": row["label"]} for row in rows()]
    path = write_csv(tmp_path / "pairs.csv", pairs)
    columns = ["--text", "first", "--text-pair", "second"]
    for family in ("bert", "llama"):
        cli.fine(*train(path, family), *columns, "--folder", family)
        assert cli.fine("predict", family, "the film was good", "--text-pair", "a plot .").out.count("\n") == 1
        assert cli.fine("predict", family, "--file", path).out.count("\n") == 40
        done = cli("predict", family, "the film was good")
        assert done.code == 2 and "reads pairs" in done.err and "--text-pair" in done.err
    done = cli("predict", "bert", "one", "two", "--text-pair", "three")
    assert done.code == 2 and "goes with one text" in done.err
    cli.fine(*train(data), "--folder", "single")
    done = cli("predict", "single", "one", "--text-pair", "two")
    assert done.code == 2 and "reads single texts" in done.err


def test_predict_leaves_room_for_the_prompt(cli: Cli, data: Path) -> None:
    """A text longer than what the context leaves beside the prompt is cut, and that is said."""
    flags = ["--method", "prompt-tuning", "--set", "num_virtual_tokens=30"]
    cli.fine(*train(data), *flags, "--folder", "run")
    assert result("run")["max_length"] == LENGTH - 30
    done = cli.fine("predict", "run", "the film was good " * 10)
    assert done.err == "1 of 1 rows were cut to 10 tokens; of them the field 'text'\n"


def test_predict_and_inspect_refuse(cli: Cli, tmp_path: Path, data: Path) -> None:
    cli.fine(*train(data), "--folder", "run")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "hole.csv").write_text("text\ngood\n \n")
    (tmp_path / "latin.txt").write_bytes("schön".encode("latin-1"))
    both = "give texts, or --file FILE with texts, and not both"
    for arguments, message in (
        (["run"], both),
        (["run", "text", "--file", str(data)], both),
        (["run", " "], "empty text"),
        (["run", "--file", "none.csv"], "no such file"),
        (["run", "--file", "none.txt"], "no such file"),
        (["run", "--file", str(tmp_path / "empty.txt")], "holds no texts"),
        (["run", "--file", str(tmp_path / "hole.csv"), "--on-error", "stop"], "line 3: 'text' is empty"),
        (["run", "--file", str(tmp_path / "latin.txt")], "not UTF-8"),
        (["run", "--file", str(data), "--text", "txt"], "no column 'txt'"),
        (["run", "text", "--output", "."], "is a folder"),
        (["none", "text"], "none: no such folder"),
        (["nobody/none", "text"], "no such prompt on the hub"),
        ([str(data), "text"], "is a file"),
        ([".", "text"], "holds no saved prompt"),
    ):
        refuse(cli, message, "predict", *arguments)
    refuse(cli, "no such folder", "inspect", "./none")
    Path("run/prompt/softprompt.safetensors").write_bytes(b"damaged")
    for command in (["inspect", "run"], ["predict", "run", "text"]):
        refuse(cli, "is not the file that", *command)
    for path in Path("run/prompt").iterdir():
        path.unlink()
    refuse(cli, "has not saved a prompt yet", "predict", "run", "text")


def test_predict_takes_tables_of_spreadsheets(cli: Cli, tmp_path: Path, data: Path) -> None:
    cli.fine(*train(data), "--folder", "run")
    for name, text in {"c.csv": "text,n\ngood; film,1\nbad,2\n", "s.csv": "sep=;\ntext;n\ngood; film;1\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "p.txt").write_text("text|n\ngood; film|1\nbad|2\n")
    plain = cli.fine("predict", "run", "--file", str(tmp_path / "c.csv")).out
    assert plain.count("\n") == 2 and plain.splitlines()[0].endswith("\tgood; film")
    assert cli.fine("predict", "run", "--file", str(tmp_path / "p.txt"), "--separator", "|").out == plain
    refuse(cli, "line 3: 3 columns, the first line has 2", "predict", "run", "--file", str(tmp_path / "s.csv"))
    refuse(cli, "--separator is about a file", "predict", "run", "text", "--separator", ";")
