"""What looks like a mistake in labelled rows, in sentences; it might be meant, so nothing is refused."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from softprompts.tasks.example import Example
from softprompts.tasks.task import Task

_SHOWN = 3  # names or rows that a sentence shows


def doubts(task: Task, *, named: bool = False, few: bool = False) -> list[str]:
    """Sentences on what looks like a mistake in a task of a user's own files; empty for none.

    Args:
        task: the task.
        named: the user has named the labels, so that those that are nearly equal are meant.
        few: few of the training rows were drawn, so that a label with a single one is meant.
    """
    found = [] if named else _alike(task.label_names)
    known = {_texts(row) for row in task.train}
    shared = [line for split in ("validation", "test") for line in _shared(known, split, getattr(task, split))]
    return [*found, *([] if few else _rare(task)), *shared]


def _alike(names: Sequence[str]) -> list[str]:
    """Labels that differ in case, blanks or punctuation around them alone."""
    groups = defaultdict(list)
    for name in names:
        groups[_plain(name)].append(name)
    alike = [" and ".join(f"'{name}'" for name in group) for group in groups.values() if len(group) > 1]
    if not alike:
        return []
    return [f"labels that are nearly equal count as different ones: {_some(alike)}; write each label in one way"]


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold()
    if not any(letter.isalpha() for letter in text):
        return name
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", "", text).strip(" .,;:!?'\"")


def _rare(task: Task) -> list[str]:
    if task.kind != "classification":
        return []
    train = Counter(row.label for row in task.train)
    scored = Counter(row.label for row in (*task.validation, *task.test))
    names = list(enumerate(task.label_names))
    untrained = [f"'{name}'" for label, name in names if not train[label]]
    single = [f"'{name}'" for label, name in names if train[label] == 1 and not scored[label]]
    return [
        *([f"no training row has the label {_some(untrained)}"] if untrained else []),
        *([f"one row alone has the label {_some(single)}: nothing is scored on it"] if single else []),
    ]


def _shared(known: Collection[tuple[str, ...]], split: str, rows: Sequence[Example]) -> list[str]:
    """Rows to score on whose texts are known from the training rows."""
    shared = [row for row in rows if _texts(row) in known]
    if not shared:
        return []
    first = " ".join(next(iter(shared[0].fields.values())).split())
    text = first if len(first) <= 40 else f"{first[:37]}..."
    return [
        f"{len(shared):,} of {len(rows):,} {split} rows have the texts of training rows, such as '{text}': "
        "scores on them say little about new texts"
    ]


def _texts(row: Example) -> tuple[str, ...]:
    return (*row.fields.values(), *row.choices)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
