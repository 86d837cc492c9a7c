from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import load_files

ROWS = [(f"text number {index}", "spam" if index % 3 else "ham") for index in range(40)]


def csv_file(folder: Path, rows: list[tuple[str, str]] = ROWS, name: str = "mail.csv", sep: str = ",") -> Path:
    path = folder / name
    path.write_text(f"body{sep}kind\n" + "".join(f"{text}{sep}{kind}\n" for text, kind in rows), encoding="utf-8")
    return path


def load(path: Path, validation: Path | None = None, **more: object):
    return load_files(path, validation, **{"text": "body", "label": "kind", **more})


def test_stratified_hold_out(tmp_path: Path) -> None:
    task = load(csv_file(tmp_path))
    assert task.name == "mail" and task.label_names == ("ham", "spam") and task.form.fields == ("body",)
    assert task.balance("validation") == {"ham": 1, "spam": 3}
    assert len(task.train) + len(task.validation) == 40
    assert not {row.id for row in task.train} & {row.id for row in task.validation}
    assert task.fingerprint == load(csv_file(tmp_path)).fingerprint != load(csv_file(tmp_path), seed=1).fingerprint
    assert str(tmp_path) not in task.source


def test_every_form_gives_the_same_rows(tmp_path: Path) -> None:
    task = load(csv_file(tmp_path))
    lines = "".join(json.dumps({"body": text, "kind": kind}) + "\n" for text, kind in ROWS)
    (tmp_path / "mail.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "mail.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines.encode()))
    same = [csv_file(tmp_path, name="mail.tsv", sep="\t"), tmp_path / "mail.jsonl", tmp_path / "mail.jsonl.gz"]
    forms = [load(path) for path in same] + [load(csv_file(tmp_path, name="mail.txt", sep=";"), sep=";")]
    for other in forms:
        assert [(row.text, row.label) for row in other.train] == [(row.text, row.label) for row in task.train]


def test_two_files_pairs_and_limits(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        rows = [{"a": f"{split} {at}", "b": "other", "y": at % 2} for at in range(20)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    args = {"text": "a", "text_pair": "b", "label": "y", "max_train": 6, "label_words": ("no", "yes")}
    task = load_files(tmp_path / "train.jsonl", tmp_path / "dev.jsonl", **args)
    assert (len(task.train), len(task.validation)) == (6, 20)
    assert task.label_names == ("0", "1") and task.form.words == ("no", "yes")
    assert task.render(task.validation[3]) == "a: dev 3 b: other"
    assert task.validation[3].label == 1


def test_integer_labels_sort_by_value(tmp_path: Path) -> None:
    rows = [(f"t{at}", str(label)) for at, label in enumerate([10, 2, -1, 10, 2, -1])]
    assert load(csv_file(tmp_path, rows)).label_names == ("-1", "2", "10")


def test_regression(tmp_path: Path) -> None:
    rows = [(f"t{at}", f"{at / 10}") for at in range(30)]
    task = load(csv_file(tmp_path, rows), kind="regression")
    assert task.kind == "regression" and task.metrics[0] == "pearson" and len(task.validation) == 3
    assert all(isinstance(row.label, float) for row in task.train)
    with pytest.raises(SoftPromptError, match="line 3: the label 'kind' is 'nan', not a number"):
        load(csv_file(tmp_path, [("a", "1"), ("b", "nan")]), kind="regression")


def test_quotes(tmp_path: Path) -> None:
    task = load(csv_file(tmp_path, [('"one, ""two""\nthree"', "x"), ("b", "y"), ("c", "x"), ("d", "y")]))
    assert 'one, "two"\nthree' in {row.text for row in task.train + task.validation}
    stray = csv_file(tmp_path, [('"odd" quote', "x"), ("b", "y"), ("c", "x"), ("d", "y")], "t.tsv", "\t")
    with pytest.raises(SoftPromptError, match="t.tsv: line 2: .*quoting=False"):
        load(stray)
    assert len(load(stray, quoting=False).train) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv: the file is empty"),
        ("t.csv", b"body,kind\n", "t.csv: no rows in it"),
        ("t.csv", b"boddy,kind\na,x\n", "no column 'body', there are: boddy, kind; did you mean 'boddy'"),
        ("t.csv", b"body,kind,body\na,x,b\n", "names the column 'body' twice"),
        ("t.csv", b"body,kind\na,x\nb\n", "t.csv: line 3: 1 columns, the first line has 2"),
        ("t.csv", b"body,kind\na,x\n  ,x\n", "t.csv: line 3: 'body' is empty"),
        ("t.csv", b"body,kind\na,x\nb,\n", "t.csv: line 3: the label 'kind' is missing"),
        ("t.csv", b"body,kind\na,x\nb,x\n", "all rows have the label 'x'"),
        ("t.csv", b"body,kind\na,x\nb,y\n", "too few rows"),
        ("t.csv", b"body,kind\na,x\nb\xe9,y\n", "t.csv: line 3: not UTF-8"),
        ("t.csv", b'body,kind\n"a,x\nb,y\n', "t.csv: line 3: unexpected end of data"),
        ("t.jsonl", b'{"body": "a", "kind": 1}\n\n{"body": \n', "t.jsonl: line 3: broken JSON"),
        ("t.jsonl", b'["a"]\n', "t.jsonl: line 1: not a JSON object"),
        ("t.jsonl", b'{"body": "a", "kind": 1}\n{"kind": 1}\n', "t.jsonl: line 2: no column 'body'"),
        ("t.jsonl", b'{"body": 5, "kind": 1}\n', "line 1: 'body' is 5, not a text"),
        ("t.jsonl", b'{"body": "a", "kind": null}\n', "line 1: the label 'kind' is missing"),
        ("t.jsonl", b'{"body": "a", "kind": [1]}\n', r"line 1: the label 'kind' is \[1\]"),
        ("t.jsonl.gz", b"not gzip", "not a whole gzip file"),
        ("t.jsonl.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], "not a whole gzip file"),
        ("t.xls", b"body", "cannot tell its form"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SoftPromptError, match=message) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="no such file"):
        load(tmp_path / "none.csv")
    with pytest.raises(SoftPromptError, match="sep is '::'"):
        load(csv_file(tmp_path), sep="::")
    with pytest.raises(SoftPromptError, match="did you mean 'regression'"):
        load(csv_file(tmp_path), kind="regresion")
    with pytest.raises(SoftPromptError, match="1 label words for 2 labels"):
        load(csv_file(tmp_path), label_words=["only"])


def test_unseen_validation_label(tmp_path: Path) -> None:
    dev = csv_file(tmp_path, [("a", "ham"), ("b", "eggs")], "dev.csv")
    with pytest.raises(SoftPromptError, match="dev.csv: line 3: label 'eggs' is not in .* which has: ham, spam$"):
        load(csv_file(tmp_path), dev)
