"""Split protocols: the papers' ways to make train, validation and test rows of the official splits.

Test labels of GLUE and SuperGLUE are hidden, so each group of papers makes a test split of its own from what is left.
Scores of different protocols are not comparable. All cuts follow the authors' code and their random generators.

NumPy and torch are imported where rows are drawn, as the list of tasks is shown without them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from softprompts.errors import SoftPromptError, nearest, require_whole
from softprompts.tasks.example import Example

Rows = Sequence[Example]
Texts = tuple[str, ...]  # of a row
T = TypeVar("T")
OFFICIAL = "official"
PROTOCOLS = {
    OFFICIAL: "the official splits as they are; no test split where its labels are hidden",
    "smop": "official validation is the test split, the last tenth of each class of train is validation",
    "dept": "halves of the official validation, or for large data sets 1,000 training rows for validation",
    "residual": "halves of the official validation as validation and test",
    "halves": "the same, unless there is a test split; training rows that overlap with these rows are left out",
}
FEW_SHOT = {
    "even": "evenly many of each label, kept in their order",
    "dept": "evenly many of each label but for a last one of any label, in the order they were drawn",
}

SMALL_ROWS = 10_000
_HELD_OUT = 1_000
_DEPT_SEED, _RESIDUAL_SEED = 42, 0
_MIDDLE_SCORE = 2.5  # of STS-B, 0 to 5
# Names as in the authors' code, where size is not looked at: MultiRC is among the small ones with its 27,243 rows.
_SMALL = {"cola", "wnli", "rte", "cb", "copa", "multirc", "wic", "wsc", "wsc.fixed", "mrpc", "stsb", "boolq", "scitail"}
_SMALL |= {"xsum"}
_LARGE = {"qqp", "qnli", "record", "sst2", "squad", "snli", "anli", "amazon_polarity", "yelp_polarity", "winogrande"}
_LARGE |= {"newsqa", "searchqa", "triviaqa", "nq", "hotpotqa", "mnli"}


class Splits(NamedTuple):
    """Rows to train on, to choose by and to report; the last are empty where there are none with labels."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def split(
    protocol: str,
    name: str,
    train: Rows,
    validation: Rows,
    test: Rows = (),
    *,
    kind: str = "classification",
    mismatched: Rows = (),
) -> Splits:
    """Cuts the official splits of a task up by a protocol.

    - "official": nothing is changed.
    - "smop" (SMoP, Multi-mask): the official validation is the test split. Of the training rows of each class, in the
      order of the file, the first nine tenths are trained on and the rest is validation; of a regression task the
      first eight ninths; where labels are no classes (tags, spans), the first nine tenths. The rows of a group are not
      kept together: in MultiRC the end of the file is held out, and since that is counted for right and wrong answers
      apart, a few questions have some answers in train and the others in validation (scores by question are over what
      is there). A test split that is given is left out.
    - "dept" (DePT, EPT, ATTEMPT): small data sets have the shuffled official validation halved; of large ones 1,000
      random training rows are validation and the official validation is the test split, or the official test where
      its labels are known (SNLI). MNLI has the mismatched rows for validation and the matched ones for test, and is a
      large data set where there are no mismatched rows at hand. In MultiRC the answers of a question are parted. A
      data set that is on no list of the paper keeps its splits where it has a test split, and else is small with
      fewer than 10,000 training rows.
    - "residual" (Residual Prompt Tuning): the shuffled official validation is halved, that of MultiRC in the order of
      the file. A test split that is given is left out.

    - "halves" (for studies): where there is a test split nothing is changed. Else the shuffled official validation is
      halved, groups of rows kept whole, and training rows are left out whose texts are part of those of a validation
      row, or contain them, word by word (SST-2 trains on phrases of its own sentences).

    Training rows of "smop" stay in the order of the file, all else that is drawn is in the order of the draw.

    Args:
        protocol: a key of `PROTOCOLS`.
        name: of the task, with or without its benchmark: "super_glue/rte" or "rte".
        train: the official training rows.
        validation: the official validation rows (of MNLI the matched ones).
        test: the official test rows if they have labels.
        kind: "regression" where labels are scores; of the other kinds those with whole numbers for labels have classes.
        mismatched: the mismatched validation rows of MNLI.

    Raises:
        SoftPromptError: unknown protocol, too few rows in a class or a split, or an empty split.
    """
    if protocol not in PROTOCOLS:
        raise SoftPromptError(f"unknown protocol '{protocol}': {nearest(protocol, PROTOCOLS)}")
    owner = f"task '{name}', protocol '{protocol}'"
    for part, rows in (("train", train), ("validation", validation)):
        if not rows:
            raise SoftPromptError(f"{owner}: there are no {part} rows to split")
    short_name = name.rsplit("/", 1)[-1]
    if protocol == "smop":
        return Splits(*_smop(owner, train, kind), list(validation))
    if protocol == "dept":
        return _dept(owner, short_name, train, validation, test, mismatched)
    if protocol == "residual":
        size = len(validation)
        order = range(size) if short_name == "multirc" else _numpy_order(size, _RESIDUAL_SEED)
        return Splits(list(train), *_halves(owner, validation, order))
    if protocol == "halves" and not test:
        return Splits(_without_overlap(train, validation), *_halved_by_groups(owner, validation))
    return Splits(list(train), list(validation), list(test))


def _halved_by_groups(owner: str, rows: Rows) -> tuple[list[Example], list[Example]]:
    groups: dict[Any, list[Example]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(index if row.group is None else row.group, []).append(row)
    parts = list(groups.values())
    first, second = _halves(owner, parts, _numpy_order(len(parts), _RESIDUAL_SEED))
    return [row for part in first for row in part], [row for part in second for row in part]


def _without_overlap(train: Rows, validation: Rows) -> list[Example]:
    """The training rows whose texts are not part of those of a validation row, and do not contain them."""
    ours, theirs = [_texts(row) for row in train], [_texts(row) for row in validation]
    overlaps = {part for part, _ in _parts(ours, theirs)} | {whole for _, whole in _parts(theirs, ours)}
    return [row for row, texts in zip(train, ours, strict=True) if texts not in overlaps]


def _texts(row: Example) -> Texts:
    """A row's texts in lower case, a blank around each word."""
    texts = row.fields.values() if row.fields else [" ".join(row.words)]
    return tuple(f" {' '.join(text.lower().split())} " for text in texts)


def _parts(rows: Iterable[Texts], others: Iterable[Texts]) -> Iterator[tuple[Texts, Texts]]:
    """Pairs of a row and one of the others of which each text contains that of the row."""
    index: dict[tuple[int, str], list[Texts]] = {}
    for other in dict.fromkeys(others):
        for place in _words(other):
            index.setdefault(place, []).append(other)
    for row in dict.fromkeys(rows):
        rarest = min((index.get(place, []) for place in _words(row)), key=len, default=[])
        yield from ((row, other) for other in rarest if all(a in b for a, b in zip(row, other, strict=True)))


def _words(texts: Texts) -> set[tuple[int, str]]:
    """The words of a row's texts, each with its text's place."""
    return {(place, word) for place, text in enumerate(texts) for word in text.split()}


def _smop(owner: str, train: Rows, kind: str) -> tuple[list[Example], list[Example]]:
    scored = kind == "regression"
    share, whole = (8, 9) if scored else (9, 10)
    classes = [row.label if isinstance(row.label, int) and not scored else None for row in train]
    sizes = Counter(classes)
    for name, size in sizes.items():
        if size < 2:
            what = "there is 1 training row" if name is None else f"label {name!r} has 1 training row"
            raise SoftPromptError(f"{owner}: {what}, it takes 2: one to train on and one for validation")
    seen: Counter[int | None] = Counter()
    kept, held = list[Example](), list[Example]()
    for row, name in zip(train, classes, strict=True):
        (held if seen[name] >= sizes[name] * share // whole else kept).append(row)
        seen[name] += 1
    return kept, held


def _dept(owner: str, name: str, train: Rows, validation: Rows, test: Rows, mismatched: Rows) -> Splits:
    if name == "mnli" and mismatched:
        return Splits(list(train), list(mismatched), list(validation))
    listed = name in _SMALL | _LARGE
    if test and not listed:
        return Splits(list(train), list(validation), list(test))
    if name in _SMALL or (not listed and len(train) < SMALL_ROWS):
        return Splits(list(train), *_halves(owner, validation, _torch_order(len(validation), _DEPT_SEED)))
    if len(train) <= _HELD_OUT:
        raise SoftPromptError(
            f"{owner}: {_HELD_OUT} training rows become validation, but there are {len(train)}: use another protocol"
        )
    order = _torch_order(len(train), _DEPT_SEED)
    return Splits(_taken(train, order[_HELD_OUT:]), _taken(train, order[:_HELD_OUT]), list(test or validation))


def _halves(owner: str, rows: Sequence[T], order: Sequence[int]) -> tuple[list[T], list[T]]:
    middle = len(rows) // 2
    if middle < 1:
        raise SoftPromptError(f"{owner}: the official validation has 1 row, too few to halve; use another protocol")
    return _taken(rows, order[:middle]), _taken(rows, order[middle:])


def _taken(rows: Sequence[T], order: Iterable[int]) -> list[T]:
    return [rows[index] for index in order]


def few_shot(
    rows: Rows, count: int, classes: Sequence[str], seed: int = 0, *, regression: bool = False, protocol: str = "even"
) -> list[Example]:
    """Draws ``count`` training rows in all, by one of two ways.

    - "even": of the shuffled rows the first ``count // classes`` of each label and, for what is left to ``count``, one
      more of as many labels. Scores count as two labels, below and above the middle of their range. Rows keep their
      order.
    - "dept" (DePT and EPT, with 4, 16 or 32 rows): the first ``count // classes`` of each label too, but as soon as
      only one place is left, the next row of any label takes it. So even where the count is a multiple of the number
      of labels, they may differ by two rows. With 32 rows of three labels the authors' code stops at 30; here the next
      rows of any label fill all places. Scores from 0 to 5 are rounded to a tenth and count as two labels, up to 2.5
      and above. Rows come in the order they were drawn.

    Args:
        rows: training rows; labels are class indices or scores. For the authors' draw, in the order of `split`.
        count: how many to draw.
        classes: the labels' names; none or one: rows are drawn whatever their label.
        seed: draws the rows.
        regression: labels are scores.
        protocol: a key of `FEW_SHOT`.

    Raises:
        SoftPromptError: unknown way, the count is below 1, a label is out of range, or there are too few rows.
    """
    if protocol not in FEW_SHOT:
        raise SoftPromptError(f"unknown few-shot protocol '{protocol}': {nearest(protocol, FEW_SHOT)}")
    evenly = protocol == "even"
    require_whole("few_shot", "the number of rows", count, 1)
    if not evenly:  # NumPy takes no other seed
        require_whole("few-shot", "the seed", seed, 0)
    names = ["low scores", "high scores"] if regression else list(classes) if len(classes) > 1 else ["any"]
    if count < len(names):
        what = "halves of the scores" if regression else "labels"
        raise SoftPromptError(
            f"few_shot={count} is less than a row for each of {len(names)} {what}: give at least {len(names)}"
        )
    if regression and rows:
        labels = _halves_of_scores([float(row.label) for row in rows], evenly)
    else:
        labels = _labels(rows, names)
    chosen = (_drawn_evenly if evenly else _drawn_as_dept)(labels, count, len(names), seed)
    if len(chosen) < count:
        taken = Counter(labels[index] for index in chosen)
        raise SoftPromptError(_too_few(protocol, count, names, taken, len(rows)))
    return _taken(rows, sorted(chosen) if evenly else chosen)


def _drawn_evenly(labels: Sequence[int], count: int, classes: int, seed: int) -> list[int]:
    order = list(range(len(labels)))
    random.Random(f"few shot {seed}").shuffle(order)
    each, more = divmod(count, classes)
    taken: Counter[int] = Counter()
    chosen = []
    for index in order:
        label = labels[index]
        if taken[label] == each and more:
            more -= 1
        elif taken[label] >= each:
            continue
        taken[label] += 1
        chosen.append(index)
    return chosen


def _drawn_as_dept(labels: Sequence[int], count: int, classes: int, seed: int) -> list[int]:
    each, more = divmod(count, classes)
    free_from = count - max(more, 1)
    taken: Counter[int] = Counter()
    chosen: list[int] = []
    passed_over = []
    for index in _numpy_order(len(labels), seed):
        if len(chosen) == count:
            break
        if taken[labels[index]] < each or len(chosen) >= free_from:
            taken[labels[index]] += 1
            chosen.append(index)
        else:
            passed_over.append(index)
    if len(chosen) >= free_from:  # places left at the end of the data go to the rows passed over
        chosen += passed_over[: count - len(chosen)]
    return chosen


def digest(rows: Sequence[Any]) -> str:
    """sha256 over all that is in the rows, in their order: equal for the same rows on every machine."""
    total = hashlib.sha256()
    for row in rows:
        total.update(json.dumps(vars(row), sort_keys=True, default=_plain).encode() + b"\n")
    return total.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a row holds {value!r}, which is no plain value")


def _torch_order(count: int, seed: int) -> list[int]:
    import torch

    generator = torch.Generator(device="cpu").manual_seed(seed)
    order: list[int] = torch.randperm(count, generator=generator, device="cpu").tolist()
    return order


def _numpy_order(count: int, seed: int) -> list[int]:
    """The order that ``shuffle(seed)`` of the library "datasets" gives."""
    import numpy as np

    order: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return order


def _halves_of_scores(scores: Sequence[float], evenly: bool) -> list[int]:
    """Labels of scores: 0 for low ones and 1 for high ones."""
    import numpy as np

    middle = (min(scores) + max(scores)) / 2 if evenly else _MIDDLE_SCORE
    return [int(score > middle) for score in (scores if evenly else np.round(np.array(scores), 1))]


def _labels(rows: Sequence[Example], names: Sequence[str]) -> list[int]:
    if len(names) == 1:
        return [0] * len(rows)
    for row in rows:
        if isinstance(row.label, bool) or not isinstance(row.label, int) or not 0 <= row.label < len(names):
            raise SoftPromptError(f"few-shot: row {row.id!r}: label {row.label!r} is not 0 to {len(names) - 1}")
    return [row.label for row in rows]


def _too_few(protocol: str, count: int, names: Sequence[str], taken: Mapping[int, int], rows: int) -> str:
    each, more = divmod(count, len(names))
    short = [label for label in range(len(names)) if taken[label] < each]
    have = f"'{names[short[0]]}' has {taken[short[0]]}" if short and len(names) > 1 else f"there are {rows}"
    wanted = f"{each} training rows" + (f" of each of {len(names)} labels" if len(names) > 1 else "")
    way = "" if protocol == "even" else f" (protocol {protocol})"
    more_of = f" and {more} more" if more else ""
    return f"few_shot={count}{way} wants {wanted}{more_of}, but {have}"
