from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

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


# --- other kinds ------------------------------------------------------------------------------------------------------


def jsonl(folder: Path, rows: list[dict[str, object]], name: str = "t.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


TAGGED = [(["John", "Smith", "slept"], ["B-PER", "I-PER", "O"]), (["in", "Rome"], ["O", "B-LOC"])] * 5


def test_tags_from_lists_texts_and_conll_files_are_the_same(tmp_path: Path) -> None:
    lists = jsonl(tmp_path, [{"tokens": words, "ner_tags": tags} for words, tags in TAGGED])
    names = ("O", "B-LOC", "B-PER", "I-PER")
    numbers = [{"words": words, "tags": [names.index(tag) for tag in tags]} for words, tags in TAGGED]
    indexed = jsonl(tmp_path, numbers, "numbers.jsonl")
    table = "words,tags\n" + "".join(f"{' '.join(words)},{' '.join(tags)}\n" for words, tags in TAGGED)
    (tmp_path / "t.csv").write_text(table)
    lines = ["-DOCSTART- -X- O", "", "# id 17 of the corpus"]
    for words, tags in TAGGED:
        lines += [*(f"{word}\t{word[0].isupper()}\t{tag}" for word, tag in zip(words, tags, strict=True)), ""]
    (tmp_path / "t.conll").write_text("\n".join(lines))
    (tmp_path / "t.txt").write_text("\n".join(lines))
    task = load_files(lists, kind="tagging")
    assert task.label_names == names and task.metrics[0] == "seqeval_f1" and task.form.fields == ("words",)
    assert task.train[0].words in (("John", "Smith", "slept"), ("in", "Rome"))
    others = [load_files(indexed, kind="tagging", labels=names), load_files(tmp_path / "t.csv", kind="tagging")]
    others += [load_files(tmp_path / name, kind="tagging") for name in ("t.conll", "t.txt")]
    for other in others:
        assert [(row.words, row.label) for row in other.train] == [(row.words, row.label) for row in task.train]
    cased = load_files(tmp_path / "t.conll", kind="tagging", label="2")
    assert cased.label_names == ("False", "True") and cased.metrics == ("tag_accuracy",)  # not entities
    assert {row.label for row in cased.train} == {(1, 1, 0), (0, 1)}


def test_a_word_that_looks_like_a_comment_stays_a_word(tmp_path: Path) -> None:
    (tmp_path / "t.conll").write_text("# O\nRome B-LOC\n\n# O\nParis B-LOC\n")
    task = load_files(tmp_path / "t.conll", kind="tagging")
    assert [row.words[0] for row in task.train + task.validation] == ["#", "#"]


def test_spans_by_squads_columns_or_by_a_text_that_is_there_once(tmp_path: Path) -> None:
    context = "Rome is old, and Rome is large."
    rows: list[dict[str, object]] = [
        {"question": "what?", "context": context, "answers": {"text": ["Rome", "large"], "answer_start": [17, 25]}},
        {"question": "what?", "context": context, "answers": [{"text": "old", "answer_start": 8}]},
        {"question": "what?", "context": context, "answers": "large"},
        {"question": "what?", "context": context, "answers": ["old", "large"]},
        {"question": "what?", "context": context, "answers": "Rome", "answer_start": 17},
    ]
    task = load_files(jsonl(tmp_path, rows), jsonl(tmp_path, rows[:1], "v.jsonl"), kind="span")
    assert [row.starts for row in task.train] == [(17, 25), (8,), (25,), (8, 25), (17,)]
    assert task.form.fields == ("question", "context") and task.metrics == ("em", "token_f1")
    (tmp_path / "t.csv").write_text('q,c,a\nwhat?,"Rome, old",old\nwhat?,"Rome, old",Rome\n')
    made = load_files(tmp_path / "t.csv", text="q", text_pair="c", label="a", kind="span")
    assert {row.starts for row in made.train + made.validation} == {(6,), (0,)}


def test_squads_own_files(tmp_path: Path) -> None:
    asked: list[Any] = [
        {"id": f"q{at}", "question": "what?", "answers": [{"text": "old", "answer_start": 8}]} for at in range(6)
    ]
    paragraphs = [{"context": "Rome is old", "qas": asked[:2]}, {"context": "Bonn is old", "qas": asked[2:]}]
    (tmp_path / "t.json").write_text(json.dumps({"version": "1.1", "data": [{"title": "x", "paragraphs": paragraphs}]}))
    task = load_files(tmp_path / "t.json", kind="span")
    rows = task.train + task.validation
    assert sorted(row.fields["context"] for row in rows) == ["Bonn is old"] * 4 + ["Rome is old"] * 2
    asked[3]["answers"][0]["text"] = "new"
    text = json.dumps({"data": [{"paragraphs": paragraphs}]}, indent=1)
    (tmp_path / "t.json").write_text(text)
    line = text[: text.index('"q3"')].count("\n") + 1
    with pytest.raises(SoftPromptError, match=rf"t\.json: line {line}: the answer 'new' is not at character 8"):
        load_files(tmp_path / "t.json", kind="span")


def test_choices_by_a_list_columns_or_names(tmp_path: Path) -> None:
    listed = [{"question": f"q{at}", "choices": ["yes", "no"], "label": at % 2} for at in range(10)]
    task = load_files(jsonl(tmp_path, listed), kind="choice")
    assert task.form.fields == ("question", "choice1", "choice2") and task.form.words == ("choice1", "choice2")
    assert task.form.reading == ("{question}", "{choice}") and task.train[1].choices == ("yes", "no")
    letters = [{**row, "label": "AB"[at % 2]} for at, row in enumerate(listed)]
    texts = [{**row, "label": ("yes", "no")[at % 2]} for at, row in enumerate(listed)]
    named = [
        {"question": f"q{at}", "choices": {"label": ["x", "y"], "text": ["yes", "no"]}, "answerKey": "xy"[at % 2]}
        for at in range(10)
    ]
    columns = [{"question": f"q{at}", "choice1": "yes", "choice2": "no", "label": at % 2} for at in range(10)]
    for rows in (letters, texts, named, columns):
        other = load_files(jsonl(tmp_path, rows), kind="choice")
        assert other.fingerprint == task.fingerprint and other.form == task.form
    picked = load_files(jsonl(tmp_path, columns), kind="choice", text="question", choices=("choice2", "choice1"))
    assert picked.train[0].choices == ("no", "yes")
    uneven = [*listed, {"question": "q", "choices": ["a", "b", "c"], "label": 2}]
    assert not load_files(jsonl(tmp_path, uneven), kind="choice").form.choices  # each row brings its own


def test_a_json_list_names_the_line_of_a_row(tmp_path: Path) -> None:
    rows = [{"text": f"t{at}", "label": at % 2} for at in range(10)]
    (tmp_path / "t.json").write_text(json.dumps(rows, indent=1))
    task = load_files(tmp_path / "t.json")
    assert sorted(int(row.id) for row in task.train + task.validation) == list(range(2, 42, 4))
    lines = jsonl(tmp_path, rows, "lines.json")
    assert load_files(lines).label_names == ("0", "1")
    (tmp_path / "t.json").write_text('[\n{"text": "a", "label": 1},\n{"text": "b" "label"}]')
    with pytest.raises(SoftPromptError, match=r"t\.json: line 3: broken JSON"):
        load_files(tmp_path / "t.json")
    (tmp_path / "t.json").write_text('[\n{"text": "a", "label": 1}\n{"text": "b"}]')
    with pytest.raises(SoftPromptError, match=r"t\.json: line 3: broken JSON \(neither a comma"):
        load_files(tmp_path / "t.json")


def test_names_of_labels_that_are_numbers_in_the_file(tmp_path: Path) -> None:
    rows = [{"text": f"t{at}", "label": bool(at % 2)} for at in range(10)]
    for path in (
        jsonl(tmp_path, rows),
        jsonl(tmp_path, [{**row, "label": int(row["label"])} for row in rows], "n.jsonl"),
    ):
        task = load_files(path, labels=("no", "yes"))
        assert task.label_names == task.form.words == ("no", "yes")
        assert [row.label for row in task.train] == [int(row.text[1:]) % 2 for row in task.train]
    with pytest.raises(SoftPromptError, match=r"line 5: label '2' is not one of the labels: no, yes"):
        load_files(jsonl(tmp_path, [{"text": "t", "label": at // 2} for at in range(6)]), labels=("no", "yes"))


def test_the_usual_names_of_columns(tmp_path: Path) -> None:
    rows = [{"premise": "p", "hypothesis": f"h{at}", "label": at % 2, "id": at} for at in range(10)]
    assert load_files(jsonl(tmp_path, rows)).form.fields == ("premise", "hypothesis")
    with pytest.raises(
        SoftPromptError, match=r"which column holds the text\? There are: body, label; looked for text,"
    ):
        load_files(jsonl(tmp_path, [{"body": "a", "label": 1}]))
    with pytest.raises(SoftPromptError, match="name that of the first text too"):
        load_files(jsonl(tmp_path, rows), text_pair="hypothesis")


def test_a_column_whose_name_templates_cannot_hold(tmp_path: Path) -> None:
    rows = [{"review.text": f"t{at}", "label": at % 2} for at in range(10)]
    task = load_files(jsonl(tmp_path, rows), text="review.text")
    assert task.form.fields == ("review_text",) and task.render(task.train[0]).startswith("review_text: t")


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("tagging", {"words": ["a", "b"], "tags": ["O"]}, "line 2: 1 tags for 2 words"),
        ("tagging", {"words": ["a", ""], "tags": ["O", "O"]}, r"line 2: 'words' is \['a', ''\], not a list of words"),
        ("tagging", {"words": ["a"], "tags": "X Y"}, "line 2: 2 tags for 1 words"),
        ("tagging", {"words": ["a"], "tags": 3}, "line 2: 'tags' is 3, not a list of tags"),
        (
            "span",
            {"question": "q", "context": "a b", "answers": "c"},
            "line 2: the answer 'c' in 'context' is not there",
        ),
        ("span", {"question": "q", "context": "a a", "answers": "a"}, "line 2: .* is there 2 times: say where"),
        ("span", {"question": "q", "context": "a b", "answers": {"text": [], "answer_start": []}}, "not answers"),
        (
            "span",
            {"question": "q", "context": "a b", "answers": {"text": ["b"], "answer_start": [1]}},
            "line 2: the answer 'b' is not at character 1 of 'context', where it says ' '",
        ),
        (
            "choice",
            {"question": "q", "choices": ["a", "b"], "label": 2},
            "line 2: label '2' is not one of the 2 choices",
        ),
        (
            "choice",
            {"question": "q", "choices": ["a"], "label": 0},
            r"'choices' is \['a'\], not a list of at least two",
        ),
        ("choice", {"question": " ", "choices": ["a", "b"], "label": 0}, "line 2: 'question' is empty"),
        ("regression", {"text": "t", "label": "high"}, "line 2: the label 'label' is 'high', not a number"),
    ],
)
def test_bad_rows_of_every_kind(tmp_path: Path, kind: str, row: dict[str, object], message: str) -> None:
    good: dict[str, dict[str, object]] = {
        "tagging": {"words": ["a", "b"], "tags": ["O", "B-X"]},
        "span": {"question": "q", "context": "a b", "answers": "b"},
        "choice": {"question": "q", "choices": ["a", "b"], "label": 1},
        "regression": {"text": "t", "label": 0.5},
    }
    with pytest.raises(SoftPromptError, match=rf"t\.jsonl: .*{message}") as caught:
        load_files(jsonl(tmp_path, [good[kind], row]), kind=kind)
    assert "\n" not in str(caught.value)


def test_numbered_tags_want_names(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="the tags are numbers: give their names"):
        load_files(jsonl(tmp_path, [{"words": ["a", "b"], "tags": [0, 1]}] * 4), kind="tagging")


def test_a_line_of_megabytes(tmp_path: Path) -> None:
    long = "the film was good " * 300_000
    (tmp_path / "t.csv").write_text(f"text,label\n{long},a\nb,b\nc,a\nd,b\n")
    task = load_files(tmp_path / "t.csv")
    assert max(len(row.text) for row in task.train + task.validation) == len(long)
