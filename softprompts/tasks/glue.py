"""GLUE and SuperGLUE tasks that classify one text or a pair (and STS-B, which scores a pair)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.rows import check_columns, read_rows
from softprompts.tasks.task import Example, Task

HUB = {"glue": "nyu-mll/glue", "super_glue": "aps/super_glue"}
LATER = ("super_glue/copa", "super_glue/multirc", "super_glue/record", "super_glue/wsc")
_HIDDEN = -1
_SCORES = tuple(f"{step / 5:.1f}" for step in range(26))  # 0.0, 0.2, ..., 5.0


@dataclass(frozen=True)
class Spec:
    """How the columns of a data set become a task.

    Attributes:
        about: one line for lists of tasks.
        encoder: columns that an encoder reads, one or a pair.
        labels: names of the labels; empty: the label is a score.
        metrics: the first is the main one.
        fields: names of the fields in the text-to-text form and their columns, in order; empty: those of ``encoder``.
    """

    about: str
    encoder: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    fields: Mapping[str, str] | None = None

    def columns(self) -> dict[str, str]:
        """Columns by the field they are written out as."""
        return dict(self.fields or {name: name for name in self.encoder})

    def texts(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """What an encoder reads of a row."""
        if "word" in self.columns():  # word in context: the word opens both sentences
            return tuple(f"{row['word']}: {row[name]}" for name in self.encoder)
        return tuple(str(row[name]) for name in self.encoder)


_SENTENCES = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_CLAIM = ("premise", "hypothesis")
_ENTAILMENT = ("entailment", "not_entailment")
_F1 = ("accuracy", "f1")

SPECS: dict[str, Spec] = {
    "glue/cola": Spec(
        "is a sentence acceptable English", ("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy")
    ),
    "glue/sst2": Spec("sentiment of film-review phrases", ("sentence",), ("negative", "positive")),
    "glue/mrpc": Spec("do two sentences say the same", _SENTENCES, ("not_equivalent", "equivalent"), _F1),
    "glue/qqp": Spec("are two questions duplicates", _QUESTIONS, ("not_duplicate", "duplicate"), _F1),
    "glue/qnli": Spec("does a sentence answer a question", ("question", "sentence"), _ENTAILMENT),
    "glue/rte": Spec("does a text entail a sentence", _SENTENCES, _ENTAILMENT),
    "glue/wnli": Spec("does a sentence follow from resolving a pronoun", _SENTENCES, _ENTAILMENT[::-1]),
    "glue/mnli": Spec(
        "does a premise entail, contradict or leave open a hypothesis",
        _CLAIM,
        ("entailment", "neutral", "contradiction"),
    ),
    "glue/stsb": Spec("how similar two sentences are, 0 to 5", _SENTENCES, (), ("pearson", "spearman")),
    "super_glue/boolq": Spec(
        "yes-no questions about a passage",
        ("question", "passage"),
        ("False", "True"),
        fields={"passage": "passage", "question": "question"},
    ),
    "super_glue/cb": Spec(
        "is a speaker committed to a clause",
        _CLAIM,
        ("entailment", "contradiction", "neutral"),
        ("accuracy", "macro_f1"),
        fields={"hypothesis": "hypothesis", "premise": "premise"},
    ),
    "super_glue/rte": Spec(
        "does a premise entail a hypothesis",
        _CLAIM,
        _ENTAILMENT,
        fields={"sentence1": "premise", "sentence2": "hypothesis"},
    ),
    "super_glue/wic": Spec(
        "does a word mean the same in two sentences",
        _SENTENCES,
        ("False", "True"),
        fields={"sentence1": "sentence1", "sentence2": "sentence2", "word": "word"},
    ),
}


def load_glue(name: str, data_dir: str | PathLike[str] | None = None) -> Task:
    """Loads a task by its name, "glue/rte" or "super_glue/boolq".

    Args:
        name: a key of `SPECS`.
        data_dir: folder with ``<benchmark>/<task>/{train,validation}.jsonl[.gz]``, columns named as on the hub; None:
            ask the hub.

    Raises:
        SoftPromptError: unknown task, missing file or column, a label out of range, or no way to the hub.
    """
    if name in LATER:
        raise SoftPromptError(f"task '{name}' is not there yet; known: {', '.join(SPECS)}")
    if name not in SPECS:
        raise SoftPromptError(f"unknown task '{name}': {nearest(name, SPECS)}")
    spec = SPECS[name]
    benchmark, word = name.split("/")
    splits = {}
    for split in ("train", "validation"):
        if data_dir is None:
            place, rows = _from_hub(benchmark, word, split)
        else:
            path = _local_file(Path(data_dir) / benchmark / word, split)
            place, rows = path, read_rows(path)
        splits[split] = _examples(spec, place, rows)
    return Task(
        name=name,
        label_names=spec.labels,
        kind="classification" if spec.labels else "regression",
        label_words=spec.labels or _SCORES,
        fields=tuple(spec.columns()),
        word=word,
        metrics=spec.metrics,
        source=f"{HUB[benchmark]} ({word}){'' if data_dir is None else ', local copy'}",
        train=splits["train"],
        validation=splits["validation"],
    )


def _local_file(folder: Path, split: str) -> Path:
    for ending in (".jsonl", ".jsonl.gz"):
        if (path := folder / f"{split}{ending}").is_file():
            return path
    raise SoftPromptError(f"{folder}: neither {split}.jsonl nor {split}.jsonl.gz is there")


def _from_hub(benchmark: str, config: str, split: str) -> tuple[Path, Iterable[tuple[int, dict[str, Any]]]]:
    import datasets  # type: ignore[import-untyped]  # takes a second, and only the hub needs it

    hub_split = "validation_matched" if (config, split) == ("mnli", "validation") else split
    try:
        rows = datasets.load_dataset(HUB[benchmark], config, split=hub_split)
    except Exception as error:  # the hub's client raises many kinds; all mean that there is no data
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise SoftPromptError(
            f"cannot load '{benchmark}/{config}' from the hub ({reason}): "
            f"go online, or give data_dir, a folder with {benchmark}/{config}/{split}.jsonl"
        ) from error
    return Path(HUB[benchmark], config, hub_split), enumerate(rows, start=1)


def _examples(spec: Spec, place: Path, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> list[Example]:
    columns = spec.columns()
    same = tuple(columns.values()) == spec.encoder
    examples = []
    for number, row in rows:
        check_columns(place, row, [*columns.values(), "label"], number)
        label = row["label"]
        if label == _HIDDEN:
            continue
        if not _fits(label, spec):
            allowed = f"0 to {len(spec.labels) - 1}" if spec.labels else "a number"
            raise SoftPromptError(f"{place}: line {number}: label {label!r} is not {allowed}")
        first, *second = spec.texts(row)
        values = None if same else tuple(str(row[column]) for column in columns.values())
        value = label if spec.labels else float(label)
        examples.append(Example(first, second[0] if second else None, value, row.get("idx", number), values))
    if not examples:
        raise SoftPromptError(f"{place}: no row has a label")
    return examples


def _fits(label: object, spec: Spec) -> bool:
    if isinstance(label, bool) or not isinstance(label, int | float):
        return False
    return not spec.labels or (isinstance(label, int) and 0 <= label < len(spec.labels))
