"""Describes a task: rows by split and label, their lengths in tokens, and examples as models read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.tasks.batches import length_of
from softprompts.tasks.conversations import MESSAGES, question_of, readable, unpacked
from softprompts.tasks.encode import encode_examples
from softprompts.tasks.example import Example
from softprompts.tasks.form import CHOICE, KINDS
from softprompts.tasks.task import Task

Rows = Sequence[Example]
SPLITS = ("train", "validation", "test")
_ALL = 1_000_000_000  # tokens: no row is cut
_PERCENT = (50, 90, 99)


def describe(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    context: int | None = None,
    max_length: int = 256,
    examples: int = 3,
) -> dict[str, Any]:
    """Computes all that `softprompts tasks show` prints of a task.

    Args:
        task: the task.
        tokenizer: counts tokens.
        kind: of the model, "encoder", "encoder-decoder" or "decoder".
        context: tokens that the model takes at once; None: any number.
        max_length: tokens to which rows would be cut.
        examples: so many training rows are put out.

    Returns:
        Plain values. ``splits`` has for each split its ``rows``, ``labels`` (how many rows, or words, have each; of
        scores the least, mean and largest), ``tokens`` (percentiles by name and "longest") and how many rows are
        ``over_max_length`` and ``over_context``. ``examples`` have what an ``encoder`` reads (one text or pair; one
        for each choice), what a ``language_model`` reads, the ``answer``, and what a language model has
        ``written`` then.

    Raises:
        SoftPromptError: a kind of model that the task is not for.
    """
    form = task.form
    return {
        "task": task.name,
        "kind": task.kind,
        "what": KINDS[task.kind],
        "source": task.source,
        "fields": list(form.fields),
        "labels": list(form.labels),
        "words": list(form.words),
        "metrics": list(task.metrics),
        "cut_first": list(form.cut),
        "max_length": max_length,
        "context": context,
        "splits": {
            split: _describe_rows(task, rows, tokenizer, kind, context, max_length)
            for split in SPLITS
            if (rows := getattr(task, split))
        },
        "examples": [render(task, example) for example in task.train[:examples]],
    }


def label_counts(task: Task, rows: Rows) -> dict[str, float]:
    """How many rows have each label or choice, how many words each tag; of scores the least, mean and largest."""
    form = task.form
    if task.kind == "regression":
        scores = [row.label for row in rows]
        return {"least": min(scores), "mean": sum(scores) / len(scores), "largest": max(scores)}
    counts: Counter[int] = Counter()
    if task.kind in ("classification", "multi-label", "choice", "tagging"):
        several = task.kind in ("tagging", "multi-label")
        counts.update(label for row in rows for label in (row.label if several else [row.label]))
    names = form.labels or form.words or tuple(map(str, range(max(counts, default=-1) + 1)))
    return {name: counts[index] for index, name in enumerate(names)} if counts else {}


def _describe_rows(
    task: Task, rows: Rows, tokenizer: PreTrainedTokenizerBase, kind: str, context: int | None, max_length: int
) -> dict[str, Any]:
    # A decoder's answer lies behind its input and needs room too.
    encoded = encode_examples(rows, task, tokenizer, kind, _ALL, with_answer=kind == "decoder")
    longest: dict[int, int] = {}
    for owner, feature in zip(encoded.owners or range(len(rows)), encoded.features, strict=True):
        longest[owner] = max(longest.get(owner, 0), length_of(feature))
    lengths = sorted(longest.values())
    return {
        "rows": len(rows),
        "labels": label_counts(task, rows),
        "tokens": {**{f"{part}%": percentile(lengths, part) for part in _PERCENT}, "longest": lengths[-1]},
        "over_max_length": sum(length > max_length for length in lengths),
        "over_context": 0 if context is None else sum(length > context for length in lengths),
    }


def percentile(ordered: Sequence[int], part: int) -> int:
    """The percentile of sorted values (nearest rank)."""
    return ordered[max(0, -(-part * len(ordered) // 100) - 1)]


def render(task: Task, example: Example) -> dict[str, Any]:
    """A row as models read it."""
    form = task.form
    choices = [{CHOICE: choice} for choice in example.choices] if form.chooses else [{}]
    source = None if task.kind == "tagging" else form.write(example.fields)
    if task.kind == "chat":
        source = readable(question_of(unpacked(example.fields[MESSAGES])))
    return {
        "id": example.id,
        "encoder": [] if form.written else [list(form.read({**example.fields, **choice})) for choice in choices],
        "language_model": source,
        "answer": answer_of(task, example),
        "written": _written(task, example),
    }


def _written(task: Task, example: Example) -> str | None:
    """The target text of a language model; None where there is none."""
    form = task.form
    if form.kind == "multi-label":
        return None  # label words are scored apart
    if form.closed:
        return form.words[form.label_index(example.label)] if form.words else None
    return example.answers[0] if example.answers else None


def answer_of(task: Task, example: Example) -> Any:
    """The label in words: a name, a score, a choice, accepted texts, or a tag for each word."""
    form = task.form
    if task.kind in ("tagging", "multi-label"):
        return [form.labels[label] for label in example.label]
    if task.kind in ("span", "ranking") or form.written:
        return list(dict.fromkeys(example.answers))
    if task.kind == "regression":
        return example.label
    return form.labels[example.label] if form.labels else example.choices[example.label]
