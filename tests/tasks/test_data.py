from __future__ import annotations

import dataclasses

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks.data import Data


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tsk": "reviews"}, "data has no setting 'tsk'; did you mean 'task'"),
        ({"task": 3}, "data: task must be text, not 3"),
        ({"labels": "a,b"}, "data: labels must be a list, not 'a,b'"),
        ({"choices": ["a", 1]}, "data: choices.1 must be text, not 1"),
        ({"max_train": 0}, "data: max_train must be at least 1, not 0"),
        ({"max_test": True}, "data: max_test must be a whole number, not True"),
        ({"few_shot": 1.5}, "data: few_shot must be a whole number, not 1.5"),
        ({"few_shot_seed": -1}, "data: few_shot_seed must be at least 0, not -1"),
    ],
)
def test_bad_values_are_refused_in_one_line(fields: dict, message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        Data(**fields)


def test_no_test_rows_where_none_are_wanted() -> None:
    assert Data(task="reviews", max_test=0).load().test == []


def test_lists_are_tuples_and_every_field_has_a_description() -> None:
    data = Data(train="f.csv", labels=["a", "b"])
    assert data == Data(train="f.csv", labels=("a", "b")) and hash(data) == hash(dataclasses.replace(data))
    assert all(field.description for field in Data.__pydantic_fields__.values())
