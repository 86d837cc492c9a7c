from __future__ import annotations

import json
from pathlib import Path

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import load_task, task_names
from softprompts.tasks.catalog import SPECS

SIZES = {
    "glue/cola": (8551, 1043),
    "glue/mrpc": (3668, 408),
    "glue/stsb": (5749, 1500),
    "glue/rte": (2490, 277),
    "super_glue/boolq": (2045, 3270),
    "super_glue/cb": (250, 56),
    "super_glue/rte": (2490, 277),
    "super_glue/wic": (5428, 638),
}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_sizes(name: str, data_dir: Path) -> None:
    task = load_task(name, data_dir)
    assert (len(task.train), len(task.validation)) == SIZES[name]
    assert str(data_dir) not in repr((task.source, task.name))


def test_labels_are_those_of_the_manifest(data_dir: Path) -> None:
    files = json.loads((data_dir / "MANIFEST.json").read_text(encoding="utf-8"))["files"]
    names = {f"{entry.get('benchmark')}/{entry.get('task')}": entry.get("labels") for entry in files}
    labels = {name: spec.form.labels for name, spec in SPECS.items()}
    compared = {name: tuple(names[name]) for name in SPECS if labels[name] and names.get(name)}
    assert compared == {name: labels[name] for name in compared}
    assert len(compared) >= 11


def test_gzipped_file_and_limits(data_dir: Path) -> None:
    task = load_task("glue/sst2", data_dir, max_train=20, max_validation=10, seed=3)
    assert (len(task.train), len(task.validation)) == (20, 10)
    assert task.fingerprint == load_task("glue/sst2", data_dir, max_train=20, max_validation=10, seed=3).fingerprint
    assert task.fingerprint != load_task("glue/sst2", data_dir, max_train=20, max_validation=10, seed=4).fingerprint


def test_what_models_read(data_dir: Path) -> None:
    rte = load_task("super_glue/rte", data_dir)
    first = rte.validation[0]
    assert rte.form.read(first.fields) == (first.text, "Christopher Reeve had an accident.")
    assert first.text.startswith("Dana Reeve")
    assert rte.render(first) == f"rte sentence1: {first.text} sentence2: Christopher Reeve had an accident."
    boolq = load_task("super_glue/boolq", data_dir)
    first = boolq.validation[0]
    question, passage = boolq.form.read(first.fields)
    assert question == "does ethanol take more energy make that produces"
    assert boolq.render(first) == f"boolq passage: {passage} question: {question}"
    wic = load_task("super_glue/wic", data_dir)
    first = wic.validation[0]
    assert wic.form.read(first.fields)[0] == "class: An emerging professional class."
    assert wic.render(first).startswith("wic sentence1: An emerging professional class. sentence2: Apologizing")
    assert wic.render(first).endswith(" word: class")


def test_scores(data_dir: Path) -> None:
    task = load_task("glue/stsb", data_dir)
    assert task.kind == "regression" and task.metrics[0] == "pearson"
    assert all(isinstance(row.label, float) and 0 <= row.label <= 5 for row in task.train)
    assert task.form.words[task.form.label_index(task.validation[0].label)] == "5.0"


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
        ([{**ROW, "label": -1}], "no row has a label"),
    ],
)
def test_bad_rows(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        load_task("glue/rte", write(tmp_path, *rows))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="neither train.jsonl nor train.jsonl.gz is there"):
        load_task("glue/rte", tmp_path)


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def fake(path: str, config: str, split: str) -> list[dict]:
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


def test_unknown_and_later_names() -> None:
    with pytest.raises(SoftPromptError, match="did you mean 'super_glue/boolq'"):
        load_task("superglue/boolq")
    names = [name for name, about in task_names() if about]
    assert len(names) == len(set(names)) == len(task_names())
