"""What a task is: labelled texts, the names of their labels, and how they are written out for a language model."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property

from softprompts.errors import SoftPromptError

KINDS = ("classification", "regression")


@dataclass(frozen=True)
class Example:
    """One labelled row.

    Attributes:
        text: what an encoder reads.
        text_pair: the second text of a pair.
        label: index into the task's label names, or the score of a regression task.
        id: names the row in its source.
        values: texts of the task's fields, where these are not just ``text`` and ``text_pair``.
    """

    text: str
    text_pair: str | None = None
    label: int | float = 0
    id: str | int = 0
    values: tuple[str, ...] | None = None

    def field_values(self) -> tuple[str, ...]:
        """The texts that are written out for a language model, in the order of the task's fields."""
        if self.values is not None:
            return self.values
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)


@dataclass(frozen=True)
class Task:
    """Labelled texts and all that is needed to train and score on them.

    Attributes:
        name: as given to `load_task`.
        label_names: names of the classes; empty for regression.
        train: rows to train on.
        validation: rows to score on.
        test: rows that nothing is chosen by; may be empty.
        kind: "classification" or "regression".
        label_words: what a language model answers, one for each label; empty: the label names. For regression:
            the numbers it may answer, as text.
        fields: names of the fields in the text-to-text form "word field: value field: value".
        word: the task word that opens the text-to-text form; may be empty.
        metrics: names for `compute`; the first is the main one.
        source: where the rows come from, in words.
    """

    name: str
    label_names: tuple[str, ...]
    train: list[Example]
    validation: list[Example]
    test: list[Example] = field(default_factory=list)
    kind: str = "classification"
    label_words: tuple[str, ...] = ()
    fields: tuple[str, ...] = ("sentence",)
    word: str = ""
    metrics: tuple[str, ...] = ("accuracy",)
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label_words", tuple(self.label_words or self.label_names))
        if self.kind not in KINDS:
            raise SoftPromptError(f"task '{self.name}': kind is '{self.kind}', known: {', '.join(KINDS)}")
        if self.kind == "classification" and len(self.label_words) != len(self.label_names):
            raise SoftPromptError(
                f"task '{self.name}': {len(self.label_words)} label words for {len(self.label_names)} labels"
            )

    @property
    def num_labels(self) -> int:
        """Outputs of a head: one for each label, or one for a score."""
        return len(self.label_names) if self.kind == "classification" else 1

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all rows used: two runs with the same one have seen the same data."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(b"split\n")
            for row in split:
                line = json.dumps([row.text, row.text_pair, row.label, row.id, row.values])
                digest.update(line.encode() + b"\n")
        return digest.hexdigest()

    def balance(self, split: str = "train") -> dict[str, int]:
        """Rows of each label in a split; empty for regression."""
        counts = Counter(row.label for row in getattr(self, split))
        return {name: counts[index] for index, name in enumerate(self.label_names)}

    def render(self, example: Example) -> str:
        """The text-to-text form of a row."""
        return self.render_values(example.field_values())

    def render_values(self, values: tuple[str, ...]) -> str:
        """The text-to-text form of the fields' texts."""
        fragments = [f"{field}: {value}" for field, value in zip(self.fields, values, strict=True)]
        return " ".join([self.word, *fragments] if self.word else fragments)

    def label_index(self, label: float) -> int:
        """Index of the word that stands for a label; for a score, of the nearest number among the words."""
        if self.kind == "classification":
            return int(label)
        if not self.label_words:
            raise SoftPromptError(f"task '{self.name}': a language model needs label words for its scores")
        return min(range(len(self.label_words)), key=lambda index: abs(float(self.label_words[index]) - label))

    def label_value(self, index: int) -> int | float:
        """What the word at an index stands for: the label itself, or a score."""
        return index if self.kind == "classification" else float(self.label_words[index])

    def limited(self, max_train: int | None = None, max_validation: int | None = None, seed: int = 0) -> Task:
        """The task with at most so many rows, drawn by the seed and kept in their order."""
        train = subsample(self.train, max_train, seed, "max_train")
        return replace(self, train=train, validation=subsample(self.validation, max_validation, seed, "max_validation"))

    def few_shot(self, count: int, seed: int = 0) -> Task:
        """The task with ``count`` training rows in all, evenly many of each label, drawn by the seed.

        Of the shuffled rows the first ``count // labels`` of each label are taken and, for what is left to ``count``,
        one more of as many labels. Rows keep their order. Scores count as two labels, below and above the middle of
        their range.

        Raises:
            SoftPromptError: the count is below 1, or there are too few rows.
        """
        return replace(self, train=few_shot(self, count, seed))


def few_shot(task: Task, count: int, seed: int = 0) -> list[Example]:
    """See `Task.few_shot`."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise SoftPromptError(f"few_shot is {count!r}: it must be a whole number of at least 1")
    groups = len(task.label_names)
    names = task.label_names
    labels = [int(row.label) for row in task.train] if task.kind == "classification" else []
    if task.kind == "regression":
        scores = [row.label for row in task.train]
        middle = (min(scores) + max(scores)) / 2
        groups, names, labels = 2, ("low scores", "high scores"), [int(score > middle) for score in scores]
    order = list(range(len(labels)))
    random.Random(f"few shot {seed}").shuffle(order)
    each, more = divmod(count, groups)
    taken: Counter[int] = Counter()
    chosen: list[int] = []
    extra: list[int] = []
    for index in order:
        label = labels[index]
        if taken[label] < each:
            chosen.append(index)
        elif taken[label] == each and len(extra) < more:
            extra.append(index)
        else:
            continue
        taken[label] += 1
    short = [label for label in range(groups) if taken[label] < each]
    if short or len(extra) < more:
        where = f"'{names[short[0]]}' has {taken[short[0]]}" if short else f"there are {len(labels)}"
        raise SoftPromptError(
            f"task '{task.name}': few_shot={count} wants {each} training rows of each of {groups} labels"
            f"{f' and {more} more' if more else ''}, but {where}"
        )
    return [task.train[index] for index in sorted(chosen + extra)]


def subsample(rows: list[Example], limit: int | None, seed: int, name: str = "limit") -> list[Example]:
    """Draws ``limit`` rows by the seed and keeps their order; None: all rows.

    Raises:
        SoftPromptError: the limit is below 1.
    """
    if limit is None:
        return rows
    if limit < 1:
        raise SoftPromptError(f"{name} is {limit}: it must be at least 1")
    if limit >= len(rows):
        return rows
    return [rows[index] for index in sorted(random.Random(f"subsample {seed}").sample(range(len(rows)), limit))]
