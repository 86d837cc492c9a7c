"""Names of a table's columns: "QQP:F1" is a task's score by one of its metrics, "QQP" by its only one."""

from __future__ import annotations

from collections.abc import Sequence

AVERAGE = "Average"  # of all tasks; "Average:GLUE" of some
# "MultiRC:mean" is the mean of a task's metrics where a paper gives no more: a column of its own, in no average.
MEAN = "mean"


def tasks_of(columns: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Places of the columns of each task, without averages and means of a task's metrics."""
    tasks: dict[str, tuple[int, ...]] = {}
    for place, column in enumerate(columns):
        task, _, metric = column.partition(":")
        if task != AVERAGE and metric != MEAN:
            tasks[task] = (*tasks.get(task, ()), place)
    return tasks
