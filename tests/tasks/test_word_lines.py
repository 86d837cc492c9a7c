"""Tables with a word a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import load_files

SENTENCES = [(("John", "Smith", "slept"), ("B-PER", "I-PER", "O")), (("in", "Rome"), ("O", "B-LOC"))]


def lines(sep: str, gap: str) -> str:
    groups = ["".join(f"{word}{sep}{tag}\n" for word, tag in zip(*row, strict=True)) for row in SENTENCES]
    return f"words{sep}tags\n" + gap.join(groups)


@pytest.mark.parametrize("sep", [",", "\t", ";"])
@pytest.mark.parametrize("gap", ["\n", " \n", "SEP\n", "SEP\n\n\n"])
def test_empty_lines_end_sentences(tmp_path: Path, sep: str, gap: str) -> None:
    (tmp_path / "t.csv").write_text(lines(sep, gap.replace("SEP", sep)) + "\n\n")
    task = load_files(tmp_path / "t.csv", tmp_path / "t.csv", kind="tagging")
    assert [row.words for row in task.train] == [words for words, _ in SENTENCES]
    assert [tuple(task.label_names[tag] for tag in row.label) for row in task.train] == [tags for _, tags in SENTENCES]
    assert task.train[1].id == 5 + gap.count("\n")


def test_words_without_an_end_of_sentences_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(lines(",", ""))
    with pytest.raises(SoftPromptError, match=r"t\.csv: every row has one word: leave a line empty between sentences"):
        load_files(tmp_path / "t.csv", kind="tagging")


def test_sentences_with_empty_lines_between_stay_rows(tmp_path: Path) -> None:
    rows = "".join(f"{' '.join(words)},{' '.join(tags)}\n\n" for words, tags in [*SENTENCES, (("Bonn",), ("B-LOC",))])
    (tmp_path / "t.csv").write_text("words,tags\n" + rows)
    task = load_files(tmp_path / "t.csv", tmp_path / "t.csv", kind="tagging")
    assert [row.words for row in task.train] == [*(words for words, _ in SENTENCES), ("Bonn",)]


def test_a_quote_among_words(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('words\ttags\n"\tO\n"\tO\nRome\tB-LOC\n\nBonn\tB-LOC\n')
    with pytest.raises(SoftPromptError, match=r"t\.tsv: line \d: .*quoting=False"):
        load_files(tmp_path / "t.tsv", kind="tagging")
    task = load_files(tmp_path / "t.tsv", tmp_path / "t.tsv", kind="tagging", quoting=False)
    assert [row.words for row in task.train] == [('"', '"', "Rome"), ("Bonn",)]


def test_json_without_words_is_still_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"words": ["a"], "tags": ["B-X"]}\n{}\n')
    with pytest.raises(SoftPromptError, match=r"t\.jsonl: .*line 2: no column"):
        load_files(tmp_path / "t.jsonl", kind="tagging")
