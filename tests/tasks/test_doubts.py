"""What looks like a mistake in labelled rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import Task
from softprompts.tasks.data import Data
from softprompts.tasks.doubts import doubts


def task(folder: Path, *rows: tuple[str, str], **more: list[tuple[str, str]]) -> Task:
    def write(name: str, lines: list[tuple[str, str]]) -> str:
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *lines])
        return str(folder / f"{name}.csv")

    files = {name: write(name, lines) for name, lines in more.items()}
    return Data(train=write("train", list(rows)), **files).load()  # type: ignore[arg-type]


def many(*labels: str) -> list[tuple[str, str]]:
    return [(f"{label} {number}", label) for number in range(4) for label in labels]


@pytest.mark.parametrize("labels", [("Billing", "billing"), ("to do", "to-do"), ("late", "late."), ("ﬁne", "fine")])
def test_labels_that_are_nearly_equal(tmp_path: Path, labels: tuple[str, str]) -> None:
    made = task(tmp_path, *many(*labels, "other"))
    (line,) = doubts(made)
    assert "nearly equal" in line and all(f"'{label}'" in line for label in labels) and "other" not in line
    assert doubts(made, named=True) == []


@pytest.mark.parametrize("labels", [("1", "-1"), ("1.0", "10"), ("C", "C++"), ("a", "b"), ("A", "A-")])
def test_labels_that_are_not(tmp_path: Path, labels: tuple[str, str]) -> None:
    assert doubts(task(tmp_path, *many(*labels))) == []


def test_a_label_with_one_row_and_one_without(tmp_path: Path) -> None:
    lines = [*many("a", "b"), ("x", "c")]
    assert doubts(task(tmp_path, *lines)) == ["one row alone has the label 'c': nothing is scored on it"]
    assert doubts(task(tmp_path, *lines), few=True) == []
    assert doubts(task(tmp_path, *lines, validation=[("new", "c"), ("newer", "a")])) == []


def test_rows_that_are_trained_and_scored_on(tmp_path: Path) -> None:
    shared = [("a 1", "a"), ("new", "b"), ("b 1", "a")]
    (line,) = doubts(task(tmp_path, *many("a", "b"), validation=shared))
    assert line.startswith("2 of 3 validation rows have the texts of training rows, such as 'a 1':")
    both = {"validation": [("newer", "a")], "test": shared[:2]}
    (line,) = doubts(task(tmp_path, *many("a", "b"), **both))
    assert line.startswith("1 of 2 test rows")


def test_a_column_is_one_thing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\na,x\nb,y\n" * 1)
    (tmp_path / "c.jsonl").write_text('{"question": "q", "a": "x", "b": "y", "label": 0}\n' * 4)
    table, choices = str(tmp_path / "t.csv"), str(tmp_path / "c.jsonl")
    for data, says in (
        (Data(train=table, text="label", label="label"), "'label' is the column of the text and of the label"),
        (Data(train=table, text="text", text_pair="text"), "the column 'text' is named twice"),
        (Data(train=choices, kind="choice", choices=("a", "label")), "'label' is a column of choices and of the label"),
        (Data(train=choices, kind="choice", choices=("a", "a")), "the column 'a' is named twice"),
    ):
        with pytest.raises(SoftPromptError, match=says):
            data.load()


def test_fewer_rows_than_labels(tmp_path: Path) -> None:
    made = task(tmp_path, *many("a", "b", "c"))
    for protocol in ("even", "dept"):
        with pytest.raises(
            SoftPromptError, match="few_shot=2 is less than a row for each of 3 labels: give at least 3"
        ):
            made.few_shot(2, protocol=protocol)
    assert len(made.few_shot(3).train) == 3
