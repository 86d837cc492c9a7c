"""Hand-written rows, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softprompts.tasks.catalog import SPECS
from softprompts.tasks.example import Example
from softprompts.tasks.spec import Spec
from softprompts.tasks.task import Task


def under(name: str, template: str | None) -> Spec:
    return SPECS[name].under(name, template)


def examples(name: str, row: Mapping[str, Any], template: str | None = None, labelled: bool = True) -> list[Example]:
    return under(name, template).examples("rows.jsonl", [(3, row)], labelled)


def written(name: str, row: Mapping[str, Any], template: str | None = None) -> tuple[str, str]:
    """What a language model reads of a row, and what it is to answer."""
    spec, [example, *_] = under(name, template), examples(name, row, template)
    form = spec.form
    return form.write(example.fields), form.words[form.label_index(example.label)] if form.closed else example.answers[
        0
    ]


def read(name: str, row: Mapping[str, Any], template: str | None = None) -> list[tuple[str, ...]]:
    """What an encoder reads of a row; of a row of choices, each of them."""
    form, [example, *_] = under(name, template).form, examples(name, row, template)
    if not form.chooses:
        return [form.read(example.fields)]
    return [form.read({**example.fields, "choice": choice}) for choice in example.choices]


def require_as_listed(task: Task, data_dir: Path) -> None:
    """Sizes, labels and their counts must be those of the data's list."""
    files = json.loads((data_dir / "MANIFEST.json").read_text(encoding="utf-8"))["files"]
    entries = [entry for entry in files if f"{entry.get('benchmark')}/{entry.get('task')}" == task.name]
    assert {entry["split"] for entry in entries} == {"train", "validation"}
    for entry in entries:
        assert len(getattr(task, entry["split"])) == entry["rows"]
        if task.kind != "regression" and entry.get("labels"):
            assert list(task.label_names or task.form.words) == entry["labels"]
        if "label_counts" in entry:
            counts = [entry["label_counts"][str(index)] for index in range(len(entry["labels"]))]
            assert list(task.balance(entry["split"]).values()) == counts
