"""GLUE: what models read, and real rows from a folder and from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import load_task, task_names
from softprompts.tasks.catalog import SPECS
from softprompts.tasks.glue import GLUE
from tests.tasks.rendering import examples, read, require_as_listed, under, written

ONE = {"sentence": "It is so.", "label": 1, "idx": 7}
TWO = {"sentence1": "A b.", "sentence2": "C d.", "label": 1, "idx": 7}
ASKED = {"question1": "A?", "question2": "B?", "label": 0, "idx": 7}
CLAIM = {"premise": "A b.", "hypothesis": "C d.", "label": 2, "idx": 7}
ANSWER = {"question": "A?", "sentence": "B.", "label": 0, "idx": 7}
SCORE = {"sentence1": "A b.", "sentence2": "C d.", "label": 3.75, "idx": 7}

# What is read and answered, by template; written from the papers' code.
PAIR, SCORED = "sentence1: A b. sentence2: C d.", "stsb sentence1: A b. sentence2: C d."
RENDERED: dict[str, tuple[dict[str, Any], dict[str | None, tuple[str, str]]]] = {
    "glue/cola": (
        ONE,
        {
            None: ("cola sentence: It is so.", "acceptable"),
            "dept": ("sentence: It is so.", "1"),
            "attempt": ("cola sentence: It is so.", "1"),
            "residual": ("It is so.", "acceptable"),
        },
    ),
    "glue/sst2": (
        ONE,
        {
            None: ("sst2 sentence: It is so.", "positive"),
            "dept": ("sentence: It is so.", "1"),
            "attempt": ("sst2 sentence: It is so.", "1"),
            "residual": ("It is so.", "positive"),
        },
    ),
    "glue/mrpc": (
        TWO,
        {
            None: (f"mrpc {PAIR}", "equivalent"),
            "dept": (PAIR, "1"),
            "attempt": (f"mrpc {PAIR}", "1"),
            "residual": (PAIR, "equivalent"),
        },
    ),
    "glue/qqp": (
        ASKED,
        {
            None: ("qqp question1: A? question2: B?", "not_duplicate"),
            "dept": ("question1: A? question2: B?", "0"),
            "attempt": ("qqp question1: A? question2: B?", "0"),
            "residual": ("question1: A? question2: B?", "not_duplicate"),
        },
    ),
    "glue/qnli": (
        ANSWER,
        {
            None: ("qnli question: A? sentence: B.", "entailment"),
            "dept": ("question: A? sentence: B.", "0"),
            "attempt": ("qnli question: A? sentence: B.", "0"),
            "residual": ("text1: A? text2: B.", "entailment"),
        },
    ),
    "glue/rte": (
        TWO,
        {
            None: (f"rte {PAIR}", "not_entailment"),
            "dept": (PAIR, "1"),
            "attempt": (f"rte {PAIR}", "1"),
            "residual": (PAIR, "not_entailment"),
        },
    ),
    "glue/wnli": (
        TWO,
        {
            None: (f"wnli {PAIR}", "entailment"),
            "dept": (PAIR, "1"),
            "attempt": (f"wnli {PAIR}", "1"),
        },
    ),
    "glue/mnli": (
        CLAIM,
        {
            None: ("mnli premise: A b. hypothesis: C d.", "contradiction"),
            "dept": ("premise: A b. hypothesis: C d.", "2"),
            "attempt": ("mnli premise: A b. hypothesis: C d.", "2"),
            "residual": ("premise: A b. hypothesis: C d.", "contradiction"),
        },
    ),
    "glue/stsb": (
        SCORE,
        {
            None: (SCORED, "3.8"),
            "dept": (PAIR, "3.8"),
            "attempt": (SCORED, "3.8"),
            "residual": (PAIR, "3.7"),
        },
    ),
}
METRICS = {
    "glue/cola": (("matthews", "accuracy"), ("matthews",), ("matthews",)),
    "glue/mrpc": (("accuracy", "f1"), ("f1", "accuracy"), ("accuracy",)),
    "glue/qqp": (("accuracy", "f1"), ("f1", "accuracy"), ("accuracy",)),
    "glue/stsb": (("pearson", "spearman"), ("pearson", "spearman"), ("pearson",)),
}


@pytest.mark.parametrize("name", GLUE)
def test_what_models_read_and_answer(name: str) -> None:
    row, expected = RENDERED[name]
    assert {template: written(name, row, template) for template in expected} == expected
    assert set(expected) - {None} == set(GLUE[name].templates)
    texts = tuple(value for value in row.values() if isinstance(value, str))
    assert all(read(name, row, template) == [texts] for template in expected)
    metrics = METRICS.get(name, (("accuracy",),) * 3)
    for template, wanted in zip((None, "dept", "residual"), metrics, strict=True):
        assert template not in expected or under(name, template).metrics == wanted


def test_other_words_of_residual() -> None:
    assert written("glue/cola", {**ONE, "label": 0}, "residual")[1] == "not_acceptable"
    assert written("glue/cola", {**ONE, "label": 0})[1] == "unacceptable"


@pytest.mark.parametrize(
    ("score", "fifths", "tenths", "characters"),
    [
        (0.0, "0.0", "0.0", "0.0"),
        (5.0, "5.0", "5.0", "5.0"),
        (3.7, "3.6", "3.7", "3.7"),
        (3.3, "3.2", "3.3", "3.3"),
        (4.75, "4.8", "4.8", "4.7"),
        (2.917, "3.0", "2.9", "2.9"),
        (np.float32(3.8).item(), "3.8", "3.8", "3.8"),
        (np.float32(0.6).item(), "0.6", "0.6", "0.6"),
    ],
)
def test_scores_as_texts(score: float, fifths: str, tenths: str, characters: str) -> None:
    row = {**SCORE, "label": score}
    answers = [written("glue/stsb", row, template)[1] for template in (None, "dept", "attempt", "residual")]
    assert answers == [fifths, tenths, tenths, characters]
    assert len(under("glue/stsb", None).form.words) == 26


def test_invalid_answers_count_as_the_opposite_where_f1_is_asked_for() -> None:
    rules = {name: under(name, "dept").form.invalid for name in GLUE}
    assert {name for name, rule in rules.items() if rule == "opposite"} == {"glue/mrpc", "glue/qqp"}


# Real rows


@pytest.mark.parametrize("name", [name for name in GLUE if name != "glue/wnli"])
def test_sizes_and_labels_are_those_of_the_manifest(name: str, data_dir: Path) -> None:
    task = load_task(name, data_dir)
    require_as_listed(task, data_dir)
    assert str(data_dir) not in repr((task.source, task.name))


def test_limits(data_dir: Path) -> None:
    task = load_task("glue/cola", data_dir, max_train=20, max_validation=10, seed=3)
    assert (len(task.train), len(task.validation)) == (20, 10)
    assert task.fingerprint == load_task("glue/cola", data_dir, max_train=20, max_validation=10, seed=3).fingerprint
    assert task.fingerprint != load_task("glue/cola", data_dir, max_train=20, max_validation=10, seed=4).fingerprint


def test_scores(data_dir: Path) -> None:
    task = load_task("glue/stsb", data_dir)
    assert task.kind == "regression" and task.metrics[0] == "pearson"
    assert all(isinstance(row.label, float) and 0 <= row.label <= 5 for row in task.train)
    assert task.form.words[task.form.label_index(task.validation[0].label)] == "5.0"


# Rows that are none


def write(folder: Path, *rows: object) -> Path:
    task = folder / "glue" / "rte"
    task.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for split in ("train", "validation"):
        (task / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


ROW = {"sentence1": "a", "sentence2": "b", "label": 1, "idx": 7}


def test_hidden_labels_are_left_out(tmp_path: Path) -> None:
    task = load_task("glue/rte", write(tmp_path, ROW, {**ROW, "label": -1, "idx": 8}))
    assert [row.id for row in task.train] == [7]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, {**ROW, "label": 2}], "train.jsonl: line 2: label 2 is not 0 to 1"),
        ([{**ROW, "label": True}], "line 1: label True is not 0 to 1"),
        ([{**ROW, "label": None}], "line 1: label None"),
        ([{"sentence1": "a", "label": 1}], "no column 'sentence2', there are: sentence1, label; did you mean"),
        ([{**ROW, "sentence2": None}], "train.jsonl: line 1: 'sentence2' is None, not a text"),
        ([ROW, {**ROW, "sentence2": ["b"]}], "line 2: 'sentence2' is \\['b'\\], not a text"),
        ([{**ROW, "label": -1}], "no row has a label"),
    ],
)
def test_bad_rows(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        load_task("glue/rte", write(tmp_path, *rows))


@pytest.mark.parametrize("label", [None, "high", True, float("nan")])
@pytest.mark.parametrize("template", [None, "residual"])
def test_bad_scores(label: Any, template: str | None) -> None:
    with pytest.raises(SoftPromptError, match="rows.jsonl: line 3: label .* is not a number"):
        examples("glue/stsb", {**SCORE, "label": label}, template)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="neither train.jsonl nor train.jsonl.gz is there"):
        load_task("glue/rte", tmp_path)


# The hub


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def fake(path: str, config: str, split: str) -> list[dict[str, Any]]:
        asked.append((path, config, split))
        return [{"premise": "a", "hypothesis": "b", "label": 2, "idx": 0}]

    monkeypatch.setattr(datasets, "load_dataset", fake)
    task = load_task("glue/mnli")
    assert asked == [("nyu-mll/glue", "mnli", "train"), ("nyu-mll/glue", "mnli", "validation_matched")]
    assert task.balance() == {"entailment": 0, "neutral": 0, "contradiction": 1}

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("cannot reach it\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(SoftPromptError, match="cannot reach it.*data_dir") as caught:
        load_task("super_glue/cb")
    assert "\n" not in str(caught.value)


def test_hub_and_folder_have_the_same_scores(hub: Any, data_dir: Path) -> None:
    # The hub keeps them in single precision.
    hub(lambda row: {**row, "label": np.float32(row["label"]).item()})
    for template in (None, "residual"):
        assert (
            load_task("glue/stsb", template=template).fingerprint
            == load_task("glue/stsb", data_dir, template=template).fingerprint
        )


def test_unknown_and_later_names() -> None:
    with pytest.raises(SoftPromptError, match="did you mean 'super_glue/boolq'"):
        load_task("superglue/boolq")
    with pytest.raises(SoftPromptError, match="'glue/rte' has no template 'smop': known: attempt, default, dept"):
        load_task("glue/rte", template="smop")
    names = [name for name, about in task_names() if about]
    assert len(names) == len(set(names)) == len(task_names())
    assert {name for name in names if "/" in name} >= set(SPECS)
