from __future__ import annotations

from dataclasses import replace

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import Example, Task
from softprompts.tasks.task import subsample


def test_render(toy_task: Task, pair_task: Task) -> None:
    assert toy_task.render(toy_task.train[0]) == "toy sentence: good film"
    assert pair_task.render(pair_task.train[0]) == "first: good film second: the same"
    own_values = Example("x", "y", 0, 0, values=("1", "2"))
    assert pair_task.render(own_values) == "first: 1 second: 2"


def test_words_are_the_names_unless_given(toy_task: Task) -> None:
    assert toy_task.label_words == toy_task.label_names
    assert replace(toy_task, label_words=("no", "yes")).label_words == ("no", "yes")
    with pytest.raises(SoftPromptError, match="1 label words for 2 labels"):
        replace(toy_task, label_words=("no",))
    with pytest.raises(SoftPromptError, match="kind is 'ranking'"):
        replace(toy_task, kind="ranking")


def test_balance(toy_task: Task) -> None:
    assert toy_task.balance() == {"bad": 1, "good": 1}
    assert toy_task.balance("validation") == {"bad": 0, "good": 1}


def test_scores_go_to_the_nearest_word() -> None:
    task = Task("s", (), [], [], kind="regression", label_words=("0.0", "0.2", "0.4"))
    assert [task.label_index(score) for score in (0.0, 0.19, 0.31, 9.0)] == [0, 1, 2, 2]
    assert task.label_value(1) == 0.2
    assert task.num_labels == 1
    with pytest.raises(SoftPromptError, match="needs label words"):
        Task("s", (), [], [], kind="regression").label_index(1.0)


def test_fingerprint_depends_on_every_row(toy_task: Task) -> None:
    assert toy_task.fingerprint == replace(toy_task, name="other").fingerprint
    changed = [
        replace(toy_task, train=toy_task.train[:1]),
        replace(toy_task, train=toy_task.train[::-1]),
        replace(toy_task, train=[*toy_task.train[:1], replace(toy_task.train[1], label=1)]),
        replace(toy_task, train=toy_task.train + toy_task.validation, validation=[]),
        replace(toy_task, test=toy_task.validation),
    ]
    assert len({toy_task.fingerprint, *(task.fingerprint for task in changed)}) == len(changed) + 1


def test_subsample_is_by_seed_and_keeps_order() -> None:
    rows = [Example("t", id=index) for index in range(100)]
    drawn = [row.id for row in subsample(rows, 10, seed=1)]
    assert drawn == sorted(drawn) and len(set(drawn)) == 10
    assert drawn == [row.id for row in subsample(rows, 10, seed=1)]
    assert drawn != [row.id for row in subsample(rows, 10, seed=2)]
    assert subsample(rows, None, 0) == subsample(rows, 1000, 0) == rows
    with pytest.raises(SoftPromptError, match="max_train is 0"):
        subsample(rows, 0, 0, "max_train")
