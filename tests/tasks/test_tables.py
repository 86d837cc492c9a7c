"""Tables as spreadsheets and pandas write them."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import Task, load_files
from softprompts.tasks.file_readers import read_rows

ROWS = [("win, now!", "spam"), ("see you; soon", "ham"), ("a | b", "spam"), ("lunch?", "ham")] * 5


def write(folder: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def cells(path: Path, **how: Any) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path, **how)]


def table(sep: str, end: str = "\n") -> str:
    quoted = [(f'"{text}"', label) for text, label in ROWS]
    return end.join(sep.join(line) for line in [("text", "label"), *quoted]) + end


WANTED = [{"text": text, "label": label} for text, label in ROWS]


@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_the_separator_is_found(tmp_path: Path, sep: str, end: str, name: str) -> None:
    path = write(tmp_path, table(sep, end), name)
    assert cells(path) == cells(path, sep=sep) == WANTED


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marks_and_a_first_line_that_says_the_separator(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "sep=;\r\n" + table(";", "\r\n"), encoding=encoding)
    assert path.read_bytes()[:2] in (codecs.BOM_UTF8[:2], codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    assert cells(path) == cells(path, sep=";") == WANTED
    assert [line for line, _ in read_rows(path)] == list(range(3, 3 + len(ROWS)))
    with pytest.raises(SoftPromptError, match=r"t\.csv: its first line says that ';' separates columns, not ','"):
        read_rows(path, sep=",")


def test_a_tab_by_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, table("\t"), "t.dat")
    assert cells(path, sep="tab") == cells(path, sep="\\t") == cells(path, sep="\t") == WANTED
    with pytest.raises(SoftPromptError, match=r"or give sep \(--separator\)"):
        read_rows(path)


def test_the_separator_of_the_name_goes_first_and_two_others_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a;b,c\n1;2,3\n4;5,6\n")
    assert cells(path) == [{"a;b": "1;2", "c": "3"}, {"a;b": "4;5", "c": "6"}]
    path = write(tmp_path, "a;b|c\n1;2|3\n4,0;5|6\n")
    with pytest.raises(SoftPromptError, match=r"t\.csv: ';' and '\|' part its rows alike; .*--separator"):
        read_rows(path)


def test_one_column_stays_one(tmp_path: Path) -> None:
    assert cells(write(tmp_path, "text\ngood; really\nbad\n")) == [{"text": "good; really"}, {"text": "bad"}]
    assert cells(write(tmp_path, "text; or so\ngood\nbad\n")) == [{"text; or so": "good"}, {"text; or so": "bad"}]


def test_columns_without_name_and_content_are_left_out_and_said(tmp_path: Path) -> None:
    path = write(tmp_path, "v1,v2,,,\nham,one,,,\nspam,two\nham,three,,,,\n\n,,,,\n")
    with pytest.warns(UserWarning, match=r"t\.csv: 4 columns without name and content are left out"):
        rows = read_rows(path)
    assert rows == [
        (line, {"v1": a, "v2": b}) for line, a, b in [(2, "ham", "one"), (3, "spam", "two"), (4, "ham", "three")]
    ]
    path = write(tmp_path, "v1,v2,,,\nham,one,,,\nspam,two,,more,\n")
    with pytest.raises(SoftPromptError, match=r"line 3: column 4 holds 'more' and has no name in the first line"):
        read_rows(path)
    for short in ("a,b\n1\n", "a,b\n1,2,3\n", "a,b,\n1\n"):
        with pytest.raises(SoftPromptError, match=r"t\.csv: line 2: . columns, the first line has"):
            read_rows(write(tmp_path, short))


def test_the_index_that_pandas_writes_is_left_out(tmp_path: Path) -> None:
    assert cells(write(tmp_path, ",text,label\n0,a,x\n1,b,y\n")) == [
        {"text": "a", "label": "x"},
        {"text": "b", "label": "y"},
    ]
    with pytest.raises(SoftPromptError, match="line 3: column 1 holds 'b'"):
        read_rows(write(tmp_path, ",text\n,a\nb,c\n"))


def test_quoted_newlines_and_doubled_names(tmp_path: Path) -> None:
    path = write(tmp_path, 'text;label\r\n"one;\r\ntwo ""three""";x\r\nfour;y\r\n\r\n')
    assert read_rows(path) == [(3, {"text": 'one;\r\ntwo "three"', "label": "x"}), (4, {"text": "four", "label": "y"})]
    with pytest.raises(SoftPromptError, match="names the column 'text' twice"):
        read_rows(write(tmp_path, "text;text;label\na;b;x\n"))
    with pytest.raises(SoftPromptError, match=r"t\.csv: line 2: not UTF-8"):
        read_rows(write(tmp_path, "text;label\nschön;x\n", encoding="latin-1"))


def scores(folder: Path, text: str) -> list[float]:
    task = load_files(write(folder, text), write(folder, text, "v.csv"), kind="regression")
    return [row.label for row in task.train]


def test_decimal_commas(tmp_path: Path) -> None:
    assert scores(tmp_path, "text;score\na;3,5\nb;-0,125\nc;4\nd;1,234\n") == [3.5, -0.125, 4, 1.234]
    assert scores(tmp_path, 'text,score\na,"3,5"\nb,",5"\n') == [3.5, 0.5]
    for text, message in (
        ("text;score\na;1,234\nb;12,500\n", "line 2: '1,234' may be a fraction or thousands"),
        ("text;score\na;3,5\nb;1.234\n", "line 3: '1.234' has a point, and '3,5' in line 2 a comma"),
        ("text;score\na;3,5,1\nb;2\n", "line 2: the label 'score' is '3,5,1', not a number"),
    ):
        with pytest.raises(SoftPromptError, match=message):
            scores(tmp_path, text)


def labelled(folder: Path, found: list[str], **more: Any) -> Task:
    rows = "".join(f"text {at};{label}\n" for at, label in enumerate(found * 4))
    return load_files(write(folder, "text;label\n" + rows), **more)


@pytest.mark.parametrize(
    "labels",
    [
        ["ham", "spam", "ham|long"],
        ["ham|long", "ham|short"],
        ["a|b", "b|c"],
        ["ham", "long", "ham, long"],
        ["ham", "long", "ham/long"],
        ["ham", "long", "ham long"],
    ],
)
def test_several_labels_of_a_row_are_refused(tmp_path: Path, labels: list[str]) -> None:
    several = next(at for at, label in enumerate(labels) if len(label) > 4 or "|" in label)
    with pytest.raises(SoftPromptError, match=rf"t\.csv: line {several + 2}: the label '.+' looks like several labels"):
        labelled(tmp_path, labels)
    assert labelled(tmp_path, labels, labels=labels).label_names == tuple(labels)


def test_a_bar_in_a_name_that_shares_nothing_is_a_name(tmp_path: Path) -> None:
    assert labelled(tmp_path, ["yes|no", "maybe"]).label_names == ("maybe", "yes|no")
    assert labelled(tmp_path, ["sci/med", "sci/space", "not sure"]).label_names == ("not sure", "sci/med", "sci/space")


@pytest.mark.parametrize("label", ["['a', 'b']", "['a' 'b']", '["a"]', "[1, 0]", "('a', 'b')", "{'a', 'b'}", "[]"])
def test_a_list_is_no_label(tmp_path: Path, label: str) -> None:
    with pytest.raises(SoftPromptError, match=r"t\.csv: line 3: the label 'label' is .*, a list"):
        labelled(tmp_path, ["x", label])


# --- what pandas writes of lists --------------------------------------------------------------------------------------

SENTENCES = [(["John", "don't", "sleep"], ["B-PER", "O", "O"]), (["in", '"Rome"'], ["O", "B-LOC"])] * 5
FORMS = {
    "python": repr,
    "numpy": lambda words: "[" + "\n ".join(map(repr, words)) + "]",
    "json": lambda words: "[" + ", ".join('"' + word.replace('"', '\\"') + '"' for word in words) + "]",
    "tuple": lambda words: repr(tuple(words)),
}


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


@pytest.mark.parametrize("form", FORMS)
def test_lists_in_columns_are_parsed(tmp_path: Path, form: str) -> None:
    lines = [",".join(quoted(FORMS[form](cells)) for cells in row) for row in SENTENCES]
    path = write(tmp_path, "tokens,ner_tags\n" + "\n".join(lines) + "\n")
    task = load_files(path, path, kind="tagging")
    assert task.label_names == ("O", "B-LOC", "B-PER") and task.metrics[0] == "seqeval_f1"
    assert [list(row.words) for row in task.train] == [words for words, _ in SENTENCES]
    assert [[task.label_names[tag] for tag in row.label] for row in task.train] == [tags for _, tags in SENTENCES]


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        ("['a', 'b']", "[O, O]", r"'ner_tags' is '\[O, O\]', a list that cannot be read"),
        ("['a' ... 'b']", "['O' 'O']", r"'tokens' is .*, a list that cannot be read"),
        ("['a', 'b' 'c']", "['O', 'O']", r"'tokens' is .*, a list that cannot be read"),
        ("array(['a', 'b'], dtype=object)", "O O", r"'tokens' is .*, a list that cannot be read"),
        ("a b", "array(['O', 'O'])", r"'ner_tags' is .*, a list that cannot be read"),
        ("['a', 'b', 'c']", "O,O O", "2 tags for 3 words"),
        ("['a', None]", "O O", "not a list of words"),
        ("a b", "'O', 'O'", "has the tag .* write tags with blanks between"),
        ("a b", "['O', 'O', 'O']", "3 tags for 2 words"),
    ],
)
def test_lists_that_cannot_be_read_are_refused(tmp_path: Path, words: str, tags: str, message: str) -> None:
    path = write(tmp_path, f"tokens,ner_tags\na b,O B-X\n{quoted(words)},{quoted(tags)}\n")
    with pytest.raises(SoftPromptError, match=rf"t\.csv: line 3: .*({message})"):
        load_files(path, path, kind="tagging")


def test_numbered_tags_from_pandas(tmp_path: Path) -> None:
    path = write(tmp_path, "words,tags\n\"['a', 'b']\",\"[0, 1]\"\n\"['c', 'd']\",\"[2 0]\"\n")
    task = load_files(path, path, kind="tagging", labels=("O", "B-X", "I-X"))
    assert [row.label for row in task.train] == [(0, 1), (2, 0)]


def test_choices_answers_and_brackets_in_texts(tmp_path: Path) -> None:
    rows = "".join(f"q{at},\"['yes', 'no, never']\",{at % 2}\n" for at in range(10))
    path = write(tmp_path, "question,choices,label\n" + rows)
    assert load_files(path, path, kind="choice").train[3].choices == ("yes", "no, never")
    answer = quoted("{'text': ['[1]', 'old'], 'answer_start': [0, 4]}")
    path = write(tmp_path, f"question,context,answers\nq,[1] old,{answer}\nq,[1] new,[1]\n")
    assert [row.answers for row in load_files(path, path, kind="span").train] == [("[1]", "old"), ("[1]",)]
    path = write(tmp_path, "words,tags\n[ 12 ] see [3],O O O O B-X\n[a],O\n")
    assert load_files(path, path, kind="tagging").train[0].words == ("[", "12", "]", "see", "[3]")
