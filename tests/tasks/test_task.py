from __future__ import annotations

from collections import Counter
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


def _labelled(counts: dict[int, int], kind: str = "classification") -> Task:
    train = [Example(f"{label} {index}", label=label, id=index) for label, n in counts.items() for index in range(n)]
    names = () if kind == "regression" else ("a", "b", "c")
    words = ("0", "5") if kind == "regression" else ()
    return Task("t", names, train, [], kind=kind, label_words=words)


@pytest.mark.parametrize(("count", "each"), [(3, (1, 1)), (4, (1, 2)), (8, (2, 3)), (9, (3, 3)), (2, (0, 1))])
def test_few_shot_takes_evenly_many_of_each_label(count: int, each: tuple[int, int]) -> None:
    task = _labelled({0: 30, 1: 5, 2: 60})
    for seed in range(5):
        few = task.few_shot(count, seed).train
        assert len(few) == count and len(set(few)) == count
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
        ({0: 2, 1: 2, 2: 2}, 0, "few_shot is 0"),
        ({0: 2, 1: 2, 2: 2}, True, "few_shot is True"),
    ],
)
def test_too_few_for_few_shot(counts: dict[int, int], count: int, message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        _labelled(counts).few_shot(count)
