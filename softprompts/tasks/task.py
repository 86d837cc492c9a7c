"""A task: rows by split, and the form in which they are written out for a model."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.tasks.example import Example
from softprompts.tasks.form import Form
from softprompts.tasks.splits import OFFICIAL, digest, few_shot, split


@dataclass(frozen=True)
class Task:
    """Rows and all that is needed to train and score on them.

    Attributes:
        name: as given to `load_task`.
        form: how rows are put to a model.
        train: rows to train on.
        validation: rows to score on.
        test: rows that nothing is chosen by; may be empty.
        metrics: names for `compute`; the first is the main one.
        source: where the rows come from, in words.
        protocol: how they were parted, a key of `softprompts.tasks.splits.PROTOCOLS`.
    """

    name: str
    form: Form
    train: list[Example]
    validation: list[Example]
    test: list[Example] = field(default_factory=list)
    metrics: tuple[str, ...] = ("accuracy",)
    source: str = ""
    protocol: str = OFFICIAL

    @property
    def kind(self) -> str:
        """A key of `KINDS`."""
        return self.form.kind

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes or tags."""
        return self.form.labels

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all rows used: two runs with the same one have seen the same data."""
        total = hashlib.sha256()
        for rows in (self.train, self.validation, self.test):
            total.update(b"split\n")
            for row in rows:
                total.update(json.dumps(list(vars(row).values())).encode() + b"\n")
        return total.hexdigest()

    def balance(self, split: str = "train") -> dict[str, int]:
        """Rows of each label or choice in a split; empty for other kinds."""
        if self.kind not in ("classification", "choice", "multi-label"):
            return {}
        several = self.kind == "multi-label"
        counts = Counter(label for row in getattr(self, split) for label in (row.label if several else [row.label]))
        return {name: counts[index] for index, name in enumerate(self.label_names or self.form.words)}

    def render(self, example: Example) -> str:
        """What a language model reads of a row."""
        return self.form.write(example.fields)

    def under(self, protocol: str, mismatched: Sequence[Example] = ()) -> Task:
        """The task with its rows split by a protocol, see `softprompts.tasks.splits.split`.

        Raises:
            SoftPromptError: unknown protocol, or too few rows for it.
        """
        if protocol == OFFICIAL:
            return self
        given = self.train, self.validation, self.test
        parts = split(protocol, self.name, *given, kind=self.kind, mismatched=mismatched)
        return replace(self, **parts._asdict(), protocol=protocol)

    @cached_property
    def _record(self) -> dict[str, Any]:
        # Every run of a grid asks for it, and hashing large splits takes a while.
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        sizes = {name: {"rows": len(rows), "sha256": digest(rows)} for name, rows in parts.items()}
        return {"protocol": self.protocol, **sizes}

    def record(self) -> dict[str, Any]:
        """For the run folder: the protocol, and the number and `digest` of each split's rows."""
        return self._record

    def with_form(self, **changes: Any) -> Task:
        """The task with another form."""
        return replace(self, form=replace(self.form, **changes))

    def constant_scores(self, split: str) -> dict[str, float]:
        """The metrics of one answer for all rows of a split: the commonest label or set of labels, a constant score,
        or no entity.

        Empty for other kinds, and where metrics compare texts, which a model writes freely.
        """
        if self.kind in ("classification", "choice", "multi-label"):
            # Here and not on top: scikit-learn takes a while to import.
            from softprompts.tasks.metrics import compares_strings, compute

            if any(map(compares_strings, self.metrics)):
                return {}
            rows = getattr(self, split)
            several = range(len(self.label_names)) if self.kind == "multi-label" else ()
            labels = [tuple(int(i in row.label) for i in several) if several else row.label for row in rows]
            commonest = Counter(labels).most_common(1)[0][0]
            return compute(self.metrics, [commonest] * len(labels), labels, [row.group for row in rows])
        of_nothing = {"regression": ("pearson", "spearman"), "tagging": ("seqeval_f1",)}.get(self.kind, ())
        return {name: 0.0 for name in self.metrics if name in of_nothing}

    def scored_rows(self) -> tuple[str, str]:
        """The split that a finished run is scored on, test rows if there are some, and what its rows are called."""
        split = "test" if self.test else "validation"
        return split, f"{split} rows of {self.name}"

    def limited(
        self,
        max_train: int | None = None,
        max_validation: int | None = None,
        seed: int = 0,
        max_test: int | None = None,
    ) -> Task:
        """The task with at most so many rows, drawn by the seed and kept in their order."""
        train = subsample(self.train, max_train, seed, "max_train")
        validation = subsample(self.validation, max_validation, seed, "max_validation")
        test = subsample(self.test, max_test, seed, "max_test")
        return replace(self, train=train, validation=validation, test=test)

    def few_shot(self, count: int, seed: int = 0, protocol: str = "even") -> Task:
        """The task with ``count`` training rows in all, see `softprompts.tasks.splits.few_shot`.

        Raises:
            SoftPromptError: unknown protocol, the count is below 1, or there are too few rows.
        """
        names = self.label_names or self.form.words if self.kind in ("classification", "choice") else ()
        regression = self.kind == "regression"
        try:
            few = few_shot(self.train, count, names, seed, regression=regression, protocol=protocol)
        except SoftPromptError as error:
            raise SoftPromptError(f"task '{self.name}': {error}") from None
        return replace(self, train=few)


def subsample(rows: list[Example], limit: int | None, seed: int, name: str = "limit") -> list[Example]:
    """Draws ``limit`` rows by the seed and keeps their order; None: all rows.

    Rows that are scored together are drawn together: whole groups, as many as fit into the limit, but at least one.

    Raises:
        SoftPromptError: the limit is below 1.
    """
    if limit is None:
        return rows
    if limit < 1:
        raise SoftPromptError(f"{name} is {limit}: it must be at least 1")
    if limit >= len(rows):
        return rows
    chance = random.Random(f"subsample {seed}")
    if rows[0].group is None:
        return [rows[index] for index in sorted(chance.sample(range(len(rows)), limit))]
    groups: dict[str | None, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.group, []).append(index)
    drawn: list[int] = []
    for group in chance.sample(list(groups.values()), len(groups)):
        if drawn and len(drawn) + len(group) > limit:
            break
        drawn += group
    return [rows[index] for index in sorted(drawn)]
