"""A user's own task in a YAML file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import load_task
from softprompts.tasks.catalog import task_outline

SENSES = """
name: senses
about: the same sense of a word
kind: classification
fields: [first, second, word]
label: same
labels: [no, yes]
reading: ["{word}: {first}", "{word}: {second}"]
source: "senses {first} / {second} / {word}"
words: ["false", "true"]
cut: second
metrics: [f1, accuracy]
templates:
  short: {source: "{word}?", metrics: accuracy}
train: data/train.jsonl
validation: data/dev.csv
test: data/test.csv
"""


@pytest.fixture
def senses(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    rows = [{"first": f"a {at}", "second": "b", "word": "w", "same": at % 2} for at in range(8)]
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, label in (("dev", "no"), ("test", "1")):
        (tmp_path / "data" / f"{split}.csv").write_text(f"first,second,word,same\na,b,w,{label}\nc,d,w,yes\n")
    (tmp_path / "senses.yaml").write_text(SENSES)
    return tmp_path / "senses.yaml"


def test_a_declared_task(senses: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(str(senses))
    form = task.form
    assert task.name == "senses" and task.metrics == ("f1", "accuracy") and form.cut == ("second",)
    assert form.fields == ("first", "second", "word") and form.labels == ("no", "yes")
    assert form.words == ("false", "true") and form.read(task.train[0].fields) == ("w: a 0", "w: b")
    assert [len(rows) for rows in (task.train, task.validation, task.test)] == [8, 2, 2]
    assert [row.label for row in task.train] == [0, 1] * 4
    assert [row.label for row in task.validation] == [0, 1] and [row.label for row in task.test] == [1, 1]
    monkeypatch.chdir(senses.parent / "data")
    assert load_task("../senses.yaml").fingerprint == task.fingerprint
    short = load_task(str(senses), template="short", max_train=4)
    assert short.render(short.train[0]) == "w?" and short.metrics == ("accuracy",) and len(short.train) == 4
    assert task_outline(str(senses)) == ("the same sense of a word", ["default", "short"])
    with pytest.raises(SoftPromptError, match="no template 'shrt': did you mean 'short'"):
        load_task(str(senses), template="shrt")


def test_a_data_folder_of_ones_own(senses: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").rename(tmp_path / "elsewhere" / "data")
    assert len(load_task(str(senses), tmp_path / "elsewhere").train) == 8
    with pytest.raises(SoftPromptError, match=r"data/train\.jsonl: no such file"):
        load_task(str(senses))


def test_little_needs_to_be_said(senses: Path) -> None:
    (senses.parent / "data" / "plain.csv").write_text("text,label\n" + "a,x\nb,y\n" * 5)
    senses.write_text("train: data/plain.csv\n")
    task = load_task(str(senses))
    assert task.name == "senses" and task.label_names == ("x", "y") and task.form.source == "text: {text}"


def test_fields_and_labels_under_other_names(senses: Path) -> None:
    senses.write_text(
        "fields: {text: first}\nlabel: same\nlabels: {0: bad, 1: good}\nsource: '{text}'\ntrain: data/train.jsonl\n"
    )
    task = load_task(str(senses))
    assert task.form.fields == ("text",) and task.label_names == ("bad", "good") and task.train[0].text == "a 0"


def test_choices_as_texts(senses: Path) -> None:
    senses.write_text(
        "kind: choice\nfields: [first, second, word]\nlabel: same\nchoices: ['{first}!', '{second}!']\n"
        "reading: ['{word}', '{choice}']\ntrain: data/train.jsonl\n"
    )
    task = load_task(str(senses))
    assert task.train[0].choices == ("a 0!", "b!") and task.form.words == ("choice1", "choice2")


def test_more_than_two_fields_are_all_read(senses: Path) -> None:
    senses.write_text("fields: [first, second, word]\nlabel: same\ntrain: data/train.jsonl\n")
    task = load_task(str(senses))
    assert task.form.read(task.train[0].fields) == ("a 0", "b w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind: classification", "knd: x"), r"senses\.yaml has no setting 'knd'; did you mean 'kind'"),
        (("kind: classification", "kind: clasification"), r"senses\.yaml: kind is .* did you mean 'classification'"),
        (("train: data/train.jsonl", ""), r"senses\.yaml: train is missing"),
        (("labels: [no, yes]", "labels: [no]"), "at least two"),
        (("labels: [no, yes]", "labels: [no, no]"), "at least two that differ"),
        (("labels: [no, yes]", "labels: [yess, noo]"), r"dev\.csv: line 2: label 'no' is not one of the labels"),
        (("label: same", "label: sam"), r"train\.jsonl: line 1: no column 'sam', .* did you mean 'same'"),
        (("{word}: {first}", "{wrd}: {first}"), r"senses\.yaml: the template .* did you mean 'word'"),
        (("{word}?", "{wrd}?"), r"senses\.yaml: the template '{wrd}\?' names the field"),
        (("cut: second", "cut: secnd"), "cut names 'secnd'"),
        (("metrics: [f1, accuracy]", "metrics: [f2]"), "unknown metric 'f2'"),
        (("metrics: [f1, accuracy]", "metrics: [seqeval_f1]"), "does not suit this task of classification"),
        (("  short: {source", "  short: {sorce"), r"no setting 'templates\.short\.sorce'; did you mean 'source'"),
        (("name: senses", "name: [senses]"), r"senses\.yaml: name must be text, not \['senses'\]"),
        (("cut: second", "cut: {a: b}"), r"senses\.yaml: cut is {'a': 'b'}, not a list of texts"),
        (("labels: [no, yes]", "labels: {0: [x]}"), r"senses\.yaml: labels is {'0': \['x'\]}, not a list of texts"),
        (("test: data", "quoting: maybe\ntest: data"), r"senses\.yaml: quoting must be true or false, not 'maybe'"),
        (("name: senses", "name: {"), r"senses\.yaml: line \d+: broken YAML"),
        (('words: ["false", "true"]', "words: [x]"), "1 label words for 2 labels"),
        (("train: data", "invalid: opposit\ntrain: data"), "invalid is 'opposit': did you mean 'opposite'"),
    ],
)
def test_bad_declarations(senses: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in SENSES
    senses.write_text(SENSES.replace(*change))
    with pytest.raises(SoftPromptError, match=message) as caught:
        load_task(str(senses))
    assert "\n" not in str(caught.value)


def test_no_such_declaration(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match=r"none\.yaml: no such file"):
        load_task(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(SoftPromptError, match="not a task"):
        load_task(str(tmp_path / "list.yaml"))
