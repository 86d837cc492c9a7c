"""Templates, and what does not go together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import Form

LABELS = ("bad", "good")


def test_defaults() -> None:
    form = Form(labels=LABELS, fields=("first", "second", "third"))
    assert form.words == LABELS and form.reading == ("{first}", "{second}")
    values = {"first": "1", "second": "{2}", "third": "3"}
    assert form.write(values) == "first: 1 second: {2} third: 3" and form.read(values) == ("1", "{2}")
    assert Form(labels=LABELS, words=("no", "yes")).words == ("no", "yes")
    assert Form(kind="choice", fields=("premise",)).reading == ("{premise}", "{choice}")


def test_scores_go_to_the_nearest_word() -> None:
    form = Form(kind="regression", words=("0.0", "0.2", "0.4"))
    assert [form.label_index(score) for score in (0.0, 0.19, 0.31, 9.0)] == [0, 1, 2, 2]
    assert form.label_value(1) == 0.2
    # Between two words as T5 rounds, where they are fifths; tenths are rounded to; others as near as can be.
    fifths, tenths = (Form(kind="regression", words=words) for words in (("3.6", "3.8"), ("3.6", "3.7", "3.8")))
    assert [fifths.words[fifths.label_index(score)] for score in (3.7, 3.69, 3.71)] == ["3.6", "3.6", "3.8"]
    assert [tenths.words[tenths.label_index(score)] for score in (3.7, 3.66, 3.75)] == ["3.7", "3.7", "3.8"]
    assert Form(kind="regression", words=("1", "2", "5")).label_index(3.6) == 2
    with pytest.raises(SoftPromptError, match="needs label words"):
        Form(kind="regression").label_index(1.0)


def test_saved_and_read() -> None:
    form = Form(labels=LABELS, fields=("a", "b"), cut=("b",), answering="generate")
    assert Form.from_dict(json.loads(json.dumps(form.to_dict()))) == form
    with pytest.raises(SoftPromptError, match="a task has no 'wordz': did you mean 'words'"):
        Form.from_dict({"wordz": []})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": LABELS, "words": ("no",)}, "1 label words for 2 labels"),
        ({"kind": "choice", "choices": ("{text}",), "words": ("1", "2")}, "2 label words for 1 choices"),
        ({"kind": "spam"}, "kind is 'spam': did you mean 'span'"),
        ({"answering": "rnk"}, "did you mean 'rank'"),
        ({"fields": ()}, "at least one field"),
        ({"reading": ("{text}",) * 3}, "not 3"),
        ({"source": "x: {txt}"}, "names the field 'txt': did you mean 'text'"),
        ({"source": "{choice}"}, "names the field 'choice'"),
        ({"source": "x: {text"}, "is broken .*write braces twice"),
        ({"source": "{text!r}"}, "names the field 'text'"),
        ({"cut": ("txt",)}, "cut names 'txt': did you mean 'text'"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        Form(**settings)
