"""Which rows are trained on, chosen by and reported: the papers' ways of cutting up the official splits.

Test labels of GLUE and SuperGLUE are hidden, so each group of papers makes a test split of its own from what is left.
Scores of different protocols are not comparable. All cuts follow the authors' code and their random generators.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from softprompts.errors import SoftPromptError, nearest, require_whole

PROTOCOLS = {
    "official": "the official splits as they are; no test split where its labels are hidden",
    "smop": "official validation is the test split, the last tenth of each class of train is validation",
    "dept": "halves of the official validation, or for large data sets 1,000 training rows for validation",
    "residual": "halves of the official validation as validation and test",
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
_LARGE |= {"newsqa", "searchqa", "triviaqa", "nq", "hotpotqa"}


class Row(Protocol):
    """What a row must have; a ``group`` (rows that are scored together) is used where it is there."""

    @property
    def label(self) -> Any:
        """A class index, a score, or anything else where there are no classes."""

    @property
    def id(self) -> Any:
        """Names the row in its source."""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Splits(Generic[R]):
    """Rows of one protocol.

    Attributes:
        train: rows to train on.
        validation: rows to choose by.
        test: rows to report; empty if there are none with labels.
        protocol: a key of `PROTOCOLS`.
    """

    train: list[R]
    validation: list[R]
    test: list[R]
    protocol: str = "official"

    def record(self) -> dict[str, Any]:
        """For the run folder: the protocol, and the number and `digest` of the rows of each split."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "protocol": self.protocol,
            **{name: {"rows": len(rows), "sha256": digest(rows)} for name, rows in parts.items()},
        }


def split(
    protocol: str,
    name: str,
    train: Sequence[R],
    validation: Sequence[R],
    test: Sequence[R] = (),
    *,
    kind: str = "classification",
    mismatched: Sequence[R] = (),
    small: bool | None = None,
    whole_groups: bool = False,
) -> Splits[R]:
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
      data set that is on no list of the paper and has a test split keeps its splits.
    - "residual" (Residual Prompt Tuning): the shuffled official validation is halved, that of MultiRC in the order of
      the file. A test split that is given is left out.

    Training rows of "smop" stay in the order of the file, all else that is drawn is in the order of the draw.

    Args:
        protocol: a key of `PROTOCOLS`.
        name: of the task, with or without its benchmark: "super_glue/rte" or "rte".
        train: the official training rows.
        validation: the official validation rows (of MNLI the matched ones).
        test: the official test rows if they have labels.
        kind: "regression" where labels are scores; of the other kinds those with whole numbers for labels have classes.
        mismatched: the mismatched validation rows of MNLI.
        small: for "dept": whether the data set counts as small; None: by the paper's lists of names, and for others
            whether there are fewer than 10,000 training rows.
        whole_groups: draw groups of rows in place of rows, for a data set whose rows became several here (ReCoRD: one
            for each entity of a query). Sizes are counted in groups then, and there are no classes.

    Raises:
        SoftPromptError: unknown protocol, too few rows in a class or a split, or an empty split.
    """
    if protocol not in PROTOCOLS:
        raise SoftPromptError(f"unknown protocol '{protocol}': {nearest(protocol, PROTOCOLS)}")
    owner = f"task '{name}', protocol '{protocol}'"
    for part, rows in (("train", train), ("validation", validation)):
        if not rows:
            raise SoftPromptError(f"{owner}: there are no {part} rows to split")
    if protocol == "official":
        parts = (list(train), list(validation), list(test))
    elif protocol == "smop":
        parts = (*_smop(owner, train, kind, whole_groups), list(validation))
    elif protocol == "dept":
        parts = _dept(owner, _short_name(name), train, validation, test, mismatched, small, whole_groups)
    else:
        parts = (list(train), *_residual(owner, _short_name(name), validation, whole_groups))
    return Splits(*parts, protocol=protocol)


def _smop(owner: str, train: Sequence[R], kind: str, whole_groups: bool) -> tuple[list[R], list[R]]:
    units = _units(train, whole_groups)
    share, whole = (8, 9) if kind == "regression" else (9, 10)
    classes = [None if whole_groups or kind == "regression" else _class(unit[0]) for unit in units]
    sizes = Counter(classes)
    for name, size in sizes.items():
        if size < 2:
            what = "there is 1 training row" if name is None else f"label {name!r} has 1 training row"
            raise SoftPromptError(f"{owner}: {what}, it takes 2: one to train on and one for validation")
    seen: Counter[Hashable] = Counter()
    parts: tuple[list[R], list[R]] = ([], [])
    for unit, name in zip(units, classes, strict=True):
        parts[seen[name] >= sizes[name] * share // whole].extend(unit)
        seen[name] += 1
    return parts


def _dept(
    owner: str,
    name: str,
    train: Sequence[R],
    validation: Sequence[R],
    test: Sequence[R],
    mismatched: Sequence[R],
    small: bool | None,
    whole_groups: bool,
) -> tuple[list[R], list[R], list[R]]:
    if name == "mnli" and mismatched:
        return list(train), list(mismatched), list(validation)
    if small is None and test and name not in _SMALL | _LARGE | {"mnli"}:
        return list(train), list(validation), list(test)
    if small is None:
        small = name in _SMALL or (name not in _LARGE and name != "mnli" and len(train) < SMALL_ROWS)
    if small:
        units = _units(validation, whole_groups)
        return list(train), *_halves(owner, units, _torch_order(len(units), _DEPT_SEED))
    units = _units(train, whole_groups)
    if len(units) <= _HELD_OUT:
        raise SoftPromptError(
            f"{owner}: {_HELD_OUT} training rows become validation, but there are {len(units)}: "
            "use another protocol, or small=True"
        )
    order = _torch_order(len(units), _DEPT_SEED)
    held, kept = order[:_HELD_OUT], order[_HELD_OUT:]
    return _flat(units, kept), _flat(units, held), list(test or validation)


def _residual(owner: str, name: str, validation: Sequence[R], whole_groups: bool) -> tuple[list[R], list[R]]:
    units = _units(validation, whole_groups)
    order = list(range(len(units))) if name == "multirc" else _numpy_order(len(units), _RESIDUAL_SEED)
    return _halves(owner, units, order)


def _halves(owner: str, units: Sequence[list[R]], order: Sequence[int]) -> tuple[list[R], list[R]]:
    middle = len(units) // 2
    if middle < 1:
        raise SoftPromptError(f"{owner}: the official validation has 1 row, too few to halve; use another protocol")
    return _flat(units, order[:middle]), _flat(units, order[middle:])


def few_shot(
    rows: Sequence[R],
    count: int,
    classes: int | Sequence[str],
    seed: int = 0,
    *,
    regression: bool = False,
    protocol: str = "even",
) -> list[R]:
    """Draws ``count`` training rows in all, by one of two ways.

    - "even": of the shuffled rows the first ``count // classes`` of each label and, for what is left to ``count``, one
      more of as many labels. Scores count as two labels, below and above the middle of their range.
    - "dept": see `dept_few_shot`.

    Args:
        rows: training rows; labels are class indices or scores.
        count: how many to draw; more than there are labels of each kind is an error.
        classes: the number of labels or their names; 0 or 1: rows are drawn whatever their label.
        seed: draws the rows.
        regression: labels are scores.
        protocol: a key of `FEW_SHOT`.

    Raises:
        SoftPromptError: unknown way, the count is below 1, a label is out of range, or there are too few rows.
    """
    if protocol not in FEW_SHOT:
        raise SoftPromptError(f"unknown few-shot protocol '{protocol}': {nearest(protocol, FEW_SHOT)}")
    if protocol == "dept":
        return dept_few_shot(rows, count, classes, seed, regression)
    require_whole("few_shot", "the number of rows", count, 1)
    names = _label_names(classes, regression)
    if regression and rows:
        scores = [float(row.label) for row in rows]
        middle = (min(scores) + max(scores)) / 2
        labels = [int(score > middle) for score in scores]
    else:
        labels = _labels(rows, names)
    order = list(range(len(rows)))
    random.Random(f"few shot {seed}").shuffle(order)
    each, more = divmod(count, len(names))
    taken: Counter[int] = Counter()
    extra = 0
    chosen = []
    for index in order:
        label = labels[index]
        if taken[label] == each and extra < more:
            extra += 1
        elif taken[label] >= each:
            continue
        taken[label] += 1
        chosen.append(index)
    _check_few("even", count, names, taken, len(rows), len(chosen))
    return [rows[index] for index in sorted(chosen)]


def dept_few_shot(
    rows: Sequence[R], k: int, classes: int | Sequence[str], seed: int = 0, regression: bool = False
) -> list[R]:
    """Draws k training rows in all as DePT and EPT do (their k is 4, 16 or 32).

    Of the rows, shuffled by the run's seed, the first ``k // classes`` of each label are taken, but as soon as only one
    place is left, the next row of any label takes it. So even where k is a multiple of the number of labels, they may
    differ by two rows. With k = 32 of three labels the authors' code stops at 30; here the next rows of any label fill
    all places. Scores are rounded to a tenth and count as two labels, up to 2.5 and above.

    Args:
        rows: training rows, for the authors' draw in the order of `split`.
        k: how many to draw.
        classes: the number of labels or their names; 0 or 1: rows are drawn whatever their label.
        seed: the run's seed.
        regression: labels are scores from 0 to 5.

    Returns:
        Rows in the order they were drawn.

    Raises:
        SoftPromptError: k is below 1, the seed below 0, a label is out of range, or there are too few rows.
    """
    require_whole("few_shot", "the number of rows", k, 1)
    require_whole("few-shot", "the seed", seed, 0)
    names = _label_names(classes, regression)
    if regression:
        import numpy as np

        scores = np.round(np.array([float(row.label) for row in rows]), 1)
        labels = [int(score > _MIDDLE_SCORE) for score in scores]
    else:
        labels = _labels(rows, names)
    each, more = divmod(k, len(names))
    free_from = k - max(more, 1)
    taken: Counter[int] = Counter()
    chosen: list[int] = []
    order = _numpy_order(len(rows), seed)
    passed = []
    for index in order:
        if len(chosen) == k:
            break
        if taken[labels[index]] < each or len(chosen) >= free_from:
            taken[labels[index]] += 1
            chosen.append(index)
        else:
            passed.append(index)
    if len(chosen) >= free_from:  # places left at the end of the data go to the rows passed over
        chosen += passed[: k - len(chosen)]
    _check_few("dept", k, names, taken, len(rows), len(chosen))
    return [rows[index] for index in chosen]


def digest(rows: Sequence[Any]) -> str:
    """sha256 over all that is in the rows, in their order: equal for the same rows on every machine."""
    total = hashlib.sha256()
    for row in rows:
        names = (
            [field.name for field in dataclasses.fields(row)] if dataclasses.is_dataclass(row) else sorted(vars(row))
        )
        line = json.dumps({name: getattr(row, name) for name in names}, sort_keys=True, default=_plain)
        total.update(line.encode() + b"\n")
    return total.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a row holds {value!r}, which is no plain value")


def _short_name(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _class(row: Row) -> Hashable:
    return row.label if isinstance(row.label, int) else None


def _units(rows: Sequence[R], whole_groups: bool) -> list[list[R]]:
    if not whole_groups:
        return [[row] for row in rows]
    units: dict[Hashable, list[R]] = {}
    for index, row in enumerate(rows):
        group = getattr(row, "group", None)
        units.setdefault(("row", index) if group is None else ("group", group), []).append(row)
    return list(units.values())


def _flat(units: Sequence[list[R]], order: Sequence[int]) -> list[R]:
    return [row for index in order for row in units[index]]


def _torch_order(count: int, seed: int) -> list[int]:
    import torch  # here: a second, and most splits need none of it

    generator = torch.Generator(device="cpu").manual_seed(seed)
    order: list[int] = torch.randperm(count, generator=generator, device="cpu").tolist()
    return order


def _numpy_order(count: int, seed: int) -> list[int]:
    """As ``shuffle(seed)`` of the library "datasets"."""
    import numpy as np

    order: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return order


def _label_names(classes: int | Sequence[str], regression: bool) -> list[str]:
    if regression:
        return ["low scores", "high scores"]
    names = [str(index) for index in range(classes)] if isinstance(classes, int) else list(classes)
    return names if len(names) > 1 else ["any"]


def _labels(rows: Sequence[Row], names: Sequence[str]) -> list[int]:
    if len(names) == 1:
        return [0] * len(rows)
    for row in rows:
        if isinstance(row.label, bool) or not isinstance(row.label, int) or not 0 <= row.label < len(names):
            raise SoftPromptError(f"few-shot: row {row.id!r}: label {row.label!r} is not 0 to {len(names) - 1}")
    return [row.label for row in rows]


def _check_few(protocol: str, count: int, names: Sequence[str], taken: Counter[int], rows: int, found: int) -> None:
    if found == count:
        return
    each, more = divmod(count, len(names))
    short = [label for label in range(len(names)) if taken[label] < each]
    where = f"'{names[short[0]]}' has {taken[short[0]]}" if short and len(names) > 1 else f"there are {rows}"
    wanted = f"{each} training rows of each of {len(names)} labels" if len(names) > 1 else f"{each} training rows"
    way = "" if protocol == "even" else f" (protocol {protocol})"
    more_of = f" and {more} more" if more else ""
    raise SoftPromptError(f"few_shot={count}{way} wants {wanted}{more_of}, but {where}")
