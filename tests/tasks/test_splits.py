from __future__ import annotations

import gzip
import json
import random
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import warm

from softprompts.errors import SoftPromptError
from softprompts.tasks import Form, Task
from softprompts.tasks.example import Example
from softprompts.tasks.splits import FEW_SHOT, PROTOCOLS, Splits, digest, few_shot, split


@dataclass(frozen=True)
class Plain:
    id: int
    label: Any = 0
    group = None  # no field

    @property
    def fields(self) -> Any:
        return {"text": f"row {self.id}"}


@dataclass(frozen=True)
class Grouped(Plain):
    group: str | None = None
    fields: Any = None


def rows(labels: Any, start: int = 0) -> list[Plain]:
    return [Plain(start + index, label) for index, label in enumerate(labels)]


def ids(part: list[Plain]) -> list[int]:
    return [row.id for row in part]


TRAIN, VALIDATION, TEST = rows([0, 1] * 60), rows([0, 1] * 10, 1000), rows([1, 0] * 5, 2000)


def test_official_changes_nothing() -> None:
    parts = split("official", "x", TRAIN, VALIDATION, TEST)
    assert parts == Splits(TRAIN, VALIDATION, TEST)
    assert split("official", "x", TRAIN, VALIDATION).test == []


def test_smop_holds_out_the_end_of_each_class() -> None:
    train = rows([0] * 7 + [1] * 20 + [0] * 13 + [2] * 2)
    parts = split("smop", "cb", train, VALIDATION, TEST)
    # 20, 20 and 2 rows: 18, 18 and 1 stay. The class 0 has its last rows before those of class 2.
    assert ids(parts.validation) == [25, 26, 38, 39, 41]
    assert sorted(ids(parts.train + parts.validation)) == ids(train) and ids(parts.train) == sorted(ids(parts.train))
    assert parts.test == VALIDATION


@pytest.mark.parametrize("size", [2, 8, 9, 10, 11, 19, 100])
def test_smop_rounds_down(size: int) -> None:
    assert len(split("smop", "x", rows([1] * size), VALIDATION).train) == size * 9 // 10
    scores = [index / 7 for index in range(size)]
    parts = split("smop", "stsb", rows(scores), VALIDATION, kind="regression")
    assert ids(parts.train) == list(range(size * 8 // 9)) and len(parts.train + parts.validation) == size
    whole = split("smop", "stsb", rows([1] * size), VALIDATION, kind="regression")  # scores that happen to be whole
    assert len(whole.train) == size * 8 // 9


@pytest.mark.parametrize("label", [(0, 1, 2), None, 0.5])
def test_smop_without_classes(label: Any) -> None:
    assert ids(split("smop", "ner", rows([label] * 21), VALIDATION, kind="tagging").validation) == [18, 19, 20]


# Sizes as the EPT paper gives them, of data sets whose sizes on the hub are known.
PAPER = {
    "glue/mnli": (392702, 9815, (392702, 9832, 9815)),
    "glue/qnli": (104743, 5463, (103743, 1000, 5463)),
    "glue/mrpc": (3668, 408, (3668, 204, 204)),
    "glue/stsb": (5749, 1500, (5749, 750, 750)),
    "glue/sst2": (67349, 872, (66349, 1000, 872)),
    "glue/cola": (8551, 1043, (8551, 521, 522)),
    "glue/rte": (2490, 277, (2490, 138, 139)),
    "super_glue/multirc": (27243, 4848, (27243, 2424, 2424)),
    "super_glue/wic": (5428, 638, (5428, 319, 319)),
    "super_glue/wsc": (554, 104, (554, 52, 52)),
    "super_glue/boolq": (9427, 3270, (9427, 1635, 1635)),
    "super_glue/cb": (250, 56, (250, 28, 28)),
}


@pytest.mark.parametrize("name", PAPER)
def test_dept_has_the_sizes_of_the_paper(name: str) -> None:
    train, validation, wanted = PAPER[name]
    other = [Plain(-1)] * 9832 if name == "glue/mnli" else []
    for shown in (name, name.split("/")[1]):
        parts = split("dept", shown, [Plain(0)] * train, [Plain(1)] * validation, mismatched=other)
        assert (len(parts.train), len(parts.validation), len(parts.test)) == wanted


def test_dept_small() -> None:
    parts = split("dept", "glue/rte", TRAIN, rows([0] * 10))
    # torch.randperm(10) of a generator with seed 42
    assert ids(parts.validation) == [2, 6, 1, 8, 4] and ids(parts.test) == [5, 0, 9, 3, 7]
    assert parts.train == TRAIN
    assert split("dept", "scitail", TRAIN, VALIDATION, TEST).test != TEST


def test_dept_large() -> None:
    train = rows([0, 1] * 1050)
    parts = split("dept", "glue/sst2", train, VALIDATION)
    assert parts.test == VALIDATION and (len(parts.train), len(parts.validation)) == (1100, 1000)
    assert sorted(ids(parts.train + parts.validation)) == ids(train) and ids(parts.validation) != ids(train[:1000])
    assert parts == split("dept", "mnli", train, VALIDATION)
    assert split("dept", "snli", train, VALIDATION, TEST).test == TEST


def test_dept_decides_by_size_where_there_is_no_name() -> None:
    small, large = [Plain(0)] * 9999, [Plain(0)] * 10000
    assert len(split("dept", "mine", small, VALIDATION).validation) == 10
    assert len(split("dept", "mine", large, VALIDATION).validation) == 1000
    assert split("dept", "mine", large, VALIDATION, TEST) == Splits(large, VALIDATION, TEST)


def test_dept_mnli() -> None:
    parts = split("dept", "glue/mnli", TRAIN, VALIDATION, mismatched=TEST)
    assert parts == Splits(TRAIN, TEST, VALIDATION)


def test_residual() -> None:
    parts = split("residual", "rte", TRAIN, rows([0] * 10), TEST)
    # numpy.random.default_rng(0).permutation(10)
    assert ids(parts.validation) == [4, 6, 2, 7, 3] and ids(parts.test) == [5, 9, 0, 8, 1]
    parts = split("residual", "super_glue/multirc", TRAIN, rows([0] * 11))
    assert ids(parts.validation) == list(range(5)) and ids(parts.test) == list(range(5, 11))


def sentences(*texts: str | tuple[str, str], group: str | None = None) -> list[Example]:
    pairs = [(text,) if isinstance(text, str) else text for text in texts]
    return [Example(dict(zip("ab", pair, strict=False)), 0, index, group=group) for index, pair in enumerate(pairs)]


def test_halves_leaves_out_training_rows_that_overlap_with_validation_rows() -> None:
    train = sentences("fine", "a FINE  film", "in", "fin", "it 's a fine film , really", "a film", "dull")
    validation = sentences("it 's a fine film", "in vain", "long", "short")
    parts = split("halves", "sst2", train, validation)
    assert [row.text for row in parts.train] == ["fin", "a film", "dull"]
    assert [row.id for row in parts.validation + parts.test] == np.random.default_rng(0).permutation(4).tolist()
    assert len(parts.validation) == len(parts.test) == 2
    assert split("halves", "reviews", train, validation, TEST) == Splits(train, validation, TEST)


def test_halves_of_pairs_overlap_in_both_texts_of_one_row() -> None:
    train = sentences(("who", "he did"), ("who", "they did"), ("when", "then"), ("who was it", "he did it then"))
    validation = sentences(("who was it", "he did it"), ("why", "they did"))
    assert [row.id for row in split("halves", "qnli", train, validation).train] == [1, 2]


def test_halves_keeps_groups_whole() -> None:
    validation = [row for name in "uvwxyz" for row in sentences("a", "b", "c", group=name)]
    parts = split("halves", "multirc", sentences("d"), validation)
    groups = [{row.group for row in part} for part in parts[1:]]
    assert not groups[0] & groups[1] and list(map(len, groups)) == [3, 3] and len(parts.validation) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("smopp", "x", TRAIN, VALIDATION), "unknown protocol 'smopp': did you mean 'smop'?"),
        (("dept", "rte", [], VALIDATION), "task 'rte', protocol 'dept': there are no train rows"),
        (("official", "rte", TRAIN, []), "there are no validation rows"),
        (("dept", "rte", TRAIN, VALIDATION[:1]), "the official validation has 1 row, too few to halve"),
        (("residual", "rte", TRAIN, VALIDATION[:1]), "the official validation has 1 row, too few to halve"),
        (("dept", "sst2", TRAIN, VALIDATION), "1000 training rows become validation, but there are 120"),
        (("smop", "cb", rows([0] * 9 + [2]), VALIDATION), "label 2 has 1 training row, it takes 2"),
        (("smop", "cb", rows([None]), VALIDATION), "there is 1 training row, it takes 2"),
    ],
)
def test_what_cannot_be_split(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SoftPromptError) as error:
        split(*arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_row_is_lost_or_used_twice(protocol: str) -> None:
    train, validation = rows([0, 1, 1] * 500), rows([0, 1, 0] * 11, 5000)
    parts = split(protocol, "sst2", train, validation)
    assert sorted(ids(parts.train + parts.validation + parts.test)) == ids(train + validation)
    assert parts == split(protocol, "sst2", train, validation)


def test_record_and_digest() -> None:
    record = Task("x", Form(), TRAIN, VALIDATION).under("smop").record()
    assert json.loads(json.dumps(record)) == record
    assert record["protocol"] == "smop" and record["test"] == {"rows": 20, "sha256": digest(VALIDATION)}
    assert (record["train"]["rows"], record["validation"]["rows"]) == (108, 12)
    row = Grouped(1, (1, 2), "g", {"b": "x", "a": "y"})
    others = [replace(row, id=2), replace(row, label=(2, 1)), replace(row, group=None), replace(row, fields={"a": "y"})]
    assert digest([row]) == digest([replace(row, fields={"a": "y", "b": "x"})])
    digests = [digest(part) for part in ([], [row], [row, row], *([other] for other in others))]
    assert len(set(digests)) == len(digests)
    assert digest([row, others[0]]) != digest([others[0], row])


def test_the_same_in_another_process() -> None:
    code = (
        "from softprompts.tasks.splits import *\n"
        "from tests.tasks.test_splits import TRAIN, VALIDATION, dept_few_shot\n"
        "parts = [split(name, 'rte', TRAIN, VALIDATION) for name in PROTOCOLS]\n"
        "print(*[digest(p.train + p.validation + p.test) for p in parts], digest(dept_few_shot(TRAIN, 16, 2, 3)))\n"
    )
    done = warm.run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    parts = [split(name, "rte", TRAIN, VALIDATION) for name in PROTOCOLS]
    here = [digest(part.train + part.validation + part.test) for part in parts]
    assert done.stdout.split() == [*here, digest(dept_few_shot(TRAIN, 16, 2, 3))]


def test_multirc_questions_that_smop_parts(data_dir: Path) -> None:
    with gzip.open(data_dir / "super_glue/multirc/train.jsonl.gz", "rt", encoding="utf-8") as file:
        data = [json.loads(line) for line in file]
    made = [
        Grouped(i, row["label"], f"{row['idx']['paragraph']}-{row['idx']['question']}") for i, row in enumerate(data)
    ]
    parts = split("smop", "multirc", made, VALIDATION)
    assert len(parts.validation) == sum(-(-size // 10) for size in Counter(row.label for row in made).values())
    torn = {row.group for row in parts.train} & {row.group for row in parts.validation}
    assert 0 < len(torn) < 0.02 * len({row.group for row in made})


def dept_few_shot(rows: list[Plain], count: int, classes: int, seed: int, **more: Any) -> list[Plain]:
    return few_shot(rows, count, names(classes), seed, protocol="dept", **more)


def names(classes: int) -> list[str]:
    return [str(index) for index in range(classes)]


def labelled(counts: dict[int, int]) -> list[Plain]:
    return rows([label for label, size in counts.items() for _ in range(size)])


def test_even_draws_stay_what_they_were() -> None:
    made = labelled({0: 30, 1: 5, 2: 60})
    drawn = {
        (4, 0): [0, 32, 45, 55],
        (8, 1): [6, 9, 21, 31, 32, 68, 71, 77],
        (9, 2): [12, 22, 25, 30, 32, 34, 37, 55, 90],
    }
    for (count, seed), wanted in drawn.items():
        assert ids(few_shot(made, count, ("a", "b", "c"), seed)) == wanted
    assert ids(few_shot(labelled({0: 10, 1: 10, 5: 3}), 6, (), regression=True)) == [6, 12, 13, 20, 21, 22]


@pytest.mark.parametrize("protocol", FEW_SHOT)
def test_few_shot_draws_as_many_as_asked(protocol: str) -> None:
    for classes in (1, 2, 3, 5):
        made = rows([index * index % classes for index in range(80)])
        made = made + labelled(dict.fromkeys(range(classes), 40))
        for count in (count for count in (1, 2, 4, 5, 16, 32) if count >= classes):
            few = few_shot(made, count, names(classes), 7, protocol=protocol)
            assert len(few) == count
            per_label = Counter(row.label for row in few)
            if classes > 1:
                assert min(per_label[label] for label in range(classes)) >= count // classes - (protocol == "dept")
            assert few == few_shot(made, count, names(classes), 7, protocol=protocol)
    assert ids(few_shot(made, 16, names(5), 1, protocol=protocol)) != ids(
        few_shot(made, 16, names(5), 2, protocol=protocol)
    )


def test_dept_few_shot_draw() -> None:
    # numpy.random.default_rng(0).permutation(10) is 4 6 2 7 3 5 9 0 8 1
    order = [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]
    made = [Plain(index, int(order.index(index) >= 5)) for index in range(10)]
    assert ids(dept_few_shot(made, 4, 2, 0)) == [4, 6, 5, 9]
    made = [Plain(index, order.index(index) % 2) for index in range(10)]
    assert ids(dept_few_shot(made, 4, 2, 0)) == [4, 6, 2, 7]
    # the last place is for any label: two of label 0, one of label 1, then a third of label 0
    made = [Plain(index, [0, 1, 0, 0, 1, 1, 1, 1, 1, 1][order.index(index)]) for index in range(10)]
    few = dept_few_shot(made, 4, 2, 0)
    assert ids(few) == [4, 6, 2, 7] and [row.label for row in few] == [0, 1, 0, 0]
    # four of three labels: one each, then the next
    made = [Plain(index, [0, 0, 0, 1, 1, 2, 2, 2, 2, 2][order.index(index)]) for index in range(10)]
    assert ids(dept_few_shot(made, 4, 3, 0)) == [4, 7, 5, 9]


def test_dept_few_shot_fills_all_places() -> None:
    chance = random.Random("labels")
    made = rows([chance.randrange(3) for _ in range(300)])
    counts = sorted(Counter(row.label for row in dept_few_shot(made, 32, 3, 5)).values())
    assert sum(counts) == 32 and counts[0] == 10
    # the free place comes when the data has run out: a row that was passed over takes it
    made = rows([0] * 30 + [1])
    for seed in range(40):
        few = dept_few_shot(made, 4, 2, seed)
        assert len({row.id for row in few}) == 4 and {row.label for row in few} == {0, 1}


def test_dept_scores_are_rounded_before_they_are_halved() -> None:
    made = [Plain(index, score) for index, score in enumerate([2.5, 2.533, 2.6, 5.0])]
    for seed in range(40):
        first, second, _ = ids(dept_few_shot(made, 3, 0, seed, regression=True))
        assert (first < 2) != (second < 2)


@pytest.mark.parametrize(
    ("counts", "count", "protocol", "message"),
    [
        ({0: 9, 1: 9, 2: 1}, 6, "even", "few_shot=6 wants 2 training rows of each of 3 labels"),
        ({0: 9, 1: 9, 2: 1}, 9, "dept", "wants 3 training rows of each of 3 labels, but 'c' has 1"),
        ({0: 2, 1: 2, 2: 2}, 7, "even", "wants 2 training rows of each of 3 labels and 1 more, but there are 6"),
        ({0: 2, 1: 2, 2: 2}, 7, "dept", "wants 2 training rows of each of 3 labels and 1 more, but there are 6"),
        ({0: 2, 1: 2, 2: 2}, 0, "even", "the number of rows must be a whole number of at least 1, not 0"),
        ({0: 2, 1: 2, 2: 2}, True, "dept", "not True"),
        ({0: 2, 3: 2}, 3, "even", "few-shot: row 2: label 3 is not 0 to 2"),
        ({0: 2, 3: 2}, 2, "depth", "unknown few-shot protocol 'depth': did you mean 'dept'?"),
    ],
)
def test_few_shot_errors(counts: dict[int, int], count: int, protocol: str, message: str) -> None:
    with pytest.raises(SoftPromptError) as error:
        few_shot(labelled(counts), count, ("a", "b", "c"), protocol=protocol)
    assert message in str(error.value) and "\n" not in str(error.value)
