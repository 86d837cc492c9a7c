"""The form of a task: how rows are written out for a model, and how its answers are read.

A row has *fields*, which are texts by name. Templates are format strings over them:

- ``reading``: what an encoder reads, one text or a pair: ``("{question}", "{passage}")``;
- ``source``: what a language model reads: ``"boolq passage: {passage} question: {question}"``;
- ``choices``: for multiple choice, the texts to choose from: ``("{choice1}", "{choice2}")``; an encoder reads one
  after the other as the field ``choice``.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.answers import RULES, score_string

KINDS: dict[str, str] = {
    "classification": "one of several labels for a text or a pair",
    "multi-label": "any number of several labels for a text or a pair",
    "regression": "a score for a text or a pair",
    "choice": "one of several texts (multiple choice)",
    "ranking": "which of a row's own candidates answers it",
    "span": "a part of a context",
    "tagging": "a label for each word",
    "text": "a text that is written for another",
    "chat": "the next answer in a conversation",
}
ANSWERS = {
    "rank": "the likeliest of the label words",
    "generate": "what the model writes, read back as a label",
}
_CLOSED = ("classification", "multi-label", "regression", "choice")
_DECIDED = ("classification", "multi-label", "choice")
_WRITTEN = ("text", "chat")
LABELLED = ("classification", "multi-label")  # rows have labels of the task
CHOICE = "choice"
NONE = "none"  # what a language model answers where no label is given, unless the label words say otherwise


@dataclass(frozen=True)
class Form:
    """How the rows of a task are written out for a model, and how its answers are read; saved with each prompt.

    Attributes:
        kind: a key of `KINDS`.
        labels: names of the classes or tags; empty for other kinds.
        fields: names of the fields, in the order of the default templates.
        reading: what an encoder reads; empty: the first one or two fields.
        source: what a language model reads; empty: "field: {field} field: {field}".
        words: what a language model answers for each label or choice, or the numbers it may answer as text; empty: the
            label names. Of several labels there is one word more: the answer that each label is weighed against.
        choices: format strings of the choices; empty where each row brings its own.
        cut: fields that are cut where a row is too long, the first one first; empty: whichever is longest.
        answering: a key of `ANSWERS`: how a language model's answer is found.
        invalid: what a generated answer that is no label counts as, see `softprompts.tasks.answers`.
        max_new_tokens: how many tokens a language model generates at most for a free answer; None: as many as the
            longest answer of a text or chat has, 32 of other kinds.
    """

    kind: str = "classification"
    labels: tuple[str, ...] = ()
    fields: tuple[str, ...] = ("text",)
    reading: tuple[str, ...] = ()
    source: str = ""
    words: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    answering: str = "rank"
    invalid: str = "mismatch"
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, list):
                object.__setattr__(self, each.name, tuple(value))
        for setting, known in (("kind", KINDS), ("answering", ANSWERS), ("invalid", RULES)):
            if (value := getattr(self, setting)) not in known:
                raise SoftPromptError(f"{setting} is '{value}': {nearest(value, known)}")
        if not self.fields:
            raise SoftPromptError("a task needs at least one field")
        if not self.reading:
            first = [f"{{{name}}}" for name in self.fields[:2]]
            object.__setattr__(self, "reading", tuple([*first[:1], f"{{{CHOICE}}}"] if self.chooses else first))
        if not self.source:
            named = [f"{{{name}}}" if self.written else f"{name}: {{{name}}}" for name in self.fields]
            object.__setattr__(self, "source", ("\n" if self.written else " ").join(named))
        if not self.words and self.kind in LABELLED:
            object.__setattr__(self, "words", self.labels)
        if self.kind == "multi-label" and len(self.words) == len(self.labels):
            object.__setattr__(self, "words", (*self.words, NONE))
        self._check()

    def _check(self) -> None:
        beyond = int(self.kind == "multi-label")
        if self.kind in LABELLED and len(self.words) != len(self.labels) + beyond:
            raise SoftPromptError(f"{len(self.words)} label words for {len(self.labels)} labels")
        if beyond and self.answering == "generate":
            raise SoftPromptError("several labels are scored apart, not written: leave answering at 'rank'")
        if self.choices and self.words and len(self.words) != len(self.choices):
            raise SoftPromptError(f"{len(self.words)} label words for {len(self.choices)} choices")
        if len(self.reading) > 2:
            raise SoftPromptError(f"an encoder reads one text or a pair, not {len(self.reading)}")
        beside = (CHOICE,) if self.chooses else ()
        for template in (self.source, *self.choices):
            check_template(template, self.fields)
        for template in self.reading:
            check_template(template, (*self.fields, *beside))
        for name in self.cut:
            if name not in (*self.fields, *beside):
                raise SoftPromptError(f"cut names '{name}': {nearest(name, self.fields)}")

    @property
    def chooses(self) -> bool:
        """Whether an encoder reads a row once for each of its choices."""
        return self.kind in ("choice", "ranking")

    @property
    def closed(self) -> bool:
        """Whether a language model answers with one of the label words, the same for all rows."""
        return self.kind in _CLOSED

    @property
    def decided(self) -> bool:
        """Whether answers are chosen by the probabilities of labels or choices."""
        return self.kind in _DECIDED

    @property
    def written(self) -> bool:
        """Whether the answer is any text, which only a language model can write."""
        return self.kind in _WRITTEN

    def read(self, values: Mapping[str, str]) -> tuple[str, ...]:
        """What an encoder reads of a row's fields (and its ``choice``)."""
        return tuple(template.format_map(values) for template in self.reading)

    def write(self, values: Mapping[str, str]) -> str:
        """What a language model reads of a row's fields."""
        text = self.source.format_map(values)
        return text.strip("\n") if self.written else text  # fields of it may be empty

    def label_index(self, label: float) -> int:
        """Index of the word that stands for a label; for a score, the one that `score_string` gives or the nearest."""
        if self.kind != "regression":
            return int(label)
        if not self.words:
            raise SoftPromptError("a language model needs label words for scores")
        # Words that are tenths are rounded to, and of words that are fifths a score between two has an even one.
        for text in (score_string(label, snap=False), score_string(label)):
            if text in self.words:
                return self.words.index(text)
        return min(range(len(self.words)), key=lambda index: abs(float(self.words[index]) - label))

    def label_value(self, index: int) -> int | float:
        """What the word at an index stands for: the label itself, or a score."""
        return float(self.words[index]) if self.kind == "regression" else index

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as saved with a prompt; ids of runs are older than ``max_new_tokens``."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if self.max_new_tokens is None:
            del values["max_new_tokens"]
        return values

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Form:
        """Makes a form of the plain values of `to_dict`.

        Raises:
            SoftPromptError: a name that no form has, or values that do not go together.
        """
        known = [each.name for each in fields(cls)]
        for name in plain:
            if name not in known:
                raise SoftPromptError(f"a task has no '{name}': {nearest(name, known)}")
        return cls(**plain)


def fields_of(templates: Iterable[str]) -> set[str]:
    """The fields that format strings name."""
    return {name for template in templates for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def check_template(template: str, known: Iterable[str]) -> None:
    """Makes sure that a format string names known fields only.

    Raises:
        SoftPromptError: another field, or broken braces.
    """
    known = list(known)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SoftPromptError(f"template '{template}' is broken ({error}); write braces twice: {{{{ }}}}") from error
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion or name not in known):
            raise SoftPromptError(f"the template '{template}' names the field '{name}': {nearest(name, known)}")
