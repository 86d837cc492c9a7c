"""CoNLL-2003 and 2004: real rows from a folder and from the hub."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import encode_examples, load_task
from softprompts.tasks.ner import NER
from tests.tasks.rendering import examples, require_as_listed, under

ROW = {"id": "4", "tokens": ["Ann", "lives", "in", "New", "York", "."], "ner_tags": [1, 0, 0, 5, 6, 0]}


def test_a_row() -> None:
    [row] = examples("ner/conll2003", ROW)
    assert (row.words, row.label, row.id) == (tuple(ROW["tokens"]), (1, 0, 0, 5, 6, 0), "4")
    labels = under("ner/conll2003", None).form.labels
    assert [labels[tag] for tag in row.label] == ["B-PER", "O", "O", "B-LOC", "I-LOC", "O"]
    assert under("ner/conll2004", None).metrics == ("seqeval_f1", "seqeval_precision", "seqeval_recall")
    [bare] = examples("ner/conll2003", {key: ROW[key] for key in ("id", "tokens")}, labelled=False)
    assert bare.label is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ner_tags": [1, 0]}, "2 tags for 6 words"),
        ({"ner_tags": [9, 0, 0, 0, 0, 0]}, "label 9 is not 0 to 8"),
        ({"ner_tags": ["B-PER", 0, 0, 0, 0, 0]}, "label 'B-PER' is not 0 to 8"),
        ({"ner_tags": None}, "no list of tags for 6 words"),
        ({"tokens": "Ann lives", "ner_tags": [1, 0]}, "'words' is 'Ann lives', not a list of texts"),
        ({"tokens": [], "ner_tags": []}, "'words' is \\[\\], not a list of texts"),
    ],
)
def test_bad_rows(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftPromptError, match=f"rows.jsonl: line 3: {message}"):
        examples("ner/conll2003", {**ROW, **changes})
    with pytest.raises(SoftPromptError, match="line 3: .*no column 'tokens'"):
        examples("ner/conll2003", {"id": "4", "ner_tags": []})


@pytest.mark.parametrize("name", NER)
def test_real_rows(name: str, data_dir: Path) -> None:
    task = load_task(name, data_dir)
    require_as_listed(task, data_dir)
    assert list(task.label_names) == json.loads((data_dir / name / "labels.json").read_text(encoding="utf-8"))


def test_entities_of_conll2003_are_as_many_as_published(data_dir: Path) -> None:
    task = load_task("ner/conll2003", data_dir)
    begun = Counter(task.label_names[tag] for row in task.train for tag in row.label)
    counts = {name: begun[f"B-{name}"] for name in ("LOC", "PER", "ORG", "MISC")}
    assert counts == {"LOC": 7140, "PER": 6600, "ORG": 6321, "MISC": 3438}


def test_the_hub_gives_the_same_rows(hub: Any, data_dir: Path) -> None:
    # There it comes as a script, which is no longer run; the hub's own copy of it is.
    place = "eriktks/conll2003"
    more = {"pos_tags": [], "chunk_tags": []}
    asked = hub(lambda row: {"id": row["id"], "tokens": row["tokens"], **more, "ner_tags": row["ner_tags"]}, (place,))
    task = load_task("ner/conll2003")
    revisions = (None, "refs/convert/parquet")
    assert asked == [(place, None, split, revision) for split in ("train", "validation") for revision in revisions]
    assert task.fingerprint == load_task("ner/conll2003", data_dir).fingerprint
    assert task.source == "eriktks/conll2003 (conll2003)"


def test_conll2004_is_not_on_the_hub() -> None:
    with pytest.raises(SoftPromptError, match="'ner/conll2004' is not on the hub: give data_dir"):
        load_task("ner/conll2004")


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder"])
def test_a_language_model_is_refused(kind: str, data_dir: Path, t5_tokenizer: Any) -> None:
    task = load_task("ner/conll2004", data_dir, max_train=5, max_validation=5)
    message = f"task 'ner/conll2004' labels every word, which takes an encoder; this is a {kind} model"
    with pytest.raises(SoftPromptError, match=message):
        encode_examples(task.train, task, t5_tokenizer, kind, 32)
