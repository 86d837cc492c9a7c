from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import Example, Form, Task
from softprompts.tasks.task import subsample


def test_render(toy_task: Task, pair_task: Task) -> None:
    assert toy_task.render(toy_task.train[0]) == "toy sentence: good film"
    assert pair_task.render(pair_task.train[0]) == "first: good film second: the same"
    form = replace(pair_task.form, source="{second}, or {{{first}}}")
    assert replace(pair_task, form=form).render(pair_task.train[0]) == "the same, or {good film}"


def test_balance(toy_task: Task) -> None:
    assert toy_task.balance() == {"bad": 1, "good": 1}
    assert toy_task.balance("validation") == {"bad": 0, "good": 1}


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
    rows = [Example({"text": "t"}, id=index) for index in range(100)]
    drawn = [row.id for row in subsample(rows, 10, seed=1)]
    assert drawn == sorted(drawn) and len(set(drawn)) == 10
    assert drawn == [row.id for row in subsample(rows, 10, seed=1)]
    assert drawn != [row.id for row in subsample(rows, 10, seed=2)]
    assert subsample(rows, None, 0) == subsample(rows, 1000, 0) == rows
    with pytest.raises(SoftPromptError, match="max_train is 0"):
        subsample(rows, 0, 0, "max_train")


def _labelled(counts: dict[int, int], kind: str = "classification") -> Task:
    rows = [(label, index) for label, n in counts.items() for index in range(n)]
    train = [Example({"text": f"{label} {index}"}, label, index) for label, index in rows]
    labels = () if kind == "regression" else ("a", "b", "c")
    return Task("t", Form(kind=kind, labels=labels), train, [])


@pytest.mark.parametrize(("count", "each"), [(3, (1, 1)), (4, (1, 2)), (8, (2, 3)), (9, (3, 3))])
def test_few_shot_takes_evenly_many_of_each_label(count: int, each: tuple[int, int]) -> None:
    task = _labelled({0: 30, 1: 5, 2: 60})
    for seed in range(5):
        few = task.few_shot(count, seed).train
        assert len(few) == count and len({row.text for row in few}) == count
        per_label = [sum(row.label == label for row in few) for label in range(3)]
        assert (min(per_label), max(per_label)) == each
        assert [task.train.index(row) for row in few] == sorted(task.train.index(row) for row in few)
        assert task.few_shot(count, seed).train == few
    assert len({tuple(row.text for row in task.few_shot(count, seed).train) for seed in range(5)}) > 1


def test_few_shot_rows_are_drawn_evenly() -> None:
    task = _labelled({0: 6, 1: 6, 2: 6})
    counts = Counter(row.text for seed in range(600) for row in task.few_shot(6, seed).train)
    assert len(counts) == 18 and min(counts.values()) > 130 and max(counts.values()) < 270


def test_few_shot_of_scores_takes_low_and_high_ones() -> None:
    task = _labelled({0: 10, 1: 10, 5: 3}, "regression")
    labels = [row.label for row in task.few_shot(6).train]
    assert sum(label > 2.5 for label in labels) == 3


@pytest.mark.parametrize(
    ("counts", "count", "message"),
    [
        ({0: 9, 1: 9, 2: 1}, 6, "few_shot=6 wants 2 training rows of each of 3 labels, but 'c' has 1"),
        ({0: 2, 1: 2, 2: 2}, 7, "few_shot=7 wants 2 training rows of each of 3 labels and 1 more, but there are 6"),
        ({0: 2, 1: 2, 2: 2}, 0, "few_shot: the number of rows must be a whole number of at least 1, not 0"),
        ({0: 2, 1: 2, 2: 2}, True, "few_shot: the number of rows must be a whole number of at least 1, not True"),
    ],
)
def test_too_few_for_few_shot(counts: dict[int, int], count: int, message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        _labelled(counts).few_shot(count)


def test_subsample_of_groups_takes_whole_ones() -> None:
    rows = [Example({"text": "t"}, id=index, group=f"q{index // 4}") for index in range(40)]
    drawn = subsample(rows, 14, seed=0)
    counts = Counter(row.group for row in drawn)
    assert len(drawn) == 12 and set(counts.values()) == {4}
    assert [row.id for row in drawn] == sorted(row.id for row in drawn)
    assert len(subsample(rows, 1, seed=0)) == 4
